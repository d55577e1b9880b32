"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsf.tasks.console import UserError


def require_writable_parent(path: Path) -> None:
    """Refuse an output path early, before any work is done.

    Raises:
        UserError: its directory does not exist or cannot be written.
    """
    if path.parent.exists() and not path.parent.is_dir():
        raise UserError(f"cannot write {path}: {path.parent} is a file, not a directory; choose another place")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the directory {path.parent} does not exist; create it first")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: no permission to write in {path.parent}; choose another place")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` at the end, removed if anything fails."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, values: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")

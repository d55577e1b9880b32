"""The results store: JSON lines, one per finished cell, appended whole, never twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsf.shell.errors import UserError

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """All results; none where there is no store. Half a line at the end (a power cut, or somebody is writing) is none.

    Raises:
        UserError: a line is none of ours.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    whole = text[: text.rfind("\n") + 1]
    return [_line(row, number, path) for number, row in enumerate(whole.splitlines(), 1) if row.strip()]


def _line(row: str, number: int, path: Path) -> Line:
    try:
        line: Line = json.loads(row)
        if {"key", "place", "returns", "seed", "score", "dataset", "energy", "code"} <= line.keys():
            return line
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}, line {number} is no result of dsf-bench sweep: remove it")


def append_once(path: Path, line: Line) -> bool:
    """Append a result unless its key is there; returns whether it was appended.

    One write under a lock, flushed to the disk; half a line that a power cut left behind is cut off first.

    Raises:
        OSError: the store cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file, locked(file.fileno()):
        _drop_half_line(file.fileno())
        if any(known["key"] == line["key"] for known in read_lines(path)):
            return False
        os.write(file.fileno(), (json.dumps(line, sort_keys=True) + "\n").encode())
        os.fsync(file.fileno())
    return True


def _drop_half_line(handle: int) -> None:
    size = os.fstat(handle).st_size
    content = os.pread(handle, size, 0)
    if content and not content.endswith(b"\n"):
        os.ftruncate(handle, content.rfind(b"\n") + 1)


@contextlib.contextmanager
def locked(handle: int) -> Iterator[None]:
    """The only one with this file, over all processes that ask."""
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)

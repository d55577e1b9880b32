"""Where a user's own files are. A user may have no home: containers run as numbers that no list of users knows."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path | None:
    """The home directory, if there is one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def expanded(path: str) -> str:
    """A path that a variable holds, with the home directory for ``~``, which a shell may have left there."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # nobody has such a home
        return path


def cache_directory() -> Path | None:
    """Where dsf keeps what can be made again: ``$XDG_CACHE_HOME/dsf`` or ``~/.cache/dsf``; None without a home."""
    stated = os.environ.get("XDG_CACHE_HOME")
    if stated:
        return Path(expanded(stated)) / "dsf"
    place = home()
    return None if place is None else place / ".cache" / "dsf"

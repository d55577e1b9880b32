"""Where a user's own files are, and a secret among them by which flat files are known to be the user's own.

A user may have no home: containers run as numbers that no list of users knows. Flat files lie beside their dataset, and
may come with it from anywhere; a checksum anybody can compute. The secret never leaves the user's cache directory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

KEY_NAME = "flat-files.key"
KEY_BYTES = 32
ANYBODY_ELSE = stat.S_IRWXG | stat.S_IRWXO

_of_this_process = secrets.token_bytes(KEY_BYTES)
"""Serves where no key can be kept: what it signs is believed by nobody else, and is made again."""


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


def cache_key() -> bytes:
    """The secret, which is made on first use; where it cannot be kept, one of this process alone."""
    directory = cache_directory()
    if directory is None:
        return _of_this_process
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        path = directory / KEY_NAME
        return _known(path) or _made(path)
    except OSError:
        return _of_this_process


def _known(path: Path) -> bytes | None:
    """The secret in a file, if it is one that only this user can have read or written."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # there is none, or it is a link
        return None
    try:
        found = os.fstat(handle)
        private = found.st_uid == os.geteuid() and not found.st_mode & ANYBODY_ELSE
        if not (stat.S_ISREG(found.st_mode) and private and found.st_size == KEY_BYTES):
            return None
        key = os.read(handle, KEY_BYTES)
        return key if len(key) == KEY_BYTES else None
    finally:
        os.close(handle)


def _made(path: Path) -> bytes:
    """A new secret; of processes that make one at once, all take the first."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        key = secrets.token_bytes(KEY_BYTES)
        with os.fdopen(handle, "wb") as file:
            file.write(key)
        try:
            os.link(temporary, path)
            return key
        except OSError:  # there is one now, or one that is not to be trusted, or links do not exist here
            if (other := _known(path)) is not None:
                return other
        temporary.replace(path)
        return key
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()

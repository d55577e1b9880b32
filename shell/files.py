"""Files that are written whole or not at all, and what is read in their place."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dsf.shell.errors import UserError


def require_writable_parent(path: Path, *inputs: Path) -> None:
    """Refuse an output path early, before any work is done.

    Args:
        path: file to write.
        inputs: files that are read: writing one of them would destroy it.

    Raises:
        UserError: its directory does not exist or cannot be written, or the path is taken by something that is no
            ordinary file, or by an input, or by what this command prints.
    """
    if path.is_symlink():  # what it points to is written
        target = real_path(path)
        if target.is_symlink():
            raise UserError(f"cannot write {path}: it is a link that leads back to itself; choose another name")
        if not target.parent.is_dir():
            raise UserError(f"cannot write {path}: it is a link into {target.parent}, which does not exist")
        path = target
    if path.parent.exists() and not path.parent.is_dir():
        raise UserError(f"cannot write {path}: {path.parent} is a file, not a directory; choose another place")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the directory {path.parent} does not exist; create it first")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file")
    if path.exists() and not path.is_file():  # renaming would replace a device or a pipe by a file
        raise UserError(f"cannot write {path}: it is a device, pipe or socket, not a file; choose another name")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: no permission to write in {path.parent}; choose another place")
    if path.exists() and _is_printed_to(path):
        raise UserError(f"cannot write {path}: what this command prints goes there; name another file")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise UserError(f"cannot write {path}: it is the input {source} itself; choose another name")


def _is_printed_to(path: Path) -> bool:
    """Whether stdout or stderr is this file: replaced, it would lose what is printed."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return True
    return False


def real_path(path: Path) -> Path:
    """The file behind a link, which need not exist; a link that leads back to itself stays one."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def require_plain_file(path: Path, what: str) -> None:
    """Refuse what is no file before it is opened: a pipe would never be open, and a device never end.

    A path where there is nothing is not refused: opening it says so.

    Args:
        path: to be read.
        what: for the message, such as "network file".

    Raises:
        UserError: it is something else.
        OSError: it cannot be looked at.
    """
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "a device, pipe or socket"
        raise UserError(f"cannot read {what} {path}: it is {kind}, not a file; name a file")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` at the end, removed if anything fails.

    Where ``path`` is a link, the file that it points to is replaced, as opening it would write to that. Content and
    name are flushed to the disk, so that a power cut leaves the old file or the new one.

    Raises:
        OSError: naming ``path``; write and fsync themselves name no file.
    """
    target = real_path(path)
    temporary = target.with_name(partial_name(target.name))
    try:
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(target)
        flush_to_disk(target.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def partial_name(name: str) -> str:
    """What a file is called while :func:`replacing` has it written."""
    return f".{name}.partial"


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 under a temporary name, then rename; what is no text in a file's name is written as an escape."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, values: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def write_each(*writing: Callable[[], object]) -> None:
    """Call everything that writes an output, in order: one that fails costs no other. A signal ends it at once.

    Raises:
        Exception: what the first one that failed has raised, once all have been tried.
    """
    failed: list[Exception] = []
    for write in writing:
        try:
            write()
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]

"""A directory that one process at a time writes to."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dsf.shell.errors import UserError

LOCK_NAME = ".in-use"
"""Lies in a directory while somebody holds it, and says who. The kernel lets go of it when the process dies."""


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a directory, which is made if need be, and removed again if nothing but the lock was ever in it.

    Raises:
        UserError: another process holds it; the message says which.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK_NAME
    with _locked(path, directory):
        try:
            yield
        finally:  # while the lock is held, so that nobody else's is removed
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                directory.rmdir()  # of an empty directory only


@contextlib.contextmanager
def _locked(path: Path, directory: Path) -> Iterator[None]:
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = " ".join(file.read().split()) or "another process"
                raise UserError(f"{directory} is in use by {owner}: wait for it, or name another directory") from None
            if not _is_still(file, path):
                continue  # its holder has ended and removed it between our two calls
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            file.flush()
            yield
            return


def _is_still(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

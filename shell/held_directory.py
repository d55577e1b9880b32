"""A directory that one process at a time writes to."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dsf.shell.errors import UserError

LOCK_NAME = ".in-use"
"""Lies in a directory while somebody holds it, and says who. The kernel lets go of it when the process dies."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system answers that has none."""


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a directory. What is missing of it and above it is made, and removed again if nothing was put there.

    A child that was forked meanwhile holds on where its parent has died. Where the file system has no locks, nobody is
    kept out.

    Raises:
        UserError: another process holds it; the message says which.
    """
    made = [place for place in (directory, *directory.parents) if not place.exists()]
    path = directory / LOCK_NAME
    with _locked(path, directory):
        try:
            yield
        finally:  # while the lock is held, so that nobody else's is removed
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: then nothing above it is, either
                for place in made:
                    place.rmdir()


@contextlib.contextmanager
def _locked(path: Path, directory: Path) -> Iterator[None]:
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("a+"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = " ".join(file.read().split()) or "another process"
                raise UserError(f"{directory} is in use by {owner}: wait for it, or name another directory") from None
            except FileNotFoundError:
                continue  # its last holder has removed it between our two calls
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
            if not _is_still(file, path):
                continue
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

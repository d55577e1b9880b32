"""Temporary directories beside what is made in them; what a killed command has left is removed by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dsf.shell.interrupts import interrupts_deferred

YOUNGEST_LEFTOVER_S = 60.0
"""A directory younger than this may be between its making and its lock."""


@contextlib.contextmanager
def temporary_directory(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new directory that is removed at the end with all that it holds, whenever a signal comes.

    Python's own forgets a directory for which a signal arrives before its ``with`` has begun.

    Args:
        prefix: of its name.
        parent: where it is made; None is the system's place for such things.
    """
    made: Path | None = None
    try:
        with interrupts_deferred():
            made = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        yield made
    finally:
        with interrupts_deferred():
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def scratch_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """A new directory whose name begins with ``prefix``, removed at the end.

    Its maker holds a lock on it, which the kernel takes from the dead. Directories of this prefix and machine that
    nobody holds were left by commands that were killed; machines on a shared file system do not see each other's locks.
    """
    own = f"{prefix}{os.uname().nodename}-"
    _remove_leftovers(parent, own)
    with temporary_directory(own, parent) as made:
        handle = os.open(made, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: what is left there stays
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield made
        finally:
            os.close(handle)


def _remove_leftovers(parent: Path, prefix: str) -> None:
    for path in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # somebody else's, or gone by now
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if time.time() - os.fstat(handle).st_mtime > YOUNGEST_LEFTOVER_S:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(handle)

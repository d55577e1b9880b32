"""Child processes that leave no trace: none outlives this one, and how they are started binds nobody else."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

PR_SET_PDEATHSIG = 1
STDERR = 2


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent is gone, where the kernel can (Linux); call it in the child.

    The kernel looks at the thread that started the child: start children from a thread that lives as long as they.

    Args:
        parent: its process number, where it can have died before this call: this process ends then at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


AUTOGROUP = Path("/proc/self/autogroup")
"""Linux shares processors between sessions first; niceness counts within one (sched(7), "The autogroup feature")."""


def keep_niceness() -> None:
    """Give this process's session the niceness that the process has; call it in one that leads a session of its own.

    Without it, ``nice`` before a command means nothing to the sessions that the command starts.
    """
    if niceness := os.nice(0):
        with contextlib.suppress(OSError):  # another system, or a kernel without it: nice works as it is
            AUTOGROUP.write_text(str(niceness))


@contextlib.contextmanager
def start_method_kept() -> Iterator[None]:
    """Start processes in the block only: it fixes how this one starts others for ever, and Lava's import would fail."""
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def start_quiet_resource_tracker() -> None:
    """Start Python's resource tracker before others do, without stderr: it would complain about what it cleans up.

    It ignores Ctrl-C and SIGTERM by itself; the other signals of a terminal must not end it either. They are blocked
    there for good, and here until it has started.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGQUIT})
    stderr = os.dup(STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STDERR)
        resource_tracker.ensure_running()
    finally:
        os.dup2(stderr, STDERR)
        os.close(stderr)
        os.close(nowhere)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

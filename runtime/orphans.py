"""What keeps child processes from outliving this one, whatever ends it."""

from __future__ import annotations

import ctypes
import os
import signal
from multiprocessing import resource_tracker

PR_SET_PDEATHSIG = 1
STDERR = 2


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone; call it in the child.

    The kernel looks at the thread that started the child: start children from a thread that lives as long as they.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


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

"""What keeps child processes from outliving this one, whatever ends it."""

from __future__ import annotations

import ctypes
import os
import signal
from multiprocessing import resource_tracker

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone; call it in the child.

    The kernel looks at the thread that started the child: start children from a thread that lives as long as they.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start_quiet_resource_tracker() -> None:
    """Start Python's resource tracker before others do, so that it cleans up after a SIGKILL without a warning."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before

"""What a test or a command may leave behind: processes and shared-memory segments."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path


def shared_memory_segments() -> set[str]:
    """Names of the POSIX shared-memory segments that Python's SharedMemory made, but for those of other programs."""
    others: set[str] = set()
    family = {os.getpid(), *children()}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if int(maps.parent.name) not in family:
            with contextlib.suppress(OSError):
                others |= set(re.findall(r"/dev/shm/(psm_\w+)", maps.read_text()))
    return {segment.name for segment in Path("/dev/shm").glob("psm_*")} - others


def children() -> list[int]:
    """Processes that this one has started, without Python's own resource tracker."""
    found = [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return [child for child in found if "resource_tracker" not in Path(f"/proc/{child}/cmdline").read_text()]

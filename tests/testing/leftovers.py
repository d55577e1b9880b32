"""What a test or a command may leave behind: processes and shared-memory segments."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path


def shared_memory_segments() -> set[str]:
    """Names of the POSIX shared-memory segments that Python's SharedMemory made, but for those of other programs.

    A segment is another program's if a process outside this one's family has mapped it: a second worker of the test
    suite runs Lava, too.
    """
    family = {os.getpid(), *descendants()}
    others: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if int(maps.parent.name) not in family:
            with contextlib.suppress(OSError):
                others |= set(re.findall(r"/dev/shm/(psm_\w+)", maps.read_text()))
    return {segment.name for segment in Path("/dev/shm").glob("psm_*")} - others


def children() -> list[int]:
    """Processes that this one has started, without Python's own resource tracker."""
    return [child for child in children_of(os.getpid()) if not is_resource_tracker(child)]


def descendants() -> list[int]:
    """Every process below this one: its family, but for orphans."""
    found = children_of(os.getpid())
    for process in found:  # grows on the way
        found += children_of(process)
    return found


def children_of(process: int) -> list[int]:
    """What any thread of a process has started; nothing if the process is gone."""
    found: list[int] = []
    for listed in Path(f"/proc/{process}/task").glob("[0-9]*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in listed.read_text().split()]
    return found


def is_resource_tracker(process: int) -> bool:
    """Whether a process is Python's own."""
    with contextlib.suppress(OSError):
        return "resource_tracker" in Path(f"/proc/{process}/cmdline").read_text()
    return False


def marked(variable: str, mark: str) -> list[int]:
    """Process ids of everything that a marked run has started and that is still there.

    Args:
        variable: of the environment, which orphans inherit, too.
        mark: its value in that run.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{variable}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found

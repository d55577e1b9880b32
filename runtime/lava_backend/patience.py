"""Tells a hang from slowness: while Lava hangs nobody computes, and whoever computes may take its time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from dsf.runtime.engines.errors import EngineDied

QUIET_S = 5.0
"""So long without computing is a hang."""
QUIET_CPU_S = 0.05
"""Processor time of everybody together, up to which nobody computes; a machine would have to be shared by a hundred."""
LONGEST_STEP_S = 1.0
"""Between two looks more time passes only if this process, too, was stopped (Ctrl-Z): it does not count."""
WORKING_STATES = "RD"
"""States in /proc of a process that works: running or waiting for a processor, waiting for a disk."""
CLOCK_TICK_S = 0.01
"""Unit of processor times in /proc (USER_HZ, which is 100 on every Linux that Lava runs on)."""


class Patience:
    """Watches one wait, from the thread that waits. Look about ten times a second while there is nothing else to do.

    Args:
        what: a verb for the message, such as "start".
        limit_s: longest wait, even if somebody computes.
    """

    def __init__(self, what: str, limit_s: float) -> None:
        self.what, self.limit_s = what, limit_s
        self.waited_s = self.quiet_s = self.own_cpu_s = self.cpu_when_busy_s = 0.0
        self.looked_at, self.looked_at_cpu_s = time.monotonic(), time.thread_time()

    def look(self, children: Iterable[int]) -> None:
        """Look at the processes with these numbers, and at this thread; without children it cannot wait for anything.

        Raises:
            EngineDied: they hang, or the limit is reached.
        """
        pids, now = list(children), time.monotonic()
        step = min(now - self.looked_at, LONGEST_STEP_S)
        self.own_cpu_s += time.thread_time() - self.looked_at_cpu_s  # without what the looks themselves cost
        working, cpu_s = _activity(pids)
        cpu_s += self.own_cpu_s
        self.waited_s += step
        if working or not pids or cpu_s - self.cpu_when_busy_s > QUIET_CPU_S:
            self.quiet_s, self.cpu_when_busy_s = 0.0, cpu_s
        else:
            self.quiet_s += step
        self.looked_at, self.looked_at_cpu_s = now, time.thread_time()
        if self.quiet_s > QUIET_S:
            raise EngineDied(f"Lava does not {self.what}: none of its processes has computed for {QUIET_S:.0f} s")
        if self.waited_s > self.limit_s:
            raise EngineDied(f"Lava did not {self.what} within {self.limit_s:.0f} s")


def _activity(pids: Iterable[int]) -> tuple[bool, float]:
    """Whether any of the processes runs at this moment, and their processor time so far."""
    working, ticks = False, 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # ended
        working |= fields[0] in WORKING_STATES
        ticks += int(fields[11]) + int(fields[12])
    return working, ticks * CLOCK_TICK_S

"""Owns a Lava runtime's operating-system processes: no hang, no orphan, no shared-memory segment left behind.

Plain Lava waits for ever when a process model raises or dies, and leaves its children running when the parent is
killed. Here every wait polls the children, every way out stops or kills them, and the kernel kills them when the
parent vanishes (Python's resource tracker, which survives, then removes the shared memory).
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing as mp
import os
import signal
import time
from collections.abc import Iterator
from queue import Empty
from types import FrameType, TracebackType
from typing import Any

from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.run_conditions import RunSteps
from lava.magma.runtime.mgmt_token_enums import MGMT_RESPONSE, enum_equal
from threadpoolctl import threadpool_limits

from dsf.runtime.errors import EngineDied
from dsf.runtime.orphans import die_with_parent, start_quiet_resource_tracker

START_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 8.0
RUN_TIMEOUT_PER_TICK_S = 0.1
STOP_TIMEOUT_S = 5.0
POLL_S = 0.1
"""How often a wait looks at the children; an answer wakes it at once."""
REPORT_GRACE_S = 0.3
"""Time for other children to report, once one has failed: the root cause may come second."""

_children_bound = False
_lava_is_starting = False


def bind_children_to_parent() -> None:
    """Make every child that Lava forks die with this process and ignore the terminal's Ctrl-C.

    The kernel ties the signal to the forking thread, so start Lava from the main thread.
    """
    global _children_bound
    if _children_bound:
        return
    _children_bound = True
    start_quiet_resource_tracker()

    def in_child() -> None:
        if not _lava_is_starting:
            return  # somebody else's fork
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    os.register_at_fork(after_in_child=in_child)


@contextlib.contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise EngineDied in the main thread if the block takes too long (Lava's own waits have no timeout)."""

    def expire(_signum: int, _frame: FrameType | None) -> None:
        raise EngineDied(f"Lava did not {what} within {seconds:.0f} s")

    previous, started = signal.signal(signal.SIGALRM, expire), time.monotonic()
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
        if remaining:  # somebody else's alarm, such as a test runner's
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - started), 0.001))


class LavaSupervisor:
    """Context manager around one Lava network; :meth:`run` advances it and never hangs."""

    def __init__(self, network: AbstractProcess, run_config: Any) -> None:
        self.network, self.run_config = network, run_config
        self.healthy = False

    def __enter__(self) -> LavaSupervisor:
        global _lava_is_starting
        bind_children_to_parent()
        root = logging.getLogger()
        handlers = root.handlers[:]
        try:
            # Children inherit the limit: their products are small, and BLAS threads of five processes would fight.
            with time_limit(START_TIMEOUT_S, "start"), threadpool_limits(1, user_api="blas"):
                _lava_is_starting = True
                self.network.create_runtime(self.run_config)
        except BaseException:
            self.kill()
            raise
        finally:
            _lava_is_starting = False
            # Every Lava process adds a handler to the root logger: one message would be printed once per process.
            root.handlers[:] = handlers
        self.healthy = True
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        if not self.healthy or error is not None:
            self.kill()
            return
        try:
            with time_limit(STOP_TIMEOUT_S, "stop"):
                self.network.stop()
        except BaseException:
            self.kill()
            raise
        self.healthy = False

    @property
    def actors(self) -> list[Any]:
        """Lava's child processes."""
        runtime = self.network.runtime
        infrastructure = None if runtime is None else runtime._messaging_infrastructure
        return [] if infrastructure is None else list(infrastructure.actors)

    def run(self, ticks: int) -> None:
        """Advance the network.

        Raises:
            EngineDied: a process model raised or died, or no answer came in time; all children are then gone.
        """
        try:
            runtime = self.network.runtime
            self.network.run(RunSteps(ticks, blocking=False))
            deadline = time.monotonic() + RUN_TIMEOUT_S + RUN_TIMEOUT_PER_TICK_S * ticks
            for port in runtime.service_to_runtime:
                self._await_answer(port, deadline)
                answer = port.recv()
                if not enum_equal(answer, MGMT_RESPONSE.DONE):
                    self._raise_child_failure()
                    raise EngineDied(f"Lava's runtime service answered {answer}")
            runtime._is_running = False
        except BaseException:
            self.kill()
            raise

    def _await_answer(self, port: Any, deadline: float) -> None:
        """Block until ``port`` holds a message, watching the children meanwhile."""
        while True:
            try:
                port._queue.get(timeout=POLL_S, peek=True)
                return
            except Empty:
                if self._failures():
                    self._raise_child_failure()
                if time.monotonic() > deadline:
                    raise EngineDied("Lava gave no answer in time") from None

    def _failures(self) -> list[tuple[int, str]]:
        """(rank, message) of every failed child; a raised exception ranks before a mere death."""
        found = []
        for actor in self.actors:
            if actor._is_done:
                continue
            if actor._exception is None and actor._pconn.poll():
                actor._exception = actor._pconn.recv() or ("ended early", "")
            if actor._exception is not None:
                error = actor._exception[0]
                raised = isinstance(error, BaseException)
                text = f"{type(error).__name__}: {error}" if raised else str(error)
                found.append((0 if raised else 2, f"a Lava process model failed: {text}"))
            elif not actor.is_alive():
                found.append((1, f"Lava child {actor.name} died (exit code {actor.exitcode})"))
        return sorted(found)

    def _raise_child_failure(self) -> None:
        """Raise the root cause, after a moment in which other children may report."""
        time.sleep(REPORT_GRACE_S)
        failures = self._failures()
        if failures:
            raise EngineDied(failures[0][1])

    def kill(self) -> None:
        """Kill all children and release the shared memory; never raises, never waits for Lava."""
        self.healthy = False
        runtime = self.network.runtime
        if runtime is None:
            return
        for actor in self.actors:
            if actor._parent_pid == os.getpid() and not actor._is_done:
                actor.kill()
                mp.Process.join(actor, STOP_TIMEOUT_S)  # Lava's own join takes no timeout
                actor._is_done = True
        infrastructure = runtime._messaging_infrastructure
        if infrastructure is not None and infrastructure._smm is not None:
            with contextlib.suppress(Exception):  # its server may be gone already
                infrastructure._smm.shutdown()
        runtime._is_started = runtime._is_running = False  # keeps Runtime.__del__ from waiting for dead children
        self.network.runtime = None

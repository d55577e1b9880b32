"""Owns a Lava runtime's operating-system processes: no hang, no orphan, no shared memory or file left behind.

Plain Lava waits for ever when a process model raises or dies, and leaves its children running when the parent is
killed. Here every wait watches the children, every way out kills them (the host has all results by then), and the
kernel kills them when the parent vanishes (Python's resource tracker, which survives, then removes the shared memory).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import logging
import multiprocessing.util
import time
from collections.abc import Callable
from multiprocessing import connection
from types import TracebackType
from typing import Any

from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.run_conditions import RunSteps
from lava.magma.runtime.mgmt_token_enums import MGMT_RESPONSE, enum_equal
from threadpoolctl import threadpool_limits

from dsf.runtime.engines.errors import EngineDied
from dsf.runtime.lava_backend.channels import wait_for_message
from dsf.runtime.lava_backend.children import (
    called_every,
    children_bound_to_parent,
    memory_server,
    remove_everything,
    reserve,
)
from dsf.runtime.lava_backend.patience import Patience
from dsf.shell.interrupts import interrupts_deferred

START_LIMIT_S = 60.0
RUN_LIMIT_S = 8.0
RUN_LIMIT_PER_TICK_S = 0.1
POLL_S = 0.1
"""How often a wait looks at the children; an answer wakes it at once."""
REPORT_GRACE_S = 0.3
"""Time for other children to report, once one has failed: the root cause may come second."""

SHORTAGES = {
    errno.ENOSPC: "/dev/shm is full: free it, or enlarge it (docker run --shm-size 64m)",
    errno.EMFILE: "too few file descriptors: raise the limit (ulimit -n)",
    errno.ENFILE: "the machine has no file descriptor left: end other programs",
    errno.EAGAIN: "no further process may start: raise the limit (ulimit -u, pids.max of the container)",
    errno.ENOMEM: "out of memory: end other programs",
}
"""What the system may refuse while Lava starts, and what to do about it."""
NO_THREAD = "can't start new thread"
"""Python's words for EAGAIN where it wants a thread."""
SERVER_DIED = "the process that owns Lava's shared memory died"


class LavaSupervisor:
    """Context manager around one Lava network; :meth:`run` advances it and never hangs."""

    def __init__(self, network: AbstractProcess, run_config: Any) -> None:
        self.network, self.run_config = network, run_config
        self.blas: threadpool_limits | None = None

    def __enter__(self) -> LavaSupervisor:
        """Start all processes.

        Raises:
            EngineDied: the system refused something, a process model failed, or nothing happens; all is gone then.
        """
        atexit.register(self.kill)  # else the interpreter's end would wait for children that nobody stops
        # Children inherit the limit: their products are small, and BLAS threads of five processes would fight. It
        # lasts until they are gone: where threads are scarce, BLAS answers one that it cannot have with SIGINT.
        self.blas = threadpool_limits(1, user_api="blas")
        try:
            self._start()
        except BaseException as error:
            self.kill()
            if (reason := _start_failure(error)) is not None:
                raise EngineDied(reason) from error
            raise
        return self

    def _start(self) -> None:
        root = logging.getLogger()
        handlers = root.handlers[:]
        patience = Patience("start", START_LIMIT_S)
        try:
            with (
                interrupts_deferred() as deliver_interrupt,
                called_every(POLL_S, lambda: self._look_at_start(patience, deliver_interrupt)),
                children_bound_to_parent(),
                # Lava prints the traceback of a model that cannot be built; this class reports it in a line.
                contextlib.redirect_stdout(io.StringIO()),
            ):
                # The memory's server has a socket in a directory of its own, which nobody removes when it is killed; it
                # takes its parent's where there is one, and that goes when this program ends.
                multiprocessing.util.get_temp_dir()
                self.network.create_runtime(self.run_config)
                reserve(self._infrastructure.smm)
        finally:
            # Every Lava process adds a handler to the root logger: one message would be printed once per process.
            root.handlers[:] = handlers

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def _infrastructure(self) -> Any:
        runtime = self.network.runtime
        return None if runtime is None else runtime._messaging_infrastructure

    @property
    def actors(self) -> list[Any]:
        """Lava's child processes, but for the server of its shared memory."""
        return [] if self._infrastructure is None else list(self._infrastructure.actors)

    @property
    def _server(self) -> Any:
        return None if self._infrastructure is None else memory_server(self._infrastructure.smm)

    @property
    def _pids(self) -> list[int]:
        return [child.pid for child in (*self.actors, self._server) if child is not None]

    def run(self, ticks: int) -> None:
        """Advance the network.

        Raises:
            EngineDied: a process model raised or died, or no answer came in time; all children are then gone.
        """
        try:
            runtime = self.network.runtime
            if not self._server.is_alive():
                raise EngineDied(SERVER_DIED)
            self.network.run(RunSteps(ticks, blocking=False))
            patience = Patience("answer", RUN_LIMIT_S + RUN_LIMIT_PER_TICK_S * ticks)
            for port in runtime.service_to_runtime:
                self._await_answer(port, patience)
                answer = port.recv()
                if not enum_equal(answer, MGMT_RESPONSE.DONE):
                    self._raise_child_failure()
                    raise EngineDied(f"Lava's runtime service answered {answer}")
            runtime._is_running = False
        except BaseException:
            self.kill()
            raise

    def _await_answer(self, port: Any, patience: Patience) -> None:
        """Block until ``port`` holds a message, watching the children meanwhile."""
        while not wait_for_message(port, POLL_S):
            self._look(patience)

    def _look(self, patience: Patience) -> None:
        """Raise EngineDied if a child has failed or all of them hang."""
        if self._failures():
            self._raise_child_failure()
        patience.look(self._pids)

    def _look_at_start(self, patience: Patience, deliver_interrupt: Callable[[], None]) -> None:
        """The same, but not while Lava forks: an exception between a fork and Lava's note of it would lose a child."""
        runtime = self.network.runtime
        if runtime is None:  # Lava compiles
            deliver_interrupt()
            return
        executable = runtime._executable
        if len(self.actors) < len(executable.proc_builders) + len(executable.runtime_service_builders):
            patience.look(self._pids)
        else:
            deliver_interrupt()
            self._look(patience)

    def _failures(self) -> list[tuple[int, str]]:
        """(rank, message) of every failed child; a raised exception ranks before a mere death."""
        found, actors = [], self.actors
        reporting = connection.wait([actor._pconn for actor in actors], timeout=0)  # one system call for all
        for actor in actors:
            if actor._exception is None and actor._pconn in reporting:
                actor._exception = actor._pconn.recv() or ("ended early", "")
            if actor._exception is not None:
                error = actor._exception[0]
                found.append((0 if isinstance(error, BaseException) else 2, _model_failure(error)))
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
        """Remove all children, their shared memory and this process's threads for them; nothing is waited for."""
        with interrupts_deferred():
            if self.network.runtime is not None:
                remove_everything(self.network.runtime)
                self.network.runtime = None
            if self.blas is not None:
                self.blas.restore_original_limits()
                self.blas = None
            atexit.unregister(self.kill)


def _model_failure(error: Any) -> str:
    """One line about what a child raised, or about how it ended."""
    if NO_THREAD in str(error):
        return f"Lava cannot start: {SHORTAGES[errno.EAGAIN]}"
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    return f"a Lava process model failed: {text}"


def _start_failure(error: BaseException) -> str | None:
    """Why Lava did not start, in one line; None for an error that says it itself, or that is not Lava's."""
    if isinstance(error, EngineDied):
        return None
    if isinstance(error, OSError) and error.errno in SHORTAGES:
        return f"Lava cannot start: {SHORTAGES[error.errno]}"
    nobody_listens = isinstance(error, FileNotFoundError) and error.filename is None  # its socket is gone
    if nobody_listens or isinstance(error, (EOFError, ConnectionError)):
        return SERVER_DIED
    raised_in_child = hasattr(error, "trace")  # Lava's mark
    return _model_failure(error) if raised_in_child or NO_THREAD in str(error) else None

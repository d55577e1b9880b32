"""What ties Lava's operating-system processes to this one, and what removes every trace of them."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from dsf.shell.child_processes import STDERR, die_with_parent, start_quiet_resource_tracker

JOIN_LIMIT_S = 5.0
"""A process that was killed is gone at once, unless the kernel waits for a disk."""

_bound = False
_starting_pid: int | None = None
"""The process that is starting Lava just now: what it forks meanwhile is Lava's."""
RETRY_S = 0.5
"""After a look that has raised: long enough for the block to end, if nobody catches it."""


@contextlib.contextmanager
def children_bound_to_parent() -> Iterator[None]:
    """Children forked in the block die with this process, ignore what a terminal sends to a whole job, and are silent.

    The kernel ties them to the forking thread, so start Lava from the main thread.
    """
    global _bound, _starting_pid
    if not _bound:
        start_quiet_resource_tracker()
        os.register_at_fork(after_in_child=_bind_this_child)
        _bound = True
    _starting_pid = os.getpid()
    try:
        yield
    finally:
        _starting_pid = None


def _bind_this_child() -> None:
    if _starting_pid is None:
        return  # somebody else's fork
    die_with_parent(_starting_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDERR)  # its errors reach the parent through Lava's pipe


@contextlib.contextmanager
def called_every(seconds: float, look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` in the main thread again and again while the block waits; what it raises ends the block.

    Lava's compiler catches every exception while it tries modules, and Python only prints what is raised in a weak
    reference's callback; so a look that has raised is repeated, later, in case that its exception went that way, and
    that print is left out.
    """
    raised: list[BaseException] = []

    def on_alarm(_signum: int, _frame: FrameType | None) -> None:
        pause = RETRY_S
        try:
            look()
            pause = seconds
        except BaseException as error:
            raised.append(error)
            raise
        finally:  # not by itself: a slow look must not be interrupted by the next
            signal.setitimer(signal.ITIMER_REAL, pause)

    def on_unraisable(dropped: sys.UnraisableHookArgs) -> None:
        if not any(dropped.exc_value is error for error in raised):
            print_unraisable(dropped)

    print_unraisable, sys.unraisablehook = sys.unraisablehook, on_unraisable
    previous, started = signal.signal(signal.SIGALRM, on_alarm), time.monotonic()
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        sys.unraisablehook = print_unraisable
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
        if remaining:  # somebody else's alarm, such as a test runner's
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - started), 0.001), interval)


def memory_server(memory: Any) -> Any:
    """The process behind Lava's shared-memory manager; None while there is none."""
    process = getattr(getattr(memory, "_manager", None), "_process", None)
    return None if process is None or process.pid is None else process


def reserve(memory: Any) -> None:
    """Have the kernel allocate every page of Lava's shared memory now.

    Raises:
        OSError: there is no room; without this call a later write would end its process with SIGBUS.
    """
    for segment in memory._shared_memory_handles:
        os.posix_fallocate(segment._fd, 0, segment.size)


def remove_everything(runtime: Any) -> None:
    """Kill a runtime's processes, end its threads here, remove its shared memory; Lava is not asked for anything."""
    infrastructure = runtime._messaging_infrastructure
    if infrastructure is not None:
        server = memory_server(infrastructure.smm)
        _end([*infrastructure.actors, *([] if server is None else [server])])
        for actor in infrastructure.actors:
            actor._pconn.close()
            actor._cconn.close()
            actor._is_done = True
    for port in _take_ports(runtime):
        port.join()  # ends its thread
        port._array = []  # views of the shared memory
    if infrastructure is not None and infrastructure.smm is not None:
        _release(infrastructure.smm)
    runtime._is_started = runtime._is_running = False  # keeps Runtime.__del__ from waiting for dead children
    runtime._executable.assign_runtime_to_all_processes(None)  # Lava keeps the processes for ever


def _end(children: list[Any]) -> None:
    for child in children:
        child.kill()
    for child in children:
        mp.Process.join(child, JOIN_LIMIT_S)  # Lava's own join takes no limit
        with contextlib.suppress(ValueError):  # the kernel has not let go of it yet
            child.close()


def _take_ports(runtime: Any) -> list[Any]:
    """Every port that may have a thread in this process; Lava's own stop forgets the host's ends of external pipes."""
    pipes = [port for process in runtime._executable.proc_builders for port in [*process.in_ports, *process.out_ports]]
    names = ("external_pipe_csp_send_port", "external_pipe_csp_recv_port")
    ends = [vars(pipe).pop(name, None) for pipe in pipes for name in names]  # Lava keeps the pipes for ever
    return [*runtime._open_ports, *(end for end in ends if end is not None)]


def _release(memory: Any) -> None:
    """Remove the shared memory; its server, which would do so when asked, is dead."""
    for segment in memory._shared_memory_handles:
        with contextlib.suppress(FileNotFoundError):
            segment.unlink()
        segment.close()
    memory._shared_memory_handles.clear()
    if hasattr(memory._manager, "shutdown"):
        memory._manager.shutdown.cancel()  # at the interpreter's end it would look for the server

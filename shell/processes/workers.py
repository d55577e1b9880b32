"""Worker processes: one way to start them, to talk to them, and to be rid of them, whatever happens to whom."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, NoReturn

from dsf.shell.child_processes import STDERR, die_with_parent, start_method_kept, start_quiet_resource_tracker
from dsf.shell.errors import EXIT_SIGNAL, CommandFailed, UserError
from dsf.shell.interrupts import interrupts_deferred, terminal_signals_held

STOP_S = 2.0
"""Time for a worker to stop by itself what it has started; the kernel ends that with it after that."""

Life = Callable[[Connection], None]
"""What a worker does: a function of a module, which the worker imports."""


class WorkerDied(Exception):
    """A worker is gone, and did not say why.

    Attributes:
        worker: its name.
        code: its exit code, negative for a signal.
    """

    def __init__(self, worker: str, code: int | None) -> None:
        super().__init__(f"{worker} died (exit code {code})")
        self.worker, self.code = worker, code


class Worker:
    """A process and the pipe to it."""

    def __init__(self, context: SpawnContext, name: str, life: Life) -> None:
        self.connection, theirs = context.Pipe()
        # A few hundred bytes: multiprocessing writes them into a pipe whose other end this process holds, too, so that
        # a worker that dies before it reads them would let it wait for ever if they did not fit into that pipe.
        # Whatever is large comes later, through a connection that ends with the worker.
        self.process = context.Process(target=_live, args=(theirs, life, os.getpid()), name=name)
        try:
            self.process.start()
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()  # else its end would not be seen

    def send(self, value: Any) -> None:
        """Send anything that can be pickled; waits until the worker takes it.

        Raises:
            WorkerDied: nobody takes it.
        """
        with self._alive():
            send(self.connection, value)

    def receive(self) -> Any:
        """What the worker has sent; waits for it.

        Raises:
            WorkerDied: nothing will come.
        """
        with self._alive():
            return self.connection.recv()

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            self.process.join(STOP_S)
            raise WorkerDied(self.process.name, self.process.exitcode) from None


def send(connection: Connection, value: Any) -> None:
    """Send what ``connection.recv()`` at the other end gives.

    ``connection.send`` would leave a view of a BytesIO in the frame of an exception that strikes it. Where the garbage
    collector finds the two in a circle, Python 3.12 dies of it (segmentation fault), 3.11 and 3.13 write an error.
    """
    connection.send_bytes(bytes(ForkingPickler.dumps(value)))


@contextlib.contextmanager
def crew(life: Life, count: int) -> Iterator[list[Worker]]:
    """Started workers, called worker 1 and so on; none of them is left afterwards.

    They do not hear what a terminal sends to a whole job; SIGTERM unwinds what they do. A signal that comes while they
    are started acts when all are.

    Args:
        life: given to each with its end of the connection.
        count: of workers.
    """
    workers: list[Worker] = []
    try:
        with interrupts_deferred(), terminal_signals_held(), start_method_kept():
            start_quiet_resource_tracker()  # workers share it
            for number in range(1, count + 1):
                workers.append(Worker(mp.get_context("spawn"), f"worker {number}", life))
        yield workers
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        deadline = time.monotonic() + STOP_S
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.connection.close()


def speaking(workers: Sequence[Worker]) -> list[Worker]:
    """Those that have sent something, or are gone; waits for one."""
    ready = wait([worker.connection for worker in workers])
    return [worker for worker in workers if worker.connection in ready]


def told(error: BaseException, where: str) -> Exception:
    """What went wrong in a worker, as the parent raises it."""
    if isinstance(error, (UserError, CommandFailed)):
        return error
    return CommandFailed(f"{where} failed: {type(error).__name__}: {' '.join(str(error).split())}")


def _live(connection: Connection, life: Life, parent: int) -> None:
    """A worker's whole life; ``life`` itself, and so its module, has been imported by now."""
    die_with_parent(parent)
    signal.signal(signal.SIGTERM, _leave)
    mp.set_start_method(None, force=True)  # the parent's; Lava chooses its own
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone: nobody is left to hear it
        life(connection)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """Unwind, so that what was started is stopped, and without a word: the parent has had it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDERR)
    sys.unraisablehook = lambda _dropped: None
    raise SystemExit(EXIT_SIGNAL + signal.SIGTERM)

"""Episodes spread over worker processes of this machine; nothing but wall time depends on how many there are."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from types import FrameType
from typing import NoReturn

from threadpoolctl import threadpool_limits

from dsf.export.network.network import Network
from dsf.runtime.engines.interface import Engine
from dsf.runtime.loop.closed_loop import LoopSettings, OnStep, run_episodes, totals_of
from dsf.runtime.loop.results import ClosedLoopResult, EngineTotals, EpisodeResult, gather
from dsf.shell.child_processes import die_with_parent, start_method_kept, start_quiet_resource_tracker
from dsf.shell.errors import EXIT_SIGNAL, CommandFailed, UserError
from dsf.shell.interrupts import terminal_signals_held

OpenEngine = Callable[[], AbstractContextManager[Engine]]
"""Starts an engine; travels to other processes."""
STOP_S = 4.0
"""Time for a worker to stop its engine by itself; Lava's processes are killed with it after that."""


def run_share(
    open_engine: OpenEngine, settings: LoopSettings, seeds: Iterable[int], done: Callable[[EpisodeResult], None]
) -> EngineTotals:
    """Run episodes on an engine of this process's own, with one BLAS thread; hand each result to ``done``."""
    with threadpool_limits(1, user_api="blas"), open_engine() as engine:
        engine.restart_counter()
        for result in run_episodes(engine, settings, seeds):
            done(result)
        return totals_of(engine)


def told(error: BaseException, where: str) -> Exception:
    """What went wrong in a worker, as the parent raises it."""
    if isinstance(error, (UserError, CommandFailed)):
        return error
    return CommandFailed(f"{where} failed: {type(error).__name__}: {' '.join(str(error).split())}")


def run_in_workers(
    open_engine: OpenEngine,
    settings: LoopSettings,
    network: Network,
    seeds: Sequence[int],
    workers: int,
    on_step: OnStep | None = None,
) -> ClosedLoopResult:
    """Run one episode per seed in several processes, each with an engine of its own.

    Whoever is free takes the next seed; results are put in the seeds' order.

    Raises:
        UserError, CommandFailed: whatever a worker raised; or a worker failed or died. All of them are then gone.
    """
    begun, waiting = time.perf_counter(), deque(seeds)
    results: list[EpisodeResult] = []
    totals: list[EngineTotals] = []
    with _crew(open_engine, settings, min(workers, len(seeds))) as crew:
        for worker in crew:
            worker.give(waiting)
        busy = list(crew)
        while busy:
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                answer = worker.answer()
                if isinstance(answer, EngineTotals):
                    totals.append(answer)
                    busy.remove(worker)
                    continue
                results.append(answer)
                worker.give(waiting)
                if on_step is not None:
                    on_step(answer.episode.decisions)
        seconds = time.perf_counter() - begun
    return gather(network, seeds, results, totals, seconds)


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, context: SpawnContext, number: int, open_engine: OpenEngine, settings: LoopSettings) -> None:
        self.connection, theirs = context.Pipe()
        arguments = (theirs, open_engine, settings)
        self.process = context.Process(target=_work, args=arguments, name=f"worker {number}")
        self.process.start()
        theirs.close()  # else its end would not be seen
        self.seed: int | None = None

    def give(self, waiting: deque[int]) -> None:
        """Send the next seed, or None: there is nothing left to do."""
        self.seed = waiting.popleft() if waiting else None
        with self._alive():
            self.connection.send(self.seed)

    def answer(self) -> EpisodeResult | EngineTotals:
        """What the worker sent.

        Raises:
            UserError, CommandFailed: it raised one, or died.
        """
        with self._alive():
            answer: EpisodeResult | EngineTotals | Exception = self.connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Turn a broken pipe into one line."""
        try:
            yield
        except (EOFError, ConnectionError):
            self.process.join(STOP_S)
            task = "while it stopped" if self.seed is None else f"in the episode of seed {self.seed}"
            raise CommandFailed(f"{self.process.name} died (exit code {self.process.exitcode}) {task}") from None


@contextlib.contextmanager
def _crew(open_engine: OpenEngine, settings: LoopSettings, count: int) -> Iterator[list[_Worker]]:
    """Started workers; none of them is left afterwards."""
    start_quiet_resource_tracker()  # workers share it
    crew: list[_Worker] = []
    try:
        with terminal_signals_held(), start_method_kept():
            for number in range(1, count + 1):
                crew.append(_Worker(mp.get_context("spawn"), number, open_engine, settings))
        yield crew
    except BaseException:
        for worker in crew:
            worker.process.terminate()
        raise
    finally:
        deadline = time.monotonic() + STOP_S
        for worker in crew:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.connection.close()


def _work(connection: Connection, open_engine: OpenEngine, settings: LoopSettings) -> None:
    """A worker's life: seeds come in, results go out, at the end the totals."""
    die_with_parent()
    signal.signal(signal.SIGTERM, _leave)
    mp.set_start_method(None, force=True)  # the parent's; Lava chooses its own
    try:
        connection.send(run_share(open_engine, settings, iter(connection.recv, None), connection.send))
    except Exception as error:
        connection.send(told(error, "a worker"))


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """Unwind, so that the engine is stopped."""
    raise SystemExit(EXIT_SIGNAL + number)

"""Episodes spread over worker processes of this machine; nothing but wall time depends on how many there are."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection

from threadpoolctl import threadpool_limits

from dsf.export.network.network import Network
from dsf.runtime.engines.interface import Engine
from dsf.runtime.loop.closed_loop import LoopSettings, OnStep, run_episodes, totals_of
from dsf.runtime.loop.results import ClosedLoopResult, EngineTotals, EpisodeResult, gather
from dsf.shell.errors import CommandFailed
from dsf.shell.processes.workers import Worker, WorkerDied, crew, send, speaking, told

OpenEngine = Callable[[], AbstractContextManager[Engine]]
"""Starts an engine; travels to other processes."""


def run_share(
    open_engine: OpenEngine, settings: LoopSettings, seeds: Iterable[int], done: Callable[[EpisodeResult], None]
) -> EngineTotals:
    """Run episodes on an engine of this process's own, with one BLAS thread; hand each result to ``done``."""
    with threadpool_limits(1, user_api="blas"), open_engine() as engine:
        engine.restart_counter()
        for result in run_episodes(engine, settings, seeds):
            done(result)
        return totals_of(engine)


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
    with crew(_work, min(workers, len(seeds))) as started:
        posts = [_Post(worker) for worker in started]
        for post in posts:
            post.begin(open_engine, settings)
            post.give(waiting)
        busy = list(posts)
        while busy:
            ready = speaking([post.worker for post in busy])
            for post in [post for post in busy if post.worker in ready]:
                answer = post.answer()
                if isinstance(answer, EngineTotals):
                    totals.append(answer)
                    busy.remove(post)
                    continue
                results.append(answer)
                post.give(waiting)
                if on_step is not None:
                    on_step(answer.episode.decisions)
        seconds = time.perf_counter() - begun
    return gather(network, seeds, results, totals, seconds)


class _Post:
    """A worker and what it is doing."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.doing = worker, "while it started"

    def begin(self, open_engine: OpenEngine, settings: LoopSettings) -> None:
        """Tell it what all its episodes share."""
        with self._alive():
            self.worker.send((open_engine, settings))

    def give(self, waiting: deque[int]) -> None:
        """Send the next seed, or None: there is nothing left to do."""
        seed = waiting.popleft() if waiting else None
        with self._alive():
            self.worker.send(seed)
        self.doing = "while it stopped" if seed is None else f"in the episode of seed {seed}"

    def answer(self) -> EpisodeResult | EngineTotals:
        """What the worker sent.

        Raises:
            UserError, CommandFailed: it raised one, or died.
        """
        with self._alive():
            answer: EpisodeResult | EngineTotals | Exception = self.worker.receive()
        if isinstance(answer, Exception):
            raise answer
        return answer

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Turn a worker's death into one line."""
        try:
            yield
        except WorkerDied as death:
            raise CommandFailed(f"{death} {self.doing}: try fewer --workers, memory may be short") from None


def _work(connection: Connection) -> None:
    """A worker's life: seeds come in, results go out, at the end the totals."""
    try:
        open_engine, settings = connection.recv()
        answer = functools.partial(send, connection)
        answer(run_share(open_engine, settings, iter(connection.recv, None), answer))
    except Exception as error:
        with contextlib.suppress(OSError):  # the parent is gone
            send(connection, told(error, "a worker"))

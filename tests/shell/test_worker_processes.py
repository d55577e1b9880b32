"""Worker processes: nobody waits for one that is gone, and none is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from dsf.shell.interrupts import GRACE_S
from dsf.shell.processes.workers import WorkerDied, crew, speaking
from dsf.testing.fault_injection import DEATH, dies, echoes, never_listens
from dsf.testing.leftovers import children

LARGE = bytes(8 << 20)
"""More than any pipe holds."""


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    before = children()
    yield
    assert children() == before


def test_workers_answer() -> None:
    with crew(echoes, 2) as workers:
        for worker in workers:
            worker.send(LARGE)
        assert speaking(workers)
        assert [worker.receive() for worker in workers] == [len(LARGE)] * 2
        for worker in workers:
            worker.send(None)


def test_what_is_too_large_for_a_pipe_does_not_wait_for_a_worker_that_died_while_it_started() -> None:
    begun = time.monotonic()
    with pytest.raises(WorkerDied, match=rf"worker 1 died \(exit code {DEATH}\)"), crew(dies, 1) as workers:
        workers[0].send(LARGE)
    with pytest.raises(WorkerDied, match="worker 1 died"), crew(dies, 1) as workers:
        assert speaking(workers) == workers
        workers[0].receive()
    assert time.monotonic() - begun < 2 * GRACE_S


def test_an_interrupt_ends_the_wait_for_a_worker_that_does_not_listen() -> None:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), crew(never_listens, 2) as workers:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            workers[0].send(LARGE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begun < GRACE_S


def test_a_signal_while_workers_start_acts_when_all_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one would start that nobody ends."""
    before = signal.signal(signal.SIGHUP, lambda _number, _frame: (_ for _ in ()).throw(SystemExit(129)))
    try:
        from dsf.shell.processes import workers as worker_processes

        original = worker_processes.Worker.__init__

        def struck(self: object, *arguments: object) -> None:
            os.kill(os.getpid(), signal.SIGHUP)
            original(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(worker_processes.Worker, "__init__", struck)
        with pytest.raises(SystemExit), crew(never_listens, 2):
            raise AssertionError("the signal was lost")
    finally:
        signal.signal(signal.SIGHUP, before)

"""Worker processes: nobody waits for one that is gone, and none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

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


STRUCK = """
import gc, os, signal, threading
from dsf.shell.processes.workers import crew
from dsf.testing.fault_injection import never_listens

def run():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
    try:
        with crew(never_listens, 1) as (worker,):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            worker.send(bytes(8 << 20))
    except KeyboardInterrupt as error:
        circle = [error]
        circle.append(circle)

if __name__ == "__main__":
    run()
    gc.collect()
    print("alive")
"""


def test_what_an_interrupted_send_leaves_can_be_collected(tmp_path: Path) -> None:
    """Python 3.12 died of it, 3.11 and 3.13 wrote an error; 3.10 says nothing either way."""
    script = tmp_path / "struck.py"
    script.write_text(STRUCK)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


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

"""Whatever happens to a run, it ends within seconds with one line, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

from dsf.export.network.file import write_network
from dsf.runtime import cli
from dsf.runtime.engines.errors import EngineDied
from dsf.runtime.engines.interface import LavaModel
from dsf.runtime.lava_backend import patience
from dsf.runtime.lava_backend.children import called_every
from dsf.runtime.lava_backend.patience import Patience
from dsf.runtime.open_engine import open_engine
from dsf.shell.child_processes import start_quiet_resource_tracker
from dsf.shell.files import write_json
from dsf.shell.interrupts import interrupts_deferred
from dsf.testing.fault_catalogue import FAULTS, HOPPER_FEATURES, Fault
from dsf.testing.fault_injection import Missed, break_run
from dsf.testing.lava import lava_runs_here
from dsf.testing.leftovers import children
from dsf.testing.random_networks import random_network, random_tokens
from dsf.testing.training_runs import run_here

pytestmark = pytest.mark.skipif(not lava_runs_here(), reason="Lava is frozen on Python 3.10")

ATTEMPTS = 5
"""Runs that may end before their fault."""
THREADS_END_S = 5.0
"""They are told to, but not waited for."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.quick], ids=lambda fault: fault.name)
def test_a_fault_ends_the_run_with_one_line_and_leaves_nothing(fault: Fault, tmp_path: Path) -> None:
    """The same faults as endurance/faults.py, which tries all of them and many times: docs/reliability.md."""
    for _ in range(ATTEMPTS):
        try:
            outcome = break_run(fault.trial(tmp_path, Random()), tmp_path / "stderr")
            break
        except Missed as miss:
            missed = miss
    else:
        raise missed
    assert fault.complaints(outcome) == []


def held() -> tuple[int, int, list[int], list[str]]:
    """Descriptors, threads, children and mapped shared memory of this process; Python's resource tracker apart."""
    maps = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/psm_" in line]
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), children(), maps


def test_an_engine_takes_everything_with_it() -> None:
    """Threads and descriptors of this process, too: a program may start hundreds of engines."""
    network, threads, counts = random_network(0, blocks=1), threading.active_count(), []
    for _ in range(3):
        with open_engine(network, "lava") as engine:
            engine.step_graded(random_tokens(network, 1, 1, seed=0)[0])
            assert threading.active_count() > threads
        deadline = time.monotonic() + THREADS_END_S
        while threading.active_count() > threads and time.monotonic() < deadline:
            time.sleep(0.01)
        counts.append(held())
    assert counts[1] == counts[2] and counts[2][1:] == (threads, [], [])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fused", "expanded"])
def test_exception_inside_a_process_model_is_reported(model: LavaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second token raises inside a block's process (the patch reaches the children through fork)."""
    from dsf.runtime.lava_backend.stages import arithmetic

    original = arithmetic.CoincidenceHistory.current

    def broken(self: object, tick: int) -> np.ndarray:
        self.calls = getattr(self, "calls", 0) + 1  # type: ignore[attr-defined]
        if self.calls > 4:  # type: ignore[attr-defined]
            raise ZeroDivisionError("injected")
        return original(self, tick)  # type: ignore[arg-type]

    monkeypatch.setattr(arithmetic.CoincidenceHistory, "current", broken)
    network = random_network(0)
    message = "a Lava process model failed: ZeroDivisionError: injected"
    with pytest.raises(EngineDied, match=message), open_engine(network, "lava", model) as engine:
        for token in random_tokens(network, 3, 1, seed=0):
            engine.step_graded(token)
    assert held()[2:] == ([], [])


def test_exception_while_a_model_is_built_is_reported(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from dsf.runtime.lava_backend.stages import arithmetic

    def broken(self: object, *arguments: object) -> None:
        raise MemoryError("injected")

    monkeypatch.setattr(arithmetic.CoincidenceHistory, "__init__", broken)
    message = "a Lava process model failed: MemoryError: injected"
    with pytest.raises(EngineDied, match=message), open_engine(random_network(0), "lava"):
        pass
    assert held()[2:] == ([], []) and capfd.readouterr() == ("", "")


def test_memory_that_does_not_exist_is_an_error_at_the_start() -> None:
    """Not a SIGBUS at some later write."""
    from dsf.runtime.lava_backend.children import reserve
    from dsf.runtime.lava_backend.supervisor import _start_failure

    filesystem = os.statvfs("/dev/shm")
    segment = SharedMemory(create=True, size=2 * filesystem.f_blocks * filesystem.f_frsize)  # sparse until reserved
    try:
        with pytest.raises(OSError) as caught:
            reserve(SimpleNamespace(_shared_memory_handles=[segment]))
    finally:
        segment.close()
        segment.unlink()
    assert caught.value.errno == errno.ENOSPC
    assert "/dev/shm is full" in str(_start_failure(caught.value))


class Sleeper:
    """A child that does nothing, or computes."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", code])

    def __enter__(self) -> list[int]:
        return [self.process.pid]

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def looked(patience_: Patience, children: list[int], seconds: float) -> None:
    """Look ten times a second."""
    for _ in range(round(seconds * 10)):
        time.sleep(0.1)
        patience_.look(children)


@pytest.mark.slow
def test_who_sleeps_hangs_and_who_computes_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "QUIET_S", 0.5)
    with Sleeper("import time; time.sleep(60)") as children:
        time.sleep(0.2)
        with pytest.raises(EngineDied, match="Lava does not answer: none of its processes has computed"):
            looked(Patience("answer", 60.0), children, 5.0)
    with Sleeper("while True: pass") as children:
        looked(Patience("answer", 60.0), children, 1.0)
        with pytest.raises(EngineDied, match="Lava did not answer within 1 s"):
            looked(Patience("answer", 1.0), children, 5.0)
    looked(Patience("start", 60.0), [], 1.0)  # no children yet: nobody to wait for


@pytest.mark.slow
def test_time_in_which_the_whole_job_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z, fg: much time passes between two looks."""
    monkeypatch.setattr(patience, "LONGEST_STEP_S", 0.1)
    waiting = Patience("answer", 1.0)
    time.sleep(1.2)
    waiting.look([])
    assert waiting.waited_s <= 0.1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A suite that a script started with & inherits an ignored Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_that_somebody_catches_comes_again() -> None:
    """As Lava's compiler does, which tries modules and catches whatever they raise."""
    caught = 0
    with (
        pytest.raises(KeyboardInterrupt),
        interrupts_deferred() as deliver,
        called_every(0.02, deliver),
    ):
        signal.raise_signal(signal.SIGINT)
        try:
            time.sleep(10.0)
        except KeyboardInterrupt:
            caught += 1
        time.sleep(10.0)
    assert caught == 1


@pytest.mark.usefixtures("interruptible")
def test_deferred_interrupts_act_at_the_end_or_when_asked() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():
        signal.raise_signal(signal.SIGINT)
        reached.append("end")
    with pytest.raises(KeyboardInterrupt), interrupts_deferred() as deliver:
        deliver()
        signal.raise_signal(signal.SIGINT)
        reached.append("before")
        deliver()
        reached.append("never")
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("an error does not swallow them")
    assert reached == ["end", "before"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_while_the_resource_tracker_starts_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracker must not get it, this process must."""
    arrived: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _frame: arrived.append(number))
    monkeypatch.setattr(resource_tracker, "ensure_running", lambda: signal.raise_signal(signal.SIGHUP))
    try:
        start_quiet_resource_tracker()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert arrived == [signal.SIGHUP]


def test_signals_that_are_ignored_stay_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    path = tmp_path / "short.dsf.h5"
    write_network(random_network(0, features=HOPPER_FEATURES), path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_here(cli.main, "dsf-sim-run", str(path), "--backend", "fast", "--no-compare").returncode == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_report_that_cannot_be_written_is_still_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, values: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    path, out = tmp_path / "short.dsf.h5", tmp_path / "out.json"
    write_network(random_network(0, features=HOPPER_FEATURES), path)
    arguments = ("dsf-sim-run", str(path), "--backend", "fast", "--no-compare", "--json", str(out))
    monkeypatch.setattr(cli, "write_json", full)
    result = run_here(cli.main, *arguments)
    assert result.returncode == 2 and "D4RL-normalised score" in result.stdout
    assert result.stderr == f"dsf-sim-run: No space left on device: {out}\n"
    monkeypatch.setattr(cli, "write_json", write_json)
    assert run_here(cli.main, *arguments).returncode == 0 and out.exists()


PROGRAM = """
from dsf.testing.random_networks import random_network, random_tokens
from dsf.runtime.open_engine import open_engine

network = random_network(0, blocks=1)
with open_engine(network, "lava") as engine:
    engine.step_graded(random_tokens(network, 1, 1, seed=0)[0])
"""


@pytest.mark.slow
def test_a_program_leaves_no_temporary_files() -> None:
    """Lava's memory server is killed, and its socket lies in a directory that only it would remove."""
    with tempfile.TemporaryDirectory() as place:  # not pytest's: a socket's path has room for about 100 characters
        environment = {**os.environ, "TMPDIR": place}
        subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment)
        assert list(Path(place).iterdir()) == []

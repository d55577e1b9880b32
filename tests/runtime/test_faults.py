"""Whatever happens to a Lava run, it ends within seconds with one line, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import shared_memory_segments
from random_networks import random_network, random_tokens

from dsf.export.file import write_network
from dsf.runtime.engine import open_engine
from dsf.runtime.errors import EngineDied
from dsf.runtime.lava_supervisor import time_limit

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 11), reason="Lava is frozen on Python 3.10")

LIMIT_S = 10.0
START_S = 60.0


def descendants(pid: int) -> set[int]:
    """All live processes below ``pid``."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                found |= {int(child)} | descendants(int(child))
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: object, seconds: float) -> bool:
    """Poll a callable."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


LOOP = """
import signal
import sys
from pathlib import Path
import numpy as np
from dsf.export.file import read_network
from dsf.runtime.cli import SimRunConfig
from dsf.runtime.engine import open_engine
from dsf.tasks import run_command

def run(config):
    network = read_network(config.network)
    token = np.zeros((1, network.encoder.size), int)
    with open_engine(network, "lava", config.lava) as engine:
        for count in range(10**9):
            engine.step_graded(token)
            if count == 2:
                print("running", flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that a script starts with & inherits "ignore"
run_command(run, SimRunConfig, "loop", "Run for ever.")
"""


@pytest.fixture
def endless(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that steps a Lava network for ever, in a session of its own, already running."""
    path = tmp_path / "net.dsf.h5"
    write_network(random_network(0), path)
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "running\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


@pytest.mark.parametrize(
    ("number", "to_group", "code", "line"),
    [
        (signal.SIGINT, True, 130, "loop: interrupted"),
        (signal.SIGINT, False, 130, "loop: interrupted"),
        (signal.SIGTERM, False, 143, "loop: ended by SIGTERM"),
        (signal.SIGKILL, False, -9, ""),
    ],
)
def test_signals_end_everything(
    endless: subprocess.Popen[str], number: signal.Signals, to_group: bool, code: int, line: str
) -> None:
    before = shared_memory_segments()
    children = descendants(endless.pid)
    assert len(children) >= 5 and before
    started = time.monotonic()
    (os.killpg if to_group else os.kill)(endless.pid, number)
    assert endless.wait(timeout=LIMIT_S) == code
    assert wait_until(lambda: not any(alive(child) for child in children), LIMIT_S)
    assert wait_until(lambda: not shared_memory_segments() & before, LIMIT_S)
    assert time.monotonic() - started < LIMIT_S
    assert endless.stderr is not None and endless.stderr.read().strip() == line


def test_killed_child_is_reported(endless: subprocess.Popen[str]) -> None:
    before = shared_memory_segments()
    children = sorted(descendants(endless.pid))
    os.kill(children[-1], signal.SIGKILL)
    assert endless.wait(timeout=LIMIT_S) == 1
    assert endless.stderr is not None
    lines = endless.stderr.read().strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("loop: Lava child") and "exit code -9" in lines[0]
    assert wait_until(lambda: not any(alive(child) for child in children), LIMIT_S)
    assert wait_until(lambda: not shared_memory_segments() & before, LIMIT_S)


@pytest.mark.parametrize("model", ["fused", "expanded"])
def test_exception_inside_a_process_model_is_reported(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second token raises inside a block's process (the patch reaches the children through fork)."""
    from dsf.runtime import lava_arithmetic

    original = lava_arithmetic.CoincidenceHistory.current

    def broken(self: object, tick: int) -> np.ndarray:
        self.calls = getattr(self, "calls", 0) + 1  # type: ignore[attr-defined]
        if self.calls > 4:  # type: ignore[attr-defined]
            raise ZeroDivisionError("injected")
        return original(self, tick)  # type: ignore[arg-type]

    monkeypatch.setattr(lava_arithmetic.CoincidenceHistory, "current", broken)
    network = random_network(0)
    tokens = random_tokens(network, 3, 1, seed=0)
    started = time.monotonic()
    message = "a Lava process model failed: ZeroDivisionError: injected"
    with pytest.raises(EngineDied, match=message), open_engine(network, "lava", model) as engine:
        for token in tokens:
            engine.step_graded(token)
    assert time.monotonic() - started < LIMIT_S + 5
    assert not [child for child in descendants(os.getpid()) if "resource_tracker" not in _command(child)]


def test_exception_while_a_model_is_built_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsf.runtime import lava_arithmetic

    def broken(self: object, *arguments: object) -> None:
        raise MemoryError("injected")

    monkeypatch.setattr(lava_arithmetic.CoincidenceHistory, "__init__", broken)
    with pytest.raises(Exception, match="injected"), open_engine(random_network(0), "lava"):
        pass
    assert not [child for child in descendants(os.getpid()) if "resource_tracker" not in _command(child)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "resource_tracker"  # gone


def test_waits_that_lava_never_ends_are_cut() -> None:
    with pytest.raises(EngineDied, match="Lava did not start within"), time_limit(0.2, "start"):
        time.sleep(5)
    with time_limit(0.2, "start"):
        pass
    time.sleep(0.3)

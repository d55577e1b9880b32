"""Episodes in parallel: the serial run's results to the last bit, and nothing left behind whatever ends them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsf.export.network.file import write_network
from dsf.runtime import cli
from dsf.runtime.loop.closed_loop import checked_per_episode
from dsf.testing.command_line import assert_refused
from dsf.testing.gym_worlds import ACTION, OBSERVATION, STARTED_VARIABLE, Failing
from dsf.testing.leftovers import children_of, marked
from dsf.testing.random_networks import random_network
from dsf.testing.training_runs import run_here

FEATURES = OBSERVATION + ACTION + 1
WALL_TIMES = ("seconds", "wall_seconds", "decisions_per_second", "ticks_per_second")
LIMIT_S = 10.0
MARK = "DSF_TEST_MARK"
"""Environment variable that all processes of one run inherit, orphans too."""
BACKENDS = ("fast", "lava") if sys.version_info < (3, 11) else ("fast",)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network file."""
    file = tmp_path_factory.mktemp("networks") / "net.dsf.h5"
    write_network(random_network(4, features=FEATURES, context=5), file)
    return file


def sim_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here(cli.main, "dsf-sim-run", *map(str, arguments))


def outputs(path: Path, place: Path, *options: object) -> tuple[bytes, dict[str, Any]]:
    """The recording and the report of seven episodes, without wall times."""
    record, report = place / f"{uuid.uuid4()}.h5", place / f"{uuid.uuid4()}.json"
    common = ("--episodes", "7", "--parity-decisions", "30", "--no-compare", "--record", record, "--json", report)
    result = sim_run(path, *common, *options)
    assert result.returncode == 0, result.stderr
    summary = json.loads(report.read_text())
    return record.read_bytes(), {name: value for name, value in summary.items() if name not in WALL_TIMES}


LAUNCHERS = ("local", "ray") if importlib.util.find_spec("ray") else ("local",)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_those_of_the_serial_run(path: Path, tmp_path: Path, backend: str, launcher: str) -> None:
    """Recording and report: returns, spikes, activity, energy, parity."""
    world = ("--backend", backend, "--env", "dsf.testing.gym_worlds:Point-v0")
    serial = outputs(path, tmp_path, *world)
    assert serial[1]["parity"]["compared_spikes"] > 0 and len(serial[1]["episodes"]) == 7
    workers = 3 if backend == "fast" else 2
    assert outputs(path, tmp_path, *world, "--workers", workers, "--launcher", launcher) == serial


def test_the_budget_of_checked_decisions_is_spread_evenly() -> None:
    assert [checked_per_episode(1000, episodes) for episodes in (1, 3, 1000, 2000)] == [1000, 334, 1, 1]
    assert checked_per_episode(0, 5) == 0


@pytest.mark.slow
def test_workers_leave_the_way_of_starting_processes_alone(path: Path) -> None:
    """Lava refuses to be imported once a way was chosen."""
    script = "import multiprocessing; from dsf.runtime import cli\n" + (
        "try:\n    cli.main()\nexcept SystemExit:\n    print(multiprocessing.get_start_method(allow_none=True))"
    )
    options = (
        "--backend",
        "fast",
        "--env",
        "dsf.testing.gym_worlds:Point-v0",
        "--episodes",
        "2",
        "--workers",
        "2",
        "--no-compare",
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), *options], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "None", done.stderr


@pytest.mark.slow
def test_a_failing_worker_ends_the_run_with_one_line(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ("--backend", "fast", "--env", "dsf.testing.gym_worlds:Failing-v0", "--no-compare", "--json", out)
    result = sim_run(path, *options, "--episodes", Failing.FAILS_FROM_SEED + 4, "--workers", 2)
    assert result.returncode == 1 and not out.exists()
    assert result.stderr == "dsf-sim-run: a worker failed: ZeroDivisionError: the world ended\n"


def test_a_users_mistake_is_told_by_the_worker_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is built by the worker, which finds no compiler; exit code 2."""
    monkeypatch.setenv("CC", "no-such-compiler")
    result = sim_run(path, "--backend", "fast", "--episodes", "2", "--workers", "2", "--no-compare")
    assert_refused(result, "needs a C compiler", "no-such-compiler")


def segments_of(pids: list[int]) -> set[Path]:
    """Shared memory that these processes have mapped."""
    found: set[Path] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found |= {Path(name) for name in re.findall(r"/dev/shm/psm_\w+", Path(f"/proc/{pid}/maps").read_text())}
    return found


def until(condition: Callable[[], object], seconds: float) -> bool:
    """Poll a condition."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


@pytest.fixture
def endless(backend: str, path: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen, Path, str]]:
    """Two workers in episodes that never end, in a session of their own; the directory in which they signed."""
    signed, mark = tmp_path / "started", uuid.uuid4().hex
    signed.mkdir()
    environment = {**os.environ, STARTED_VARIABLE: str(signed), MARK: mark}
    options = (
        "--backend",
        backend,
        "--env",
        "dsf.testing.gym_worlds:Endless-v0",
        "--no-compare",
        "--parity-decisions",
        "0",
    )
    command = [sys.executable, "-c", "from dsf.runtime.cli import main; main()", str(path), *options]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            [*command, "--episodes", "2", "--workers", "2"],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job in the background
        )
    assert until(lambda: len(list(signed.iterdir())) == 2, 60.0), (tmp_path / "errors").read_text()
    yield process, signed, mark
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "fault", "code", "line"),
    [
        (BACKENDS[-1], "interrupt", 130, "interrupted"),
        ("fast", "terminate", 143, "ended by SIGTERM"),
        (BACKENDS[-1], "kill a worker", 1, "died (exit code -9) in the episode of seed"),
        ("fast", "kill", -9, ""),
    ],
)
def test_whatever_ends_the_run_leaves_nothing(
    endless: tuple[subprocess.Popen, Path, str], tmp_path: Path, fault: str, code: int, line: str
) -> None:
    process, signed, mark = endless
    segments, started = segments_of(marked(MARK, mark)), time.monotonic()
    if fault == "interrupt":
        os.killpg(process.pid, signal.SIGINT)
    elif fault == "kill a worker":
        os.kill(int(next(signed.iterdir()).name), signal.SIGKILL)
    else:
        process.send_signal(signal.SIGTERM if fault == "terminate" else signal.SIGKILL)
    assert process.wait(timeout=LIMIT_S) == code
    assert until(lambda: not marked(MARK, mark), LIMIT_S), marked(MARK, mark)
    assert time.monotonic() - started < LIMIT_S
    errors = (tmp_path / "errors").read_text().strip().splitlines()
    assert len(errors) == bool(line) and line in "".join(errors), errors
    assert until(lambda: not any(segment.exists() for segment in segments), LIMIT_S)


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.3])
def test_a_worker_that_dies_while_it_starts_ends_the_run(delay_s: float) -> None:
    """What it is told, the shipped network among it, is larger than a pipe, whose other end this process holds."""
    program = Path(sys.executable).parent / "dsf-sim-run"
    options = ("--backend", "fast", "--episodes", "30", "--workers", "2", "--no-compare", "--parity-decisions", "0")
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert until(lambda: len(children_of(process.pid)) == 3, 60.0)  # with the resource tracker
        worker = max(children_of(process.pid))
        time.sleep(delay_s)
        os.kill(worker, signal.SIGKILL)
        _, errors = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert process.returncode == 1 and "died (exit code -9)" in errors and errors.count("\n") == 1, errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workers", "0"), "--workers is 0"),
        (("--ray-address", "auto"), "--ray-address requires --launcher ray"),
    ],
)
def test_options_that_cannot_work(arguments: tuple[str, ...], words: str) -> None:
    assert_refused(sim_run("--backend", "fast", *arguments), words)


if importlib.util.find_spec("ray"):

    @pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1", "ray://127.0.0.1:1"])
    def test_a_cluster_that_is_not_there(address: str) -> None:
        result = sim_run("--backend", "fast", "--launcher", "ray", "--ray-address", address, "--no-compare")
        assert_refused(result, f"--ray-address {'is ' if address == 'nowhere' else ''}{address}")

    def test_a_cluster_in_the_environment_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
        """Ray itself would try for minutes."""
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        result = sim_run("--backend", "fast", "--launcher", "ray", "--no-compare")
        assert_refused(result, "RAY_ADDRESS 127.0.0.1:1: no Ray cluster answers")

else:

    def test_ray_is_an_extra() -> None:
        assert_refused(sim_run("--backend", "fast", "--launcher", "ray"), "ray", "pip install 'dsf[cluster]'")

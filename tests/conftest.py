"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from random_networks import random_model
from spike_tally import EXPECTED, TALLY

from dsf.runtime.engine import require_lava
from dsf.runtime.errors import BackendUnavailable
from dsf.train.data.collect import collect_episodes, get_recipe, write_dataset
from dsf.train.models.dsformer import DSFormer

STORE_STEPS = {"hopper-medium": 400, "cartpole-expert": 300}
"""Steps of the tiny datasets."""

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else torch.compile forks a pool that outlives its test


def shared_memory_segments() -> set[str]:
    """Names of the POSIX shared-memory segments that Python's SharedMemory made, but for those of other programs."""
    others: set[str] = set()
    family = {os.getpid(), *children()}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if int(maps.parent.name) not in family:
            with contextlib.suppress(OSError):
                others |= set(re.findall(r"/dev/shm/(psm_\w+)", maps.read_text()))
    return {segment.name for segment in Path("/dev/shm").glob("psm_*")} - others


def children() -> list[int]:
    """Processes that this one has started, without Python's own resource tracker."""
    found = [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return [child for child in found if "resource_tracker" not in Path(f"/proc/{child}/cmdline").read_text()]


def lava_runs_here() -> bool:
    """Whether this Python is Lava's, or the environment asks for Lava on a newer one."""
    try:
        require_lava()
    except BackendUnavailable:
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """The whole suite leaves no child process and no shared-memory segment."""
    before = shared_memory_segments()
    yield
    assert shared_memory_segments() <= before
    assert children() == []


@pytest.fixture(scope="session", autouse=True)
def enough_spikes_compared(request: pytest.FixtureRequest) -> Iterator[None]:
    """The whole suite compares the engines with the reference on millions of spike slots."""
    yield
    config = request.config
    selected = config.args_source is not config.ArgsSource.TESTPATHS or config.option.keyword or config.option.markexpr
    if not selected and not request.session.testsfailed:
        assert TALLY.compared.total() >= EXPECTED and TALLY.mismatches == 0, TALLY.line()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was compared."""
    if TALLY.compared:
        terminalreporter.write_line(TALLY.line())


@pytest.fixture
def model() -> DSFormer:
    """A small random model with plausible batch statistics."""
    return random_model(seed=0)


@pytest.fixture
def minari_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Minari store of the test's own."""
    store = tmp_path / "minari"
    store.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
    return store


@pytest.fixture(scope="session")
def filled_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Minari store with both datasets."""
    store = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(store))
        for name, steps in STORE_STEPS.items():
            recipe = get_recipe(name)
            write_dataset(recipe, collect_episodes(recipe, steps, 0, lambda: None), "test", overwrite=False)
    return store


@pytest.fixture
def tiny_store(filled_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store with both datasets as this test's own; nobody writes to it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(filled_store))
    return filled_store


@contextlib.contextmanager
def small_files(room: int) -> Iterator[None]:
    """No file of this process and its children can grow beyond ``room`` bytes, which fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def run_command(*arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run one of the console scripts of this environment."""
    program = Path(sys.executable).parent / arguments[0]
    return subprocess.run([str(program), *arguments[1:]], capture_output=True, text=True, timeout=timeout)


def assert_refused(result: subprocess.CompletedProcess[str], *fragments: str) -> None:
    """Exit code 2, one line on stderr that holds every fragment, no traceback."""
    assert result.returncode == 2, (result.stdout, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for fragment in fragments:
        assert fragment in lines[0], lines[0]

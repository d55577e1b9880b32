"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.terminal import TerminalReporter

from dsf.testing.leftovers import children, shared_memory_segments
from dsf.testing.random_networks import random_model
from dsf.testing.spike_tally import EXPECTED, TALLY
from dsf.train.data.collect import collect_episodes, get_recipe, write_dataset
from dsf.train.models.dsformer import DSFormer

STORE_STEPS = {"hopper-medium": 400, "cartpole-expert": 300}
"""Steps of the tiny datasets."""

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else torch.compile forks a pool that outlives its test


SETTLE_S = 10.0
"""What another program takes to remove shared memory that nobody has mapped any more, or to map it once it is there."""


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """All tests of this process together leave no child process and no shared-memory segment."""
    before = shared_memory_segments()
    yield
    assert children() == []
    # Ours cannot vanish any more: nobody is left who would remove it.
    left, deadline = shared_memory_segments() - before, time.monotonic() + SETTLE_S
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left &= shared_memory_segments()
    assert left == set()


def is_whole_suite(config: pytest.Config) -> bool:
    """Whether nobody has chosen among the tests."""
    chosen = config.option.keyword or config.option.markexpr
    return config.args_source is config.ArgsSource.TESTPATHS and not chosen


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """The whole suite compares the engines with the reference on millions of spike slots.

    Two workers count for themselves; the process that started them adds up.
    """
    answer: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if answer is not None:
        answer["spikes"] = TALLY.as_plain()
    elif exitstatus == pytest.ExitCode.OK and TALLY.falls_short() and is_whole_suite(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended; one that crashed has told nothing."""
    TALLY.add_plain(getattr(node, "workeroutput", {}).get("spikes", {}))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Say how much was compared."""
    if TALLY.compared:
        terminalreporter.write_line(TALLY.line())
    if TALLY.falls_short() and is_whole_suite(terminalreporter.config):
        terminalreporter.write_line(f"the whole suite has to compare {EXPECTED:,} without any difference", red=True)


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


@pytest.fixture
def same_threads() -> Iterator[None]:
    """A training in this process sets torch's number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)

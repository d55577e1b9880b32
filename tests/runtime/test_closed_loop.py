"""The closed loop over engines: returns, counts and energy do not depend on the engine, in both modes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsf.export.network.file import write_network
from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import SPIKING_KINDS
from dsf.runtime import cli
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.runtime.engines.interface import BackendName
from dsf.runtime.loop.closed_loop import run_closed_loop
from dsf.runtime.loop.env_task import env_task
from dsf.runtime.loop.results import ClosedLoopResult
from dsf.runtime.open_engine import open_engine
from dsf.tasks import get_task
from dsf.testing.command_line import assert_refused
from dsf.testing.random_networks import random_network
from dsf.testing.training_runs import run_here

FEATURES = 15
"""Numbers of a Hopper token: observation 11, action 3, return-to-go 1."""


def looped(network: Network, backend: BackendName, mode: Mode, episodes: int = 3) -> ClosedLoopResult:
    """Short Hopper episodes: an untrained policy falls soon."""
    with open_engine(network, backend, mode=mode) as engine:
        return run_closed_loop(get_task("hopper"), engine, range(episodes), 3600.0, parity_decisions=1_000)


@pytest.mark.parametrize("mode", ["stream", "window"])
@pytest.mark.parametrize("attention", ["pssa", "tssa", "sdsa1"])
def test_engines_agree_on_everything_that_is_reported(attention: Any, mode: Mode) -> None:
    network = random_network(4, features=FEATURES, attention=attention, context=5)
    truth, fast = looped(network, "reference", mode), looped(network, "fast", mode)
    assert fast.episodes == truth.episodes and fast.parity.exact and truth.decisions > 3 * network.context
    assert fast.parity.compared_spikes == truth.parity.compared_spikes > 0
    assert fast.activity == truth.activity and fast.episode_spikes == truth.episode_spikes
    assert sum(fast.episode_spikes) == fast.activity.total("spikes")
    assert (fast.activity.tokens > fast.decisions) == (mode == "window")
    assert fast.ticks == fast.activity.tokens * network.ticks


def test_an_engine_that_was_used_before_starts_counting_anew() -> None:
    network, task = random_network(4, features=FEATURES), get_task("hopper")
    for backend in ("reference", "fast"):
        with open_engine(network, backend) as engine:
            first = run_closed_loop(task, engine, range(2), 3600.0, 0)
            again = run_closed_loop(task, engine, range(2), 3600.0, 0)
        assert first.activity == again.activity and first.episode_spikes == again.episode_spikes


@pytest.mark.slow
def test_a_longer_receptive_field_than_the_context_runs_in_window_mode(tmp_path: Path) -> None:
    """As trained; stream mode is another policy, and runs only when asked for."""
    network = random_network(4, features=FEATURES, attention="tssa", context=3)
    assert not network.stream_is_exact
    write_network(network, tmp_path / "n.dsf.h5")
    spikes = {}
    for mode, options in (("window", ()), ("stream", ("--mode", "stream"))):
        out = tmp_path / f"{mode}.json"
        command = ("dsf-sim-run", str(tmp_path / "n.dsf.h5"), "--backend", "fast", "--json", str(out), *options)
        result = run_here(cli.main, *command)
        assert result.returncode == 0, result.stderr
        summary = json.loads(out.read_text())
        assert summary["mode"] == mode and summary["parity"]["mismatches"] == 0
        assert ("stream mode is not the windowed policy" in result.stdout) == (mode == "stream")
        assert summary["comparison"]["integer reference"][0]["return"] == summary["episodes"][0]["return"]
        spikes[mode] = summary["spikes_per_decision"]
    assert spikes["window"] > 1.5 * spikes["stream"]  # two or three tokens per decision


def test_unknown_mode_is_refused() -> None:
    assert_refused(run_here(cli.main, "dsf-sim-run", "--mode", "sideways"), "sideways")


def test_checked_decisions_are_the_first_of_every_episode() -> None:
    network = random_network(4, features=FEATURES)
    slots = network.ticks * sum(node.size for node in network.nodes if isinstance(node, SPIKING_KINDS))
    with open_engine(network, "fast") as engine:
        result = run_closed_loop(get_task("hopper"), engine, range(3), 3600.0, parity_decisions=10)
    assert [episode.parity.compared_spikes for episode in result.results] == [4 * slots] * 3
    assert result.parity.compared_spikes == 12 * slots and result.parity.exact


def test_a_mismatch_is_told_with_its_seed_and_decision() -> None:
    class Wrong(ReferenceLoopEngine):
        """Flips one spike in its sixth decision."""

        def step_graded(self, graded: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            accumulators, spikes = super().step_graded(graded)
            if self.counter.decisions == 6:
                name = next(iter(spikes))
                spikes[name] = spikes[name].copy()
                spikes[name][0, 0] ^= 1
            return accumulators, spikes

    task = env_task("dsf.testing.gym_worlds:Point-v0", random_network(4, features=FEATURES))
    result = run_closed_loop(task, Wrong(random_network(4, features=FEATURES)), range(3), 3.0, parity_decisions=100)
    first = result.episodes[0].decisions
    assert 4 <= first <= 8 and result.parity.mismatches == 1 and not result.parity.exact
    seed, decision = (0, 5) if first > 5 else (1, 5 - first)
    assert result.parity.first_mismatch.startswith(f"seed {seed}, decision {decision}, ")

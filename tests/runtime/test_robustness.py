"""``dsf-sim-run robustness``: every kind as a curve, what it writes, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsf.export.network.file import file_digest, write_network
from dsf.export.network.network import Network
from dsf.export.network.reference import IntegerPolicy
from dsf.export.placement.chips import get_chip
from dsf.runtime import cli
from dsf.runtime.engines.parity import reference_engine
from dsf.runtime.robustness import levels
from dsf.runtime.robustness.levels import (
    ALL_KINDS,
    KINDS,
    KindName,
    Point,
    Sweep,
    measure_level,
    prepare_level,
    undisturbed,
)
from dsf.runtime.robustness.network_faults import stuck_neurons
from dsf.runtime.robustness.report import RobustnessReport, bar
from dsf.tasks import Disturbances, get_task, rollout
from dsf.testing.command_line import assert_refused
from dsf.testing.random_networks import random_network
from dsf.testing.training_runs import run_here

FEATURES = 15
"""Numbers of a Hopper token: observation 11, action 3, return-to-go 1."""
TARGET = 1_000.0


def hopper_network(seed: int = 0, **sizes: Any) -> Network:
    return random_network(seed, features=FEATURES, **sizes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An untrained network, whose episodes are short."""
    write_network(hopper_network(), tmp_path / "small.dsf.h5")
    return tmp_path / "small.dsf.h5"


def sweep_of(network: Network, episodes: int = 3, fault_seeds: int = 2) -> Sweep:
    return Sweep(get_task("hopper"), network, TARGET, range(40, 40 + episodes), range(fault_seeds), get_chip("loihi2"))


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_here(cli.main, "dsf-sim-run", "robustness", *map(str, arguments))


@pytest.mark.slow
def test_every_kind_in_one_call(path: Path, tmp_path: Path) -> None:
    out, table, curves = tmp_path / "out.json", tmp_path / "table.md", tmp_path / "curves.png"
    options = ("--episodes", "2", "--fault-seeds", "2", "--seed", "7", "--target-return", "1000")
    result = run(path, *options, "--json", out, "--markdown", table, "--plot", curves)
    assert result.returncode == 0, result.stderr
    summary = json.loads(out.read_text())
    assert summary["sha256"] == file_digest(path) and summary["seeds"] == [7, 8] and summary["target_return"] == 1000.0
    assert summary["dataset"] is None and summary["checkpoint"] == {"train_steps": None, "train_revision": None}
    first, *points = summary["points"]
    assert first["kind"] is None
    levels = {kind: tuple(point["level"] for point in points if point["kind"] == kind) for kind in ALL_KINDS}
    assert levels == {kind: rules.levels for kind, rules in KINDS.items()}
    for point in points:
        runs = [value for returns in point["returns"].values() for value in returns]
        assert len(runs) == 2 * (1 if point["kind"] == "action-latency" else 2)
        assert point["return_mean"] == pytest.approx(np.mean(runs))
        low, high = point["return_interval_95"]
        assert low <= point["return_mean"] <= high and point["unit"] in table.read_text()
    assert table.read_text().startswith("<!-- robustness:begin -->\n")
    assert table.read_text().count("\n| ") == 2 + len(points)
    assert curves.read_bytes().startswith(b"\x89PNG")
    assert all(words in result.stdout for words in (*ALL_KINDS, "undisturbed", "D4RL-normalised", "unknown dataset"))


def test_no_disturbance_and_no_fault_score_as_the_reference(path: Path) -> None:
    sweep = sweep_of(hopper_network())
    policy = IntegerPolicy(reference_engine(sweep.network, sweep.mode, len(sweep.seeds)))
    expected = [episode.episode_return for episode in rollout(sweep.task, policy, sweep.seeds, TARGET)]
    assert measure_level(sweep, undisturbed(sweep)).returns == {0: expected}
    for kind in ALL_KINDS:
        assert set(map(tuple, measure_level(sweep, prepare_level(sweep, kind, 0.0)).returns.values())) == {
            tuple(expected)
        }, kind


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_does_something_and_seeds_matter(kind: KindName) -> None:
    sweep = sweep_of(hopper_network())
    level = 1 if kind == "dead-cores" else KINDS[kind].levels[-1]  # of so small a network, many leave nothing
    point, plain = measure_level(sweep, prepare_level(sweep, kind, level)), measure_level(sweep, undisturbed(sweep))
    assert len(set(map(tuple, point.returns.values()))) == (2 if KINDS[kind].random else 1)
    assert plain.returns[0] not in point.returns.values()


def test_a_level_is_the_fault_it_names_on_the_reference_too() -> None:
    """In window mode, since this network's receptive field is longer than its context."""
    sweep = sweep_of(hopper_network(4, attention="tssa", context=3), fault_seeds=1)
    assert sweep.mode == "window"
    network = stuck_neurons(sweep.network, 1, 0.1, 0)
    policy = IntegerPolicy(reference_engine(network, "window", len(sweep.seeds)))
    episodes = rollout(sweep.task, policy, sweep.seeds, TARGET)
    point = measure_level(sweep, prepare_level(sweep, "stuck-at-1", 0.1))
    assert point.returns == {0: [episode.episode_return for episode in episodes]}


def test_noise_is_in_fifths_of_the_encoders_range() -> None:
    sweep = sweep_of(hopper_network())
    encoder = sweep.network.encoder
    (condition, *_) = prepare_level(sweep, "observation-noise", 0.25).conditions.values()
    expected = tuple((encoder.limit * encoder.step[:11] / 5).tolist())
    assert condition.disturbances == Disturbances(observation_noise=0.25, observation_scale=expected)


def test_more_episodes_than_lanes_give_the_same_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(hopper_network(), episodes=5)
    prepared = prepare_level(sweep, "sensor-dropout", 0.3)
    together = measure_level(sweep, prepared)
    monkeypatch.setattr(levels, "MOST_LANES", 2)
    assert measure_level(sweep, prepared) == together


def test_intervals_are_over_what_is_independent() -> None:
    """Episodes on one faulty network say little about another one; under noise, each is a sample."""
    returns = {0: [10.0, 11.0, 12.0], 1: [90.0, 91.0, 92.0]}
    faulty, noisy = (Point(kind, 0.1, returns) for kind in ("stuck-at-0", "observation-noise"))
    assert (faulty.interval_over, noisy.interval_over) == ("fault seeds", "episodes")
    assert faulty.interval.mean == noisy.interval.mean == 51.0
    assert (faulty.interval.low, faulty.interval.high) == (11.0, 91.0)
    assert 11.0 < noisy.interval.low < noisy.interval.high < 91.0
    assert Point("stuck-at-0", 0.1, {0: [1.0, 2.0]}).interval_over == "episodes"


def test_bars_are_scores_beside_the_undisturbed_one() -> None:
    assert len(bar(100.0, 100.0)) == 2 * len(bar(50.0, 100.0)) == 20
    assert bar(-3.0, 100.0) == bar(5.0, -1.0) == ""


def test_a_report_names_the_data_and_the_checkpoint() -> None:
    provenance = {"dataset": {"id": "some/data-v0"}, "train_steps": 12_000, "train_revision": "abc"}
    sweep = sweep_of(dataclasses.replace(hopper_network(), provenance=provenance), episodes=1)
    summary = RobustnessReport(sweep, [measure_level(sweep, undisturbed(sweep))], "n.dsf.h5", "0" * 64).to_json()
    assert summary["dataset"] == "some/data-v0"
    assert summary["checkpoint"] == {"train_steps": 12_000, "train_revision": "abc"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episodes", "0"], "--episodes is 0"),
        (["--fault-seeds", "0"], "--fault-seeds is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--target-return", "inf"], "--target-return is inf"),
        (["--kind", "gremlins"], "gremlins"),
        (["--kind", "stuck-at-0", "stuck-at-0"], "--kind names a kind twice"),
        (["--levels", "0.1"], "--levels needs a single --kind"),
        (["--kind", "stuck-at-0", "--levels", "0.1", "1.5"], "--levels: 1.5 of stuck-at-0, fault seed 0"),
        (["--kind", "action-latency", "--levels", "0.5"], "0.5 of action-latency: it must be a whole number"),
        (["--kind", "action-latency", "--levels", "-1"], "action_latency is -1"),
        (["--kind", "observation-noise", "--levels", "nan"], "observation_noise is nan"),
        (["--kind", "dead-cores", "--levels", "999"], "can die"),
        (["--kind", "weight-bit-flips", "--levels", "0.5"], "could overflow"),
        (["--chip", "loihi9"], "unknown chip 'loihi9'"),
        (["--json", "/nowhere/out.json"], "/nowhere does not exist"),
        (["--plot", "curves.pdf"], "let the name end in .png"),
    ],
)
def test_bad_options(path: Path, arguments: list[str], words: str) -> None:
    assert_refused(run(path, *arguments), words)


def test_outputs_that_would_destroy_something_are_refused(path: Path, tmp_path: Path) -> None:
    document = tmp_path / "notes.md"
    document.write_text("my notes\n")
    assert_refused(run(path, "--markdown", document), "notes.md has no part between")
    assert_refused(run(path, "--json", path), "is the input")
    assert_refused(run(path, "--json", tmp_path / "x", "--markdown", tmp_path / "x"), "write the same file")
    assert document.read_text() == "my notes\n"


def test_a_network_of_another_task_is_refused(tmp_path: Path) -> None:
    write_network(random_network(0), tmp_path / "n.dsf.h5")
    assert_refused(run(tmp_path / "n.dsf.h5"), "6 features", "15 and 3")

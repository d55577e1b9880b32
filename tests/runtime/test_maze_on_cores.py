"""experiments/maze_on_cores.py: what it measures, draws and writes, on tiny networks that have learnt nothing."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import maze_measures
import maze_on_cores
import maze_report
import numpy as np
import pytest
from matplotlib import pyplot as plt
from rich.console import Console

from dsf.export.network.file import read_network, write_network
from dsf.export.network.reference import IntegerPolicy
from dsf.runtime.engines.parity import reference_engine
from dsf.runtime.loop.tape import TapedEpisode
from dsf.tasks import Episode
from dsf.tasks.maze_env import MazeEnv
from dsf.tasks.maze_picture import AGENT, PIXELS
from dsf.testing.random_networks import random_network
from dsf.testing.training_runs import UNSCORED, run_here, trained
from dsf.train import data_cli
from dsf.train.data.dataset import load_dataset
from dsf.train.evaluation.token_accuracy import policy_accuracy

TEST_MAZES = "dsf/maze/walls-wall_follower-test-v0"
SEED = 20_003


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Five test mazes."""
    directory = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(directory))
        done = run_here(data_cli.main, "dsf-data", "collect", "maze", "--mazes", "5", "--split", "test")
        assert done.returncode == 0, done.stderr
        yield directory


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "maze.dsf.h5"
    write_network(random_network(0, task="maze", features=13, actions=4, discrete=True, blocks=1), path)
    return path


@pytest.mark.slow
def test_a_walk_is_measured_checked_priced_drawn_and_written(network: Path, tmp_path: Path) -> None:
    options = argparse.Namespace(first_maze=SEED, store=tmp_path)
    kept = [tmp_path / "run.record", tmp_path / "run.npz"]
    more = ("--backend", "fast", "--record", str(kept[0]), "--probe-file", str(kept[1]))
    found = maze_measures.simulate(network, tmp_path / "fast.json", 2, 20, options, *more)
    walks = maze_measures.walks(found)
    assert walks["mazes"] == 2 and walks["decisions"] == 1608 and walks["checked_decisions"] == 40
    neurons, ticks = sum(read_network(network)[name].size for name in found["parity"]["populations"]), 4
    assert walks["compared_spikes"] == 40 * neurons * ticks
    assert walks["mismatches"] == walks["accumulator_mismatches"] == 0
    energy = maze_measures.energies(found)
    for preset, priced in energy.items():
        share = priced["per_maze"]["nominal"] / found["energy"][preset]["joules_per_decision"]
        assert share == pytest.approx(walks["decisions"] / 2)
    shown = maze_report.draw_walk(tmp_path / "maze.png", network, *kept)
    assert shown == {**shown, "maze": SEED, "moves": 804, "solved": False}  # neither was solved: the first one
    assert plt.imread(tmp_path / "maze.png").shape[:2] == (1050, 900)
    accuracies = {"accuracy": 0.25, "tokens": 100}
    line = {
        "seed": 7,
        "parameters": {"spike": 1000, "dense": 1001},
        "integers": {**accuracies, **walks},
        "dense": {**accuracies, "mazes": 2, "solved": 1, "moves_over_shortest": 2.5},
        "lava": walks,
        "energy": energy,
        "picture": shown,
    }
    options = argparse.Namespace(**dict.fromkeys(maze_on_cores.BUDGET, 20))
    text = maze_report.section([line], maze_on_cores.budget(options))
    assert f"| Lava | 7 | 0 of 2 | 1,608 | 40 | {walks['compared_spikes']:,} | 0 | 0 |" in text
    assert "| dense (Decision Transformer), fp32 | 1,001 | 7 | 25.00 (one seed) | 50.00 (one seed) | 2.500" in text
    assert "| 1,000 | 7 | 25.00 (one seed) | 0.00 (one seed) | none solved |" in text
    assert "| paper_45nm | P | 7 |" in text and "the goal is not reached after 804 moves" in text


def test_a_recorded_walk_ends_in_the_environment_where_it_did() -> None:
    environment = MazeEnv()
    environment.reset(seed=SEED)
    moves: list[int] = []
    total, running = 0.0, True
    while running:
        moves.append(environment.expert_move("wall_follower"))
        _, reward, reached, cut, _ = environment.step(np.int64(moves[-1]))
        total, running = total + float(reward), not (reached or cut)
    nothing: Any = np.zeros(0)
    scores = np.eye(4)[moves]
    episode = Episode(SEED, total, len(moves))
    taped = TapedEpisode(episode, nothing, nothing, nothing, nothing, scores, nothing, nothing)
    shown, info = maze_report.walk(taped)
    assert info["success"] and info["shortest"] <= len(moves) < 804
    assert tuple(shown[19 * PIXELS, -1]) == AGENT  # which stands on the goal
    altered = dataclasses.replace(taped, episode=Episode(SEED, total - 1, len(moves)))
    with pytest.raises(RuntimeError, match=f"maze of seed {SEED}"):
        maze_report.walk(altered)


def test_the_integers_accuracy_is_the_references(store: Path, network: Path) -> None:
    found, integers = maze_measures.integer_accuracy(network, TEST_MAZES), read_network(network)
    policy = IntegerPolicy(reference_engine(integers, "stream", 2))
    assert found == policy_accuracy(policy, load_dataset(TEST_MAZES), None)
    assert found.tokens == load_dataset(TEST_MAZES).steps


@pytest.mark.slow
def test_a_finished_run_is_reused_and_another_one_refused(store: Path, tmp_path: Path) -> None:
    console = Console(quiet=True)
    options = argparse.Namespace(steps=1, batch=8, learning_rate=1e-3, width=8, blocks=1, context=8)
    settings = maze_on_cores.arguments_of("dsformer", 3, options)
    told = [item for name, value in settings.items() for item in (f"--{name}", str(value))]
    trained(TEST_MAZES, "--out", str(tmp_path / "run"), *told, "--threads", "1", "--device", "cpu", *UNSCORED)
    before = (tmp_path / "run" / "checkpoint.safetensors").stat().st_mtime_ns
    checkpoint = maze_on_cores.train(tmp_path / "run", "dsformer", 3, options, console)
    assert checkpoint.header["step"] == 1 and checkpoint.path.stat().st_mtime_ns == before
    for other, said in (({"width": 12}, "--model.width 8, not 12"), ({"batch": 9}, "--batch-size 8, not 9")):
        changed = argparse.Namespace(**{**vars(options), **other})
        with pytest.raises(SystemExit, match=said):
            maze_on_cores.train(tmp_path / "run", "dsformer", 3, changed, console)


def test_the_document_shows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["maze_on_cores.py"])
    budget = maze_on_cores.budget(maze_on_cores.parse())
    lines = [line for line in maze_report.read_lines(maze_on_cores.RESULTS) if line["budget"] == budget]
    assert maze_report.section(lines, budget) in maze_report.DOCUMENT.read_text()
    assert maze_report.PICTURE.exists() == bool(lines)

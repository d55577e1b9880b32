"""``dsf-sim-run`` in the maze: successes are told, and networks that do not fit are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsf.export.network.file import write_network
from dsf.runtime import cli
from dsf.testing.command_line import assert_refused
from dsf.testing.random_networks import random_network
from dsf.testing.training_runs import run_here

QUICK = ("--backend", "fast", "--no-compare", "--parity-decisions", "10")
MAZE = "dsf.tasks.maze_env:dsf/Maze-v0"


def sim_run(*arguments: str) -> Any:
    return run_here(cli.main, "dsf-sim-run", *arguments)


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "maze.dsf.h5"
    write_network(random_network(0, task="maze", features=13, actions=4, discrete=True, blocks=1), path)
    return path


@pytest.mark.parametrize("options", [(), ("--env", MAZE)], ids=["task", "env"])
def test_a_network_walks_through_test_mazes(options: tuple[str, ...], choosing: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = sim_run(str(choosing), *QUICK, *options, "--episodes", "2", "--json", str(out))
    assert result.returncode == 0, result.stderr
    episodes = json.loads(out.read_text())["episodes"]
    assert [episode["shortest"] for episode in episodes] == [94, 82]  # of the test mazes of seeds 0 and 1
    for episode in episodes:
        assert episode["success"] == (episode["decisions"] < 804)
        assert episode["return"] == pytest.approx(episode["success"] - 0.1 * episode["decisions"])


def test_heads_that_do_not_fit_are_refused(choosing: Path, tmp_path: Path) -> None:
    pushing = tmp_path / "pushing.dsf.h5"
    write_network(random_network(0, features=12), pushing)  # 8 observations, 3 actions
    assert_refused(
        sim_run(str(pushing), *QUICK, "--env", MAZE), "its actions are Discrete(4)", "gives 3 numbers in [-1, 1]"
    )
    assert_refused(
        sim_run(str(choosing), *QUICK, "--env", "dsf.testing.gym_worlds:Eight-v0"), "Box", "gives one of 4 choices"
    )

"""Collecting: the same arrays from the same seed, a genuine Minari dataset, and nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import minari
import numpy as np
import pytest

from dsf.shell.errors import UserError
from dsf.tasks import get_task
from dsf.testing.command_line import assert_refused, run_command
from dsf.train.data.collect import RECIPES, Recipe, collect_episodes, get_recipe, write_dataset
from dsf.train.data.controllers import cell_distances, episode_returns
from dsf.train.data.dataset import load_dataset

RESETS_OF_SEED_7 = [655775176, 1463287113]
"""Reset seeds of hopper-medium-expert's 700 steps; another list means that nobody's datasets can be made again.

The content hash is no such constant: float32 products differ in their last bit between processors.
"""


@pytest.mark.slow
def test_collecting_is_deterministic_and_makes_a_genuine_minari_dataset(minari_store: Path) -> None:
    recipe = get_recipe("hopper-medium-expert")
    hashes = []
    for seed, workers in ((7, 1), (7, 2), (8, 1)):
        episodes = collect_episodes(recipe, 700, seed, lambda: None, workers)
        assert (seed == 7) == ([episode.seed for episode in episodes] == RESETS_OF_SEED_7)
        write_dataset(recipe, episodes, "test", overwrite=True)
        hashes.append(load_dataset(recipe.dataset_id).content_hash)
    assert hashes[0] == hashes[1]
    assert hashes[2] != hashes[0]
    dataset = minari.load_dataset("dsf/hopper/medium-expert-v1")
    assert dataset.total_steps == 700
    assert dataset.env_spec.id == "Hopper-v5"
    assert [path.name for path in minari_store.iterdir() if path.name.startswith(".collect-")] == []
    with pytest.raises(UserError, match="--overwrite"):
        write_dataset(recipe, episodes, "test", overwrite=False)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_finds_its_actors(recipe: Recipe) -> None:
    episodes = collect_episodes(recipe, 4 * len(recipe.actors), 0, lambda: None)
    assert sum(len(episode.actions) for episode in episodes) == 4 * len(recipe.actors)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_collection_that_is_ended_leaves_no_process_and_no_file(number: signal.Signals, minari_store: Path) -> None:
    program = str(Path(sys.executable).parent / "dsf-data")
    arguments = ["collect", "hopper-medium-expert", "--steps", "1000000", "--workers", "2"]
    process = subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children: list[str] = []
    deadline = time.monotonic() + 60.0
    while len(children) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        children = [child for child in listed if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    process.send_signal(number)
    _, errors = process.communicate(timeout=60.0)  # until the last worker has let go of the pipes
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert errors.splitlines() == ["dsf-data: ended by SIGTERM"]
    assert len(children) == 2
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert number == signal.SIGKILL and time.monotonic() < deadline  # who reaps them takes a moment
        time.sleep(0.05)
    assert list(minari_store.iterdir()) == []


@pytest.mark.slow
def test_cli_collects_and_describes(minari_store: Path) -> None:
    made = run_command("dsf-data", "collect", "hopper-medium", "--steps", "300")
    assert made.returncode == 0, made.stderr
    info = run_command("dsf-data", "info", "hopper-medium-v2")  # D4RL's name of the role
    assert "dsf/hopper/medium-v0: 300 steps" in info.stdout and "content sha256" in info.stdout
    assert_refused(run_command("dsf-data", "collect", "hopper-medium", "--steps", "300"), "--overwrite")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("walker-medium",), "unknown dataset 'walker-medium': dsf-data can collect cartpole-expert, "),
        (("hopper-medium", "--steps", "many"), "--steps"),
        (("hopper-medium", "--workers", "0"), "--workers is 0: it must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[str, ...], words: str, minari_store: Path) -> None:
    assert_refused(run_command("dsf-data", "collect", *arguments), words)


@pytest.mark.slow
def test_waypoint_controller_fills_a_goal_dataset(minari_store: Path) -> None:
    made = run_command("dsf-data", "collect", "pointmaze-umaze-dense", "--steps", "650", "--seed", "3")
    assert made.returncode == 0, made.stderr
    assert "PointMaze_UMazeDense-v3" in made.stdout and "dsf-normalised" in made.stdout
    assert made.stderr == ""
    dataset = minari.load_dataset("dsf/pointmaze/umaze-dense-v0")
    lengths = [len(episode.actions) for episode in dataset.iterate_episodes()]
    assert lengths == [300, 300, 50]  # the horizon, twice, and the rest
    data, task = load_dataset("dsf/pointmaze/umaze-dense-v0"), get_task("pointmaze-umaze-dense")
    assert data.task is task and data.tokens.shape == (650, task.observation_size + task.action_size + 1)
    assert task.score(float(data.episode_returns[:2].mean())) > 60.0
    assert len(np.unique(data.tokens[:300, 4:6], axis=0)) == 1  # the goal stays where it is


def test_paths_through_a_maze_go_around_its_walls() -> None:
    u_maze = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    distances = cell_distances(u_maze, (1, 1))
    assert distances[3, 1] == 6 and (2, 1) not in distances and len(distances) == 7


def test_controller_is_the_expert_and_random_actions_are_the_zero_of_a_score() -> None:
    for name, controller in (("pointmaze-umaze", "waypoint"), ("cartpole", "balance")):
        task = get_task(name)
        assert abs(task.score(float(episode_returns(task, controller, 10).mean())) - 100.0) < 15.0
        assert abs(task.score(float(episode_returns(task, "random", 10).mean()))) < 15.0


@pytest.mark.slow
def test_references_are_measured_on_the_command_line() -> None:
    result = run_command("dsf-data", "reference", "cartpole", "--episodes", "3")
    assert result.returncode == 0, result.stderr
    assert "cartpole, random: return" in result.stdout and "cartpole, balance: return 500 (sd 0" in result.stdout


def test_discrete_dataset_holds_choices(minari_store: Path) -> None:
    recipe = get_recipe("cartpole-expert")
    path = write_dataset(recipe, collect_episodes(recipe, 600, 0, lambda: None), "test", overwrite=False)
    metadata = json.loads((path / "data" / "metadata.json").read_text())
    assert metadata["ref_max_score"] == 500.0 and metadata["total_steps"] == 600
    data = load_dataset(recipe.dataset_id)
    assert data.actions.shape == (600, 2) and (data.actions.sum(axis=1) == 1.0).all()

"""Datasets of mazes through the real command line: collected, described, trained on, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from minari.data_collector import EpisodeBuffer

from dsf.tasks import get_task
from dsf.tasks.maze_env import MazeEnv
from dsf.tasks.mazes import SPLITS, maze_stream, split_of
from dsf.testing.command_line import assert_refused, run_command
from dsf.testing.training_runs import TINY, run_here, train_here, trained
from dsf.train import data_cli
from dsf.train.checkpoint import load_checkpoint
from dsf.train.data.dataset import CACHE_NAME, load_dataset
from dsf.train.data.maze_sets import MAZE_SETS, MazeSet
from dsf.train.data.maze_walks import collect_mazes
from dsf.train.data.registry import resolve, way_to_make

FEW = ("collect", "maze", "--mazes", "12")
FOLLOWER = "dsf/maze/walls-wall_follower-v0"


def data_here(*arguments: str) -> Any:
    return run_here(data_cli.main, "dsf-data", *arguments)


@pytest.mark.slow
def test_the_command_line_collects_and_trains(minari_store: Path, tmp_path: Path) -> None:
    options = ("--observation", "walls", "--expert", "wall_follower")
    made = run_command("dsf-data", *FEW, *options)
    assert made.returncode == 0 and made.stderr == "", made.stderr
    assert "12 train mazes walked through" in made.stdout and f"{FOLLOWER}: " in made.stdout
    assert_refused(data_here(*FEW), "--overwrite")
    run = tmp_path / "run"
    target = ("--steps", "20", "--eval-episodes", "1", "--eval-targets=-19")
    told = trained("maze", "--out", str(run), *TINY, *target, "--policy", "dsformer")
    assert "% at the goal" in told and load_checkpoint(run).header["step"] == 20
    score = load_checkpoint(run).header["scores"][0]
    assert score["success_rate"] in (0.0, 1.0) and score["score_mean"] < 100.0
    if score["success_rate"] == 0.0:
        assert score["steps_over_shortest"] is None and score["returns"] == [pytest.approx(-80.4)]


@pytest.mark.parametrize("maze_set", MAZE_SETS.values(), ids=MAZE_SETS)
def test_every_set_holds_its_experts_walks(maze_set: MazeSet, minari_store: Path) -> None:
    made = data_here("collect", *maze_set.options.split(), "--mazes", "3", "--seed", "5")
    assert made.returncode == 0, made.stderr
    dataset = minari.load_dataset(maze_set.dataset_id)
    task = get_task(maze_set.task)
    assert dataset.total_episodes == 3 and dataset.env_spec.id == task.env_id
    assert dataset.action_space == Discrete(4)
    metadata = json.loads((minari_store / maze_set.dataset_id / "data" / "metadata.json").read_text())
    assert metadata["maze"]["split"] == maze_set.split and metadata["ref_max_score"] == task.expert_return
    assert metadata["maze"]["split_percent"] == {"train": 70, "validation": 15, "test": 15}
    names = [episode["options"]["maze"] for episode in dataset.storage.get_episode_metadata(range(3))]
    assert [split_of(name) for name in names] == [maze_set.split] * 3
    for episode in dataset.iterate_episodes():
        assert episode.observations.dtype == np.int8 and episode.observations[0] in dataset.observation_space
        assert episode.terminations[-1] and not episode.terminations[:-1].any() and not episode.truncations.any()
        assert (episode.rewards[:-1] == -0.1).all() and episode.rewards[-1] == -0.1 + 1.0
        assert len(episode.observations) == len(episode.actions) + 1


@pytest.mark.parametrize("observation", ["walls", "view"])
def test_the_environment_sees_what_the_dataset_holds(observation: Any) -> None:
    episode = collect_mazes(MazeSet(observation, split="test"), 1, 0, lambda count: None)[0]
    walls = next(maze_stream(21, "test", np.random.default_rng(0)))[0][0]
    env = MazeEnv(observation, walls=walls)
    assert np.array_equal(env.reset()[0], episode.observations[0])
    for move, reward, seen in zip(episode.actions, episode.rewards, episode.observations[1:]):
        assert move == env.expert_move("wall_follower")
        observed, earned, *_ = env.step(move)
        assert np.array_equal(observed, seen) and earned == reward
    assert episode.options == {"maze": env.digest}


def test_the_same_seed_gives_the_same_data_read_back_or_not(minari_store: Path) -> None:
    hashes = []
    for seed in ("3", "3", "4"):
        assert data_here(*FEW, "--seed", seed, "--overwrite").returncode == 0
        hashes.append(load_dataset(FOLLOWER).content_hash)
        shutil.rmtree(minari_store / FOLLOWER / CACHE_NAME)
        assert load_dataset(FOLLOWER).content_hash == hashes[-1]  # from the file, not from memory
    assert hashes[0] == hashes[1] != hashes[2]
    fewer, more = (collect_mazes(MazeSet(), count, 3, lambda count: None) for count in (5, 9))
    assert [episode.options for episode in fewer] == [episode.options for episode in more[:5]]


def test_splits_of_one_seed_share_no_maze() -> None:
    found = {
        split: {episode.options["maze"] for episode in collect_mazes(MazeSet(split=split), 200, 0, lambda count: None)}
        for split in SPLITS
    }
    assert sum(map(len, found.values())) == 600 == len(set().union(*found.values()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("maze", "--mazes", "0"), "--mazes is 0: it must be at least 1"),
        (("maze", "--observation", "map"), "--observation"),
        (("maze", "--expert", "oracle"), "--expert"),
        (("maze", "--split", "dev"), "--split"),
        (("maze", "--steps", "100"), "dataset maze does not use --steps: drop it"),
        (("maze", "--workers", "2"), "dataset maze does not use --workers"),
        (("cartpole-expert", "--mazes", "5"), "dataset cartpole-expert does not use --mazes: drop it"),
        (("cartpole-expert", "--expert", "shortest"), "dataset cartpole-expert does not use --expert"),
        (("labyrinth",), "unknown dataset 'labyrinth': dsf-data can collect cartpole-expert, "),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[str, ...], words: str, minari_store: Path) -> None:
    assert_refused(data_here("collect", *arguments), words)


def test_a_missing_set_names_the_command_that_makes_it(minari_store: Path) -> None:
    assert resolve("maze") == FOLLOWER
    wanted = "dsf-data collect maze --observation view --expert shortest --split test"
    assert wanted in way_to_make("dsf/maze/view-shortest-test-v0")
    assert_refused(data_here("info", "dsf/maze/view-shortest-test-v0"), wanted)


def write_walk(env_id: str, observations: int, actions: Any, space: Any, **options: Any) -> None:
    """A dataset of one short episode that claims to come from an environment."""
    length = len(actions)
    episode = EpisodeBuffer(
        id=None,
        observations=np.zeros((length + 1, observations), np.float32),
        actions=actions,
        rewards=[0.0] * length,
        terminations=[False] * length,
        truncations=[False] * length,
    )
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            "test/walk-v0",
            [episode],
            env=EnvSpec(env_id, "dsf.tasks.maze_env:MazeEnv", kwargs=options),
            observation_space=Box(-99, 99, (observations,), np.float32),
            action_space=space,
        )


REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "continuous data, discrete head": (
        ("dsf/Maze-v0", 8, np.zeros((9, 4), np.float32), Box(-1, 1, (4,))),
        "Box action space, but task 'maze' chooses among 4 actions",
    ),
    "discrete data, continuous head": (
        ("Hopper-v5", 11, np.zeros(9, np.int8), Discrete(4)),
        "Discrete action space: this policy needs continuous actions",
    ),
    "mazes of another size": (
        ("dsf/Maze-v0", 8, np.zeros(9, np.int8), Discrete(4), 11),
        "environment 'dsf/Maze-v0' with size=11 belongs to no registered task: tasks have size=21",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_do_not_fit_the_head_are_refused(case: str, minari_store: Path, tmp_path: Path) -> None:
    (env_id, observations, actions, space, *size), words = REFUSED[case]
    write_walk(env_id, observations, actions, space, **({"size": size[0]} if size else {}))
    assert_refused(train_here("test/walk-v0", "--out", str(tmp_path / "run"), *TINY, "--steps", "2"), words)


def test_references_are_measured_on_the_command_line() -> None:
    result = data_here("reference", "maze", "--episodes", "2")
    assert result.returncode == 0, result.stderr
    for behaviour in ("random", "wall_follower", "shortest"):
        assert f"maze, {behaviour}: return" in result.stdout

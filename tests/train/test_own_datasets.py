"""Datasets of robots that no registered task has: what they are taken for, what a task file says, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
import yaml
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Tuple

from dsf.shell.errors import UserError
from dsf.tasks.definition import TaskDefinition
from dsf.tasks.own_environment import MODULES_VARIABLE
from dsf.tasks.registry import TASK_FACT, described_task
from dsf.testing import gym_worlds
from dsf.testing.command_line import assert_refused
from dsf.testing.gym_worlds import approach, driven, rock, swing, write_set
from dsf.testing.training_runs import TINY, run_here, train_here, trained
from dsf.train import data_cli
from dsf.train.checkpoint import load_checkpoint
from dsf.train.data.dataset import load_dataset
from dsf.train.data.own_task import returns_of, scale_of

PENDULUM, REACH, HILL, BARE = "own/pendulum-v0", "own/reach-v0", "own/hill-v0", "own/bare-v0"
PLANE = Box(-1.0, 1.0, (2,), np.float32)


def vectors(space: Any, actions: Any, count: int = 2, steps: int = 8) -> list[Any]:
    """Buffers of random observations and actions of any space, in no environment."""
    from minari.data_collector import EpisodeBuffer

    made = []
    for seed in range(count):
        space.seed(seed), actions.seed(seed)
        made.append(
            EpisodeBuffer(
                id=seed,
                observations=gym_worlds.stacked([space.sample() for _ in range(steps + 1)]),
                actions=np.array([actions.sample() for _ in range(steps)]),
                rewards=[float(step + seed) for step in range(steps)],
                terminations=[False] * steps,
                truncations=[False] * (steps - 1) + [True],
            )
        )
    return made


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pendulum, a goal-conditioned reach, a hill whose choices begin at 1, and a set that names no environment."""
    store = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(store))
        for name, env_id, act, count in (
            (PENDULUM, "Pendulum-v1", swing, 4),
            (REACH, "Reach-v0", approach, 10),
            (HILL, "Hill-v0", rock, 3),
        ):
            env = gymnasium.make(env_id)
            write_set(name, driven(env, act, count), env=env)
            env.close()
        space = Tuple([Box(-1.0, 1.0, (2,), np.float32), Box(-1.0, 1.0, (1,), np.float32)])
        write_set(BARE, vectors(space, PLANE), observation_space=space, action_space=PLANE)
        yield store


@pytest.fixture
def store(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(own_store))
    return own_store


def data_here(*arguments: str) -> Any:
    return run_here(data_cli.main, "dsf-data", *arguments)


def test_everything_is_read_from_dataset_and_environment(store: Path) -> None:
    data = load_dataset(PENDULUM)
    task, episodes = data.task, list(minari.load_dataset(PENDULUM).iterate_episodes())
    returns = np.array([episode.rewards.sum() for episode in episodes])
    assert (task.name, task.env_id, task.observation_size, task.action_size) == ("Pendulum-v1", "Pendulum-v1", 3, 1)
    assert (task.action_low, task.action_high) == ((-2.0,), (2.0,))
    assert (task.max_steps, task.control_period_s, task.reference) == (200, 0.05, "")
    assert task.return_scale == 10.0 ** np.floor(np.log10(np.abs(returns).max()))
    assert task.target_returns == tuple(float(f"{value:.3g}") for value in np.quantile(returns, (0.9, 0.5)))
    assert data.unscored == "" and data.out_of_range_actions == 0
    first = episodes[0]
    assert np.array_equal(data.tokens[:200, :3], first.observations[:-1])
    assert np.allclose(data.actions[:200], first.actions / 2.0, atol=1e-6)
    assert np.array_equal(data.tokens[1:200, 3:4], data.actions[:199]) and data.tokens[0, 3] == 0.0
    to_go = np.cumsum(first.rewards[::-1])[::-1] / task.return_scale
    assert np.allclose(data.tokens[:200, 4], to_go, rtol=1e-6)


def test_the_definition_in_a_checkpoint_shares_the_flat_files_of_its_training(store: Path) -> None:
    data = load_dataset(HILL)
    cache = store / HILL / ".dsf-cache"
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    again = load_dataset(HILL, definition=data.task.definition)
    assert again.task == data.task and np.array_equal(again.tokens, data.tokens)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == before
    other = load_dataset(HILL, definition=TaskDefinition(return_scale=7.0))
    assert np.allclose(other.tokens[:, -1] * 7.0, data.tokens[:, -1] * data.task.return_scale)


def test_parts_of_goals_are_flattened_by_sorted_keys(store: Path) -> None:
    data = load_dataset(REACH)
    space = minari.load_dataset(REACH).observation_space
    assert data.task.observation_parts == (
        ("achieved_goal",),
        ("desired_goal",),
        ("observation", "place"),
        ("observation", "speed"),
    )
    episode = next(iter(minari.load_dataset(REACH).iterate_episodes()))
    for step in (0, 7, 19):
        one = {
            "achieved_goal": episode.observations["achieved_goal"][step],
            "desired_goal": episode.observations["desired_goal"][step],
            "observation": {key: values[step] for key, values in episode.observations["observation"].items()},
        }
        wanted: Any = gymnasium.spaces.flatten(space, one)
        assert np.array_equal(data.tokens[step, :5], wanted)
    low, high = np.array([-0.25, 0.0]), np.array([0.5, 1.0])
    assert np.allclose(data.actions[:20], (episode.actions - low) * 2.0 / (high - low) - 1.0, atol=1e-6)
    assert data.task.feature(3) == "observation/place[1]" and data.task.feature(7) == "return-to-go"


def test_choices_that_begin_at_one_are_one_hot(store: Path) -> None:
    data = load_dataset(HILL)
    episode = next(iter(minari.load_dataset(HILL).iterate_episodes()))
    assert data.task.discrete and data.task.first_choice == 1 and data.task.action_size == 3
    assert np.array_equal(data.actions[: len(episode.actions)].argmax(axis=1), episode.actions - 1)


def test_a_dataset_without_an_environment_trains_and_says_that_it_is_not_scored(store: Path, tmp_path: Path) -> None:
    data = load_dataset(BARE)
    assert data.task.name == BARE and data.task.env_id == "" and data.task.observation_parts == (("0",), ("1",))
    assert data.task.max_steps == 8 and np.isnan(data.task.control_period_s)
    told = trained(BARE, "--out", str(tmp_path / "run"), "--steps", "2", *TINY)
    assert "this run is trained and not scored: the dataset names no environment" in told
    header = load_checkpoint(tmp_path / "run").header
    assert header["scores"] == [] and described_task(header["task"], header) == data.task
    refused = train_here("evaluate", str(tmp_path / "run"), "--episodes", "1")
    assert_refused(refused, "names no environment to run")


def test_an_environment_that_is_not_installed_is_named_and_not_imported(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = dict(gymnasium.registry)
    registry.pop("Reach-v0")
    monkeypatch.setattr(gymnasium.envs.registration, "registry", registry)
    monkeypatch.setattr(gymnasium, "registry", registry)
    data = load_dataset(REACH)
    assert data.unscored.startswith("environment 'Reach-v0' is not installed here: install the package")
    assert MODULES_VARIABLE in data.unscored and data.task.env_id == "Reach-v0"


@pytest.mark.slow
def test_a_task_file_comes_before_what_the_dataset_says(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "reach.yaml"
    stated = {
        "name": "finger",
        "observation_parts": ["desired_goal", "observation/place"],
        "action_high": [0.75, 1.0],
        "action_low": [-0.25, 0.0],
        "environment": "none",
        "return_scale": 2.0,
        "target_returns": [-1.0],
        "horizon": 50,
        "control_period": "20 Hz",
        "random_return": -20.0,
        "expert_return": -1.0,
        "reference": "lab",
    }
    path.write_text(yaml.safe_dump(stated))
    told = trained(REACH, "--task", str(path), "--out", str(tmp_path / "run"), "--steps", "2", *TINY)
    assert "its task file says that there is no environment" in told
    checkpoint = load_checkpoint(tmp_path / "run")
    task = checkpoint.task()
    assert (task.name, task.observation_size, task.max_steps, task.control_period_s) == ("finger", 3, 50, 0.05)
    assert (task.return_scale, task.target_returns, task.score_label) == (2.0, (-1.0,), "lab-normalised")
    episode = next(iter(minari.load_dataset(REACH).iterate_episodes()))
    data = load_dataset(REACH, definition=TaskDefinition.read(path))
    assert np.array_equal(data.tokens[:20, 0], episode.observations["desired_goal"][:20, 0])
    resumed = train_here(REACH, "--out", str(tmp_path / "run"), "--steps", "2", "--resume", *TINY)
    assert resumed.returncode == 0, resumed.stderr
    assert load_checkpoint(tmp_path / "run").header[TASK_FACT] == checkpoint.header[TASK_FACT]
    path.write_text(yaml.safe_dump({**stated, "return_scale": 3.0}))
    other = train_here(REACH, "--task", str(path), "--out", str(tmp_path / "run"), "--steps", "2", "--resume", *TINY)
    assert_refused(other, "--resume", "another task_definition")
    started = ("--init", str(tmp_path / "run"), "--task", str(path), "--out", str(tmp_path / "fine"))
    assert_refused(train_here(REACH, *started, "--steps", "2", *TINY), "give both the same --task FILE")


def test_a_registered_environment_can_be_a_task_of_ones_own(tmp_path: Path, minari_store: Path) -> None:
    env = gymnasium.make("CartPole-v1")
    write_set("own/cart-v0", driven(env, lambda _seen, generator: int(generator.integers(2)), 3), env=env)
    assert load_dataset("own/cart-v0").task.name == "cartpole"
    own = load_dataset("own/cart-v0", definition=TaskDefinition(target_returns=(50.0,)))
    assert own.task.name == "CartPole-v1" and own.task.target_returns == (50.0,) and own.task.reference == ""
    assert own.facts[TASK_FACT]["environment"] == "CartPole-v1"


def test_minaris_references_make_a_score(minari_store: Path) -> None:
    space = Box(-1.0, 1.0, (3,), np.float32)
    dataset = write_set("own/scored-v0", vectors(space, PLANE), observation_space=space, action_space=PLANE)
    dataset.storage.update_metadata({"ref_min_score": 10.0, "ref_max_score": 60.0})
    task = load_dataset("own/scored-v0").task
    assert task.score_label == "Minari-normalised" and task.shown_score(35.0) == pytest.approx(50.0)


def test_the_draft_of_a_task_file_is_one(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "draft.yaml"
    assert data_here("task", PENDULUM, "--out", str(path)).returncode == 0
    text = path.read_text()
    assert "# the 90 % quantile of the episodes' returns, then their median\ntarget_returns: [" in text
    assert "# the dataset's action space\naction_low: [-2.0]" in text and "# random_return: not known" in text
    assert load_dataset(PENDULUM, definition=TaskDefinition.read(path)).task == load_dataset(PENDULUM).task
    printed = data_here("task", BARE)
    assert printed.returncode == 0 and "cannot be scored here: the dataset names no environment" in printed.stdout
    assert TaskDefinition.from_json(yaml.safe_load(printed.stdout)).observation_parts == ("0", "1")


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"observation_size": 4}, "observations of 3 numbers, and observation_size 4 is stated"),
        ({"observation_parts": ["goal"]}, "has no observation 'goal': its parts are none"),
        ({"choices": 3}, "has numbers between bounds as actions, and choices are stated"),
        ({"action_low": [-1, -1], "action_high": [1, 1]}, "has actions of 1 numbers"),
        ({"action_names": ["a", "b"]}, "has 1 actions, and 2 action_names are stated"),
        ({"environment": "Hopper-v5"}, "environment Hopper-v5 gives 11 numbers as observation, and the task has 3"),
        ({"environment": "Nowhere-v0", "horizon": "10 s"}, "horizon is '10 s', expected a whole number"),
        ({"speed": 3}, "speed is no field of a task"),
        ([1], "it holds no names and values"),
    ],
)
def test_a_task_file_that_does_not_fit_is_one_line(stated: Any, words: str, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(stated))
    assert_refused(train_here(PENDULUM, "--task", str(path), "--out", str(tmp_path / "run"), *TINY), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("space", "actions", "words"),
    [
        (Box(0, 255, (8, 8, 3), np.uint8), PLANE, ("Box of shape (8, 8, 3), an image", "encoder of your own")),
        (Box(-1.0, 1.0, (3,), np.float32), MultiDiscrete([2, 3]), ("MultiDiscrete space", "Discrete space")),
        (Box(-1.0, 1.0, (3,), np.float32), Box(-np.inf, np.inf, (1,)), ("action[0] has no bounds", "action_low")),
    ],
)
def test_what_no_policy_can_have_is_one_line(
    space: Any, actions: Any, words: tuple[str, ...], minari_store: Path, tmp_path: Path
) -> None:
    write_set("own/odd-v0", vectors(space, actions), observation_space=space, action_space=actions)
    assert_refused(train_here("own/odd-v0", "--out", str(tmp_path / "run"), *TINY), "dataset 'own/odd-v0'", *words)


def test_bounds_that_a_dataset_lacks_can_be_stated(minari_store: Path) -> None:
    space, actions = Box(-1.0, 1.0, (3,), np.float32), Box(-np.inf, np.inf, (1,))
    write_set("own/odd-v0", vectors(space, actions), observation_space=space, action_space=actions)
    data = load_dataset("own/odd-v0", definition=TaskDefinition(action_low=-0.5, action_high=0.5))
    assert data.task.action_low == (-0.5,) and data.out_of_range_actions > 0


def test_an_empty_dataset_is_one_line(minari_store: Path, tmp_path: Path) -> None:
    space = Box(-1.0, 1.0, (3,), np.float32)
    write_set("own/empty-v0", [], observation_space=space, action_space=PLANE)
    assert_refused(train_here("own/empty-v0", "--out", str(tmp_path / "run"), *TINY), "'own/empty-v0' has no episodes")


def test_a_choice_below_the_first_is_refused(minari_store: Path) -> None:
    space, actions = Box(-1.0, 1.0, (3,), np.float32), Discrete(2, start=3)
    episodes = vectors(space, actions)
    episodes[1].actions[3] = 2
    write_set("own/odd-v0", episodes, observation_space=space, action_space=actions)
    with pytest.raises(UserError, match="episode 1: actions holds 2, expected 3 to 4"):
        load_dataset("own/odd-v0")


def test_a_definition_in_metadata_imports_no_module(
    minari_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A downloaded dataset may name any environment: its id is looked up, and nothing else."""
    (tmp_path / "dsf_evil_world.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    space = Box(-1.0, 1.0, (3,), np.float32)
    dataset = write_set("own/evil-v0", vectors(space, PLANE), observation_space=space, action_space=PLANE)
    dataset.storage.update_metadata({"dsf_task": json.dumps({"environment": "dsf_evil_world:World-v0"})})
    assert "is not installed here" in load_dataset("own/evil-v0").unscored
    dataset.storage.update_metadata({"dsf_task": "[" * 5000})
    with pytest.raises(UserError, match="its dsf_task is no JSON"):
        load_dataset("own/evil-v0")


def test_the_return_scale_is_a_power_of_ten_of_the_data() -> None:
    assert [scale_of(np.array(values)) for values in ([0.0], [0.3], [-1700.0, 5.0], [999.9], [1000.0])] == [
        *(1.0, 0.1, 1000.0, 100.0, 1000.0)
    ]
    assert returns_of([[1.0, 2.0], ["x"], [np.nan], [3.0]]).tolist() == [3.0, 0.0, 3.0]


def steps_file(path: Path, env_id: str | None = "InvertedPendulum-v5", scale: float = 1.0) -> Path:
    """Two episodes of four and three steps with final observations, in InvertedPendulum's sizes; actions in [-1, 1]."""
    generator = np.random.default_rng(0)
    arrays = {
        "observations": generator.normal(size=(7, 4)),
        "actions": scale * generator.uniform(-1.0, 1.0, (7, 1)).astype(np.float32),
        "rewards": np.ones(7),
        "terminations": np.arange(7) == 3,
        "truncations": np.arange(7) == 6,
        "final_observations": generator.normal(size=(2, 4)),
        "env_id": env_id,
    }
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    return path


def test_a_file_of_steps_of_any_environment_is_imported(minari_store: Path, tmp_path: Path) -> None:
    path = steps_file(tmp_path / "steps.npz")
    result = data_here("import", str(path), "--dataset-id", "own/steps-v0", "--rescale-actions")
    assert result.returncode == 0, result.stderr
    assert "7 action values were stretched from [-1, 1]" in result.stdout
    data, source = load_dataset("own/steps-v0"), np.load(path)
    episodes = list(minari.load_dataset("own/steps-v0").iterate_episodes())
    assert np.allclose(np.concatenate([episode.actions for episode in episodes]), 3.0 * source["actions"])
    assert np.array_equal([episode.observations[-1] for episode in episodes], source["final_observations"])
    assert np.allclose(data.actions, source["actions"], atol=1e-6) and data.unscored == ""
    assert (data.task.name, data.task.action_high, data.task.max_steps) == ("InvertedPendulum-v5", (3.0,), 1000)
    assert data.task.reference == "" and data.task.control_period_s == pytest.approx(0.04)


def test_a_file_of_steps_of_a_robot_that_only_its_owner_knows(minari_store: Path, tmp_path: Path) -> None:
    path, task = steps_file(tmp_path / "steps.npz", env_id=None), tmp_path / "robot.yaml"
    bare = data_here("import", str(path), "--dataset-id", "own/steps-v0")
    assert_refused(bare, "does not name its environment: pass --task NAME, or --task FILE.yaml")
    task.write_text("name: cart\n")
    words = data_here("import", str(path), "--dataset-id", "own/steps-v0", "--task", str(task))
    assert_refused(words, "nobody says what its actions are: state action_low and action_high, or choices")
    task.write_text(
        "name: cart\naction_low: -0.5\naction_high: 1.5\nhorizon: 4\ncontrol_period: 20 ms\n"
        "random_return: 0\nexpert_return: 4\n"
    )
    far, asked = steps_file(tmp_path / "far.npz", None, 2.0), ("--task", str(task), "--rescale-actions")
    beyond = data_here("import", str(far), "--dataset-id", "own/far-v0", *asked)
    assert_refused(beyond, "leave [-1, 1]", "--clip-actions")
    done = data_here("import", str(path), "--dataset-id", "own/steps-v0", "--task", str(task), "--rescale-actions")
    assert done.returncode == 0, done.stderr
    assert "policies of it cannot be scored here" in done.stdout
    again = load_dataset("own/steps-v0").task  # the dataset carries its task
    assert (again.name, again.max_steps, again.control_period_s, again.score_label) == (
        "cart",
        4,
        0.02,
        "own-normalised",
    )
    assert np.allclose(load_dataset("own/steps-v0").actions, np.load(path)["actions"], atol=1e-6)
    task.write_text("name: cart\naction_low: -0.5\naction_high: 1.5\nobservation_size: 5\n")
    sizes = data_here("import", str(path), "--dataset-id", "own/other-v0", "--task", str(task))
    assert_refused(sizes, "observations of 4 numbers, and observation_size 5 is stated")
    plain = data_here("import", str(path), "--dataset-id", "own/x-v0", "--task", "hopper", "--rescale-actions")
    assert_refused(plain, "--rescale-actions", "no bounds but -1 and 1")

"""``dsf-sim-run --env``: any Gymnasium environment that fits, and one line for those that do not."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsf.export.network.file import write_network
from dsf.export.network.network import Network
from dsf.runtime import cli
from dsf.runtime.loop.closed_loop import run_closed_loop
from dsf.runtime.loop.env_task import EnvTask, env_task
from dsf.runtime.loop.record import read_recording
from dsf.runtime.open_engine import open_engine
from dsf.shell.errors import CommandFailed
from dsf.tasks import Lane, get_task
from dsf.testing.command_line import assert_failed, assert_refused
from dsf.testing.gym_worlds import ACTION, OBSERVATION
from dsf.testing.random_networks import random_network
from dsf.testing.training_runs import run_here

FEATURES = OBSERVATION + ACTION + 1
QUICK = ("--backend", "fast", "--no-compare", "--parity-decisions", "10")


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network(4, features=FEATURES)


@pytest.fixture(scope="module")
def path(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("networks") / "net.dsf.h5"
    write_network(network, file)
    return file


def sim_run(*arguments: str) -> Any:
    return run_here(cli.main, "dsf-sim-run", *arguments)


def test_another_version_of_the_networks_own_environment(path: Path, network: Network, tmp_path: Path) -> None:
    """What Hopper-v4 gives, and no scores, which belong to the task's Hopper-v5 (whose last step earns less)."""
    out = tmp_path / "out.json"
    result = sim_run(str(path), *QUICK, "--env", "Hopper-v4", "--episodes", "2", "--json", str(out))
    assert result.returncode == 0, result.stderr
    summary = json.loads(out.read_text())
    with open_engine(network, "fast") as engine:
        task = dataclasses.replace(get_task("hopper"), env_id="Hopper-v4")
        truth = run_closed_loop(task, engine, range(2), 3600.0, 0)
    assert [episode["return"] for episode in summary["episodes"]] == [
        episode.episode_return for episode in truth.episodes
    ]
    assert (summary["task"], summary["env_id"]) == ("Hopper-v4", "Hopper-v4")
    assert summary["score_mean"] is None and summary["score_label"] is None
    assert all(episode["score"] is None for episode in summary["episodes"])
    assert "Hopper-v4, closed loop" in result.stdout and "score" not in result.stdout.split("closed loop")[1]
    assert env_task("Hopper-v4", network).control_period_s == get_task("hopper").control_period_s


@pytest.mark.slow
def test_a_users_own_environment_with_another_range_of_actions(path: Path) -> None:
    """Throttle-v0 asserts that actions lie in its [0, 2]; the whole range is used."""
    result = sim_run(str(path), *QUICK, "--env", "dsf.testing.gym_worlds:Throttle-v0", "--episodes", "2")
    assert result.returncode == 0, result.stderr
    assert "stretched to the bounds of dsf.testing.gym_worlds:Throttle-v0: low 0, high 2" in result.stdout
    assert "states no horizon: episodes are cut after 1000 steps, as in hopper" in result.stdout


def test_scaling_maps_the_ends_to_the_ends(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    task = env_task("dsf.testing.gym_worlds:Throttle-v0", network)
    assert task.rescaled and not env_task("dsf.testing.gym_worlds:Point-v0", network).rescaled
    env = task.make_env()
    executed: list[np.ndarray] = []
    original = env.unwrapped.step

    def step(action: np.ndarray) -> Any:
        executed.append(action)
        return original(action)

    monkeypatch.setattr(env.unwrapped, "step", step)
    env.reset(seed=0)
    for value in (-1.0, 0.0, 1.0):
        env.step(task.env_action(np.full(ACTION, value)))
    assert np.array_equal(executed, [[0.0] * ACTION, [1.0] * ACTION, [2.0] * ACTION])
    env.close()


def test_no_action_lies_beyond_an_environments_bounds(network: Network) -> None:
    """Not by a rounding either: the ends are the bounds themselves, in the environment's own type."""
    task = env_task("dsf.testing.gym_worlds:Lopsided-v0", network)
    env = task.make_env()
    env.reset(seed=0)
    for value in np.linspace(-1.0, 1.0, 201):
        env.step(np.full(ACTION, value))
    space = env.unwrapped.action_space
    assert np.array_equal(env.action(np.full(ACTION, 1.0)), space.high)  # type: ignore[attr-defined]
    assert np.array_equal(env.action(np.full(ACTION, -1.0)), space.low)  # type: ignore[attr-defined]
    env.close()


def test_a_horizon_below_one_is_none(network: Network) -> None:
    task = env_task("dsf.testing.gym_worlds:MinusOne-v0", network)
    assert task.max_steps == 1000
    assert any("states no horizon: episodes are cut after 1000 steps" in note for note in task.notes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_no_finite_number_reaches_no_robot(value: float, network: Network) -> None:
    lane = Lane(env_task("dsf.testing.gym_worlds:Point-v0", network))
    with contextlib.closing(lane):
        lane.start(7, 1.0)
        lane.step(np.zeros(ACTION))
        told = rf"gym_worlds:Point-v0, seed 7, decision 1: the policy's actions are 0, {value:g}, 0: nothing but finite"
        with pytest.raises(CommandFailed, match=told):
            lane.step(np.array([0.0, value, 0.0]))
        assert lane.decisions == 1


def test_success_and_rewards_may_be_numpys(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = sim_run(str(path), *QUICK, "--env", "dsf.testing.gym_worlds:NumpyTold-v0", "--json", str(out))
    assert result.returncode == 0, result.stderr
    (episode,) = json.loads(out.read_text())["episodes"]
    assert (episode["success"], episode["shortest"]) == (True, 3)
    assert json.loads(out.read_text())["success"] == {"rate": 1.0, "reached": 1, "episodes": 1}
    assert "100.0% (1 of 1 episodes)" in result.stdout


MODULE = """
import gymnasium
from dsf.testing.gym_worlds import Point

class Mine(Point):
    def reset(self, **given):
        import later_here
        return super().reset(**given)

gymnasium.register("Mine-v0", Mine, max_episode_steps=9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_module_in_the_working_directory_is_found(path: Path, workers: str, tmp_path: Path) -> None:
    """As ``python -m`` finds it, with what it imports later, and in workers."""
    (tmp_path / "my_worlds.py").write_text(MODULE)
    (tmp_path / "later_here.py").write_text("")
    program = Path(sys.executable).parent / "dsf-sim-run"
    command = [str(program), str(path), *QUICK, "--env", "my_worlds:Mine-v0", "--episodes", "2", "--workers", workers]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:.*WARN:UserWarning")  # Gymnasium's own checker says so, too, and goes on
@pytest.mark.parametrize(
    ("world", "words"),
    [
        ("Longer", "the observation is of shape (12,), not 11 numbers as its space says"),
        ("Wordy", "the observation is no numbers"),
        ("TwoRewards", "the reward is no single number"),
    ],
)
def test_an_environment_that_contradicts_its_own_spaces_ends_the_run(path: Path, world: str, words: str) -> None:
    env_id = f"dsf.testing.gym_worlds:{world}-v0"
    assert_failed(sim_run(str(path), *QUICK, "--env", env_id), env_id, "seed 0, decision", words)


@pytest.mark.slow
def test_inputs_beyond_the_codecs_range_are_counted_and_named(path: Path, network: Network, tmp_path: Path) -> None:
    out, page, tape = tmp_path / "out.json", tmp_path / "out.html", tmp_path / "out.h5"
    world = "dsf.testing.gym_worlds:WrongUnits-v0"
    files = ("--json", str(out), "--html", str(page), "--record", str(tape))
    result = sim_run(str(path), *QUICK, "--env", world, "--episodes", "2", *files)
    assert result.returncode == 0, result.stderr
    summary = json.loads(out.read_text())
    found = {entry["name"]: (entry["decisions"], entry["share"]) for entry in summary["saturation"]}
    late = summary["decisions"] - 2  # all but the first ones of the two episodes
    assert found["observation[2]"] == found["observation[5]"] == (late, late / summary["decisions"])
    expected = np.zeros(FEATURES, int)
    encoder = network.encoder
    for episode in read_recording(tape).episodes:
        beyond = np.abs(episode.observations[:-1] - encoder.offset[:OBSERVATION]) > (
            (encoder.limit + 0.5) * encoder.step[:OBSERVATION]
        )
        expected[:OBSERVATION] += beyond.sum(axis=0)
    counted = [found.get(f"observation[{index}]", (0, 0.0))[0] for index in range(OBSERVATION)]
    assert counted == expected[:OBSERVATION].tolist()
    assert "check units, offsets and the target return" in result.stdout
    assert "Inputs beyond the range of the codec" in page.read_text()


def test_a_reward_that_is_no_number_ends_the_run(path: Path) -> None:
    world = "dsf.testing.gym_worlds:NoReward-v0"
    result = sim_run(str(path), *QUICK, "--env", world, "--episodes", "1")
    assert result.returncode == 1
    assert "decision 3: the environment's reward is nan" in " ".join(result.stderr.split())


def test_a_network_of_choices(tmp_path: Path) -> None:
    path = tmp_path / "choices.dsf.h5"
    write_network(random_network(4, features=FEATURES, discrete=True), path)
    result = sim_run(str(path), *QUICK, "--env", "dsf.testing.gym_worlds:Choices-v0")
    assert result.returncode == 0, result.stderr
    assert_refused(sim_run(str(path), *QUICK, "--env", "dsf.testing.gym_worlds:Point-v0"), "Box", "one of 3 choices")


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("Nope-v0", ("--env Nope-v0", "doesn't exist")),
        ("no_such_module:World-v0", ("No module named 'no_such_module'",)),
        ("Pendulum-v1", ("observations have 3 numbers", "(of task hopper) reads 11")),
        ("dsf.testing.gym_worlds:Unbounded-v0", ("actions without bounds",)),
        ("dsf.testing.gym_worlds:WholeNumbers-v0", ("int64", "whole numbers are no scale", "wrap it to round")),
        ("dsf.testing.gym_worlds:Boundless-v0", ("bounds beyond 1e+09 are no scale",)),
        ("dsf.testing.gym_worlds:Image-v0", ("Box of shape (11, 1)", "FlattenObservation")),
        ("dsf.testing.gym_worlds:Parts-v0", ("are a Dict",)),
        ("dsf.testing.gym_worlds:Choices-v0", ("Discrete(3)", "3 numbers in [-1, 1]")),
        ("dsf.testing.gym_worlds:Broken-v0", ("cannot be made: RuntimeError: no robot is connected",)),
        ("LunarLander-v3", ("Box2D is not installed",)),
    ],
)
def test_what_does_not_fit_is_refused(path: Path, env_id: str, words: tuple[str, ...]) -> None:
    assert_refused(sim_run(str(path), *QUICK, "--env", env_id), env_id, *words)


def test_a_task_and_an_environment_exclude_each_other(path: Path) -> None:
    assert_refused(sim_run(str(path), *QUICK, "--env", "Hopper-v4", "--task", "hopper"), "--env", "--task")


def test_the_networks_way_of_asking_for_returns_stays(network: Network) -> None:
    task, own = env_task("dsf.testing.gym_worlds:Point-v0", network), get_task(network.task)
    assert isinstance(task, EnvTask)
    assert (task.return_scale, task.target_returns) == (own.return_scale, own.target_returns)
    assert (task.control_period_s, task.max_steps) == (0.02, 50)

"""Tasks, scores and the lockstep roll-out."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.tasks import TASKS, Token, get_task, mean_confidence_interval, rollout
from dsf.tasks.behaviour import load_actor
from dsf.tasks.registry import task_for_env


def test_score_is_d4rl_normalised() -> None:
    task = get_task("hopper")
    assert task.score(-20.272305) == 0.0
    assert task.score(3234.3) == pytest.approx(100.0)
    assert task.score(1442.0) == pytest.approx(44.93, abs=0.01)
    assert task.score_label == "D4RL-normalised"
    assert get_task("pointmaze-umaze").score_label == get_task("cartpole").score_label == "dsf-normalised"


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown task 'humanoid': choose one of antmaze-large, .*, walker2d$"):
        get_task("humanoid")


@pytest.mark.parametrize("name", TASKS)
def test_environment_fits_the_task(name: str) -> None:
    task = get_task(name)
    env = task.make_env()
    observation, _ = env.reset(seed=0)
    assert task.flat_observation(observation).shape == (task.observation_size,)
    actions = env.action_space
    if task.discrete:
        assert isinstance(actions, Discrete) and (actions.n, actions.start) == (task.action_size, 0)
    else:
        assert isinstance(actions, Box) and actions.shape == (task.action_size,)
        assert (actions.low == -1.0).all() and (actions.high == 1.0).all()
    base = env.unwrapped
    moved = next(getattr(base, part) for part in ("ant_env", "point_env", "unwrapped") if hasattr(base, part))
    period = moved.tau if name == "cartpole" else getattr(moved, "dt", np.nan)  # a maze has no clock
    assert period == pytest.approx(task.control_period_s, nan_ok=True)
    assert env.spec is not None and env.spec.max_episode_steps == task.max_steps
    assert task_for_env(task.env_id) is task
    env.close()


class RandomPolicy:
    """Uniformly random answers beyond [-1, 1]; keeps the tokens it saw and what it said."""

    def __init__(self, lanes: int, size: int) -> None:
        self.lanes, self.size, self.generator = lanes, size, np.random.default_rng(0)
        self.tokens: list[Token] = []
        self.answers: list[FloatArray] = []

    def reset(self, lane: int) -> None:
        """No memory."""

    def act(self, token: Token) -> FloatArray:
        self.tokens.append(token)
        self.answers.append(self.generator.uniform(-2.0, 2.0, (self.lanes, self.size)))
        return self.answers[-1]


@pytest.mark.parametrize("name", TASKS)
def test_closed_loop_executes_what_the_next_token_holds(name: str) -> None:
    task = replace(get_task(name), max_steps=5)
    policy = RandomPolicy(1, task.action_size)
    episode = rollout(task, policy, [0], task.target_returns[0])[0]
    assert episode.decisions == 5 and np.isfinite(episode.episode_return)
    assert policy.tokens[0].vector().shape == (1, task.observation_size + task.action_size + 1)
    for answer, token in zip(policy.answers, policy.tokens[1:]):
        executed = token.previous_action[0]
        if task.discrete:
            assert executed.sum() == 1.0 and executed.argmax() == answer[0].argmax() == task.env_action(answer[0])
        else:
            assert np.array_equal(executed, np.clip(answer[0], -1.0, 1.0))
            assert np.array_equal(executed, task.env_action(answer[0]))
    assert not policy.tokens[0].previous_action.any()


def test_goal_observations_are_flattened_one_by_one_or_by_the_dataset() -> None:
    task = get_task("antmaze-umaze")
    parts = {"achieved_goal": 2, "desired_goal": 2, "observation": 27}
    batch = {key: np.random.default_rng(size).normal(size=(7, 3, size)) for key, size in parts.items()}
    flat = task.flat_observation(batch)
    assert flat.shape == (7, 3, 31) and flat.dtype == np.float64
    assert np.array_equal(flat[..., 27:29], batch["achieved_goal"])
    assert np.array_equal(flat[4, 1], task.flat_observation({key: values[4, 1] for key, values in batch.items()}))
    with pytest.raises(UserError, match="lacks achieved_goal"):
        task.flat_observation({"observation": np.zeros(27), "desired_goal": np.zeros(2)})


def test_environment_ids_lead_to_tasks() -> None:
    assert task_for_env("Hopper-v4") is get_task("hopper")
    assert task_for_env("HalfCheetah-v4") is get_task("halfcheetah")
    assert task_for_env("AntMaze_Large_Diverse_GR-v4") is get_task("antmaze-large")
    assert task_for_env("PointMaze_UMazeDense-v3") is get_task("pointmaze-umaze-dense")
    assert task_for_env("PointMaze_UMaze-v3", {"reward_type": "dense"}) is get_task("pointmaze-umaze-dense")
    assert task_for_env("AdroitHandPen-v1", {"reward_type": "dense"}) is get_task("pen")
    with pytest.raises(UserError, match=r"Walker2d-v4.*foot friction is 0\.9"):
        task_for_env("Walker2d-v4")
    for env_id, kwargs in (("Ant-v5", {}), ("AntMaze_UMaze-v5", {}), ("AdroitHandPen-v1", {"reward_type": "sparse"})):
        with pytest.raises(UserError, match=f"'{env_id}' belongs to no registered task"):
            task_for_env(env_id, kwargs)


def run_python(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in ``directory``, which is also its temporary directory."""
    environment = {**os.environ, "TMPDIR": str(directory)}
    return subprocess.run(
        [sys.executable, "-c", script], cwd=directory, env=environment, capture_output=True, text=True, timeout=120
    )


def test_environments_print_nothing_and_leave_no_file(tmp_path: Path) -> None:
    script = """
from dsf.tasks import get_task
for name in ("halfcheetah", "door", "antmaze-umaze", "pointmaze-umaze"):
    get_task(name).make_env().close()
"""
    result = run_python(script, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["gymnasium_robotics"] = None
from dsf.shell.errors import UserError
from dsf.tasks import get_task
try:
    get_task("door").make_env()
except UserError as error:
    print(error)
"""
    result = run_python(script, tmp_path)
    assert result.stdout.splitlines() == [
        "this command needs gymnasium_robotics: install them with pip install 'dsf[robotics]'"
    ]


class ActorPolicy:
    """The shipped expert without noise; keeps the tokens it saw."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self.actor = lanes, load_actor("hopper_expert", noise=0.0)
        self.tokens: list[Token] = []

    def reset(self, lane: int) -> None:
        """No memory."""

    def act(self, token: Token) -> FloatArray:
        self.tokens.append(token)
        generator = np.random.default_rng(0)
        return np.stack([self.actor.sample(row, generator) for row in token.observation]).astype(np.float64)


@pytest.mark.slow
def test_lanes_do_not_change_an_episode() -> None:
    task = get_task("hopper")
    alone = rollout(task, ActorPolicy(1), [3, 4, 5], 3600.0)
    together = rollout(task, ActorPolicy(2), [3, 4, 5], 3600.0)
    assert alone == together
    assert [episode.seed for episode in alone] == [3, 4, 5]


@pytest.mark.slow
def test_more_lanes_than_episodes_are_idle() -> None:
    task = get_task("hopper")
    assert len(rollout(task, ActorPolicy(3), [1], 3600.0)) == 1


def test_return_to_go_falls_by_the_reward_and_previous_action_is_the_executed_one() -> None:
    task, policy = get_task("hopper"), ActorPolicy(1)
    episode = rollout(task, policy, [0], 3600.0)[0]
    first, second, last = policy.tokens[0], policy.tokens[1], policy.tokens[-1]
    assert first.return_to_go[0] == 3.6 and not first.previous_action.any()
    assert np.array_equal(second.previous_action[0], policy.act(first)[0])
    assert 3.6 - last.return_to_go[0] == pytest.approx(episode.episode_return / 1000.0, abs=0.01)
    assert episode.decisions == len(policy.tokens) - 1  # the line above asked once more


@pytest.mark.slow
def test_expert_reaches_what_its_readme_says() -> None:
    task = get_task("hopper")
    returns = [episode.episode_return for episode in rollout(task, ActorPolicy(3), range(3), 3600.0)]
    assert np.mean(returns) > 3000.0


def test_interval_holds_the_mean_and_narrows_with_the_sample() -> None:
    few, many = mean_confidence_interval([1.0, 3.0]), mean_confidence_interval([1.0, 3.0] * 50)
    assert few.low <= few.mean <= few.high
    assert many.high - many.low < few.high - few.low
    assert mean_confidence_interval([2.0]).low == 2.0


def test_delayed_task_keeps_asking_for_the_whole_target() -> None:
    """As in training on delayed rewards: every token of an episode holds the same return-to-go."""
    task = replace(get_task("hopper-delayed"), max_steps=8)
    assert task.name == "hopper-delayed" and task.delayed() is task
    policy = RandomPolicy(1, task.action_size)
    (episode,) = rollout(task, policy, [0], 3600.0)
    assert episode.decisions >= 5 and episode.episode_return > 0.0
    assert {float(token.return_to_go[0]) for token in policy.tokens} == {3.6}
    with pytest.raises(UserError, match="unknown task 'nope-delayed'"):
        get_task("nope-delayed")

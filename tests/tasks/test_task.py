"""Tasks, scores and the lockstep roll-out."""

from __future__ import annotations

import numpy as np
import pytest

from dsf.tasks import Token, UserError, get_task, mean_confidence_interval, rollout
from dsf.tasks.behaviour import load_actor
from dsf.tasks.policy import FloatArray


def test_score_is_d4rl_normalised() -> None:
    task = get_task("hopper")
    assert task.score(-20.272305) == 0.0
    assert task.score(3234.3) == pytest.approx(100.0)
    assert task.score(1442.0) == pytest.approx(44.93, abs=0.01)


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown task 'humanoid': choose one of hopper"):
        get_task("humanoid")


def test_environment_fits_the_task() -> None:
    task = get_task("hopper")
    env = task.make_env()
    assert env.observation_space.shape == (task.observation_size,)
    assert env.action_space.shape == (task.action_size,)
    assert env.unwrapped.dt == pytest.approx(task.control_period_s)
    env.close()


class ActorPolicy:
    """The shipped expert without noise; keeps the tokens it saw."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self.actor, self.tokens = lanes, load_actor("hopper_expert", noise=0.0), []

    def reset(self, lane: int) -> None:
        """No memory."""

    def act(self, token: Token) -> FloatArray:
        self.tokens.append(token)
        generator = np.random.default_rng(0)
        return np.stack([self.actor.sample(row, generator) for row in token.observation]).astype(np.float64)


def test_lanes_do_not_change_an_episode() -> None:
    task = get_task("hopper")
    alone = rollout(task, ActorPolicy(1), [3, 4, 5], 3600.0)
    together = rollout(task, ActorPolicy(2), [3, 4, 5], 3600.0)
    assert alone == together
    assert [episode.seed for episode in alone] == [3, 4, 5]


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


def test_expert_reaches_what_its_readme_says() -> None:
    task = get_task("hopper")
    returns = [episode.episode_return for episode in rollout(task, ActorPolicy(3), range(3), 3600.0)]
    assert np.mean(returns) > 3000.0


def test_interval_holds_the_mean_and_narrows_with_the_sample() -> None:
    few, many = mean_confidence_interval([1.0, 3.0]), mean_confidence_interval([1.0, 3.0] * 50)
    assert few.low <= few.mean <= few.high
    assert many.high - many.low < few.high - few.low
    assert mean_confidence_interval([2.0]).low == 2.0

"""Disturbances between environment and policy: what each does, and that an episode's depend on its own seeds alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.tasks import Disturbances, Lane, Task, Token, get_task, rollout

STEPS = 60
SCALE = tuple(np.linspace(0.5, 2.0, 11).tolist())
EVERYTHING = Disturbances(2, 0.3, SCALE, 0.2, 0.1, seed=3)


class SteadyPolicy:
    """Answers from the observation alone, in a buffer of its own; keeps the tokens it saw and what it said, by lane."""

    def __init__(self, lanes: int, size: int) -> None:
        self.lanes, self.answers = lanes, np.zeros((lanes, size))
        self.tokens: list[Token] = []
        self.said: list[FloatArray] = []

    def reset(self, lane: int) -> None:
        """No memory."""

    def act(self, token: Token) -> FloatArray:
        self.tokens.append(token)
        self.answers[:] = 0.1 * np.sin(token.observation[:, : self.answers.shape[1]])
        self.said.append(self.answers.copy())
        return self.answers


def hopper() -> Task:
    return replace(get_task("hopper"), max_steps=STEPS)


def seen(seed: int = 0, **fields: Any) -> tuple[SteadyPolicy, FloatArray]:
    """A policy after one disturbed episode, and the observations it saw."""
    policy = SteadyPolicy(1, 3)
    rollout(hopper(), policy, [seed], 3600.0, disturbances=Disturbances(**fields))
    return policy, np.concatenate([token.observation for token in policy.tokens])


def executed(
    task: Task, policy: Any, seed: int, disturbances: Disturbances
) -> tuple[list[FloatArray], list[FloatArray]]:
    """The actions that the environment got, and the observations it gave, in one episode."""
    lane = Lane(task, disturbances)
    step = lane.env.step
    actions: list[FloatArray] = []
    observations: list[FloatArray] = []

    def spy(action: FloatArray) -> Any:
        actions.append(action)
        answer = step(action)
        observations.append(task.flat_observation(answer[0]))
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane.env, "step", spy)
        lane.start(seed, 100.0)
        while lane.running:
            lane.step(policy(lane))
    lane.close()
    return actions, observations


def test_no_disturbance_changes_nothing_to_the_last_bit() -> None:
    policy, plain = SteadyPolicy(1, 3), hopper()
    undisturbed = rollout(plain, policy, [4], 3600.0)
    nothing = SteadyPolicy(1, 3)
    assert (
        rollout(plain, nothing, [4], 3600.0, disturbances=Disturbances(observation_scale=SCALE, seed=9)) == undisturbed
    )
    for one, other in zip(policy.tokens, nothing.tokens):
        assert np.array_equal(one.vector(), other.vector())


@pytest.mark.slow
def test_an_episode_does_not_depend_on_its_order_or_on_the_lanes() -> None:
    task, seeds = hopper(), [5, 6, 7, 8]
    alone = rollout(task, SteadyPolicy(1, 3), seeds, 3600.0, disturbances=EVERYTHING)
    together = rollout(task, SteadyPolicy(3, 3), seeds[::-1], 3600.0, disturbances=EVERYTHING)
    assert alone == together[::-1]
    others = rollout(task, SteadyPolicy(1, 3), seeds, 3600.0, disturbances=replace(EVERYTHING, seed=4))
    assert alone != others
    assert len({episode.episode_return for episode in alone}) == len(seeds)


@pytest.mark.parametrize("latency", [0, 1, 3])
def test_actions_arrive_late_and_tokens_hold_what_was_commanded(latency: int) -> None:
    commanded: list[FloatArray] = []

    def policy(lane: Lane) -> FloatArray:
        if commanded:
            assert np.array_equal(lane.previous_action, np.clip(commanded[-1], -1.0, 1.0))
        commanded.append(np.full(3, 0.3 + len(commanded)))
        return commanded[-1]

    arrived, _ = executed(hopper(), policy, 0, Disturbances(action_latency=latency))
    expected = [np.zeros(3)] * latency + [np.clip(action, -1.0, 1.0) for action in commanded]
    assert len(arrived) == len(commanded) > 2 * latency
    assert all(np.array_equal(one, other) for one, other in zip(arrived, expected))


def test_a_policy_may_overwrite_its_answers_while_they_are_under_way() -> None:
    policy, task = SteadyPolicy(1, 3), hopper()
    delayed = Disturbances(action_latency=2)
    episode = rollout(task, policy, [1], 3600.0, disturbances=delayed)[0]
    said = iter(policy.said)
    arrived, _ = executed(task, lambda lane: next(said)[0], 1, delayed)
    assert len(arrived) == episode.decisions
    assert all(np.array_equal(one, other[0]) for one, other in zip(arrived[2:], policy.said))


def test_a_discrete_task_takes_its_first_choice_until_an_answer_arrives() -> None:
    task = get_task("cartpole")
    arrived, _ = executed(task, lambda lane: np.array([0.0, 1.0]), 0, Disturbances(action_latency=2))
    assert arrived[:4] == [0, 0, 1, 1]


def test_noise_is_gaussian_in_units_of_its_scale() -> None:
    task, level = hopper(), 0.2
    noise = []
    for seed in range(30):
        observed: list[FloatArray] = []

        def policy(lane: Lane, observed: list[FloatArray] = observed) -> FloatArray:
            observed.append(lane.observation)
            return np.zeros(3)

        _, true = executed(task, policy, seed, Disturbances(observation_noise=level, observation_scale=SCALE))
        noise += [one - other for one, other in zip(observed[1:], true)]
    found = np.array(noise) / SCALE
    assert len(found) > 500
    assert found.std(axis=0) == pytest.approx(level, rel=0.15) and np.abs(found.mean(axis=0)).max() < 0.1 * level
    assert np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1] == pytest.approx(0.0, abs=0.05)


def test_a_lost_observation_is_the_last_one_that_arrived() -> None:
    _, clean = seen()
    policy, held = seen(observation_dropout=0.5)
    repeated = (held[1:] == held[:-1]).all(axis=1)
    assert np.array_equal(held[0], clean[0]) and 0.3 < repeated.mean() < 0.7
    assert policy.tokens[1].return_to_go[0] != policy.tokens[2].return_to_go[0]  # rewards are never lost
    _, never = seen(observation_dropout=1.0)
    assert (never == clean[0]).all()


def test_a_lost_element_is_its_last_one_that_arrived() -> None:
    _, held = seen(sensor_dropout=0.5)
    repeated = held[1:] == held[:-1]
    assert 0.4 < repeated.mean() < 0.6 and not repeated.all(axis=1).any() and not repeated.all(axis=0).any()
    _, never = seen(sensor_dropout=1.0)
    assert (never == held[0]).all()


def test_a_larger_dropout_loses_all_that_a_smaller_one_loses() -> None:
    lost = []
    for level in (0.1, 0.3, 0.6):
        _, held = seen(observation_dropout=level)
        lost.append({at for at, same in enumerate((held[1:] == held[:-1]).all(axis=1)) if same and at < 15})
    assert lost[0] < lost[1] < lost[2]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"action_latency": -1}, "action_latency is -1: it must be 0 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"observation_noise": -0.1}, "observation_noise is -0.1"),
        ({"observation_noise": float("nan")}, "observation_noise is nan"),
        ({"observation_dropout": 1.1}, "observation_dropout is 1.1: it must be between 0 and 1"),
        ({"sensor_dropout": float("nan")}, "sensor_dropout is nan"),
    ],
)
def test_impossible_disturbances_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Disturbances(**fields)


def test_noise_without_a_scale_for_every_element_is_refused() -> None:
    with pytest.raises(UserError, match="observation_scale has 0 elements, an observation of task hopper has 11"):
        rollout(hopper(), SteadyPolicy(1, 3), [0], 3600.0, disturbances=Disturbances(observation_noise=0.1))

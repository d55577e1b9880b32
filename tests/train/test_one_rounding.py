"""Training and the closed loop give a token the same integers, however little a feature changes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dsf.export.network.nodes import Encoder
from dsf.export.network.reference import encode
from dsf.shell.arrays import FloatArray
from dsf.tasks import Lane, Task
from dsf.tasks.registry import TASKS
from dsf.train.data.flatten import flat_episodes
from dsf.train.quantization.codec import InputCodec, TokenStatistics

STEPS = 40


def as_node(codec: InputCodec) -> Encoder:
    return Encoder("encoder", codec.offset, codec.step, np.zeros(len(codec.offset), np.int64), codec.bits)


def drive(task: Task, lane: Lane, answers: FloatArray, target: float) -> tuple[SimpleNamespace, FloatArray]:
    """An episode as Minari would hold it, and the tokens (steps, features) that its policy saw."""
    seen, observations, actions, rewards = [], [], [], []
    lane.start(3, target)
    observations.append(lane.observation)
    for answer in answers:
        seen.append(lane.token().vector()[0])
        ended = lane.step(answer)
        observations.append(lane.observation)
        actions.append(task.env_action(answer))
        rewards.append(lane.reward)
        if ended is not None:
            break
    flags = np.zeros(len(actions), bool)
    names = task.observation_keys
    stacked = np.array(observations)
    parts = stacked if not names else dict(zip(names, np.split(stacked, part_ends(task, lane), axis=1)))
    return SimpleNamespace(
        observations=parts,
        actions=np.array(actions),
        rewards=np.array(rewards),
        terminations=flags,
        truncations=flags,
    ), np.array(seen)


def part_ends(task: Task, lane: Lane) -> list[int]:
    """Where a flat observation is cut into the parts of a Dict."""
    spaces = lane.env.observation_space.spaces  # type: ignore[attr-defined]
    return np.cumsum([spaces[key].shape[0] for key in task.observation_keys])[:-1].tolist()


@pytest.mark.parametrize("task", TASKS.values(), ids=str)
def test_every_tasks_tokens_have_the_same_integers_in_training_and_in_the_loop(task: Task) -> None:
    answers = np.random.default_rng(1).uniform(-1.2, 1.2, (STEPS, task.action_size))
    lane = Lane(task)
    try:
        episode, _ = drive(task, lane, answers, 0.0)
        episode, seen = drive(task, lane, answers, float(episode.rewards.sum()))
    finally:
        lane.close()
    (flat,) = flat_episodes("test/rounding-v0", task, [episode])
    codec = InputCodec.fit(TokenStatistics.of(flat.tokens), np.full((1, seen.shape[1]), np.nan), bits=8)
    assert np.array_equal(codec.encode(flat.tokens), encode(as_node(codec), seen))


def test_features_that_never_or_hardly_change_are_zero_in_training_and_in_the_loop() -> None:
    tokens = np.random.default_rng(0).normal(size=(500, 5))
    tokens[:, 0] = 1234.567  # no float32
    tokens[:, 1] = -9.81
    tokens[:, 2] = 0.0
    tokens[:, 3] = 1234.567 + 1e-9 * np.arange(500)
    codec = InputCodec.fit(TokenStatistics.of(tokens.astype(np.float32)), np.full((1, 5), np.nan), bits=8)
    assert codec.constant == (0, 1, 2, 3)
    assert not codec.encode(tokens.astype(np.float32))[:, :4].any()
    assert not encode(as_node(codec), tokens)[:, :4].any()
    # A change is seen for what it is: a tenth of the value is a tenth of the range.
    changed = tokens[:1] * 1.1
    assert encode(as_node(codec), changed)[0, :2].tolist() == [13, -13]


def test_a_small_unit_is_no_constant() -> None:
    tokens = np.random.default_rng(0).normal(0.0, 2e-9, (500, 1))
    codec = InputCodec.fit(TokenStatistics.of(tokens.astype(np.float32)), np.full((1, 1), np.nan), bits=8)
    assert codec.constant == ()
    assert codec.step[0] < 2e-10


def test_returns_that_are_all_equal_leave_the_target_an_ordinary_input() -> None:
    tokens = np.zeros((500, 1), np.float32)
    codec = InputCodec.fit(TokenStatistics.of(tokens), np.array([[3.6]]), bits=8)
    assert codec.encode(np.array([[3.6]]))[0, 0] == 127
    assert codec.unit[0] == pytest.approx(1 / 127)
    assert codec.constant == (0,)


def test_values_beyond_float32_are_the_end_of_the_range() -> None:
    codec = InputCodec.fit(TokenStatistics.of(np.array([[0.0], [1.0]])), np.full((1, 1), np.nan), bits=8)
    assert encode(as_node(codec), np.array([[1e300], [-1e300]])).ravel().tolist() == [127, -127]
    assert codec.encode(np.array([[1e300], [-1e300]])).ravel().tolist() == [127, -127]

"""Tasks that no registry holds: what a file may say, how spaces are flattened, and bounds that nothing leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.shell.errors import UserError
from dsf.tasks.definition import TaskDefinition
from dsf.tasks.own_environment import find
from dsf.tasks.registry import TASK_FACT, described_task, notes_on, own_task
from dsf.tasks.spaces import action_layout, observation_layout
from dsf.tasks.task import Task

WHOLE: dict[str, Any] = {
    "name": "arm",
    "environment": "Pendulum-v1",
    "observation_size": 3,
    "action_low": [-2.0],
    "action_high": [2.0],
    "return_scale": 1000.0,
    "target_returns": [-200.0, -400.0],
    "horizon": 200,
    "control_period": "50 ms",
}


def task_of(**changes: Any) -> Task:
    values = {name: value for name, value in {**WHOLE, **changes}.items() if value is not None}
    return own_task(TaskDefinition.from_json(values), "here")


def test_a_definition_is_the_same_task_from_yaml_json_and_a_file_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text(yaml.safe_dump(WHOLE))
    task = own_task(TaskDefinition.read(path), "here")
    assert task == task_of() and task.definition is not None
    facts = json.loads(json.dumps({TASK_FACT: task.definition.to_json()}))
    assert described_task("arm", facts) == task
    assert described_task("arm-delayed", facts) == task.delayed()
    assert (task.env_id, task.max_steps, task.control_period_s) == ("Pendulum-v1", 200, 0.05)
    assert (task.action_low, task.action_high, task.reference) == ((-2.0,), (2.0,), "")
    assert task.shown_score(0.0) is None and "no reference returns" in notes_on(task, (-200.0,), {})[0]
    with pytest.raises(UserError, match="defines task 'arm', and 'leg' is meant"):
        described_task("leg", facts)


def test_scores_need_references_and_points_are_percents_of_the_span_without_them() -> None:
    stated = task_of(random_return=-1200.0, expert_return=-200.0)
    assert stated.score_label == "own-normalised" and stated.shown_score(-700.0) == pytest.approx(50.0)
    spread = task_of().with_data(-1500.0, -500.0)
    assert spread.score(-500.0) - spread.score(-510.0) == pytest.approx(1.0)  # of 1000 units of reward


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"horizn": 200}, "horizn is no field of a task: did you mean horizon"),
        ({"wings": 2}, "wings is no field of a task: the fields are name, environment"),
        ({"horizon": "10 s"}, "horizon is '10 s', expected a whole number"),
        ({"horizon": 0}, "horizon is 0, expected a whole number, 1 to"),
        ({"control_period": 0.05}, "control_period is 0.05, expected text"),
        ({"control_period": "50"}, "control_period is '50', expected a number and its unit, s, ms, us or Hz"),
        ({"control_period": "50 minutes"}, "expected a number and its unit"),
        ({"control_period": "0 Hz"}, "must be above 0"),
        ({"action_low": [2.0]}, "action_low is not below action_high"),
        ({"action_low": [-math.inf]}, "expected a finite number"),
        ({"action_low": [-1e12]}, "no scale for a policy"),
        ({"action_low": [-1.0, -1.0, -1.0], "action_high": [1.0, 1.0]}, "give one for each component"),
        ({"action_high": None}, "action_high is missing"),
        ({"choices": 3}, "choices or bounds"),
        ({"first_choice": 1}, "first_choice belongs to choices"),
        ({"return_scale": -1.0}, "return_scale is -1.0, expected a number above 0"),
        ({"target_returns": []}, "target_returns is \\(\\), expected 1 to"),
        ({"random_return": 1.0}, "give both"),
        ({"random_return": 1.0, "expert_return": 2.0, "reference": "D4RL"}, "other than D4RL and dsf"),
        ({"name": "hopper"}, "dsf has a task of that name"),
        ({"name": "a b"}, "name is a b, expected letters"),
        ({"observation_names": ["x"]}, "observation_names are 1, and observation_size is 3"),
        ({"environment_arguments": {"path": "/etc/passwd"}}, "its path is no number, name or list"),
        ({"environment_wrappers": [{"name": "Evil", "kwargs": {}}]}, "cannot be built again"),
        ({"observation_size": None}, "observation_size is missing"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        task_of(**changes)
    assert str(refusal.value).startswith("here" if "hopper" in changes.values() else ("task", "here"))
    assert "\n" not in str(refusal.value)


def test_an_environment_is_found_by_its_id_and_no_module_is_imported_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dsf_evil_robot.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find("dsf_evil_robot:Robot-v0") is None and find("") is None
    with pytest.raises(UserError, match="environment 'dsf_evil_robot:Robot-v0' is not installed here"):
        task_of(environment="dsf_evil_robot:Robot-v0").make_env()
    with pytest.raises(UserError, match="task arm names no environment to run"):
        task_of(environment="none").make_env()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observation_size": 4}, "gives 3 numbers as observation, and the task has 4"),
        ({"observation_parts": ["a"]}, "lacks a as observation"),
        ({"action_low": [-2.0, -1.0], "action_high": [2.0, 1.0]}, "takes 1 numbers as action, and the task has 2"),
        (
            {"action_low": None, "action_high": None, "choices": 3},
            "takes 1 numbers as action, and the task has 3 choices",
        ),
        ({"action_high": [2.5]}, "between -2 and 2, and the task's bounds lie beyond"),
    ],
)
def test_an_environment_that_does_not_fit_the_task_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        task_of(**changes).make_env()


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Box(0, 255, (64, 64, 3), np.uint8), r"Box of shape \(64, 64, 3\), an image.*encoder of your own"),
        (spaces.Box(-1.0, 1.0, (2, 2)), r"Box of shape \(2, 2\), no vector.*FlattenObservation"),
        (spaces.Dict({"text": spaces.Text(5), "x": spaces.Box(0, 1, (1,))}), "observation 'text' is a Text space"),
        (spaces.Tuple([spaces.MultiDiscrete([2, 3])]), "observation '0' is a MultiDiscrete space"),
        (spaces.Discrete(3), "observation is a Discrete space.*FlattenObservation"),
        (spaces.Dict({"a/b": spaces.Box(0, 1, (1,))}), "a part called 'a/b'"),
        (spaces.Dict({}), "hold nothing"),
        (spaces.Box(0.0, 1.0, (5000,)), "5,000 numbers, limit 4,096"),
    ],
)
def test_observations_that_are_no_vectors_are_refused_with_what_works(space: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"^here: .*{words}"):
        observation_layout("here", space)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.MultiDiscrete([3, 3]), "MultiDiscrete space, and no policy gives such: record one number for each"),
        (spaces.MultiBinary(3), "MultiBinary space"),
        (spaces.Text(5), "Text space"),
        (spaces.Dict({"a": spaces.Box(0, 1, (1,))}), "Dict space"),
        (spaces.Box(-np.inf, np.inf, (2,)), r"action\[0\] has no bounds.*action_low, action_high.*RescaleAction"),
        (
            spaces.Box(np.array([-1.0, -1.0], np.float32), np.array([1.0, 3e38], np.float32)),
            r"action\[1\] has no bounds",
        ),
        (spaces.Box(0, 5, (2,), np.int64), "whole numbers between bounds"),
        (spaces.Box(-1.0, 1.0, (2, 2)), "a policy gives a vector"),
    ],
)
def test_actions_that_no_policy_gives_are_refused_with_what_works(space: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"^here: .*{words}"):
        action_layout("here", space)


KEYS = st.text("abcxyz_0123", min_size=1, max_size=4)
LEAF = st.integers(1, 4).map(lambda size: spaces.Box(-1.0, 1.0, (size,), np.float32))
NESTED = st.recursive(
    LEAF,
    lambda inner: (
        st.dictionaries(KEYS, inner, min_size=1, max_size=3).map(spaces.Dict)
        | st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(space=NESTED, seed=st.integers(0, 1000))
def test_nested_observations_are_flattened_as_gymnasium_does(space: Any, seed: int) -> None:
    space.seed(seed)
    observation, layout = space.sample(), observation_layout("here", space)
    nested = set(layout) != {()}
    parts = tuple("/".join(path) for path in layout) if nested else None
    task = task_of(observation_size=sum(layout.values()), observation_parts=parts)
    wanted: Any = gymnasium.spaces.flatten(space, observation)
    assert np.array_equal(task.flat_observation(observation), wanted)


BOUND = st.floats(-1e6, 1e6, width=64).filter(lambda value: value == 0.0 or abs(value) > 1e-6)


@settings(max_examples=100, deadline=None)
@given(
    ends=st.lists(
        st.tuples(BOUND, BOUND).filter(lambda pair: pair[0] + 1e-3 * (1 + abs(pair[0])) < pair[1]), min_size=1
    ),
    data=st.data(),
)
def test_nothing_leaves_the_bounds_and_recorded_actions_come_back(ends: list[tuple[float, float]], data: Any) -> None:
    """Bounds that no 32-bit float holds are moved inwards, so that no number that an environment gets is beyond."""
    low, high = (np.array(values) for values in zip(*ends))
    task = task_of(action_low=low.tolist(), action_high=high.tolist())
    answer = np.array(data.draw(st.lists(st.floats(-1e300, 1e300), min_size=len(ends), max_size=len(ends))))
    sent = task.env_action(answer)
    assert (
        sent.dtype == np.float32 and (sent.astype(np.float64) >= low).all() and (sent.astype(np.float64) <= high).all()
    )
    assert np.array_equal(task.env_action(np.full(len(ends), np.inf)), np.array(task.action_high or (1.0,), np.float32))
    middle = task.env_action(np.zeros(len(ends))).astype(np.float64)
    assert np.allclose(middle, (low + high) / 2, rtol=0.0, atol=1e-6 * np.abs([low, high]).max())
    share = np.array(data.draw(st.lists(st.floats(-1.0, 1.0), min_size=len(ends), max_size=len(ends))))
    recorded = low + (share + 1.0) / 2.0 * (high - low)
    assert np.allclose(
        task.env_action(task.policy_actions(recorded)), recorded, rtol=1e-6, atol=1e-6 * np.abs(ends).max()
    )


def test_bounds_of_one_leave_the_bits_of_actions_as_they_are() -> None:
    task, answer = task_of(action_low=[-1.0], action_high=[1.0]), np.array([0.1234567890123])
    assert (task.action_low, task.action_high) == ((), ())
    recorded = np.array([[0.1, -1.0], [0.3, 2.0]], np.float32)
    assert task.policy_actions(recorded) is recorded
    assert task.env_action(answer) == np.float32(answer) and np.array_equal(task.executed(answer), answer)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 9), start=st.integers(-5, 5), scores=st.lists(st.floats(-9, 9), min_size=9, max_size=9))
def test_choices_are_counted_from_their_start(count: int, start: int, scores: list[float]) -> None:
    task = task_of(action_low=None, action_high=None, choices=count, first_choice=start)
    answer = np.array(scores[:count])
    assert start <= task.env_action(answer) < start + count
    assert task.executed(answer).argmax() == task.env_action(answer) - start

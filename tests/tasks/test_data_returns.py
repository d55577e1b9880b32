"""What data return: targets that they hold, a word on those that they do not, and nothing believed of a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsf.shell.errors import UserError
from dsf.tasks import get_task
from dsf.tasks.data_returns import RETURNS_FACT, DataReturns, held_targets
from dsf.tasks.registry import described_task, same_robot


def test_targets_are_quantiles_of_the_episodes() -> None:
    """Of 0 to 1000 in steps of 10, nine tenths lie at 900 or below, and half at 500 or below."""
    assert held_targets(np.arange(0.0, 1001.0, 10.0)) == (900.0, 500.0)


@pytest.mark.parametrize(
    ("returns", "targets"),
    [
        ([436.6] * 5, (436.6,)),  # its three digits, 437, are no return that the data hold
        ([-8.28], (-8.28,)),
        ([0.0] * 3, (0.0,)),
        ([1.0, 5323.4], (4790.0, 2660.0)),  # 1 + 0.9 * 5322.4 and 1 + 0.5 * 5322.4, to three digits
    ],
)
def test_targets_lie_inside_the_data(returns: list[float], targets: tuple[float, ...]) -> None:
    assert held_targets(np.array(returns)) == targets


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ((5000.0,), "target return 5000 lies outside what the episodes of the training data return, 7.5 to 4607"),
        ((-50.0, 3600.0, 9000.0), "target returns -50, 9000 lie outside"),
        ((4607.0, 7.5), None),
        ((4608.0, 5.0), None),  # as close as makes no difference
    ],
)
def test_targets_outside_are_named_above_and_below(targets: tuple[float, ...], told: str | None) -> None:
    note = DataReturns(7.5, 4607.0).note(targets)
    assert note is None if told is None else note is not None and note.startswith(told)


@pytest.mark.parametrize(
    "stated",
    [
        [],
        "all",
        {"lowest": 0.0},
        {"lowest": 5.0, "highest": 1.0, "targets": []},
        {"lowest": 0.0, "highest": float("nan"), "targets": []},
        {"lowest": 0.0, "highest": 1.0, "targets": ["1"]},
        {"lowest": 0.0, "highest": 1.0, "targets": 3},
        {"lowest": False, "highest": 1.0, "targets": []},
        {"lowest": 0.0, "highest": 1e300, "targets": []},
    ],
)
def test_what_is_no_return_is_refused(stated: Any) -> None:
    with pytest.raises(UserError, match="returns: they"):
        described_task("hopper", {RETURNS_FACT: stated})


def test_a_policy_is_described_by_its_header() -> None:
    facts = {RETURNS_FACT: DataReturns(1.0, 900.0, (800.0, 500.0)).to_json()}
    assert described_task("hopper", facts).target_returns == (800.0, 500.0)
    assert described_task("hopper", {}) is get_task("hopper")  # of an older dsf
    assert described_task("hopper", {RETURNS_FACT: DataReturns(1.0, 900.0).to_json()}) is get_task("hopper")


def test_the_same_robot_with_delayed_rewards_is_no_other() -> None:
    assert same_robot(get_task("hopper"), get_task("hopper-delayed"))
    assert not same_robot(get_task("halfcheetah"), get_task("walker2d"))

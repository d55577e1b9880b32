"""A task that no registry holds, in words that a file can keep: YAML of a user, a checkpoint's header, a network file.

Whoever reads one gets the same type from all three. In a file of a user fields may be left out, and a dataset says
them; what a checkpoint or a network carries is complete. Nothing is imported by a name that stands in such a file: an
environment is an id, and whoever runs it says where it comes from (:mod:`dsf.tasks.own_environment`).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsf.shell.errors import UserError
from dsf.shell.file_values import read_yaml
from dsf.shell.typed_values import read_record
from dsf.tasks.recorded import (
    ENV_ID,
    LARGEST_SIZE,
    LONGEST_HORIZON,
    REBUILT,
    UNSHOWN,
    Wrapping,
    require_arguments,
)
from dsf.tasks.spaces import LARGEST_BOUND, SEPARATOR

NO_ENVIRONMENT = "none"
"""What a file says where there is no environment to run; leaving the field out means the dataset's."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:-]{0,98}")
LABEL = re.compile(r"[A-Za-z0-9_.-]{1,32}")
RESERVED_LABELS = ("d4rl", "dsf")
"""Whose references these are is for the registered tasks to say."""
OWN_LABEL, MINARI_LABEL = "own", "Minari"
"""Whose random and expert returns they are: the user's, or those of a dataset's metadata."""
PERIOD = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]+)\s*")
PERIOD_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
FREQUENCY = "Hz"
LONGEST_PERIOD_S = 3600.0
LARGEST_NAME = 80
"""Characters of the name of an observation or action."""
LARGEST_RETURN = 1e12
"""Reward units."""
MOST_TARGETS = 32
REMEDY = "correct it"

Bound = float | tuple[float, ...] | None


@dataclass(frozen=True)
class TaskDefinition:
    """What is said of a task; None is not said.

    Attributes:
        name: what it is called.
        environment: Gymnasium id; "none" says that there is none.
        environment_arguments: what it is made with, beside its horizon.
        environment_wrappers: Gymnasium's wrappers around it, the innermost first, each with ``name`` and ``kwargs``.
        observation_parts: parts of a Dict or Tuple observation in the order of the flat vector, a path each, such as
            arm/joints; of a tuple, the place counts from 0.
        observation_size: length of the flat vector.
        observation_names: of its numbers.
        choices: number of discrete actions.
        first_choice: the number of the first of them.
        action_low, action_high: bounds of continuous actions, one for each component, or one for all of them.
        action_names: of the components, or of the choices.
        return_scale: returns-to-go are divided by this before a policy sees them (reward units).
        target_returns: to ask for, best first (reward units).
        horizon: decisions after which an episode is cut.
        control_period: between two decisions, with its unit: s, ms, us or Hz.
        random_return, expert_return: mean returns that a score is 0 and 100 at (reward units).
        reference: whose returns these are.
    """

    name: str | None = None
    environment: str | None = None
    environment_arguments: dict[str, Any] | None = None
    environment_wrappers: tuple[dict[str, Any], ...] | None = None
    observation_parts: tuple[str, ...] | None = None
    observation_size: int | None = None
    observation_names: tuple[str, ...] | None = None
    choices: int | None = None
    first_choice: int | None = None
    action_low: Bound = None
    action_high: Bound = None
    action_names: tuple[str, ...] | None = None
    return_scale: float | None = None
    target_returns: tuple[float, ...] | None = None
    horizon: int | None = None
    control_period: str | None = None
    random_return: float | None = None
    expert_return: float | None = None
    reference: str | None = None

    @classmethod
    def from_json(cls, values: Any, where: str = "task") -> TaskDefinition:
        """Names and values, of whatever a file may hold.

        Args:
            values: as the file holds them.
            where: they stand, for messages.

        Raises:
            UserError: naming the field that is unknown, of another type, or out of range.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: it holds no names and values: write one field a line, such as horizon: 200")
        known = [item.name for item in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(known)}"
                raise UserError(f"{where}: {UNSHOWN.sub('?', str(name))[:LARGEST_NAME]} is no field of a task: {hint}")
        found = read_record(cls, values, where, REMEDY)
        _require_possible(found, where)
        return found

    @classmethod
    def read(cls, path: Path) -> TaskDefinition:
        """The definition in a YAML file.

        Raises:
            UserError: it cannot be read, or see :meth:`from_json`; the message names the file.
        """
        return cls.from_json(read_yaml(path, "task file"), f"task file {path}")

    def to_json(self) -> dict[str, Any]:
        """JSON values of what is said."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }

    @property
    def discrete(self) -> bool | None:
        """Whether actions are choices; None where nothing is said of actions."""
        if self.choices is not None:
            return True
        return None if self.action_low is None and self.action_high is None else False

    @property
    def env_id(self) -> str:
        """Gymnasium id; empty where there is none."""
        return "" if self.environment in (None, NO_ENVIRONMENT) else str(self.environment)

    @property
    def wrappers(self) -> tuple[Wrapping, ...]:
        """Around the environment, the innermost first."""
        return tuple(Wrapping(one["name"], one["kwargs"]) for one in self.environment_wrappers or ())

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """The parts of an observation; empty where it is a vector."""
        return tuple(tuple(part.split(SEPARATOR)) for part in self.observation_parts or ())

    @property
    def control_period_s(self) -> float:
        """Seconds; not a number where nobody knows."""
        return math.nan if self.control_period is None else seconds_of(self.control_period)

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lowest and highest actions, as 32-bit floats: where one is none, the next that lies inside."""
        low, high = (np.atleast_1d(np.array(bound, np.float64)) for bound in (self.action_low, self.action_high))
        inner = []
        for exact, inwards in ((low, np.inf), (high, -np.inf)):
            single = exact.astype(np.float32)
            outside = single < exact if inwards > 0 else single > exact
            single[outside] = np.nextafter(single[outside], np.float32(inwards))
            inner.append(tuple(map(float, single)))
        return inner[0], inner[1]


def seconds_of(text: str) -> float:
    """A control period in seconds.

    Raises:
        UserError: it has no unit, another one than a time's or Hz, or is no time between two decisions.
    """
    found = PERIOD.fullmatch(text)
    units = f"{', '.join(PERIOD_UNITS)} or {FREQUENCY}"
    if found is None or found[2] not in (*PERIOD_UNITS, FREQUENCY):
        raise UserError(f"control_period is '{text}', expected a number and its unit, {units}: such as 50 ms, or 20 Hz")
    number = float(found[1])
    period = number * PERIOD_UNITS.get(found[2], 0.0)
    if found[2] == FREQUENCY and number > 0.0:
        period = 1.0 / number
    if not 0.0 < period <= LONGEST_PERIOD_S:
        raise UserError(f"control_period is '{text}': it must be above 0, and an hour at most")
    return period


def _require_possible(found: TaskDefinition, where: str) -> None:
    """Refuse a value that no task could have.

    Raises:
        UserError: naming the field.
    """

    def require(holds: bool, name: str, expected: str) -> None:
        if not holds:
            shown = UNSHOWN.sub("?", str(getattr(found, name)))[:LARGEST_NAME]
            raise UserError(f"{where}: {name} is {shown}, expected {expected}: {REMEDY}")

    if found.name is not None:
        require(NAME.fullmatch(found.name) is not None, "name", "letters, digits and _ . / : - (99 at most)")
    if found.environment is not None:
        fits = ENV_ID.fullmatch(found.environment) is not None
        require(fits, "environment", "a Gymnasium id, such as Pendulum-v1, or none")
    for name, least, most in (
        ("observation_size", 1, LARGEST_SIZE),
        ("choices", 1, LARGEST_SIZE),
        ("first_choice", -(1 << 31), 1 << 31),
        ("horizon", 1, LONGEST_HORIZON),
    ):
        value = getattr(found, name)
        require(value is None or least <= value <= most, name, f"a whole number, {least} to {most}")
    require(
        found.return_scale is None or 0.0 < found.return_scale <= LARGEST_RETURN, "return_scale", "a number above 0"
    )
    for name in ("random_return", "expert_return"):
        value = getattr(found, name)
        require(value is None or abs(value) <= LARGEST_RETURN, name, "a mean return")
    targets = found.target_returns
    fits = targets is None or (0 < len(targets) <= MOST_TARGETS and all(abs(one) <= LARGEST_RETURN for one in targets))
    require(fits, "target_returns", f"1 to {MOST_TARGETS} returns, best first")
    stated = (found.random_return is None, found.expert_return is None)
    if stated[0] != stated[1] or (not stated[0] and found.random_return == found.expert_return):
        raise UserError(
            f"{where}: random_return and expert_return are the two ends of a score: give both, and not the same"
        )
    if found.reference is not None:
        fits = LABEL.fullmatch(found.reference) is not None and found.reference.lower() not in RESERVED_LABELS
        require(fits, "reference", "a short name of whose references these are, other than D4RL and dsf")
        if stated[0]:
            raise UserError(f"{where}: reference needs random_return and expert_return: add them, or drop it")
    if found.control_period is not None:
        try:
            seconds_of(found.control_period)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    _require_names(found, where)
    _require_actions(found, where)
    _require_environment(found, where)


def _require_names(found: TaskDefinition, where: str) -> None:
    """Refuse names that nobody could show, and parts that stand twice."""
    for name in ("observation_names", "action_names", "observation_parts"):
        for text in getattr(found, name) or ():
            if not text or len(text) > LARGEST_NAME or not text.isprintable():
                raise UserError(f"{where}: {name} holds a name that is empty or longer than {LARGEST_NAME}: {REMEDY}")
    parts = found.observation_parts
    if parts is not None and (not parts or len(set(parts)) < len(parts) or len(parts) > LARGEST_SIZE):
        raise UserError(f"{where}: observation_parts lists no part, or one twice: {REMEDY}")
    size, names = found.observation_size, found.observation_names
    if size is not None and names is not None and len(names) != size:
        raise UserError(f"{where}: observation_names are {len(names)}, and observation_size is {size}: {REMEDY}")


def _require_actions(found: TaskDefinition, where: str) -> None:
    """Refuse actions of two kinds, and bounds that are none."""
    bounds = {"action_low": found.action_low, "action_high": found.action_high}
    missing = [name for name, bound in bounds.items() if bound is None]
    if found.choices is not None and len(missing) < 2:
        raise UserError(f"{where}: actions have choices or bounds (action_low, action_high), not both: drop one")
    if found.first_choice is not None and len(missing) < 2:
        raise UserError(f"{where}: first_choice belongs to choices, and these actions have bounds: drop it")
    if len(missing) == 1:
        raise UserError(f"{where}: {missing[0]} is missing: bounds of actions are two, low and high")
    if missing:
        return
    low, high = (np.atleast_1d(np.array(bound, np.float64)) for bound in bounds.values())
    if not low.size or low.size > LARGEST_SIZE or len({low.size, high.size} - {1}) > 1:
        raise UserError(
            f"{where}: action_low has {low.size} numbers and action_high {high.size}: give one for each component"
        )
    if max(np.abs(low).max(), np.abs(high).max()) > LARGEST_BOUND:
        raise UserError(
            f"{where}: bounds of actions beyond {LARGEST_BOUND:g} are no scale for a policy: give what the machine "
            "can do"
        )
    inner = found.bounds
    if not np.all(np.array(inner[0]) < np.array(inner[1])):
        raise UserError(f"{where}: action_low is not below action_high in every component: {REMEDY}")
    names = found.action_names
    if names is not None and low.size == high.size and low.size > 1 and len(names) != low.size:
        raise UserError(f"{where}: action_names are {len(names)}, and actions have {low.size} components: {REMEDY}")


def _require_environment(found: TaskDefinition, where: str) -> None:
    """Refuse arguments and wrappers that nothing should be made with."""
    try:
        require_arguments("environment_arguments", dict(found.environment_arguments or {}))
        for one in found.environment_wrappers or ():
            if set(one) != {"name", "kwargs"} or one["name"] not in REBUILT:
                raise UserError("environment_wrappers holds one that cannot be built again")
            require_arguments(str(one["name"]), one["kwargs"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None

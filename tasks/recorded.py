"""Environments that data were recorded in, where they are not the ones that the registered tasks have.

A dataset may come from an environment with other arguments, another horizon, or wrappers around it. What Gymnasium can
build again is built again, in every closed loop of that data's policies; nobody has measured reference returns of it,
so there are no scores. What says so is a stranger's text: an environment is always one that a task names, a wrapper is
one of those listed here, and nothing is imported by a name that a file holds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError

if TYPE_CHECKING:
    import gymnasium

WITHOUT_EFFECT = (
    "PassiveEnvChecker",
    "OrderEnforcing",
    "RecordEpisodeStatistics",
    "RecordVideo",
    "HumanRendering",
    "RenderCollection",
    "AddWhiteNoise",
    "ObstructView",
)
"""Gymnasium's wrappers that check, record or draw: what a policy sees and earns is the same without them."""
REBUILT = (
    "ClipAction",
    "ClipReward",
    "DelayObservation",
    "DtypeObservation",
    "FlattenObservation",
    "MaxAndSkipObservation",
    "RepeatAction",
    "RescaleAction",
    "RescaleObservation",
    "ReshapeObservation",
    "StickyAction",
    "TimeAwareObservation",
)
"""Gymnasium's wrappers that their arguments describe entirely; others hold code, or statistics that no file has."""
STEPS_PER_DECISION = {"MaxAndSkipObservation": "skip", "RepeatAction": "num_repeats"}
"""Arguments of wrappers that execute an action so many times."""
LARGEST_TEXT = 10_000
"""Characters of JSON that describe an environment: no real one comes near."""
LARGEST_SIZE = 4_096
"""Numbers in an observation or an action."""
LARGEST_REPEAT = 1_000
"""Steps of physics for one decision: more would only keep the machine busy."""
LONGEST_HORIZON = 100_000
"""Steps; a longer horizon is none."""
SHOWN_CHARACTERS = 240
"""Of an environment's description; JSON has all of it."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
PLAIN_TEXT = re.compile(r"(?!\.)[A-Za-z0-9_.+-]{0,99}")
"""What a text among the arguments may be: a name, a kind, a file of the environment's own, but no path."""
SHOWN_ID = 99
"""Characters of an environment's id."""
ENV_ID = re.compile(rf"[A-Za-z0-9_./:()? -]{{1,{SHOWN_ID}}}")
"""What an environment's id looks like; nothing else reaches a screen."""
UNSHOWN = re.compile(r"[^A-Za-z0-9_./:() -]")
"""What is shown as a question mark."""


@dataclass(frozen=True)
class Wrapping:
    """One of Gymnasium's wrappers, with its arguments."""

    name: str
    kwargs: Mapping[str, Any]

    def describe(self) -> str:
        """As in a program."""
        return f"{self.name}({_listed(self.kwargs)})"


@dataclass(frozen=True)
class RecordedEnvironment:
    """How the environment of some data differs from its task's.

    Attributes:
        kwargs: arguments that differ (JSON values).
        wrappers: around it, the innermost first.
        max_steps: decisions after which an episode is cut; 0 where the task says that.
        observation_size, action_size: of its spaces; the number of choices where actions are discrete.
        control_period_s: simulated seconds between two decisions; not a number where nobody knows.
        low, high: bounds of the recorded actions where those are not -1 and 1: policies answer in [-1, 1], which the
            closed loop stretches to these bounds, and recorded actions are shrunk alike.
        other_id: what the data call their environment where that is none that is known here: they are taken for the
            task's because somebody has said so.

    Raises:
        UserError: a value is none that an environment could have.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[Wrapping, ...] = ()
    max_steps: int = 0
    observation_size: int = 1
    action_size: int = 1
    control_period_s: float = math.nan
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    other_id: str = ""

    def __post_init__(self) -> None:
        require_arguments("environment", self.kwargs)
        for wrapping in self.wrappers:
            if wrapping.name not in REBUILT:
                raise UserError(f"environment: {wrapping.name!r} is no wrapper that can be built again")
            require_arguments(wrapping.name, wrapping.kwargs)
        for name, least, most in (
            ("max_steps", 0, LONGEST_HORIZON),
            ("observation_size", 1, LARGEST_SIZE),
            ("action_size", 1, LARGEST_SIZE),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise UserError(f"environment: {name} is {value!r}, expected a whole number, {least} to {most}")
        bounds = (self.low, self.high)
        if not all(_is_number(value) and math.isfinite(value) for bound in bounds for value in bound):
            raise UserError("environment: bounds of actions are no numbers")
        lengths = {len(self.low), len(self.high)}
        if lengths not in ({0}, {self.action_size}) or any(low >= high for low, high in zip(*bounds)):
            raise UserError("environment: bounds of actions do not fit its actions")
        period = self.control_period_s
        if not _is_number(period) or not (math.isnan(period) or 0.0 < period < math.inf):
            raise UserError(f"environment: control_period_s is {period!r}, expected seconds above 0")
        if not isinstance(self.other_id, str) or (self.other_id and not ENV_ID.fullmatch(self.other_id)):
            raise UserError("environment: other_id is no environment's id")

    def describe(self, env_id: str) -> str:
        """The environment in words, on one line; ``env_id`` is the task's."""
        text = env_id
        if self.kwargs:
            text += f" with {_listed(self.kwargs)}"
        if self.wrappers:
            text += f" behind {', '.join(wrapping.describe() for wrapping in self.wrappers)}"
        if self.max_steps:
            text += f", cut after {self.max_steps} steps"
        if self.other_id:
            text += f" in place of {self.other_id}"
        return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."

    def wrapped(self, env: gymnasium.Env) -> gymnasium.Env:
        """An environment with the wrappers around it, its actions in [-1, 1]."""
        import gymnasium.wrappers

        for wrapping in self.wrappers:
            env = getattr(gymnasium.wrappers, wrapping.name)(env, **wrapping.kwargs)
        return stretched(env) if self.low else env

    def shrunk(self, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Recorded actions (steps, action_size), as a policy has to answer: the bounds become -1 and 1."""
        if not self.low:
            return actions
        low, high = np.array(self.low), np.array(self.high)
        shrunk: FloatArray = (np.asarray(actions, np.float64) - low) * (2.0 / (high - low)) - 1.0
        return shrunk

    def to_json(self) -> dict[str, Any]:
        """JSON values; a control period that nobody knows is null."""
        period = self.control_period_s
        return {
            "kwargs": dict(self.kwargs),
            "wrappers": [{"name": wrapping.name, "kwargs": dict(wrapping.kwargs)} for wrapping in self.wrappers],
            "max_steps": self.max_steps,
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "control_period_s": None if math.isnan(period) else period,
            "low": list(self.low),
            "high": list(self.high),
            "other_id": self.other_id,
        }

    @classmethod
    def from_json(cls, values: Any) -> RecordedEnvironment:
        """Inverse of :meth:`to_json`, of whatever a file may hold.

        Raises:
            UserError: it describes no environment.
        """
        try:
            period = values["control_period_s"]
            return cls(
                kwargs=values["kwargs"],
                wrappers=tuple(Wrapping(wrapping["name"], wrapping["kwargs"]) for wrapping in values["wrappers"]),
                max_steps=values["max_steps"],
                observation_size=values["observation_size"],
                action_size=values["action_size"],
                control_period_s=math.nan if period is None else period,
                low=tuple(values["low"]),
                high=tuple(values["high"]),
                other_id=values["other_id"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"environment: it does not fit this version of dsf ({reason})") from None


def stretched(env: gymnasium.Env) -> gymnasium.Env:
    """An environment whose actions lie in [-1, 1]: the ends become its own bounds, and nothing beyond them arrives."""
    from gymnasium.spaces import Box
    from gymnasium.wrappers import TransformAction

    space = env.action_space
    assert isinstance(space, Box)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)

    def stretch(action: FloatArray) -> npt.NDArray[np.generic]:
        answer = np.asarray(action, np.float64)
        between = np.clip(low + (answer + 1.0) * ((high - low) / 2.0), low, high)
        return np.where(answer >= 1.0, high, between).astype(space.dtype)

    return TransformAction(env, stretch, Box(-1.0, 1.0, space.shape, np.float64))


def require_arguments(what: str, kwargs: Any) -> None:
    """Refuse arguments that no constructor should get from a file.

    Raises:
        UserError: they are too many, have no names, or one is a path, or a number that would keep the machine busy.
    """
    if not isinstance(kwargs, dict):
        raise UserError(f"{what}: its arguments are {type(kwargs).__name__}, expected names and values")
    for name, value in kwargs.items():
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise UserError(f"{what}: one of its arguments has no name that a program could have")
        try:
            small = len(json.dumps(value)) <= LARGEST_TEXT
        except (TypeError, ValueError, RecursionError):
            raise UserError(f"{what}: its {name} is no plain value") from None
        if not small or not _is_plain(value):
            raise UserError(f"{what}: its {name} is no number, name or list of them that could be passed on")
        repeats = name == "frame_skip" or name in STEPS_PER_DECISION.values()
        if repeats and not (isinstance(value, int) and 1 <= value <= LARGEST_REPEAT):
            raise UserError(f"{what}: its {name} is {value!r}, expected a whole number, 1 to {LARGEST_REPEAT}")


def _is_plain(value: Any) -> bool:
    """Whether a JSON value holds nothing but numbers (infinite ones too), truth values and harmless texts."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and NAME.fullmatch(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, str):
        return PLAIN_TEXT.fullmatch(value) is not None
    return value is None or (_is_number(value) and not math.isnan(value)) or isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 1 << 62


def _listed(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(kwargs.items()))

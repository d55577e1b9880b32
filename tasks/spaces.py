"""Spaces of observations and actions, as far as a policy can have them: what is flattened in which order, and what not.

A policy reads a vector and gives numbers between bounds, or one of several choices. Parts of a Dict are taken in the
order of their sorted keys, as Gymnasium itself sorts those of a plain dict, those of a Tuple in their order, and both
at every level: then :func:`gymnasium.spaces.flatten` gives the same vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dsf.shell.errors import UserError
from dsf.shell.plain_text import plain
from dsf.tasks.recorded import LARGEST_SIZE

if TYPE_CHECKING:
    import gymnasium

PartPath = tuple[str, ...]
SEPARATOR = "/"
"""Between the keys of a part's path."""
LARGEST_BOUND = 1e9
"""Bounds of actions beyond this mean that there are none, as float32's largest number does."""
IMAGE_AXES = (2, 3)
VECTOR_WRAPPER = "gymnasium.wrappers.FlattenObservation"


@dataclass(frozen=True)
class ActionLayout:
    """What actions of a space are.

    Attributes:
        choices: number of discrete actions; 0 of continuous ones.
        first_choice: the number of the first of them.
        low, high: bounds of continuous ones.
    """

    choices: int = 0
    first_choice: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Choices, or components."""
        return self.choices or len(self.low)


def observation_layout(where: str, space: gymnasium.Space[Any]) -> dict[PartPath, int]:
    """The parts of an observation in the order of the flat vector, and how many numbers each has; a vector is one part
    without a path.

    Args:
        where: it is, for messages.
        space: of the observations.

    Raises:
        UserError: naming what is no vector, and what would work.
    """
    found = dict(_parts(where, space, ()))
    if not found:
        raise UserError(f"{where}: its observations hold nothing: a policy reads at least one number")
    if (numbers := sum(found.values())) > LARGEST_SIZE:
        raise UserError(
            f"{where}: its observations have {numbers:,} numbers, limit {LARGEST_SIZE:,}: a policy reads a short vector"
            ", so let an encoder of your own make one"
        )
    return found


def _parts(where: str, space: Any, path: PartPath) -> list[tuple[PartPath, int]]:
    from gymnasium.spaces import Box, Dict, Tuple

    named = f"observation '{plain(SEPARATOR.join(path))}'" if path else "observation"
    if isinstance(space, Dict):
        keys = list(space.spaces)
        if wrong := [key for key in keys if not isinstance(key, str) or not key or SEPARATOR in key]:
            raise UserError(
                f"{where}: its {named} has a part called {plain(str(wrong[0]))!r}: give it a name without {SEPARATOR}"
            )
        return [part for key in sorted(keys) for part in _parts(where, space.spaces[key], (*path, key))]
    if isinstance(space, Tuple):
        return [part for place, one in enumerate(space) for part in _parts(where, one, (*path, str(place)))]
    if not isinstance(space, Box):
        raise UserError(
            f"{where}: its {named} is a {type(space).__name__} space: a policy reads numbers (a Box of one axis, or a "
            f"Dict or Tuple of such); {VECTOR_WRAPPER} around the environment makes such of choices, of text nothing "
            "does: leave it out"
        )
    if len(space.shape) != 1 or not space.shape[0]:
        image = len(space.shape) in IMAGE_AXES and np.issubdtype(space.dtype, np.integer)
        what = "an image" if image else "no vector"
        way = (
            "let an encoder of your own make features of it, and record those"
            if image
            else f"record it behind {VECTOR_WRAPPER}, or reshaped to one axis"
        )
        raise UserError(
            f"{where}: its {named} is a Box of shape {space.shape}, {what}: a policy reads vectors (one axis); {way}"
        )
    return [(path, int(space.shape[0]))]


def action_layout(where: str, space: gymnasium.Space[Any]) -> ActionLayout:
    """What actions of a space are.

    Args:
        where: it is, for messages.
        space: of the actions.

    Raises:
        UserError: naming a kind that no policy gives, and what would work.
    """
    from gymnasium.spaces import Box, Discrete

    if isinstance(space, Discrete):
        if not 1 <= int(space.n) <= LARGEST_SIZE:
            raise UserError(f"{where}: its actions are {int(space.n):,} choices, expected 1 to {LARGEST_SIZE:,}")
        return ActionLayout(choices=int(space.n), first_choice=int(space.start))
    if not isinstance(space, Box):
        way = {
            "MultiDiscrete": "record one number for each combination (a Discrete space), or bounded numbers (a Box)",
            "MultiBinary": "record one number for each combination (a Discrete space), or bounded numbers (a Box)",
        }.get(type(space).__name__, "record bounded numbers (a Box of one axis) or one choice (a Discrete space)")
        raise UserError(f"{where}: its actions are a {type(space).__name__} space, and no policy gives such: {way}")
    if len(space.shape) != 1 or not 1 <= space.shape[0] <= LARGEST_SIZE:
        raise UserError(
            f"{where}: its actions are a Box of shape {space.shape}, and a policy gives a vector (one axis): "
            "record them reshaped to one axis"
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise UserError(
            f"{where}: its actions are whole numbers between bounds ({space.dtype}), and a policy gives any number "
            "between them or one choice: record them as floats, or as a Discrete space"
        )
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    unbounded = ~(np.isfinite(low) & np.isfinite(high)) | (np.maximum(np.abs(low), np.abs(high)) > LARGEST_BOUND)
    if unbounded.any():
        raise UserError(
            f"{where}: its action[{int(np.argmax(unbounded))}] has no bounds, and a policy gives numbers between bounds"
            ": state them in a task file (action_low, action_high; dsf-data task writes a draft), or record behind "
            "gymnasium.wrappers.RescaleAction"
        )
    if not (low < high).all():
        raise UserError(f"{where}: its action[{int(np.argmin(low < high))}] has bounds without room between them")
    return ActionLayout(low=tuple(map(float, low)), high=tuple(map(float, high)))


def part_of(observation: Any, path: PartPath) -> Any:
    """One part of an observation.

    Raises:
        KeyError, IndexError, TypeError, ValueError: there is none.
    """
    for step in path:
        observation = observation[int(step)] if isinstance(observation, (tuple, list)) else observation[step]
    return observation


def stretched(actions: npt.NDArray[Any], low: tuple[float, ...], high: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Answers in [-1, 1] (..., components) as actions between bounds; nothing lies beyond them, and -1 and 1 are the
    bounds themselves, whatever rounding does between them.
    """
    lowest, highest = np.array(low), np.array(high)
    answers = np.clip(np.asarray(actions, np.float64), -1.0, 1.0)
    between = np.clip(lowest + (answers + 1.0) * ((highest - lowest) / 2.0), lowest, highest)
    return np.where(answers >= 1.0, highest, between)


def shrunk(actions: npt.NDArray[Any], low: tuple[float, ...], high: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Actions (..., components) as a policy has to answer: the bounds become -1 and 1."""
    lowest, highest = np.array(low), np.array(high)
    answers: npt.NDArray[np.float64] = (np.asarray(actions, np.float64) - lowest) * (2.0 / (highest - lowest)) - 1.0
    return answers

"""What the episodes behind a policy returned, and which returns it makes sense to ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError

HELD_QUANTILES = (0.9, 0.5)
"""Default targets of data without declared ones, as quantiles of the episodes' returns, best first: one episode in ten
returns more than the first."""
SHOWN_DIGITS = 3
"""Significant digits of such a target."""
RETURNS_FACT = "returns"
"""Its name in a checkpoint's header and a network's provenance."""
RANGE_TOLERANCE = 1e-3
"""Targets this close to the ends, as a share of the larger one, count as inside."""
LARGEST_RETURN = 1e12
"""Reward units: more is no return, in whatever file it stands."""


@dataclass(frozen=True)
class DataReturns:
    """Returns of a dataset's episodes, as far as a training took them.

    Attributes:
        lowest, highest: of them (reward units).
        targets: to ask for by default, where they come from the data; empty where the task's declared ones hold.
    """

    lowest: float
    highest: float
    targets: tuple[float, ...] = ()

    @classmethod
    def stated(cls, facts: Mapping[str, Any]) -> DataReturns | None:
        """What a checkpoint's header or a network's provenance says; None where an older dsf has written it.

        Raises:
            UserError: these are no returns.
        """
        values = facts.get(RETURNS_FACT)
        if values is None:
            return None
        try:
            numbers = [values["lowest"], values["highest"], *values["targets"]]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{RETURNS_FACT}: they do not fit this version of dsf ({type(error).__name__}: {error})"
            ) from None
        if not all(_is_return(number) for number in numbers) or numbers[0] > numbers[1]:
            raise UserError(f"{RETURNS_FACT}: they are no numbers that episodes could return")
        lowest, highest, *targets = map(float, numbers)
        return cls(lowest, highest, tuple(targets))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"lowest": self.lowest, "highest": self.highest, "targets": list(self.targets)}

    def note(self, targets: Sequence[float]) -> str | None:
        """What to say of targets that no episode of the data comes near; None where all lie inside."""
        tolerance = RANGE_TOLERANCE * max(abs(self.lowest), abs(self.highest))
        outside = [t for t in targets if not self.lowest - tolerance <= t <= self.highest + tolerance]
        if not outside:
            return None
        listed, verb = ", ".join(f"{target:g}" for target in outside), "lies" if len(outside) == 1 else "lie"
        noun = "target return" if len(outside) == 1 else "target returns"
        held = f"{self.lowest:.5g} to {self.highest:.5g}"
        return f"{noun} {listed} {verb} outside what the episodes of the training data return, {held}"


def held_targets(returns: FloatArray) -> tuple[float, ...]:
    """Targets that data hold: the quantiles :data:`HELD_QUANTILES` of their episodes' returns, to three digits."""
    targets: list[float] = []
    for exact in map(float, np.quantile(returns, HELD_QUANTILES)):
        rounded = float(f"{exact:.{SHOWN_DIGITS}g}")
        target = rounded if returns.min() <= rounded <= returns.max() else exact
        if target not in targets:
            targets.append(target)
    return tuple(targets)


def _is_return(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) <= LARGEST_RETURN

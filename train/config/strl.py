"""Configuration of STRL (Spike-Transformer RL, arXiv 2505.14533): what it has beyond the sizes that rivals share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dsf.shell.errors import UserError

StrlAttention = Literal["bidirectional", "causal"]
StrlNeurons = Literal["on", "off"]
MOST_TICKS = 1 << 10
ADDED_TO_STRL = {"neurons": "on"}
"""Fields younger than the first published scores, with what the models were that do not name them."""


@dataclass(frozen=True)
class StrlConfig:
    """STRL's own settings; defaults are the paper's.

    Raises:
        UserError: a value is out of its range.
    """

    attention: StrlAttention = "bidirectional"
    """bidirectional is the paper's: token t also sees t + 1, whose state and previous action tell the action that is
    asked for, so its accuracy on recorded tokens is not a policy's. causal sees the past alone."""
    ticks: int = 4
    """Inner simulation ticks T of every layer."""
    tau: float = 2.0
    """Membrane time constant: a tick keeps 1 - 1/tau of the potential and takes 1/tau of the current."""
    threshold: float = 1.0
    """Membrane potential above which (strictly) a neuron fires."""
    neurons: StrlNeurons = "on"
    """off is STRL's dense control: ReLU stands where neurons were, in one pass instead of T ticks; all else stays."""

    def __post_init__(self) -> None:
        if self.attention not in get_args(StrlAttention):
            raise UserError(f"rival.strl.attention is {self.attention!r}: use {' or '.join(get_args(StrlAttention))}")
        if self.neurons not in get_args(StrlNeurons):
            raise UserError(f"rival.strl.neurons is {self.neurons!r}: use {' or '.join(get_args(StrlNeurons))}")
        if isinstance(self.ticks, bool) or not isinstance(self.ticks, int) or not 1 <= self.ticks <= MOST_TICKS:
            raise UserError(f"rival.strl.ticks is {self.ticks!r}: it must be a whole number, 1 to {MOST_TICKS:,}")
        for name, least in (("tau", 1.0), ("threshold", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise UserError(f"rival.strl.{name} is {value!r}: it must be a finite number")
            if value <= least:
                raise UserError(f"rival.strl.{name} is {value}: it must be above {least:g}")
        if self.neurons == "off":
            for name in ("ticks", "tau", "threshold"):
                if getattr(self, name) != StrlConfig.__dataclass_fields__[name].default:
                    raise UserError(f"rival.strl.neurons off does not use rival.strl.{name}: drop it")

    @property
    def passes(self) -> int:
        """Ticks per layer; 1 without neurons."""
        return self.ticks if self.neurons == "on" else 1

    @property
    def decay(self) -> float:
        """Share of the membrane potential that survives one tick."""
        return 1.0 - 1.0 / self.tau


def strl_from_json(values: Any) -> StrlConfig:
    """Rebuild from a checkpoint's header.

    Raises:
        UserError: a field is unknown, or its value is wrong.
    """
    known = set(StrlConfig.__dataclass_fields__)
    if not isinstance(values, dict) or set(values) - known:
        raise UserError("rival config's strl does not fit this version of dsf: use the one that wrote it")
    return StrlConfig(**values)

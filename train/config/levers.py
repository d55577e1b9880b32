"""The options that make a network cheaper: the penalty on activity, and pruning.

What they do over the steps stands in :mod:`dsf.train.schedule` and :mod:`dsf.train.pruning`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from dsf.shell.errors import UserError

PenaltyCounts = Literal["events", "fetches"]
PenaltyOver = Literal["network", "layers"]
PruneScope = Literal["matrix", "network"]

PENALTY_RAMP = 0.1
"""Share of the steps over which a penalty that starts late rises, unless told otherwise."""
PRUNED_BY = 0.75
"""Share of the steps after which all zeros are there, unless told otherwise: the rest recovers with them."""


def option(name: str) -> str:
    """A field's name on the command line."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Levers:
    """A part of :class:`~dsf.train.config.training.TrainConfig`."""

    rate_penalty: float = 0.0
    """Weight of the synaptic events, as a share of the most possible ones, in the loss; 0 leaves activity free."""
    rate_penalty_counts: PenaltyCounts = "events"
    """What the penalty counts: events (a spike meets a weight), or fetches, as hardware pays that reads a row of
    weights once for all ticks of a token: bytes of the weights of every neuron that fires in any of them, and the
    updates with something to do, both at int8_45nm's prices (weights of --bits)."""
    rate_penalty_over: PenaltyOver = "network"
    """Of what the penalty is a share: of the most that the whole network could pay, or the mean over its populations
    (layers) of each one's own share, which presses queries, keys and values, too: no matrix reads them."""
    rate_penalty_start: float = 0.0
    """When the penalty starts: a share of the steps (below 1), or a step (from 1 on)."""
    rate_penalty_ramp: float | None = None
    """Share of the steps over which the penalty rises linearly from its start on; None: a tenth, and at once where it
    starts with the run."""
    prune_weights: float | None = None
    """Share of the weights inside the blocks that magnitude pruning sets to zero, above 0 and below 1; None: none."""
    prune_channels: float | None = None
    """Share of the MLPs' hidden channels that pruning empties, whole, the weakest first; dsf-export removes them."""
    prune_scope: PruneScope = "matrix"
    """Whether every matrix (every block's MLP) loses the same share, or the network its weakest ones wherever."""
    prune_start: float = 0.0
    """Share of the steps after which pruning starts. The zeros then grow as 1 - (1 - progress)**3."""
    prune_end: float = PRUNED_BY
    """Share of the steps after which all zeros are there."""

    @property
    def prunes(self) -> bool:
        """Whether weights become zero on purpose."""
        return self.prune_weights is not None or self.prune_channels is not None

    def penalty_start(self, steps: int) -> float:
        """The step at which the penalty starts, of so many."""
        start = self.rate_penalty_start
        return start * steps if start < 1.0 else start

    def penalty_ramp(self, steps: int) -> float:
        """Steps over which the penalty rises from its start on."""
        if self.rate_penalty_ramp is not None:
            return self.rate_penalty_ramp * steps
        return min(PENALTY_RAMP * steps, steps - self.penalty_start(steps)) if self.rate_penalty_start else 0.0

    def check_levers(self, steps: int) -> None:
        """Refuse what contradicts itself, or would do nothing in a run of so many steps.

        Raises:
            UserError: naming the option.
        """
        self._check_penalty(steps)
        self._check_pruning()

    def _refuse_changed(self, names: tuple[str, ...], wanted: str) -> None:
        """Refuse companions of an option that is not there."""
        for name in names:
            if getattr(self, name) != LEVER_SETTINGS[name]:
                raise UserError(f"{option(name)} requires {wanted}: add it, or drop {option(name)}")

    def _check_penalty(self, steps: int) -> None:
        start, ramp, begins = self.rate_penalty_start, self.rate_penalty_ramp, self.penalty_start(steps)
        if not self.rate_penalty:
            companions = ("rate_penalty_counts", "rate_penalty_over", "rate_penalty_start", "rate_penalty_ramp")
            self._refuse_changed(companions, "a --rate-penalty above 0")
        if not start >= 0.0 or (start >= 1.0 and start % 1.0):
            raise UserError(
                f"--rate-penalty-start is {start:g}: it is a share of the steps (below 1) or a step (a whole number)"
            )
        if begins >= steps:
            raise UserError(
                f"--rate-penalty-start is {start:g}, after the last of {steps} steps: the penalty would never be paid; "
                "start it earlier"
            )
        if ramp is not None and not 0.0 <= ramp <= 1.0:
            raise UserError(f"--rate-penalty-ramp is {ramp:g}: it is a share of the steps, 0 to 1")
        if begins + self.penalty_ramp(steps) > steps * (1.0 + ROUNDING):
            raise UserError(
                f"--rate-penalty-ramp is {ramp:g}, from step {begins:g} of {steps} on: it would end after the last "
                "step; start earlier, or rise faster"
            )

    def _check_pruning(self) -> None:
        for name in ("prune_weights", "prune_channels"):
            share = getattr(self, name)
            if share is not None and not 0.0 < share < 1.0:
                raise UserError(f"{option(name)} is {share:g}: it is a share, above 0 and below 1")
        if not self.prunes:
            self._refuse_changed(("prune_scope", "prune_start", "prune_end"), "--prune-weights or --prune-channels")
        for name in ("prune_start", "prune_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{option(name)} is {getattr(self, name):g}: it is a share of the steps, 0 to 1")
        if self.prune_start >= self.prune_end:
            raise UserError(
                f"--prune-start is {self.prune_start:g} and --prune-end {self.prune_end:g}: pruning must start before "
                "it ends"
            )


ROUNDING = 1e-9
"""Relative error that shares of steps may have."""
LEVER_SETTINGS: dict[str, Any] = {
    item.name: item.default for item in dataclasses.fields(Levers) if item.name != "rate_penalty"
}
"""What is younger than sweeps and resumed runs, with what it is where nobody asks for it."""

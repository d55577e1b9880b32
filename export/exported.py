"""What an export leaves, and what can be heard of it while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsf.export.network.network import Network
from dsf.export.placement.chips import Violation
from dsf.export.placement.placement import Placement
from dsf.export.proof.rungs import Rung

if TYPE_CHECKING:
    from dsf.export.conversion.folded import FoldedModel
    from dsf.export.conversion.layer_report import LayerFigures

CONSTANT_INPUTS = "constant_inputs"
"""In a network's provenance, where there are any: the inputs that never changed in the training data."""
REMOVED_CHANNELS = "removed_channels"
"""The same: how many silent channels were taken out of each population, of how many, and how their silence is known."""


@dataclass(frozen=True)
class PlacementSummary:
    """A network on the cores of a chip.

    Attributes:
        placement: which core holds what.
        violations: of the chip's limits, those that nobody has published among them.
        asked: whether the config names the chip, so that its published limits must hold.
    """

    placement: Placement
    violations: tuple[Violation, ...]
    asked: bool

    @property
    def binding(self) -> int:
        """How many published limits are broken."""
        return sum(violation.binds for violation in self.violations)

    def to_json(self) -> dict[str, Any]:
        """What the network file keeps of it, every core's neurons too."""
        limit, share = self.placement.busiest.fullest
        return {
            "chip": self.placement.chip,
            "cores": len(self.placement.cores),
            "chips": self.placement.chips,
            "violations": self.binding,
            "inferred_violations": len(self.violations) - self.binding,
            "fullest": {"limit": limit, "share": share},
            "assignment": self.placement.assignment(),
        }


@dataclass(frozen=True)
class WrittenFile:
    """The file that an export has written.

    Attributes:
        path: of the file.
        sentence: what it is, and what was found when it was read back.
        size: bytes.
        sha256: that a network file says of itself; None for other targets.
    """

    path: Path
    sentence: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class ExportedNetwork:
    """What :func:`dsf.export.exporting.export` has made.

    Attributes:
        network: with the ladder and the placement in its verification.
        folded: its float form; None where it came from a network file.
        rungs: what was proven just now.
        layers: what quantization did, layer by layer; empty where the network came from a network file.
        placement: on the cores of a chip.
        written: the file.
    """

    network: Network
    folded: FoldedModel | None
    rungs: tuple[Rung, ...]
    layers: tuple[LayerFigures, ...]
    placement: PlacementSummary
    written: WrittenFile


class ExportObserver:
    """Hears how an export goes on, in the order of the methods. This one does nothing: override what is of interest.

    What fails an export is told before the export fails.
    """

    def noted(self, notes: Sequence[str]) -> None:
        """What a reader of the closed loop's figures has to know, a line each; for a trained run only."""

    def placed(self, summary: PlacementSummary) -> None:
        """The network is on its cores; where published limits of a chip that was asked for are broken, that is all."""

    def verifying(self, steps: int | None) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """Stands around each long part, for a trained run only: the episodes of every look at the closed loop, one
        look after another, then the comparison of the levels.

        Args:
            steps: most environment steps of a look; None for the comparison, which makes none.

        Returns:
            a context whose value is called with the number of environments at every step.
        """
        return contextlib.nullcontext(lambda _running: None)

    def undecided(self, rung: Rung, more: int) -> None:
        """The episodes so far do not decide whether the integers keep the score: so many more follow."""

    def measured(self, layers: Sequence[LayerFigures]) -> None:
        """What quantization did to every layer, for a trained run only."""

    def climbed(self, rungs: Sequence[Rung]) -> None:
        """The whole ladder; a rung that does not hold ends the export, one that is unproven only marks the file."""


SILENT = ExportObserver()

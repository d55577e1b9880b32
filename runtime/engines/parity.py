"""Spike-by-spike comparison of an engine with the reference."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Mode, Network
from dsf.export.network.reference import ReferenceEngine, WindowReference
from dsf.runtime.engines.probes import spiking_populations
from dsf.shell.arrays import Int64Array

Spikes = dict[str, npt.NDArray[np.integer]]
"""Spikes of one token, (ticks, neurons) per population name."""


def reference_engine(network: Network, mode: Mode, lanes: int = 1) -> ReferenceEngine | WindowReference:
    """The definition of truth in one mode; observers see the present token."""
    return WindowReference(network, lanes) if mode == "window" else ReferenceEngine(network, lanes)


@dataclass
class Parity:
    """Running totals of a comparison.

    Attributes:
        compared_spikes: spike slots compared (population x neuron x tick), fired or not.
        mismatches: slots that differ.
        compared_accumulators: action accumulators compared.
        accumulator_mismatches: those that differ.
        first_mismatch: where the first difference was, or empty.
    """

    compared_spikes: int = 0
    mismatches: int = 0
    compared_accumulators: int = 0
    accumulator_mismatches: int = 0
    first_mismatch: str = field(default="")

    def compare(self, decision: int, expected: Spikes, observed: Spikes) -> None:
        """Compare one token's spikes; a missing population counts as wrong throughout."""
        for name, truth in expected.items():
            values = observed.get(name)
            wrong = truth.size if values is None else int(np.count_nonzero(truth != values))
            self.compared_spikes += truth.size
            self.mismatches += wrong
            if wrong and not self.first_mismatch:
                self.first_mismatch = f"decision {decision}, {name}: {wrong} of {truth.size} slots"

    def __add__(self, other: Parity) -> Parity:
        """Both comparisons as one."""
        return Parity(
            self.compared_spikes + other.compared_spikes,
            self.mismatches + other.mismatches,
            self.compared_accumulators + other.compared_accumulators,
            self.accumulator_mismatches + other.accumulator_mismatches,
            self.first_mismatch or other.first_mismatch,
        )

    @property
    def exact(self) -> bool:
        """Whether nothing differed."""
        return self.mismatches == 0 and self.accumulator_mismatches == 0


class ParityCheck:
    """Runs the reference engine of a mode beside another one of the same mode, on the same tokens."""

    def __init__(self, network: Network, mode: Mode = "stream", reported: tuple[str, ...] | None = None) -> None:
        """Args: ``reported`` names the populations whose spikes are compared; default: all. Accumulators always are."""
        self.reference = reference_engine(network, mode)
        self.compared = spiking_populations(network) if reported is None else reported
        self.result = Parity()
        self.decisions = 0

    def reset(self) -> None:
        """A new episode starts."""
        self.reference.reset(0)

    def check(self, graded: npt.NDArray[np.integer], accumulators: Int64Array, spikes: Spikes) -> None:
        """Feed the encoder's integers (1, features) to the reference and compare the other engine's answer."""
        expected: Spikes = {}

        def observe(name: str, values: Int64Array) -> None:
            if name in self.compared:
                expected[name] = values[:, 0]

        truth = self.reference.step_graded(graded, observe)
        self.result.compare(self.decisions, expected, spikes)
        self.result.compared_accumulators += truth.size
        self.result.accumulator_mismatches += int(np.count_nonzero(truth != accumulators))
        self.decisions += 1

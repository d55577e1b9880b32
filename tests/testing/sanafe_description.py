"""Writes a chain of populations as a network description for SANA-FE, and says what it must cost there.

SANA-FE (Boyle et al., TCAD 2025) is under the GPL: it runs in a process of its own (``sanafe_process.py``), reads the
file that is written here, and is no dependency. Its Loihi has a mesh of 8 x 4 tiles with 4 cores each; tile i stands in
column i // 4, row i % 4. A message is sent per spike and destination core; a spike sent in one tick is seen by somas in
the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dsf.export.network.nodes import LIF
from dsf.shell.arrays import Int64Array
from dsf.testing.narrowed import present
from dsf.train.quantization.integers import DECAY_BITS, MEMBRANE_FRACTION_BITS

MESH_ROWS, CORES_PER_TILE = 4, 4
FRACTION = 1 << MEMBRANE_FRACTION_BITS


class Core(NamedTuple):
    """A core of a tile."""

    tile: int
    core: int

    def hops(self, other: Core) -> tuple[int, int]:
        """Links to another core's tile: east or west, north or south."""
        (column, row), (other_column, other_row) = (divmod(core.tile, MESH_ROWS) for core in (self, other))
        return abs(column - other_column), abs(row - other_row)


@dataclass(frozen=True)
class Population:
    """Neurons on cores, in equal consecutive slices. Either replayed spikes (ticks, neurons) or a LIF node."""

    name: str
    cores: tuple[Core, ...]
    replayed: Int64Array | None = None
    lif: LIF | None = None

    @property
    def size(self) -> int:
        """Number of neurons."""
        return self.lif.size if self.lif is not None else present(self.replayed).shape[1]

    @property
    def slices(self) -> Iterator[tuple[Core, range]]:
        """Every core with its neurons."""
        assert self.size % len(self.cores) == 0
        share = self.size // len(self.cores)
        return ((core, range(index * share, (index + 1) * share)) for index, core in enumerate(self.cores))


@dataclass(frozen=True)
class Projection:
    """All-to-all synapses; weights (targets, sources) with their exponent applied."""

    source: str
    target: str
    weights: npt.NDArray[np.integer]


@dataclass(frozen=True)
class Chain:
    """Populations and the projections between them."""

    populations: tuple[Population, ...]
    projections: tuple[Projection, ...]

    def __getitem__(self, name: str) -> Population:
        return next(population for population in self.populations if population.name == name)

    def routed(self, name: str, fired: Int64Array) -> tuple[int, int, int]:
        """Messages, hops east or west, and hops north or south, of a population's spikes (neurons,)."""
        messages = east_west = north_south = 0
        targets = [core for edge in self.projections if edge.source == name for core in self[edge.target].cores]
        for core, neurons in self[name].slices:
            spikes = int(fired[neurons.start : neurons.stop].sum())
            for target in targets:
                horizontal, vertical = core.hops(target)
                messages += spikes
                east_west += spikes * horizontal
                north_south += spikes * vertical
        return messages, east_west, north_south

    def description(self) -> str:
        """The YAML text."""
        groups = [line for population in self.populations for line in _group(population)]
        edges = [
            f"    - {edge.source} -> {edge.target}: [type: dense, weight: {edge.weights.T.reshape(-1).tolist()}]"
            for edge in self.projections
        ]
        mappings = [line for population in self.populations for line in _mapping(population)]
        head = ["network:", "  name: chain", "  groups:"]
        return "\n".join([*head, *groups, "  edges:", *edges, "mappings:", *mappings, ""])


def _group(population: Population) -> list[str]:
    """A LIF starts at minus its bias: in the first tick nothing has arrived yet, and the bias has to leave no trace."""
    lines = [f"    - name: {population.name}", "      attributes: [log_spikes: true]", "      neurons:"]
    if population.lif is None:
        trains = present(population.replayed).T.tolist()
        return lines + [f"        - {index}: [spikes: {train}]" for index, train in enumerate(trains)]
    node = population.lif
    keeps = ((1 << DECAY_BITS) - node.decays) / (1 << DECAY_BITS)
    for index in range(node.size):
        bias = node.bias[index] / FRACTION
        fields = f"threshold: {node.threshold[index]}, bias: {bias}, potential: {-bias}, leak_decay: {keeps[index]}"
        lines.append(f"        - {index}: [soma: {{{fields}, reset: 0, reset_mode: hard}}]")
    return lines


def _mapping(population: Population) -> list[str]:
    """A replayed neuron needs an input unit of its own; they cost nothing there."""
    lines = []
    for core, neurons in population.slices:
        where = f"core: {core.tile}.{core.core}"
        if population.lif is not None:
            hardware = "soma: loihi_lif, synapse: loihi_dense_synapse, dendrite: loihi_dendrites"
            lines.append(f"  - {population.name}.{neurons[0]}..{neurons[-1]}: [{where}, {hardware}]")
        else:
            for unit, index in enumerate(neurons):
                lines.append(f"  - {population.name}.{index}: [{where}, soma: 'loihi_inputs[{unit}]']")
    return lines

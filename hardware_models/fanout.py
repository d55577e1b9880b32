"""Who sends to which cores: neurons of a population that share their core and their destinations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from dsf.export.network.network import Network
from dsf.export.network.nodes import SPIKING_KINDS, Readout, Synapses
from dsf.export.placement.connections import connections
from dsf.export.placement.placement import Placement
from dsf.hardware_models.work import HOST, Per, Work

Span = tuple[int, int, int]
"""Core, first neuron, and the one behind the last."""


@dataclass(frozen=True)
class Fanout:
    """Consecutive neurons on one core (or the encoder's features, on the host) with the same destination cores.

    A neuron sends one message to each destination core, however many of the core's neurons read it, its own core
    included. Spiking populations send a message per spike; what sends values sends one per neuron and tick.
    """

    node: str
    spiking: bool
    core: int
    first: int
    count: int
    destinations: tuple[int, ...]

    def work(self, quantity: str, per_message: int) -> Work:
        """Something that every message of one neuron, to all destinations together, makes happen so often."""
        per: Per = "spike" if self.spiking else "tick"
        if self.spiking:
            reads = (self.node, self.first, self.first + self.count)
            return Work(self.node, self.core, self.node, quantity, per_message, per, *reads)
        return Work(self.node, self.core, self.node, quantity, per_message * self.count, per)


def fanouts(network: Network, placement: Placement) -> tuple[Fanout, ...]:
    """Fan-outs of the encoder and of every population that another one reads, in evaluation order."""
    encoder = network.encoder
    homes: dict[str, list[Span]] = {encoder.name: [(HOST, 0, encoder.size)]}
    readings: dict[str, list[Span]] = {}
    reads = {node.name: connections(network, node) for node in network.nodes}
    for core in placement.cores:
        for part in core.slices:
            homes.setdefault(part.node, []).append((core.index, part.first, part.first + part.count))
            for connection in reads[part.node]:
                for read in connection.read_by(part.first, part.count):
                    readings.setdefault(connection.source, []).append((core.index, read.start, read.stop))
    senders = [node for node in network.nodes if not isinstance(node, (Synapses, Readout))]
    return tuple(
        Fanout(node.name, isinstance(node, SPIKING_KINDS), home, first, stop - first, destinations)
        for node in senders
        for home, first, stop, destinations in _pieces(homes[node.name], readings.get(node.name, []))
        if destinations
    )


def _pieces(homes: list[Span], readings: list[Span]) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """A population, cut wherever a home or a reading begins or ends: core, first, stop and destinations of a piece."""
    size = max(stop for _, _, stop in homes)
    cuts = {cut for _, first, stop in (*homes, *readings) for cut in (first, stop) if cut <= size}
    for first, stop in itertools.pairwise(sorted(cuts)):
        home = next(core for core, begin, end in homes if begin <= first and stop <= end)
        read = {core for core, begin, end in readings if begin <= first and stop <= end}
        yield home, first, stop, tuple(sorted(read))

"""What the neurons of a population read: the sparse or dense blocks of synapses and the axons they take on a core."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dsf.export.network.network import Network
from dsf.export.network.nodes import UNPLACED_KINDS, And, Gate, Node, Outer, PlacedWindow, Readout, Synapses, Window
from dsf.export.network.sparse import is_sparse
from dsf.export.placement.chips import Chip, needed_bits, stored_weight_bits
from dsf.shell.arrays import Int64Array

RELAY_BITS = needed_bits(1)
"""A population that is read directly is read through weights of 1."""


@dataclass(frozen=True)
class Connection:
    """How a population reads another: neuron n reads ``width`` neurons, from ``first + n // group * group`` on.

    Attributes:
        source: population that is read, or the encoder, or the host embedding.
        first: offset within the source.
        width: source neurons that each neuron reads.
        group: neurons that read the same ones: 1 is one to one, the whole population is dense, a head lies between.
        weight_bits: of one stored weight.
        kept: (neurons + 1, width) of a sparse matrix: how many of the neurons before this one have a synapse from the
            source neuron; None where all synapses exist.
    """

    source: str
    first: int
    width: int
    group: int
    weight_bits: int
    kept: Int64Array | None = field(default=None, compare=False, repr=False)

    def usage(self, first: int, count: int, chip: Chip) -> tuple[int, int]:
        """Synapse bits and input axons of the neurons first .. first + count - 1."""
        if self.kept is not None:
            rows = self.kept[first + count] - self.kept[first]
            lengths, times = np.unique(rows[rows > 0], return_counts=True)
            each = [chip.sparse_row_bits(length, count, self.weight_bits) for length in lengths.tolist()]
            return int(times @ np.array(each, np.int64)), int(times.sum())
        low, high = first // self.group, (first + count - 1) // self.group
        ends = [count] if low == high else [(low + 1) * self.group - first, first + count - high * self.group]
        bits = sum(chip.row_bits(targets, self.weight_bits) for targets in ends)
        bits += max(high - low - 1, 0) * chip.row_bits(self.group, self.weight_bits)
        return bits * self.width, (high - low + 1) * self.width

    def read_by(self, first: int, count: int) -> tuple[slice, ...]:
        """The source neurons that the neurons first .. first + count - 1 read (groups lie side by side), in runs."""
        if self.kept is not None:
            read = (self.kept[first + count] > self.kept[first]).astype(np.int8)
            edges = np.flatnonzero(np.diff(read, prepend=0, append=0)).tolist()
            return tuple(slice(start, stop) for start, stop in zip(edges[::2], edges[1::2]))
        low, high = first // self.group, (first + count - 1) // self.group
        return (slice(self.first + low * self.width, self.first + (high + 1) * self.width),)

    @property
    def fan_in(self) -> int:
        """Source neurons that a neuron reads, at most."""
        return self.width if self.kept is None else int(np.diff(self.kept, axis=0).sum(axis=1).max())


def connections(network: Network, node: Node) -> tuple[Connection, ...]:
    """What a population's neurons read, synapses in front of them included; empty for nodes without neurons."""
    if isinstance(node, UNPLACED_KINDS):
        return ()
    if isinstance(node, Gate):
        return tuple(Connection(node.source, first, 1, 1, RELAY_BITS) for first in (node.first, node.second))
    if isinstance(node, (Window, PlacedWindow, And)):
        query = Connection(node.query, node.first, 1, 1, RELAY_BITS)
        return (query, Connection(node.sources[1], 0, 1, 1, RELAY_BITS))
    if isinstance(node, Outer):
        head = node.size // node.heads
        scores = (Connection(node.source, first, head, head, RELAY_BITS) for first in (node.query, node.key))
        return (*scores, Connection(node.source, node.value, 1, 1, RELAY_BITS))
    return tuple(_through(network, network[source], node.size) for source in node.sources)


def _through(network: Network, source: Node, size: int) -> Connection:
    """A source of a LIF, Residual or Count: through Synapses, else one to one."""
    if isinstance(source, Synapses):
        inputs, kept = source.weights.shape[1], None
        if is_sparse(source.weights):
            kept = np.zeros((size + 1, inputs), np.int64)
            np.cumsum(source.weights != 0, axis=0, out=kept[1:])
        return Connection(source.source, 0, inputs, size, stored_weight_bits(source.weights), kept)
    return Connection(source.name, 0, 1, 1, RELAY_BITS)


def fan_in(network: Network, node: Node) -> int:
    """Input axons of one neuron; of Synapses and Readout, inputs per row; of sparse ones, in the fullest row."""
    if isinstance(node, (Synapses, Readout)):
        weights = node.weights
        return int(np.count_nonzero(weights, axis=1).max()) if is_sparse(weights) else weights.shape[1]
    return sum(connection.fan_in for connection in connections(network, node))

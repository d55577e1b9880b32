"""What the neurons of a population read: the sparse or dense blocks of synapses and the axons they take on a core."""

from __future__ import annotations

from dataclasses import dataclass

from dsf.export.network.network import Network
from dsf.export.network.nodes import UNPLACED_KINDS, And, Gate, Node, Outer, PlacedWindow, Readout, Synapses, Window
from dsf.export.placement.chips import Chip, needed_bits, stored_weight_bits

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
    """

    source: str
    first: int
    width: int
    group: int
    weight_bits: int

    def usage(self, first: int, count: int, chip: Chip) -> tuple[int, int]:
        """Synapse bits and input axons of the neurons first .. first + count - 1."""
        low, high = first // self.group, (first + count - 1) // self.group
        ends = [count] if low == high else [(low + 1) * self.group - first, first + count - high * self.group]
        bits = sum(chip.row_bits(targets, self.weight_bits) for targets in ends)
        bits += max(high - low - 1, 0) * chip.row_bits(self.group, self.weight_bits)
        return bits * self.width, (high - low + 1) * self.width

    def read_by(self, first: int, count: int) -> slice:
        """The source neurons that the neurons first .. first + count - 1 read (groups lie side by side)."""
        low, high = first // self.group, (first + count - 1) // self.group
        return slice(self.first + low * self.width, self.first + (high + 1) * self.width)


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
    """A source of a LIF, Residual or Count: dense through Synapses, else one to one."""
    if isinstance(source, Synapses):
        inputs = source.weights.shape[1]
        return Connection(source.source, 0, inputs, size, stored_weight_bits(source.weights))
    return Connection(source.name, 0, 1, 1, RELAY_BITS)


def fan_in(network: Network, node: Node) -> int:
    """Input axons of one neuron; of Synapses and Readout, inputs per row."""
    if isinstance(node, (Synapses, Readout)):
        return node.weights.shape[1]
    return sum(connection.width for connection in connections(network, node))

"""The overflow proof: interval arithmetic over every node, from the weights alone.

Whatever the inputs, no sum inside the network can leave the widths below; a network that could is refused. The bound
is conservative: it lets every spike happen and every graded input take its worst value at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    HOST_KINDS,
    LIF,
    And,
    Count,
    Gate,
    NetworkError,
    Node,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    Window,
)
from dsf.shell.arrays import Int64Array, IntArray
from dsf.train.quantization.integers import ACCUMULATOR_LIMIT, CURRENT_LIMIT, DECAY_BITS, MEMBRANE_FRACTION_BITS

SHIFTED_SUM = "shifted sum"
MEMBRANE = "membrane"


@dataclass(frozen=True)
class Bound:
    """Proven range of one node.

    Attributes:
        node: name.
        quantity: what was bounded.
        largest: largest magnitude that can occur.
        limit: magnitudes must stay below this.
    """

    node: str
    quantity: str
    largest: int
    limit: int

    @property
    def margin(self) -> float:
        """How many times larger the quantity could get before it overflows."""
        return self.limit / max(self.largest, 1)

    @property
    def holds(self) -> bool:
        """Whether overflow is impossible."""
        return self.largest < self.limit


@dataclass(frozen=True)
class Interval:
    """Elementwise range of a node's values."""

    low: Int64Array
    high: Int64Array

    @property
    def largest(self) -> int:
        """Largest magnitude."""
        return int(max(np.abs(self.low).max(), np.abs(self.high).max()))

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def times(self, weights: npt.NDArray[np.integer]) -> Interval:
        """Range of weights @ values, and of every partial sum on the way (so each term may also be absent)."""
        low, high = np.minimum(self.low, 0), np.maximum(self.high, 0)
        positive, negative = np.maximum(weights, 0).astype(np.int64), np.minimum(weights, 0).astype(np.int64)
        return Interval(
            positive @ low + negative @ high,
            positive @ high + negative @ low,
        )

    def shifted(self, exponent: int) -> Interval:
        """Range after the shift of :class:`~dsf.export.network.nodes.Synapses` (monotonic, so ends map to ends)."""
        if exponent >= 0:
            return Interval(self.low << exponent, self.high << exponent)
        return Interval(self.low >> -exponent, self.high >> -exponent)


def _spikes(size: int) -> Interval:
    return Interval(np.zeros(size, np.int64), np.ones(size, np.int64))


def _largest_count(node: Count | Outer, ticks: int) -> int:
    """Spikes, or for scores coincidences of spikes, that one neuron can count."""
    if isinstance(node, Count):
        return node.reach
    return node.reach * (node.size // node.heads) * (ticks if node.all_ticks else 1)


def _constant(values: npt.NDArray[np.integer]) -> Interval:
    return Interval(values.astype(np.int64), values.astype(np.int64))


def compute_bounds(network: Network) -> list[Bound]:
    """Bound every quantity that could overflow, in evaluation order."""
    return _ranges_and_bounds(network)[1]


def _ranges_and_bounds(network: Network) -> tuple[dict[str, Interval], list[Bound]]:
    """Range of every node's values, and :func:`compute_bounds`."""
    ranges: dict[str, Interval] = {}
    bounds: list[Bound] = []
    for node in network.nodes:
        if isinstance(node, HOST_KINDS):
            top = np.full(node.size, node.limit, np.int64) << node.shift
            ranges[node.name] = Interval(-top, top)
        elif isinstance(node, Synapses):
            total = ranges[node.source].times(node.weights)
            bounds.append(Bound(node.name, "synaptic sum", total.largest, ACCUMULATOR_LIMIT))
            ranges[node.name] = total.shifted(node.exponent)
            bounds.append(Bound(node.name, SHIFTED_SUM, ranges[node.name].largest, ACCUMULATOR_LIMIT))
        elif isinstance(node, Residual):
            total, largest = _constant(node.bias), 0
            for source in node.sources:
                total = total + ranges[source]
                largest = max(largest, total.largest)
            ranges[node.name] = total
            bounds.append(Bound(node.name, "residual", largest, ACCUMULATOR_LIMIT))
        elif isinstance(node, (Window, PlacedWindow)):
            weights = node.weights.astype(np.int64)
            low, high = np.minimum(weights, 0).sum(axis=-1).min(), np.maximum(weights, 0).sum(axis=-1).max()
            ranges[node.name] = Interval(np.full(node.size, low), np.full(node.size, high))
        elif isinstance(node, (Count, Outer)):
            high = np.full(node.size, _largest_count(node, network.ticks) * node.gain, np.int64)
            ranges[node.name] = Interval(np.zeros_like(high), high)
        elif isinstance(node, LIF):
            bounds += _membrane_bounds(node, ranges[node.source], network.ticks)
            ranges[node.name] = _spikes(node.size)
        elif isinstance(node, (Gate, And)):
            ranges[node.name] = _spikes(node.size)
        else:
            bounds += _readout_bounds(node, ranges[node.source], network.ticks)
    return ranges, bounds


def _membrane_bounds(node: LIF, current: Interval, ticks: int) -> list[Bound]:
    """|v| <= |64 a + bias| / (1 - kept share) at any tick: the geometric series of the leak.

    Where neurons have decays of their own, each has a series of its own, and it ends with the token: a neuron that has
    learned to keep nearly all of its membrane would never be proven otherwise.
    """
    drive = Interval(current.low << MEMBRANE_FRACTION_BITS, current.high << MEMBRANE_FRACTION_BITS)
    drive = drive + _constant(node.bias)
    if isinstance(node.decay, np.ndarray):
        membrane = _largest_membrane(drive, node.decay, ticks)
    else:
        kept = (1 << DECAY_BITS) - node.decay
        series = np.inf if kept == 1 << DECAY_BITS else (1 << DECAY_BITS) / ((1 << DECAY_BITS) - kept)
        membrane = int(np.ceil(drive.largest * series if np.isfinite(series) else ACCUMULATOR_LIMIT))
    return [
        Bound(node.name, "current", current.largest, CURRENT_LIMIT),
        Bound(node.name, MEMBRANE, membrane, ACCUMULATOR_LIMIT),
    ]


def _largest_membrane(drive: Interval, decay: IntArray, ticks: int) -> int:
    """Of all neurons, in whole numbers: the largest drive at every tick of a token, and what the leak leaves of it."""
    most = np.maximum(np.abs(drive.low), np.abs(drive.high))
    kept, membrane = (1 << DECAY_BITS) - decay.astype(np.int64), np.zeros_like(most)
    for _ in range(ticks):
        before, membrane = membrane, most + ((membrane * kept) >> DECAY_BITS)
        if np.array_equal(before, membrane):
            break
    return int(membrane.max())


def _readout_bounds(node: Readout, residual: Interval, ticks: int) -> list[Bound]:
    """The sum over ticks is held before and after half a unit is added for rounding: both must fit."""
    half = 1 << node.shift >> 1
    summed = Interval(residual.low * ticks, residual.high * ticks)
    rounded = Interval(summed.low + half, summed.high + half)
    products = rounded.shifted(-node.shift).times(node.weights)
    largest = max(products.largest, (products + _constant(node.bias)).largest)
    return [
        Bound(node.name, "residual summed over ticks", max(summed.largest, rounded.largest), ACCUMULATOR_LIMIT),
        Bound(node.name, "action accumulator", largest, ACCUMULATOR_LIMIT),
    ]


class OverflowPossible(NetworkError):
    """A network whose sums could overflow.

    Attributes:
        finding: node, quantity, how large it can get.
        coarser_unit_helps: whether a coarser residual unit makes the quantity smaller.
        remedy: what makes it smaller apart from that.
    """

    def __init__(self, network: Network, bound: Bound) -> None:
        self.finding = (
            f"node '{bound.node}' could overflow: its {bound.quantity} can reach {bound.largest}, "
            f"the limit is {bound.limit}"
        )
        node = network[bound.node]
        read = network[node.sources[0]] if node.sources else node
        in_units = isinstance(node, (Residual, Readout)) or (isinstance(node, LIF) and isinstance(read, Residual))
        writes_residual = any(node.name in other.sources for other in network.of_kind(Residual))
        self.coarser_unit_helps = in_units or (writes_residual and bound.quantity == SHIFTED_SUM)
        self.remedy = _remedy(node, read)
        super().__init__(f"{self.finding}; {'use a coarser residual unit, or ' * self.coarser_unit_helps}{self.remedy}")


def _remedy(node: Node, read: Node) -> str:
    """What makes the sums of a node smaller that reads ``read``, other than the unit of the residual."""
    if isinstance(node, LIF) and isinstance(read, Outer):
        return "retrain with more --model.heads or a shorter --model.context"
    if isinstance(node, LIF) and isinstance(read, Count):
        return "retrain with a shorter --model.context"
    if isinstance(node, LIF) and isinstance(read, (Window, PlacedWindow)):
        return "retrain with a shorter --model.window"
    return "use fewer --bits or a smaller --model.width"


def require_no_overflow(network: Network) -> Bound:
    """Prove that nothing overflows and return the tightest bound.

    Raises:
        OverflowPossible: something could; the message names the node and the way out.
    """
    bounds = compute_bounds(network)
    for bound in bounds:
        if not bound.holds:
            raise OverflowPossible(network, bound)
    return min(bounds, key=lambda bound: bound.margin)


def last_that_fits(network: Network, readouts: Iterable[Readout]) -> Readout:
    """Of readouts that could take the place of a proven network's, the last one before any that could overflow.

    Args:
        network: in which nothing overflows; its own readout is the answer where the first one could.
        readouts: in their order; all read what the network's reads.
    """
    found = network.readout
    sums = _ranges_and_bounds(network)[0][found.source]
    for readout in readouts:
        if not all(bound.holds for bound in _readout_bounds(readout, sums, network.ticks)):
            break
        found = readout
    return found


def saturating_populations(network: Network) -> frozenset[str]:
    """Prove that nothing but membranes can reach a limit; return the LIF populations whose membranes can.

    A membrane at its limit is clipped there, as :class:`~dsf.export.network.nodes.LIF` says, so such a network is still
    well defined. The exporter writes none; faults can make one.

    Raises:
        OverflowPossible: something else could overflow.
    """
    unproven = [bound for bound in compute_bounds(network) if not bound.holds]
    for bound in unproven:
        if bound.quantity != MEMBRANE:
            raise OverflowPossible(network, bound)
    return frozenset(bound.node for bound in unproven)

"""Which neurons go to which core: a greedy, deterministic split under the published capacities of a chip.

What a core holds: neurons of a population together with the synapses in front of them. Residual, LIF, Gate, And and the
nodes with history are populations; Synapses belong to the neurons they feed. Encoder and Readout have no core: the
host, or a processor embedded in the chip, quantizes the input and multiplies the head.

Synapse memory: Synapses are integer weights in the width that the largest weight needs (7 bits are stored as 8). Those
of a dense matrix all count, zeros included; of a sparse one (:func:`dsf.export.network.sparse.is_sparse`) only those
that exist, each with the bits that say which of the core's neurons it belongs to. Whatever reads a population directly
(a LIF the residual, a Gate its two operands) does so through weights of 1, one per neuron and operand; a neuron of
Outer has one per channel of its head's query and key, and one for its value. Where the chip's format is published, each
input axon also pays :meth:`dsf.export.placement.chips.Chip.row_bits`.

Axons: an input axon is one source neuron that one population on the core reads, through a weight that exists; an output
axon is one neuron's link to one population on one core (or to the host). Neither is shared between populations, so both
are upper bounds.
Histories, neuron states and programs take memory that no public figure limits: see
:func:`dsf.export.placement.chips.unchecked`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, UNPLACED_KINDS, NetworkError, Node
from dsf.export.placement.chips import PROGRAMMABLE_KINDS, Chip
from dsf.export.placement.connections import Connection, connections
from dsf.shell.arrays import FloatArray

LIMITED_QUANTITIES = ("neurons", "synapse_bits", "input_axons", "output_axons", "thresholds", "decays")
"""What fills a core; the chip's limit on it is called ``<quantity>_per_core``."""
PROFILES = ("thresholds", "decays")
"""Those that count distinct values, so that a sum over cores means nothing."""


@dataclass(frozen=True)
class Slice:
    """Consecutive neurons of one population."""

    node: str
    first: int
    count: int


@dataclass(frozen=True)
class Core:
    """One core's load. ``fractions`` are of each limit, None where it is not published."""

    index: int
    chip: int
    slices: tuple[Slice, ...]
    neurons: int
    programmable_neurons: int
    synapse_bits: int
    input_axons: int
    output_axons: int
    thresholds: int
    decays: int
    fractions: dict[str, float | None]

    @property
    def fullest(self) -> tuple[str, float]:
        """The limit that binds, and the fraction of it that is used."""
        known = {quantity: share for quantity, share in self.fractions.items() if share is not None}
        return max(known.items(), key=lambda item: item[1], default=("nothing published", 0.0))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**dataclasses.asdict(self), "slices": [dataclasses.asdict(part) for part in self.slices]}


@dataclass(frozen=True)
class Route:
    """The links from one population to another.

    Attributes:
        source: sender.
        target: receiver.
        links: output axons, over all cores.
        off_chip: those whose ends lie on different chips; their hops are not known.
        mean_hops: tiles crossed on the mesh, mean over the links within a chip; None where the mesh is not published.
        most_hops: the largest of them.
    """

    source: str
    target: str
    links: int
    off_chip: int
    mean_hops: float | None
    most_hops: int | None


@dataclass(frozen=True)
class Placement:
    """The result of :func:`place`. Cores are in evaluation order."""

    chip: str
    shared_cores: bool
    cores: tuple[Core, ...]
    routes: tuple[Route, ...]

    @property
    def chips(self) -> int:
        """Chips in use."""
        return self.cores[-1].chip + 1

    @property
    def busiest(self) -> Core:
        """The core that is closest to a limit; the first of equals."""
        return max(self.cores, key=lambda core: core.fullest[1])

    def cores_of(self, node: str) -> tuple[int, ...]:
        """Indices of the cores that hold neurons of a population; empty for nodes without any."""
        return tuple(core.index for core in self.cores if any(part.node == node for part in core.slices))

    def assignment(self) -> list[dict[str, Any]]:
        """Every core's neurons as JSON values: core, population, first neuron, count."""
        return [{"core": core.index, **dataclasses.asdict(part)} for core in self.cores for part in core.slices]

    def total(self, quantity: str) -> int:
        """Sum over cores of one of :data:`LIMITED_QUANTITIES`."""
        return sum(getattr(core, quantity) for core in self.cores)

    def to_json(self) -> dict[str, Any]:
        """JSON values, totals first."""
        limit, share = self.busiest.fullest
        totals = {quantity: self.total(quantity) for quantity in LIMITED_QUANTITIES if quantity not in PROFILES}
        return {
            "chip": self.chip,
            "shared_cores": self.shared_cores,
            "total_cores": len(self.cores),
            "total_chips": self.chips,
            "totals": totals,
            "busiest": {"core": self.busiest.index, "limit": limit, "fraction": share},
            "host": "encoder and readout run on the host or on a processor embedded in the chip",
            "cores": [core.to_json() for core in self.cores],
            "routes": [dataclasses.asdict(route) for route in self.routes],
        }


@dataclass(frozen=True)
class Budget:
    """What a core may do, beside what it may hold: whoever knows how often neurons fire can spread work by it.

    Attributes:
        limit: work per core, in any unit.
        own: (neurons,) of every population, work of each neuron on its core.
        per_axon: (neurons,) of every population, work of each neuron per output axon.
    """

    limit: float
    own: Mapping[str, FloatArray]
    per_axon: Mapping[str, FloatArray]


def place(network: Network, chip: Chip, share_cores: bool = False, budget: Budget | None = None) -> Placement:
    """Assign every neuron to a core; kinds and widths that the chip lacks are not looked at here.

    Populations are taken from the readout backwards, because a neuron's output axons depend on how its targets are
    split. Each fills cores with as many consecutive neurons as fit.

    Args:
        network: to place.
        chip: whose capacities hold; limits that are not published do not bind.
        share_cores: let populations share a core (the fewest cores); otherwise each starts a core of its own, as the
            public compilers for these chips do, and the work spreads.
        budget: a further limit, on the work of a core.

    Raises:
        NetworkError: a single neuron exceeds a core; the message names it.
    """
    filler = _Filler(network, chip, budget)
    for node in reversed(network.nodes):
        if isinstance(node, UNPLACED_KINDS):
            continue
        if not share_cores:
            filler.next_core()
        filler.add(node)
    return filler.finish(share_cores)


@dataclass(frozen=True)
class _Load:
    """What a core holds, or what a slice would add to it."""

    neurons: int = 0
    synapse_bits: int = 0
    input_axons: int = 0
    output_axons: int = 0
    threshold_values: frozenset[int] = frozenset()
    decay_values: frozenset[int] = frozenset()
    work: float = 0.0

    def __add__(self, other: _Load) -> _Load:
        return _Load(
            self.neurons + other.neurons,
            self.synapse_bits + other.synapse_bits,
            self.input_axons + other.input_axons,
            self.output_axons + other.output_axons,
            self.threshold_values | other.threshold_values,
            self.decay_values | other.decay_values,
            self.work + other.work,
        )

    @property
    def thresholds(self) -> int:
        return len(self.threshold_values)

    @property
    def decays(self) -> int:
        return len(self.decay_values)


class _Filler:
    """Fills cores, last population first."""

    def __init__(self, network: Network, chip: Chip, budget: Budget | None) -> None:
        self.network, self.chip, self.budget = network, chip, budget
        self.limits: dict[str, float | None] = {
            name: getattr(chip, f"{name}_per_core").value for name in LIMITED_QUANTITIES
        }
        self.limits["work"] = None if budget is None else budget.limit
        self.loads: list[_Load] = []
        self.slices: list[list[Slice]] = []
        self.reads = {node.name: connections(network, node) for node in network.nodes}
        self.links = {node.name: np.zeros(node.size, np.int64) for node in network.nodes}
        for name in network.readout.sources:
            self.links[name] += 1

    def next_core(self) -> None:
        """Leave the present core as it is."""
        if not self.loads or self.slices[-1]:
            self.loads.append(_Load())
            self.slices.append([])

    def add(self, node: Node) -> None:
        """Place one population, its last neurons first."""
        if not self.loads:
            self.next_core()
        end = likely = node.size
        while end > 0:
            count = self._most(node, end, likely)
            if count == 0 and not self.slices[-1]:
                raise NetworkError(self._reason(node, end - 1))
            if count == 0:
                self.next_core()
                continue
            part = Slice(node.name, end - count, count)
            self.loads[-1] += self._cost(node, part.first, count)
            self.slices[-1].append(part)
            for connection in self.reads[node.name]:
                for read in connection.read_by(part.first, count):
                    self.links[connection.source][read] += 1
            end, likely = end - count, count

    def _most(self, node: Node, end: int, likely: int) -> int:
        """Largest number of neurons before ``end`` that still fit; costs grow with the number, so bisection works.

        ``likely`` is tried first: slices of a population are often of one size.
        """
        fits, fails, guesses = 0, end + 1, [likely + 1, likely]
        while fails - fits > 1:
            middle = guesses.pop() if guesses else (fits + fails) // 2
            if not fits < middle < fails:
                continue
            if self._fits(self.loads[-1] + self._cost(node, end - middle, middle)):
                fits = middle
            else:
                fails = middle
        return fits

    def _fits(self, load: _Load) -> bool:
        return all(limit is None or getattr(load, name) <= limit for name, limit in self.limits.items())

    def _cost(self, node: Node, first: int, count: int) -> _Load:
        used = [connection.usage(first, count, self.chip) for connection in self.reads[node.name]]
        part = slice(first, first + count)
        values, decays = frozenset[int](), frozenset[int]()
        if isinstance(node, LIF):
            values = frozenset(node.threshold[part].tolist())
            decays = frozenset(node.decay[part].tolist() if isinstance(node.decay, np.ndarray) else [node.decay])
        links, work = self.links[node.name][part], 0.0
        if self.budget is not None:
            work = float(self.budget.own[node.name][part].sum() + self.budget.per_axon[node.name][part] @ links)
        bits, axons = sum(bits for bits, _ in used), sum(axons for _, axons in used)
        return _Load(count, bits, axons, int(links.sum()), values, decays, work)

    def _reason(self, node: Node, neuron: int) -> str:
        load = self._cost(node, neuron, 1)
        over = [
            f"{getattr(load, name)} {name.replace('_', ' ')} of {limit}"
            for name, limit in self.limits.items()
            if limit is not None and getattr(load, name) > limit
        ]
        return (
            f"network node '{node.name}': one neuron needs {', '.join(over)} of a core of {self.chip.title}; "
            "train a narrower network or choose another chip"
        )

    def finish(self, share_cores: bool) -> Placement:
        """Number the cores in evaluation order and measure the routes."""
        per_chip = self.chip.cores.value or len(self.loads)
        cores = tuple(
            self._core(index, index // per_chip, load, tuple(reversed(slices)))
            for index, (load, slices) in enumerate(zip(reversed(self.loads), reversed(self.slices)))
        )
        return Placement(self.chip.name, share_cores, cores, _routes(self.network, self.chip, cores, self.reads))

    def _core(self, index: int, chip: int, load: _Load, slices: tuple[Slice, ...]) -> Core:
        programmable = sum(part.count for part in slices if isinstance(self.network[part.node], PROGRAMMABLE_KINDS))
        limits = {name: self.limits[name] for name in LIMITED_QUANTITIES}
        fractions = {name: getattr(load, name) / limit if limit else None for name, limit in limits.items()}
        counts = {name: getattr(load, name) for name in LIMITED_QUANTITIES}
        return Core(
            index=index, chip=chip, slices=slices, programmable_neurons=programmable, fractions=fractions, **counts
        )


def tile_position(chip: Chip, core: int) -> tuple[int, int] | None:
    """Column and row of a core's tile; the cores of a chip wind through the mesh, so that neighbours stay close."""
    columns, rows, per_tile = chip.tiles_x.value, chip.tiles_y.value, chip.cores_per_tile.value
    if columns is None or rows is None or per_tile is None:
        return None
    row, column = divmod(core % (columns * rows * per_tile) // per_tile, columns)
    return (column if row % 2 == 0 else columns - 1 - column, row)


def _routes(
    network: Network, chip: Chip, cores: tuple[Core, ...], reads: dict[str, tuple[Connection, ...]]
) -> tuple[Route, ...]:
    """Every pair of populations where one reads the other; links with the host have no place on the mesh."""
    parts: dict[str, list[tuple[Core, Slice]]] = {}
    for core in cores:
        for part in core.slices:
            parts.setdefault(part.node, []).append((core, part))
    routes = []
    for node in network.nodes:
        for source in dict.fromkeys(connection.source for connection in reads[node.name]):
            if source in parts:
                read = [connection for connection in reads[node.name] if connection.source == source]
                routes.append(_route(chip, source, node.name, parts, read))
    return tuple(routes)


def _route(
    chip: Chip, source: str, target: str, parts: dict[str, list[tuple[Core, Slice]]], read: list[Connection]
) -> Route:
    links = off_chip = weighted = most = 0
    for target_core, target_part in parts[target]:
        for connection in read:
            wanted = connection.read_by(target_part.first, target_part.count)
            for source_core, part in parts[source]:
                end = part.first + part.count
                count = sum(max(min(run.stop, end) - max(run.start, part.first), 0) for run in wanted)
                links += count
                if source_core.chip != target_core.chip:
                    off_chip += count
                    continue
                here, there = tile_position(chip, source_core.index), tile_position(chip, target_core.index)
                if count and here and there:
                    hops = abs(here[0] - there[0]) + abs(here[1] - there[1])
                    weighted, most = weighted + count * hops, max(most, hops)
    if tile_position(chip, 0) is None or links == off_chip:
        return Route(source, target, links, off_chip, None, None)
    return Route(source, target, links, off_chip, weighted / (links - off_chip), most)

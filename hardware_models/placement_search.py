"""A better mapping than the naive one: work spread over more cores by a budget, then places found by local search."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Network
from dsf.export.network.nodes import SPIKING_KINDS, UNPLACED_KINDS, NetworkError
from dsf.export.placement.chips import Chip
from dsf.export.placement.placement import Budget, Placement, Slice, place, tile_position
from dsf.hardware_models.activity import Counts, SpikeCounter
from dsf.hardware_models.latency import HOPS, barrier
from dsf.hardware_models.mapping import NetworkMapping, in_order, map_in_order
from dsf.hardware_models.preset import Preset
from dsf.hardware_models.weight_memory import Weights
from dsf.hardware_models.work import HOST, Record, work_of
from dsf.shell.arrays import FloatArray
from dsf.shell.units import NANOSECOND

BISECTIONS = 7
"""Halvings of the interval (in its logarithm) in which the lowest budget lies."""
KICKS, KICKED = 12, 4
"""How often the best places found are disturbed and improved again, and how many swaps disturb them."""
UNTIMED_PRICES = {"synaptic_events": 1.0, "active_updates": 1.0, "inactive_updates": 1.0}
"""What a core's load is where a preset gives no times: synaptic events and updates."""


@dataclass(frozen=True)
class MappingFigures:
    """What a mapping is judged by, per tick or decision of a counted run.

    Attributes:
        cores, chips, tiles: in use; tiles of the chip with the most.
        load: of the busiest core, mean per tick: nanoseconds under a preset with times, else synaptic events and
            updates.
        busiest: that core.
        hops: links crossed per decision, by messages and values.
        messages: per decision, values included.
        off_chip: of these, to other chips.
        link: messages per decision over the busiest link.
    """

    cores: int
    chips: int
    tiles: int
    load: float
    busiest: int
    hops: float
    messages: float
    off_chip: float
    link: float


def measure_mapping(mapping: NetworkMapping, counter: SpikeCounter, preset: Preset | None = None) -> MappingFigures:
    """The figures of a mapping for a counted run."""
    counts, decisions = mapping.core_activity(counter), max(counter.decisions, 1)
    loads = core_loads(mapping, counter, preset)

    def per_decision(*quantities: str) -> float:
        return sum(int(counts[quantity].sum()) for quantity in quantities if quantity in counts) / decisions

    return MappingFigures(
        cores=len(mapping.seats),
        chips=mapping.placement.chips,
        tiles=mapping.tiles_in_use,
        load=float(loads.max()),
        busiest=int(loads.argmax()),
        hops=per_decision(*HOPS),
        messages=per_decision("messages", "graded_messages"),
        off_chip=sum(mapping.off_chip_messages(counter).values()) / decisions,
        link=max(mapping.link_messages(counter).values(), default=0) / decisions,
    )


def core_loads(mapping: NetworkMapping, counter: SpikeCounter, preset: Preset | None = None) -> FloatArray:
    """(cores,) mean load per tick, see :class:`MappingFigures`."""
    counts, prices = mapping.core_activity(counter), load_prices(preset)
    total = sum(price * counts[name][:HOST] for name, price in prices.items() if name in counts)
    return np.zeros(len(mapping.seats)) + total / _slots(counter)


def load_prices(preset: Preset | None) -> dict[str, float]:
    """Load of a core per occurrence: nominal nanoseconds, where the preset has any. Hops load links, not cores."""
    times = {} if preset is None else preset.time_ns
    return {name: price.nominal for name, price in times.items() if name not in HOPS} or UNTIMED_PRICES


def search_mapping(
    network: Network,
    chip: Chip,
    counter: SpikeCounter,
    preset: Preset | None = None,
    share_cores: bool = False,
    seed: int = 0,
    weights: Weights = "bytes",
) -> NetworkMapping:
    """Lower first the tick (the load of the busiest core and the barrier of its tiles), then the hops.

    The work of a core is limited by the lowest budget with which the network still fits the chips that the naive
    mapping takes; then cores swap places. The tick is never longer than the naive mapping's. Work on more cores takes
    more messages, so hops may be more than the naive mapping's, but never more than those of the same cores in order.

    Args:
        network: to map.
        chip: where.
        counter: of a run that stands for all: who fires how often.
        preset: whose times are the load; without times, synaptic events and updates.
        share_cores: see :func:`dsf.export.placement.placement.place`.
        seed: of the disturbances in the search for places; the same seed gives the same mapping.
        weights: how cores keep theirs, see :class:`~dsf.hardware_models.mapping.NetworkMapping`.

    Raises:
        NetworkError: a single neuron exceeds a core.
    """
    naive = map_in_order(network, chip, share_cores, weights)
    return search_places(_spread(naive, counter, preset), counter, seed)


def _spread(naive: NetworkMapping, counter: SpikeCounter, preset: Preset | None) -> NetworkMapping:
    """Bisection for the lowest budget; of all mappings that were tried, the one with the shortest tick."""
    available = (naive.chip.cores.value or 0) * naive.placement.chips
    budget = _budget(naive, counter, load_prices(preset))

    def tick(mapping: NetworkMapping) -> tuple[float, int]:
        ends = 0.0 if preset is None else barrier(preset, mapping.tiles_in_use).nominal / NANOSECOND
        return float(core_loads(mapping, counter, preset).max()) + ends, len(mapping.seats)

    tried, high = [naive], float(core_loads(naive, counter, preset).max())
    low = min(sum(float(work.sum()) for work in budget.own.values()) / available, high)  # spread evenly
    for _ in range(BISECTIONS if low > 0 else 0):
        middle = math.sqrt(low * high)
        placement = _placed(naive, dataclasses.replace(budget, limit=middle))
        if placement is None or len(placement.cores) > available:
            low = middle
        else:
            tried.append(in_order(naive.network, naive.chip, placement, naive.weights))
            high = middle
    return min(tried, key=tick)


def _placed(naive: NetworkMapping, budget: Budget) -> Placement | None:
    try:
        return place(naive.network, naive.chip, naive.placement.shared_cores, budget)
    except NetworkError:  # a neuron that is above this budget on its own, or that cannot reach so many cores
        return None


def _budget(naive: NetworkMapping, counter: SpikeCounter, prices: dict[str, float]) -> Budget:
    """Mean work per tick of every neuron, for its own and per destination core."""
    network, record, slots = naive.network, Record.of_run(counter), _slots(counter)
    own: dict[str, FloatArray] = {}
    per_axon: dict[str, FloatArray] = {}
    for node in network.nodes:
        if isinstance(node, UNPLACED_KINDS):
            continue
        own[node.name] = np.zeros(node.size)
        for neuron in range(node.size):
            for work in work_of(network, Slice(node.name, neuron, 1), core=0, weights=naive.weights):
                if work.quantity in prices:
                    own[node.name][neuron] += prices[work.quantity] * int(record.count(work)) / slots
        if isinstance(node, SPIKING_KINDS):
            per_axon[node.name] = prices.get("messages", 0.0) * counter.fired[node.name] / slots
        else:
            per_axon[node.name] = np.full(node.size, prices.get("graded_messages", 0.0))
    return Budget(0.0, own, per_axon)


def _slots(counter: SpikeCounter) -> int:
    """Ticks of the run."""
    return max(counter.tokens * counter.network.ticks, 1)


def search_places(mapping: NetworkMapping, counter: SpikeCounter, seed: int = 0) -> NetworkMapping:
    """The same cores with fewer hops: swaps within each chip until none helps, and again from disturbed places.

    No swap takes a further tile into use, so the barrier stays what it is.
    """
    traffic, generator = _traffic(mapping, counter), np.random.default_rng(seed)
    per_chip = mapping.chip.cores.value or len(mapping.seats)
    tiles = np.array([tile_position(mapping.chip, seat) for seat in range(per_chip)])
    seats = np.array(mapping.seats)
    for chip in range(mapping.placement.chips):
        here = np.array([core.index for core in mapping.placement.cores if core.chip == chip])
        between = np.zeros((per_chip, per_chip))  # places that stay empty are cores without traffic
        between[: len(here), : len(here)] = traffic[np.ix_(here, here)]
        free = np.setdiff1d(np.arange(per_chip), seats[here])
        board = _Board(between, tiles, len(here))
        seats[here] = board.search(np.concatenate([seats[here], free]), generator)[: len(here)]
    return dataclasses.replace(mapping, seats=tuple(seats.tolist()))


def _traffic(mapping: NetworkMapping, counter: SpikeCounter) -> FloatArray:
    """(cores, cores) messages in both directions."""
    record, cores = Record.of_run(counter), len(mapping.seats)
    found = np.zeros((cores, cores))
    for fanout in mapping.fanouts:
        if fanout.core != HOST:
            found[fanout.core, list(fanout.destinations)] += float(record.count(fanout.work("messages", 1)))
    np.fill_diagonal(found, 0.0)
    return found + found.T


class _Board:
    """Cores on the places of one chip. ``at`` arrays hold the place of every core; those that are last do not exist."""

    def __init__(self, traffic: FloatArray, tiles: npt.NDArray[np.integer], cores: int) -> None:
        self.traffic, self.cores = traffic, cores
        self.distance = np.abs(tiles[:, None] - tiles[None, :]).sum(axis=-1).astype(np.float64)
        self.tile = np.unique(tiles, axis=0, return_inverse=True)[1].reshape(-1)

    def search(self, at: Counts, generator: np.random.Generator) -> Counts:
        """Iterated local search: the best of the descents from the given places and from disturbed ones."""
        best = self._descend(at)
        least = self._hops(best)
        for _ in range(KICKS if self.cores > 1 else 0):
            disturbed = best.copy()
            for _ in range(KICKED):
                one, other = generator.choice(self.cores, 2, replace=False)
                disturbed[[one, other]] = disturbed[[other, one]]
            candidate = self._descend(disturbed)
            if (found := self._hops(candidate)) < least:
                best, least = candidate, found
        return best

    def _hops(self, at: Counts) -> float:
        return float((self.traffic * self.distance[np.ix_(at, at)]).sum()) / 2

    def _descend(self, at: Counts) -> Counts:
        """Take the best swap while one helps. Hops are whole numbers, so every swap gains at least one."""
        at = at.copy()
        while True:
            gains = self._gains(at)
            one, other = divmod(int(gains.argmax()), len(at))
            if gains[one, other] < 1:
                return at
            at[[one, other]] = at[[other, one]]

    def _gains(self, at: Counts) -> FloatArray:
        """(core, other) hops that are saved where the two swap places; minus infinity where they must not."""
        between = self.distance[np.ix_(at, at)]
        moved = self.traffic @ between  # hops of a core at the place of another
        stays = np.diagonal(moved)
        gains = stays[:, None] + stays[None, :] - moved - moved.T - 2 * self.traffic * between
        used = np.bincount(self.tile[at[: self.cores]], minlength=len(self.tile))[self.tile[at]]
        spreads = (used[None, :] == 0) & (used[:, None] > 1)  # from a tile with others to an empty one
        gains[spreads] = -np.inf
        gains[self.cores :] = -np.inf
        return gains

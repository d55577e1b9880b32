"""A network on the cores of a chip's mesh: exact counts per layer, per core and per link."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsf.export.network.network import Network
from dsf.export.network.nodes import NetworkError
from dsf.export.placement.chips import Chip
from dsf.export.placement.placement import Placement, place, tile_position
from dsf.hardware_models.activity import Activity, Counts, NodeActivity, SpikeCounter
from dsf.hardware_models.fanout import Fanout, fanouts
from dsf.hardware_models.mesh import Link, Tile, assumptions, hops, route, with_mesh
from dsf.hardware_models.weight_memory import WeightMemory, Weights
from dsf.hardware_models.work import HOST, Record, Schedule, Work, host_work, idle_work, work_of


@dataclass(frozen=True)
class NetworkMapping:
    """A placement, and a place on the mesh for each of its cores. Make one with :func:`map_in_order`.

    Messages go first along x, then along y. What crosses to another chip is a message without hops, because no figure
    says what lies between two chips (:meth:`off_chip_messages`). The host (encoder, readout) has no place on the mesh
    either: its messages cross no link.

    Attributes:
        network: that is placed.
        chip: with a mesh, see :func:`dsf.hardware_models.mesh.with_mesh`.
        placement: slices of populations on cores.
        seats: of every core, its place on its chip: cores 0, 1, 2, ... wind through the tiles, see
            :func:`dsf.export.placement.placement.tile_position`.
        weights: how cores keep theirs: "packed" counts the synapses that exist, "bytes" those of weight zero, too.
            Cores fetch them event by event. The placement itself still makes room for every weight.
    """

    network: Network
    chip: Chip
    placement: Placement
    seats: tuple[int, ...]
    weights: Weights = "bytes"

    def __post_init__(self) -> None:
        taken = {(core.chip, seat) for core, seat in zip(self.placement.cores, self.seats, strict=True)}
        if len(taken) < len(self.seats):
            raise NetworkError("mapping: two cores have the same place on the mesh; give each a place of its own")

    @property
    def assumptions(self) -> list[str]:
        """What every result that depends on the mesh has to say."""
        return assumptions(self.chip)

    @functools.cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Every core's tile."""
        return tuple(tile for seat in self.seats if (tile := tile_position(self.chip, seat)) is not None)

    @functools.cached_property
    def tiles_in_use(self) -> int:
        """Tiles of the chip with the most of them."""
        used = {(core.chip, tile) for core, tile in zip(self.placement.cores, self.tiles)}
        return max(sum(chip == number for chip, _ in used) for number in range(self.placement.chips))

    @functools.cached_property
    def fanouts(self) -> tuple[Fanout, ...]:
        """Who sends to which cores."""
        return fanouts(self.network, self.placement)

    @functools.cached_property
    def work(self) -> tuple[Work, ...]:
        """Everything that is counted, core by core, and what the host does."""
        parts = [(part, core.index) for core in self.placement.cores for part in core.slices]
        source = self.network.readout.source
        found = [work for part, core in parts for work in work_of(self.network, part, core, self.weights)]
        last = {core: part.count for part, core in parts if part.node == source}
        found += host_work(self.network, last, self.weights)
        for fanout in self.fanouts:
            found += self._sending(fanout)
        return tuple(found)

    def _sending(self, fanout: Fanout) -> Iterator[Work]:
        """Messages and hops, at the sender."""
        yield fanout.work("messages" if fanout.spiking else "graded_messages", len(fanout.destinations))
        crossed = np.sum([hops(*ends) for ends in self._ways(fanout)] or [(0, 0)], axis=0)
        for quantity, links in zip(("hops_east_west", "hops_north_south"), crossed.tolist()):
            if links:
                yield fanout.work(quantity, links)

    def _ways(self, fanout: Fanout) -> Iterator[tuple[Tile, Tile]]:
        """Tiles at both ends of every message that stays on its chip; the host has none."""
        cores = self.placement.cores
        for target in fanout.destinations if fanout.core != HOST else ():
            if cores[target].chip == cores[fanout.core].chip:
                yield self.tiles[fanout.core], self.tiles[target]

    @functools.cached_property
    def link_work(self) -> tuple[tuple[Link, ...], tuple[tuple[int, Work], ...]]:
        """The links in use, and which of them (by index) each neuron's messages cross how often."""
        numbers: dict[Link, int] = {}
        found: list[tuple[int, Work]] = []
        for fanout in self.fanouts:
            crossed: dict[int, int] = defaultdict(int)
            for source, target in self._ways(fanout):
                for link in route(self.placement.cores[fanout.core].chip, source, target):
                    crossed[numbers.setdefault(link, len(numbers))] += 1
            found += ((link, fanout.work("messages", times)) for link, times in crossed.items())
        return tuple(numbers), tuple(found)

    @functools.cached_property
    def idle_work(self) -> tuple[Work, ...]:
        """What a pipeline adds to :attr:`work`: updates of neurons that wait."""
        return tuple(
            work
            for core in self.placement.cores
            for part in core.slices
            for work in idle_work(self.network, part, core.index)
        )

    def _work(self, schedule: Schedule) -> tuple[Work, ...]:
        return (*self.work, *self.idle_work) if schedule == "pipelined" else self.work

    def activity(self, counter: SpikeCounter, schedule: Schedule = "lockstep") -> Activity:
        """The run's counts per node, with this placement's messages and hops.

        ``pipelined`` counts the ticks that a chip needs, see :mod:`dsf.hardware_models.schedule`: in those in which a
        neuron's token is elsewhere it is updated all the same. ``lockstep`` counts T ticks per token, as engines do.
        """
        record, counts = Record.of_run(counter), defaultdict[str, dict[str, int]](lambda: defaultdict(int))
        for work in self._work(schedule):
            counts[work.node][work.quantity] += int(record.count(work))
        nodes = tuple(
            NodeActivity(node.name, type(node).__name__, node.size, **counts[node.name]) for node in self.network.nodes
        )
        return Activity(counter.decisions, counter.tokens, self.network.ticks, nodes, WeightMemory(self.weights))

    def core_activity(self, counter: SpikeCounter, schedule: Schedule = "lockstep") -> dict[str, Counts]:
        """The run's counts per core, (cores + 1,) by quantity: the last entry is the host's.

        Synaptic events happen where the target neurons are, updates where the neuron is, messages and hops count for
        the sender. See :meth:`activity` for schedules.
        """
        record, cores = Record.of_run(counter), len(self.seats)
        counts: dict[str, Counts] = defaultdict(lambda: np.zeros(cores + 1, np.int64))
        for work in self._work(schedule):
            counts[work.quantity][work.core] += record.count(work)
        return dict(counts)

    def link_messages(self, counter: SpikeCounter) -> dict[Link, int]:
        """Messages that crossed every link in use."""
        record, (links, crossings) = Record.of_run(counter), self.link_work
        loads = [0] * len(links)
        for link, work in crossings:
            loads[link] += int(record.count(work))
        return dict(zip(links, loads))

    @functools.cached_property
    def off_chip_work(self) -> tuple[Work, ...]:
        """Messages to other chips, by sender; none on one chip."""
        cores, found = self.placement.cores, []
        for fanout in self.fanouts:
            if fanout.core != HOST:
                away = sum(cores[target].chip != cores[fanout.core].chip for target in fanout.destinations)
                found += [fanout.work("messages", away)] if away else []
        return tuple(found)

    def off_chip_messages(self, counter: SpikeCounter) -> dict[str, int]:
        """The run's messages to other chips, by sender; empty on one chip."""
        record, found = Record.of_run(counter), defaultdict[str, int](int)
        for work in self.off_chip_work:
            found[work.node] += int(record.count(work))
        return dict(found)

    def to_json(self) -> dict[str, Any]:
        """JSON values: the placement's, and every core's tile."""
        tiles = [
            {"core": core.index, "chip": core.chip, "x": x, "y": y}
            for core, (x, y) in zip(self.placement.cores, self.tiles)
        ]
        return {"placement": self.placement.to_json(), "tiles": tiles, "assumptions": self.assumptions}


def map_in_order(network: Network, chip: Chip, share_cores: bool = False, weights: Weights = "bytes") -> NetworkMapping:
    """The naive mapping: :func:`dsf.export.placement.placement.place`, and its cores in order along the mesh.

    Raises:
        NetworkError: a single neuron exceeds a core.
    """
    chip = with_mesh(chip)
    return in_order(network, chip, place(network, chip, share_cores), weights)


def in_order(network: Network, chip: Chip, placement: Placement, weights: Weights = "bytes") -> NetworkMapping:
    """A placement's cores in order along the mesh of each chip."""
    per_chip = chip.cores.value or len(placement.cores)
    seats = tuple(core.index % per_chip for core in placement.cores)
    return NetworkMapping(network, chip, placement, seats, weights)

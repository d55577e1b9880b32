"""Messages from core to core under the placement in a network file, counted in a run.

A neuron that fires sends one message to each population on each core that reads it: its links, as
:mod:`dsf.export.placement` counts them. Residuals and attention's sums are graded messages, sent at every tick. Links
with the host are no edges.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsf.export.connections import connections
from dsf.export.network import Network
from dsf.export.nodes import SPIKING_KINDS, IntArray, NetworkError
from dsf.export.placement import Slice
from dsf.runtime.fast_engine import Mode
from dsf.runtime.spike_file import SpikeRecorder
from dsf.tasks import UserError


@dataclass(frozen=True)
class CoreEdge:
    """Messages from one core to another one, or within one.

    Attributes:
        source: core that sends.
        target: core that receives.
        links: pairs of a sending neuron and a population on the target that reads it.
        spikes: messages of spiking neurons.
        graded: messages of all others.
    """

    source: int
    target: int
    links: int
    spikes: int
    graded: int


@dataclass(frozen=True)
class CoreMap:
    """Which core holds which neurons.

    Attributes:
        chip: name of the preset that the network was placed on.
        slices: per population, its cores with what each of them holds.
    """

    chip: str
    slices: dict[str, list[tuple[int, Slice]]]

    @classmethod
    def of(cls, network: Network, mode: Mode = "stream") -> CoreMap:
        """The placement that was exported with a network, for a run in one mode.

        Raises:
            NetworkError: there is none.
            UserError: the mode is window, where earlier tokens fire again for every decision, unreported.
        """
        if mode == "window":
            raise UserError("--core-traffic counts in stream mode only: set --mode stream")
        placement: dict[str, Any] = network.verification.get("placement", {})
        if "assignment" not in placement:
            raise NetworkError("network: its file says nothing about cores; export it again with dsf-export")
        slices: dict[str, list[tuple[int, Slice]]] = {}
        for part in placement["assignment"]:
            held = Slice(part["node"], part["first"], part["count"])
            slices.setdefault(held.node, []).append((part["core"], held))
        return cls(placement["chip"], slices)

    def cores_of(self, node: str) -> tuple[int, ...]:
        """The cores that hold neurons of a population."""
        return tuple(core for core, _ in self.slices.get(node, ()))

    def edges(self, network: Network, fired: dict[str, IntArray], graded: int) -> list[CoreEdge]:
        """All edges with links, in order.

        Args:
            network: that was placed.
            fired: spikes of every neuron of every spiking population.
            graded: messages of each neuron of every other population.
        """
        totals: dict[tuple[int, int], Counter[str]] = {}
        for name, cores, read in self._links(network):
            links, edge = read.stop - read.start, totals.setdefault(cores, Counter(links=0, spikes=0, graded=0))
            edge["links"] += links
            if isinstance(network[name], SPIKING_KINDS):
                edge["spikes"] += int(fired[name][read].sum())
            else:
                edge["graded"] += links * graded
        return [
            CoreEdge(*cores, edge["links"], edge["spikes"], edge["graded"]) for cores, edge in sorted(totals.items())
        ]

    def _links(self, network: Network) -> Iterator[tuple[str, tuple[int, int], slice]]:
        """Population, sending and receiving core, and the neurons on the one that a population on the other reads."""
        for node in network.nodes:
            for connection, (target, part) in itertools.product(
                connections(network, node), self.slices.get(node.name, ())
            ):
                wanted = connection.read_by(part.first, part.count)
                for source, held in self.slices.get(connection.source, ()):
                    read = slice(max(wanted.start, held.first), min(wanted.stop, held.first + held.count))
                    if read.start < read.stop:
                        yield connection.source, (source, target), read


def count_traffic(cores: CoreMap, recorder: SpikeRecorder) -> list[CoreEdge]:
    """All messages of a stream-mode run whose recorder has kept every population."""
    fired = {name: recorder.raster(name).sum(axis=(0, 1), dtype=np.int64) for name in recorder.packed}
    return cores.edges(recorder.network, fired, graded=recorder.decisions * recorder.network.ticks)


def summarise_traffic(cores: CoreMap, recorder: SpikeRecorder) -> dict[str, Any]:
    """The run's edges as JSON values, the busiest first."""
    edges = sorted(count_traffic(cores, recorder), key=lambda edge: -(edge.spikes + edge.graded))
    return {
        "chip": cores.chip,
        "edges": [
            {
                "source": edge.source,
                "target": edge.target,
                "links": edge.links,
                "spikes_per_decision": edge.spikes / recorder.decisions,
                "graded_per_decision": edge.graded / recorder.decisions,
            }
            for edge in edges
        ],
    }

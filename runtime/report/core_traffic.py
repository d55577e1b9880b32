"""Messages from core to core in a run, by the placement that dsf-export writes into a network's file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from dsf.export.network.network import Network
from dsf.export.placement.chips import DEFAULT_CHIP, get_chip
from dsf.hardware_models import NetworkMapping, SpikeCounter, map_in_order
from dsf.hardware_models.work import HOST, Record


def placed_mapping(network: Network) -> NetworkMapping:
    """The placement of a network's file: its chip, cores in order.

    Raises:
        NetworkError: a single neuron exceeds a core.
    """
    return map_in_order(network, get_chip(network.verification.get("placement", {}).get("chip", DEFAULT_CHIP)))


@dataclass(frozen=True)
class CoreEdge:
    """Messages per decision from one core to another, or to itself."""

    source: int
    target: int
    spikes: float
    graded: float


@dataclass(frozen=True)
class CoreTraffic:
    """Messages between cores.

    Attributes:
        chip: name of the placement's chip.
        edges: the busiest first.
        processes: cores of each of Lava's processes; empty where Lava did not run here.
    """

    chip: str
    edges: list[CoreEdge]
    processes: dict[str, tuple[int, ...]]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        edges = [
            {
                "source": edge.source,
                "target": edge.target,
                "spikes_per_decision": edge.spikes,
                "graded_per_decision": edge.graded,
            }
            for edge in self.edges
        ]
        return {"chip": self.chip, "edges": edges, "processes": self.processes}


def core_edges(mapping: NetworkMapping, counter: SpikeCounter) -> list[CoreEdge]:
    """Per decision, the messages (spikes and values) from one core to another or to itself, the busiest edge first.

    What the host sends and gets is no edge. Sums over edges are the messages and graded messages of
    :meth:`dsf.hardware_models.NetworkMapping.activity`.
    """
    record, totals = Record.of_run(counter), {True: Counter[tuple[int, int]](), False: Counter[tuple[int, int]]()}
    for fanout in mapping.fanouts:
        if fanout.core != HOST:
            sent = int(record.count(fanout.work("messages", 1)))
            for target in fanout.destinations:
                totals[fanout.spiking][fanout.core, target] += sent
    spikes, graded, decisions = totals[True], totals[False], counter.decisions
    edges = sorted({**spikes, **graded}, key=lambda edge: (-(spikes[edge] + graded[edge]), edge))
    return [CoreEdge(*edge, spikes[edge] / decisions, graded[edge] / decisions) for edge in edges]


def measure_traffic(network: Network, counter: SpikeCounter, processes: dict[str, tuple[int, ...]]) -> CoreTraffic:
    """The edges of a run by the placement of the network's file."""
    mapping = placed_mapping(network)
    return CoreTraffic(mapping.chip.name, core_edges(mapping, counter), processes)

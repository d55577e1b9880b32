"""Messages from core to core in a run, by the placement that dsf-export writes into a network's file."""

from __future__ import annotations

from collections import Counter
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


def core_edges(mapping: NetworkMapping, counter: SpikeCounter) -> list[dict[str, Any]]:
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
    spikes, graded = totals[True], totals[False]
    edges = sorted({**spikes, **graded}, key=lambda edge: (-(spikes[edge] + graded[edge]), edge))
    return [
        {
            "source": source,
            "target": target,
            "spikes_per_decision": spikes[source, target] / counter.decisions,
            "graded_per_decision": graded[source, target] / counter.decisions,
        }
        for source, target in edges
    ]


def summarise_traffic(network: Network, counter: SpikeCounter, processes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """JSON values: the edges, and the cores of Lava's processes."""
    mapping = placed_mapping(network)
    return {"chip": mapping.chip.name, "edges": core_edges(mapping, counter), "processes": processes}

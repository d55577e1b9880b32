"""The Activity record: how often each priced thing happened, per node. The same record for every engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.export.network import Network
from dsf.export.nodes import (
    LIF,
    SPIKING_KINDS,
    And,
    Count,
    Encoder,
    Gate,
    Node,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    Window,
)

QUANTITIES = (
    "synaptic_events",
    "neuron_updates",
    "messages",
    "graded_messages",
    "dynamic_operations",
    "macs",
)
"""The counts that a preset can price; ``spikes`` is informative."""


@dataclass(frozen=True)
class NodeActivity:
    """Totals of one node over a run.

    Attributes:
        node: name.
        kind: node kind.
        neurons: size of the node.
        spikes: spikes fired (LIF, Gate).
        synaptic_events: one per spike and target neuron (Synapses behind spikes; weights of zero count too).
        neuron_updates: one per neuron and tick (LIF, and the adders of Residual).
        messages: one per LIF spike, as if every population had one destination core (placement refines this).
        graded_messages: one per graded value sent (Encoder and Residual per tick, Readout's input per token).
        dynamic_operations: spike-by-spike work of attention: one AND per channel and tick (Gate, And), one register
            read and add per query spike and token looked back on (Window; Outer's scores), and one add per neuron,
            tick and token looked back on where a count meets every neuron (Count; Outer's values, an upper bound).
        macs: integer multiply-accumulates on graded values (Synapses behind the Encoder, Readout).
    """

    node: str
    kind: str
    neurons: int
    spikes: int = 0
    synaptic_events: int = 0
    neuron_updates: int = 0
    messages: int = 0
    graded_messages: int = 0
    dynamic_operations: int = 0
    macs: int = 0


@dataclass(frozen=True)
class Activity:
    """Totals of a run.

    Attributes:
        decisions: that were made.
        tokens: that were computed: one per decision in stream mode, in window mode all tokens of every window.
        ticks: per token.
        nodes: totals per node.
    """

    decisions: int
    tokens: int
    ticks: int
    nodes: tuple[NodeActivity, ...]

    def total(self, quantity: str) -> int:
        """Sum of one quantity over all nodes."""
        return sum(getattr(node, quantity) for node in self.nodes)

    def per_decision(self, quantity: str) -> float:
        """Mean of one quantity per decision."""
        return self.total(quantity) / max(self.decisions, 1)

    @property
    def firing_rate(self) -> float:
        """Spikes per LIF neuron and tick, over all LIF populations."""
        populations = [node for node in self.nodes if node.kind == LIF.__name__]
        slots = sum(node.neurons for node in populations) * self.ticks * self.tokens
        return sum(node.spikes for node in populations) / max(slots, 1)

    def rate(self, node: NodeActivity) -> float:
        """Spikes per neuron and tick of one population."""
        return node.spikes / max(node.neurons * self.ticks * self.tokens, 1)


class SpikeCounter:
    """Accumulates what an engine reports; the one input that :func:`measure_activity` needs.

    Attributes:
        network: that ran.
        decisions, tokens: made and computed so far, see :class:`Activity`.
        spikes: of every spiking population.
        query_spikes: of the query of every node that has one and looks back.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.decisions, self.tokens = network, 0, 0
        self.spikes = {node.name: 0 for node in network.nodes if isinstance(node, SPIKING_KINDS)}
        self.windows = tuple(node for node in network.nodes if isinstance(node, (Window, PlacedWindow, Outer)))
        self.query_spikes = {node.name: 0 for node in self.windows}

    def add(self, spikes: Mapping[str, npt.NDArray[np.generic]], tokens: int = 1, decisions: int = 1) -> int:
        """Add the spikes of some tokens, (..., neurons) per population; return how many there were."""
        self.decisions += decisions
        self.tokens += tokens
        fired = {name: int(np.count_nonzero(spikes[name])) for name in self.spikes}
        for name, count in fired.items():
            self.spikes[name] += count
        for window in self.windows:
            population, first = (
                (window.source, window.query) if isinstance(window, Outer) else (window.query, window.first)
            )
            query = spikes[population][..., first : first + window.size]
            self.query_spikes[window.name] += int(np.count_nonzero(query))
        return sum(fired.values())


def measure_activity(counter: SpikeCounter) -> Activity:
    """Turn spike counts into every quantity that a preset prices."""
    network = counter.network
    slots = network.ticks * counter.tokens
    nodes = tuple(_node_activity(node, counter, slots) for node in network.nodes)
    return Activity(counter.decisions, counter.tokens, network.ticks, nodes)


def _node_activity(node: Node, counter: SpikeCounter, slots: int) -> NodeActivity:
    """One node's counts; ``slots`` is ticks x tokens."""
    base = NodeActivity(node.name, type(node).__name__, node.size)
    if isinstance(node, Encoder):
        return dataclasses.replace(base, graded_messages=node.size * slots)
    if isinstance(node, Synapses):
        if isinstance(counter.network[node.source], Encoder):
            return dataclasses.replace(base, macs=node.weights.size * slots)
        return dataclasses.replace(base, synaptic_events=counter.spikes[node.source] * node.size)
    if isinstance(node, Residual):
        return dataclasses.replace(base, neuron_updates=node.size * slots, graded_messages=node.size * slots)
    if isinstance(node, LIF):
        spikes = counter.spikes[node.name]
        return dataclasses.replace(base, spikes=spikes, messages=spikes, neuron_updates=node.size * slots)
    if isinstance(node, (Gate, And)):
        return dataclasses.replace(base, spikes=counter.spikes[node.name], dynamic_operations=node.size * slots)
    if isinstance(node, (Window, PlacedWindow)):
        return dataclasses.replace(base, dynamic_operations=counter.query_spikes[node.name] * node.reach)
    if isinstance(node, Count):
        return dataclasses.replace(base, dynamic_operations=node.size * slots * node.reach)
    if isinstance(node, Outer):
        reads = counter.query_spikes[node.name] + node.size * slots
        return dataclasses.replace(base, dynamic_operations=reads * node.reach)
    assert isinstance(node, Readout)
    channels = node.weights.shape[1] * counter.decisions
    return dataclasses.replace(base, graded_messages=channels, macs=node.size * channels)

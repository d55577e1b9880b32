"""The Activity record: how often each priced thing happened, per node. The same record for every engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    HISTORY_KINDS,
    HOST_KINDS,
    LIF,
    SPIKING_KINDS,
    And,
    Count,
    Encoder,
    Gate,
    HostEmbedding,
    HostNode,
    Node,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    Window,
)
from dsf.hardware_models.weight_memory import USUAL, WeightMemory
from dsf.shell.errors import UserError

Counts = npt.NDArray[np.int64]

QUANTITIES = {
    "synaptic_events": "spike meets weight: one per spike and target neuron; weights of zero count too, unless packed",
    "active_updates": "neuron and tick with a current, a bias or a membrane that is not zero",
    "inactive_updates": "neuron and tick with nothing to do; on a chip also while its token is elsewhere",
    "spikes": "spike fired",
    "messages": "spike sent to one destination core",
    "hops_east_west": "message crossing to a tile east or west",
    "hops_north_south": "message crossing to a tile north or south",
    "graded_messages": "value of several bits sent to one destination core",
    "dynamic_operations": "spike meets spike in attention: an AND, or a read and an add",
    "macs": "integer multiply-accumulate on graded values",
    "repeated_macs": "the encoder's one once more: its values are the same at every tick of a token",
    "macs_fp32": "floating-point multiply-accumulate (of dense networks, and of a host embedding, there in float64)",
    "host_operations": "other floating-point operation of a host embedding: mean, difference, division, rounding, clip",
    "host_bytes": "byte of float64 weights that a host embedding fetches",
    "weight_bytes": "byte of weights fetched from memory; packed, with the index that sparse rows need",
    "host_transfers": "value that crosses between host and chip",
}
"""Every count that a preset can price, and what one occurrence is."""


@dataclass(frozen=True)
class NodeActivity:
    """Totals of one node over a run.

    Attributes:
        node: name.
        kind: node kind.
        neurons: size of the node.
        spikes: fired (LIF, Gate, And).
        synaptic_events: one per spike and target neuron (Synapses behind spikes); weights of zero count too, unless
            they are packed.
        active_updates: neuron updates with a current, a bias or a membrane that is not zero (LIF); every tick of the
            adders of Residual.
        inactive_updates: the other updates (LIF).
        messages: one per spike and destination core: with a mapping its cores, without one a core per population.
        hops_east_west, hops_north_south: links of the mesh that messages cross; 0 without a mapping on a known mesh.
        graded_messages: one per graded value sent and destination (Encoder, HostEmbedding, Residual and the nodes that
            look back per tick, an upper bound for the latter; Readout's input per decision).
        dynamic_operations: spike-by-spike work of attention: one AND per channel and tick (Gate, And), one register
            read and add per query spike and token looked back on (Window; Outer's scores), and one add per neuron,
            tick and token looked back on where a count meets every neuron (Count; Outer's values, an upper bound).
        macs: integer multiply-accumulates on graded values: of Synapses behind the Encoder at a token's first tick, of
            the Readout.
        repeated_macs: the same products of the Encoder's values again, at a token's other ticks: the encoder sends at
            every tick, so cores multiply at every tick; who holds the first tick's sums need not.
        macs_fp32: floating-point multiply-accumulates per decision (HostEmbedding; nothing else in an integer network).
        host_operations, host_bytes: the host's other work per decision (HostEmbedding).
        weight_bytes: as the activity's memory keeps and fetches them; usually one byte per synaptic event and per MAC:
            nothing is read once for two events.
        host_transfers: features in per token (Encoder; HostEmbedding its channels), accumulators out per decision
            (Readout).
    """

    node: str
    kind: str
    neurons: int
    spikes: int = 0
    synaptic_events: int = 0
    active_updates: int = 0
    inactive_updates: int = 0
    messages: int = 0
    hops_east_west: int = 0
    hops_north_south: int = 0
    graded_messages: int = 0
    dynamic_operations: int = 0
    macs: int = 0
    repeated_macs: int = 0
    macs_fp32: int = 0
    host_operations: int = 0
    host_bytes: int = 0
    weight_bytes: int = 0
    host_transfers: int = 0

    @property
    def neuron_updates(self) -> int:
        """Active and inactive ones."""
        return self.active_updates + self.inactive_updates


@dataclass(frozen=True)
class Activity:
    """Totals of a run.

    Attributes:
        decisions: that were made.
        tokens: that were computed: one per decision in stream mode, in window mode all tokens of every window.
        ticks: per token.
        nodes: totals per node.
        memory: how weights were kept and fetched.
    """

    decisions: int
    tokens: int
    ticks: int
    nodes: tuple[NodeActivity, ...]
    memory: WeightMemory = USUAL

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
        fired: (neurons,) spikes of every spiking population.
        active: (neurons,) updates of every LIF population that had anything to do, see
            :func:`dsf.export.network.reference.active_updates`; an engine that cannot see membranes counts every
            update.
        woken: (neurons,) tokens in which each neuron fired at least once, of every spiking population; None where they
            were not counted, see :meth:`wake`. Only the schedule token by token asks for them.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.decisions, self.tokens = network, 0, 0
        self.woken: dict[str, Counts] | None = None
        self.fired = {node.name: np.zeros(node.size, np.int64) for node in spiking(network)}
        self.active = {name: np.zeros_like(self.fired[name]) for name in self.fired if isinstance(network[name], LIF)}

    @property
    def spikes(self) -> dict[str, int]:
        """Spikes of every spiking population."""
        return {name: int(fired.sum()) for name, fired in self.fired.items()}

    def add(
        self,
        spikes: Mapping[str, npt.NDArray[np.integer]],
        tokens: int = 1,
        decisions: int = 1,
        active: Mapping[str, npt.NDArray[np.integer]] | None = None,
    ) -> None:
        """Add the spikes of some tokens, (..., neurons) per population, and the active updates (neurons,) of them.

        Without ``active``, every update counts as one.
        """
        self.decisions += decisions
        self.tokens += tokens
        for name, fired in self.fired.items():
            fired += spikes[name].reshape(-1, fired.size).sum(axis=0, dtype=np.int64)
        for name, updates in self.active.items():
            updates += tokens * self.network.ticks if active is None else active[name]

    def wake(self, spikes: Mapping[str, npt.NDArray[np.integer]]) -> None:
        """Count in which of some tokens every neuron fired: spikes (ticks, ..., neurons) of each population.

        Nothing else is counted: engines count spikes and tokens themselves.
        """
        if self.woken is None:
            self.woken = {name: np.zeros_like(fired) for name, fired in self.fired.items()}
        for name, woken in self.woken.items():
            woken += spikes[name].any(axis=0).reshape(-1, woken.size).sum(axis=0, dtype=np.int64)

    def merge(self, other: SpikeCounter) -> None:
        """Add what another engine of the same network has counted; tokens in which neurons fired are not known then."""
        self.woken = None
        self.decisions += other.decisions
        self.tokens += other.tokens
        for mine, others in ((self.fired, other.fired), (self.active, other.active)):
            for name, values in mine.items():
                values += others[name]


def spiking(network: Network) -> Iterator[LIF | Gate | And]:
    """The populations that fire."""
    return (node for node in network.nodes if isinstance(node, SPIKING_KINDS))


def measure_activity(counter: SpikeCounter, memory: WeightMemory = USUAL) -> Activity:
    """Turn spike counts into every quantity that a preset prices, with one core per population and no mesh.

    :meth:`dsf.hardware_models.mapping.NetworkMapping.activity` counts messages and hops of a placement instead.

    Args:
        counter: what an engine has counted.
        memory: how weights are kept and fetched.

    Raises:
        UserError: rows are to be fetched token by token, and the counter does not know in which tokens neurons fired.
    """
    if memory.fetch == "token" and counter.woken is None:
        raise UserError(
            "the fetch schedule token by token needs the tokens in which every neuron fired, which were not counted: "
            "count them with SpikeCounter.wake, or use the schedule event"
        )
    network = counter.network
    nodes = tuple(_node_activity(node, counter, memory) for node in network.nodes)
    return Activity(counter.decisions, counter.tokens, network.ticks, nodes, memory)


def _node_activity(node: Node, counter: SpikeCounter, memory: WeightMemory) -> NodeActivity:
    """One node's counts."""
    network, slots = counter.network, counter.network.ticks * counter.tokens
    base = NodeActivity(node.name, type(node).__name__, node.size)
    if isinstance(node, HOST_KINDS):
        host = {quantity: count * counter.decisions for quantity, count in embedded_on_host(node).items()}
        host |= {"graded_messages": node.size * slots, "host_transfers": node.size * counter.tokens}
        return NodeActivity(base.node, base.kind, base.neurons, **host)
    if isinstance(node, Synapses):
        return _through(base, node, counter, memory)
    if isinstance(node, Residual):
        sent = node.size * slots * readers(network, node.name)
        return dataclasses.replace(base, active_updates=node.size * slots, graded_messages=sent)
    if isinstance(node, Readout):
        stored, decisions = memory.stored(node.weights), counter.decisions
        return dataclasses.replace(
            base,
            graded_messages=node.weights.shape[1] * decisions,
            macs=stored.synapses * decisions,
            weight_bytes=stored.total_bytes * decisions,
            host_transfers=node.size * decisions,
        )
    if isinstance(node, (LIF, Gate, And)):
        spikes = int(counter.fired[node.name].sum())
        base = dataclasses.replace(base, spikes=spikes, messages=spikes * readers(network, node.name))
    if isinstance(node, LIF):
        active = int(counter.active[node.name].sum())
        return dataclasses.replace(base, active_updates=active, inactive_updates=node.size * slots - active)
    if isinstance(node, HISTORY_KINDS):
        base = dataclasses.replace(base, graded_messages=node.size * slots * readers(network, node.name))
    return dataclasses.replace(base, dynamic_operations=_dynamic_operations(node, counter, slots))


def _through(base: NodeActivity, node: Synapses, counter: SpikeCounter, memory: WeightMemory) -> NodeActivity:
    """What meets a matrix, and what is fetched of it."""
    stored, slots = memory.stored(node.weights), counter.network.ticks * counter.tokens
    if isinstance(counter.network[node.source], Encoder):
        macs, every = stored.synapses * counter.tokens, stored.synapses * slots
        fetched = stored.total_bytes * (slots if memory.fetch == "event" else counter.tokens)
        return dataclasses.replace(base, macs=macs, repeated_macs=every - macs, weight_bytes=fetched)
    fired, woken = counter.fired[node.source], counter.woken
    rows = woken[node.source] if memory.fetch == "token" and woken is not None else fired
    events, fetched = int(fired @ stored.kept), int(rows @ stored.row_bytes)
    return dataclasses.replace(base, synaptic_events=events, weight_bytes=fetched)


def embedded_on_host(node: HostNode) -> dict[str, int]:
    """What the host computes for every decision, by quantity: a host embedding's work on the one token that is new.

    In window mode the host keeps the integers of earlier tokens. Its scaling of the features is not counted, as an
    encoder's is not.
    """
    if not isinstance(node, HostEmbedding):
        return {}
    return {"macs_fp32": node.macs, "host_operations": node.operations, "host_bytes": node.weight_bytes}


def _dynamic_operations(node: Node, counter: SpikeCounter, slots: int) -> int:
    """Operations of a node that combines spikes with spikes."""
    if isinstance(node, (Gate, And)):
        return node.size * slots
    if isinstance(node, Count):
        return node.size * slots * node.reach
    if isinstance(node, Outer):
        return (_part(counter, node.source, node.query, node.size) + node.size * slots) * node.reach
    assert isinstance(node, (Window, PlacedWindow))
    return _part(counter, node.query, node.first, node.size) * node.reach


def _part(counter: SpikeCounter, population: str, first: int, size: int) -> int:
    """Spikes of some neurons of a population."""
    return int(counter.fired[population][first : first + size].sum())


def readers(network: Network, name: str) -> int:
    """Populations that read a population, through synapses or directly; the host's readout is none."""
    found = 0
    for node in network.nodes:
        if name not in node.sources or isinstance(node, Readout):
            continue
        found += readers(network, node.name) if isinstance(node, Synapses) else 1
    return found

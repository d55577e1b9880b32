"""A run layer by layer under a preset: sizes, cores, counts per decision, and energy by what it is spent on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, UNPLACED_KINDS, HostEmbedding, Node, Readout, Synapses
from dsf.hardware_models.activity import Activity, NodeActivity
from dsf.hardware_models.energy import EnergyEstimate, LayerEnergy
from dsf.hardware_models.mapping import NetworkMapping

SYNAPSE = "synapse"
NEURON = "neuron"
ROUTING = "routing"
ATTENTION = "attention"
MACS = "MACs"
SPENT_ON = {
    "synaptic_events": SYNAPSE,
    "active_updates": NEURON,
    "inactive_updates": NEURON,
    "spikes": NEURON,
    "messages": ROUTING,
    "hops_east_west": ROUTING,
    "hops_north_south": ROUTING,
    "graded_messages": ROUTING,
    "host_transfers": ROUTING,
    "dynamic_operations": ATTENTION,
    "macs": MACS,
    "repeated_macs": MACS,
    "macs_fp32": MACS,
    "host_operations": MACS,
    "host_bytes": MACS,
}
"""What a priced quantity belongs to; fetching weights belongs to the events or products that it is done for."""
EMBEDDING = "embedding"
ON_HOST = "host embedding"
"""What the host computes of it, where that is more than scaling features."""
SHARES = (SYNAPSE, NEURON, ROUTING, ATTENTION, MACS)


@dataclass(frozen=True)
class LayerRow:
    """One node, or several together. Counts are per decision.

    Attributes:
        layer, kind: of the node.
        neurons, synapses: sizes; the neurons behind Synapses are their targets', and what the host does has none. A
            packed weight of zero is no synapse.
        cores: that hold its neurons; 0 without a mapping, and for what the host does.
        events: synaptic events.
        macs: multiply-accumulates; those of the encoder's values at every tick, unless the preset includes the repeated
            ones in the first.
        dynamic_operations: of attention.
        updates: of neurons, active and inactive.
        messages: spikes and values sent, one per destination core.
        hops: links that they cross.
        spikes: fired by LIF neurons; gates only pass spikes on.
        slots: LIF neurons times ticks, per decision: what ``spikes`` is a rate of.
        joules: by :data:`SHARES`, nominal.
    """

    layer: str
    kind: str
    neurons: int
    synapses: int
    cores: int
    events: float
    macs: float
    dynamic_operations: float
    updates: float
    messages: float
    hops: float
    spikes: float
    slots: float
    joules: dict[str, float]

    @property
    def rate(self) -> float | None:
        """Spikes per neuron and tick; None where nothing can fire."""
        return self.spikes / self.slots if self.slots else None

    @property
    def spikes_per_synapse(self) -> float | None:
        """Synaptic events per synapse and decision; None without synapses behind spikes."""
        return self.events / self.synapses if self.synapses and self.events else None


def layer_rows(
    network: Network, activity: Activity, energy: EnergyEstimate, mapping: NetworkMapping | None = None
) -> list[LayerRow]:
    """A row per node. Events, updates, messages and joules add up to the run's."""
    joules = {layer.node: layer for layer in energy.layers}
    once = "repeated_macs" in energy.included
    shown = [dataclasses.replace(counts, repeated_macs=0) if once else counts for counts in activity.nodes]
    return [_row(network[counts.node], counts, activity, joules.get(counts.node), mapping) for counts in shown]


def _row(
    node: Node, counts: NodeActivity, activity: Activity, energy: LayerEnergy | None, mapping: NetworkMapping | None
) -> LayerRow:
    decisions = max(activity.decisions, 1)
    neurons = 0 if isinstance(node, UNPLACED_KINDS) else node.size
    slots = activity.ticks * activity.tokens / decisions * neurons if isinstance(node, LIF) else 0.0
    return LayerRow(
        layer=counts.node,
        kind=counts.kind,
        neurons=neurons,
        synapses=activity.memory.stored(node.weights).synapses if isinstance(node, (Synapses, Readout)) else 0,
        cores=0 if mapping is None else len(mapping.placement.cores_of(node.name)),
        events=counts.synaptic_events / decisions,
        macs=(counts.macs + counts.repeated_macs + counts.macs_fp32) / decisions,
        dynamic_operations=counts.dynamic_operations / decisions,
        updates=counts.neuron_updates / decisions,
        messages=(counts.messages + counts.graded_messages) / decisions,
        hops=(counts.hops_east_west + counts.hops_north_south) / decisions,
        spikes=counts.spikes / decisions if slots else 0.0,
        slots=slots,
        joules=_shares(counts, energy),
    )


def _shares(counts: NodeActivity, energy: LayerEnergy | None) -> dict[str, float]:
    found = dict.fromkeys(SHARES, 0.0)
    fetched_for = MACS if counts.macs or counts.macs_fp32 else SYNAPSE
    for quantity, band in ({} if energy is None else energy.terms).items():
        found[SPENT_ON.get(quantity, fetched_for)] += band.nominal
    return found


def together(name: str, rows: Iterable[LayerRow]) -> LayerRow:
    """Several rows as one; a core that several of them share counts for each."""
    found = list(rows)

    def total(field: str) -> float:
        return sum(getattr(row, field) for row in found)

    neurons, synapses, cores = (int(total(field)) for field in ("neurons", "synapses", "cores"))
    counted = ("events", "macs", "dynamic_operations", "updates", "messages", "hops", "spikes", "slots")
    joules = {share: sum(row.joules[share] for row in found) for share in SHARES}
    return LayerRow(name, "", neurons, synapses, cores, **{field: total(field) for field in counted}, joules=joules)


def by_part(rows: Iterable[LayerRow]) -> list[LayerRow]:
    """Few enough for a terminal: embedding, attention and MLP of every block, readout. A residual belongs to what
    comes before it.
    """
    parts: dict[str, list[LayerRow]] = {}
    name = EMBEDDING
    for row in rows:
        words = row.layer.split(".")
        if row.kind == HostEmbedding.__name__:  # the residual behind it is the chip's
            parts[ON_HOST] = [row]
            continue
        if words[0] == "blocks":
            name = ".".join(words[:3])
        elif row.kind == Readout.__name__:
            name = row.layer
        parts.setdefault(name, []).append(row)
    return [together(name, found) for name, found in parts.items()]

"""Who does what, as linear forms of spike counts: the same forms price a whole run and every single tick.

A :class:`Work` says how often a core does something: a factor times the spikes of some neurons, or times the ticks,
tokens or decisions. A :class:`Record` holds those, for a run (no axes) or for the ticks of some decisions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    LIF,
    SPIKING_KINDS,
    And,
    Count,
    Encoder,
    Gate,
    Node,
    Outer,
    PlacedWindow,
    Residual,
    Synapses,
    Window,
)
from dsf.export.placement.connections import connections
from dsf.export.placement.placement import Slice
from dsf.hardware_models.activity import Counts, SpikeCounter, embedded_on_host
from dsf.hardware_models.weight_memory import WeightMemory, Weights

HOST = -1
"""Takes the place of a core for what the host does: arrays over cores have one more entry, the last, for it."""
Per = Literal["spike", "active update", "tick", "token", "decision"]
Schedule = Literal["pipelined", "lockstep"]
"""See :mod:`dsf.hardware_models.schedule`."""


@dataclass(frozen=True)
class Work:
    """``factor`` occurrences of a quantity per spike (active update) of some neurons, or per tick, token or decision.

    Attributes:
        node: that the work is counted for, see :class:`~dsf.hardware_models.NodeActivity`.
        core: that does it, or :data:`HOST`.
        population: in whose turn it is done, see :func:`stages`.
        quantity: one of :data:`~dsf.hardware_models.activity.QUANTITIES`.
        factor: occurrences; negative where some are taken back.
        per: what is multiplied.
        source, first, stop: whose spikes or active updates.
        each: (stop - first,) occurrences for each of those neurons, where they differ; ``factor`` is 1 then.
    """

    node: str
    core: int
    population: str
    quantity: str
    factor: int
    per: Per
    source: str = ""
    first: int = 0
    stop: int = 0
    each: Counts | None = field(default=None, compare=False)


class Record:
    """What happened: spikes and active updates of every neuron (..., neurons), ticks, tokens and decisions (...)."""

    def __init__(
        self,
        fired: Mapping[str, npt.NDArray[np.integer]],
        active: Mapping[str, npt.NDArray[np.integer]],
        ticks: npt.ArrayLike,
        tokens: npt.ArrayLike,
        decisions: npt.ArrayLike,
    ) -> None:
        self._sums = {("spike", name): _cumulated(values) for name, values in fired.items()}
        self._sums |= {("active update", name): _cumulated(values) for name, values in active.items()}
        self._totals = {"tick": np.asarray(ticks), "token": np.asarray(tokens), "decision": np.asarray(decisions)}

    @classmethod
    def of_run(cls, counter: SpikeCounter) -> Record:
        """Totals: no axes."""
        slots = counter.network.ticks * counter.tokens
        return cls(counter.fired, counter.active, slots, counter.tokens, counter.decisions)

    def count(self, work: Work) -> Counts:
        """How often it was done, (...)."""
        if work.source:
            sums = self._sums[work.per, work.source]
            if work.each is not None:
                counts: Counts = np.diff(sums[..., work.first : work.stop + 1], axis=-1) @ work.each
                return counts
            return work.factor * (sums[..., work.stop] - sums[..., work.first])
        return work.factor * self._totals[work.per]


def _cumulated(values: npt.NDArray[np.integer]) -> Counts:
    """(..., neurons + 1): sums over the first 0, 1, 2, ... neurons."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1), np.int64)
    np.cumsum(values, axis=-1, dtype=np.int64, out=sums[..., 1:])
    return sums


def work_of(network: Network, part: Slice, core: int, weights: Weights = "bytes") -> Iterator[Work]:
    """What the neurons of a slice do on their core, all but sending messages.

    ``weights`` says how the core keeps those to its neurons; it fetches them event by event.
    """
    node = network[part.node]
    for name in node.sources:
        synapses = network[name]
        if isinstance(synapses, Synapses):
            yield from _through(network, synapses, part, core, weights)
    own = functools.partial(Work, node.name, core, node.name)
    yield from _neurons(own, node, part)
    yield from _dynamic(own, node, part)


def _neurons(own: Callable[..., Work], node: Node, part: Slice) -> Iterator[Work]:
    """Spikes and updates."""
    mine = (node.name, part.first, part.first + part.count)
    if isinstance(node, SPIKING_KINDS):
        yield own("spikes", 1, "spike", *mine)
    if isinstance(node, LIF):
        yield own("active_updates", 1, "active update", *mine)
        yield own("inactive_updates", -1, "active update", *mine)
        yield own("inactive_updates", part.count, "tick")
    elif isinstance(node, Residual):
        yield own("active_updates", part.count, "tick")


def _dynamic(own: Callable[..., Work], node: Node, part: Slice) -> Iterator[Work]:
    """Spikes that meet spikes, see :class:`~dsf.hardware_models.NodeActivity`."""
    kind, stop = "dynamic_operations", part.first + part.count
    if isinstance(node, (Gate, And)):
        yield own(kind, part.count, "tick")
    elif isinstance(node, (Window, PlacedWindow)):
        yield own(kind, node.reach, "spike", node.query, node.first + part.first, node.first + stop)
    elif isinstance(node, (Count, Outer)):
        yield own(kind, part.count * node.reach, "tick")
        if isinstance(node, Outer):
            yield own(kind, node.reach, "spike", node.source, node.query + part.first, node.query + stop)


def _through(network: Network, synapses: Synapses, part: Slice, core: int, weights: Weights) -> Iterator[Work]:
    """Synapses work where their targets are."""
    inputs = synapses.weights.shape[1]
    own = functools.partial(Work, synapses.name, core, part.node)
    stored = WeightMemory(weights).stored(synapses.weights[part.first : part.first + part.count])
    if not isinstance(network[synapses.source], Encoder):
        for quantity, each in (("synaptic_events", stored.kept), ("weight_bytes", stored.row_bytes)):
            reads = (synapses.source, 0, inputs)
            if weights == "bytes":
                yield own(quantity, part.count, "spike", *reads)
            else:
                yield own(quantity, 1, "spike", *reads, each)
        return
    yield own("weight_bytes", stored.total_bytes, "tick")
    yield own("macs", stored.synapses, "token")
    if network.ticks > 1:
        yield own("repeated_macs", stored.synapses, "tick")
        yield own("repeated_macs", -stored.synapses, "token")


def host_work(network: Network, last: Mapping[int, int], weights: Weights = "bytes") -> Iterator[Work]:
    """What the host does: encoder or host embedding, and readout.

    ``last`` holds, by core, how many channels of the last residual it sends to the host; ``weights`` says how it keeps
    those of the readout.
    """
    encoder, readout = network.encoder, network.readout
    stored = WeightMemory(weights).stored(readout.weights)
    yield Work(encoder.name, HOST, encoder.name, "host_transfers", encoder.size, "token")
    for quantity, count in embedded_on_host(encoder).items():
        yield Work(encoder.name, HOST, encoder.name, quantity, count, "decision")
    for core, channels in last.items():
        yield Work(readout.name, core, readout.source, "graded_messages", channels, "decision")
    for quantity, count in (("macs", stored.synapses), ("weight_bytes", stored.total_bytes)):
        yield Work(readout.name, HOST, readout.name, quantity, count, "decision")
    yield Work(readout.name, HOST, readout.name, "host_transfers", readout.size, "decision")


def stages(network: Network) -> dict[str, int]:
    """In which tick, counted from 1, every population sees a token's first tick, where every message takes a tick.

    The encoder's values arrive in tick 1 (it has stage 0). A population follows the latest of those it reads; scores
    over all ticks of a token wait for the last of them.
    """
    found = {network.encoder.name: 0}
    for node in network.nodes:
        sources = [found[connection.source] for connection in connections(network, node)]
        if sources:
            found[node.name] = 1 + max(sources) + _waits(network, node)
    return found


@dataclass(frozen=True)
class Delay:
    """Ticks that a message is held back on top of its way, because its reader also reads somebody later."""

    source: str
    target: str
    ticks: int


def longest_delay(network: Network) -> Delay:
    """The longest delay of a connection in the pipeline.

    What a node keeps of earlier tokens is no delay: its own memory holds it.
    """
    seen = stages(network)
    return max(
        (
            Delay(connection.source, node.name, seen[node.name] - _waits(network, node) - 1 - seen[connection.source])
            for node in network.nodes
            for connection in connections(network, node)
        ),
        key=lambda delay: delay.ticks,
    )


def pipeline_waits(network: Network) -> int:
    """Ticks of a decision, beyond those of its tokens, until the last population has seen the last of them."""
    return max(stages(network).values()) - 1


def idle_work(network: Network, part: Slice, core: int) -> Iterator[Work]:
    """Updates of neurons whose token is elsewhere in the pipeline: the chip visits every neuron in every tick."""
    node, waits = network[part.node], pipeline_waits(network)
    if isinstance(node, (LIF, Residual)) and waits:
        yield Work(node.name, core, node.name, "inactive_updates", part.count * waits, "decision")


def _waits(network: Network, node: Node) -> int:
    return network.ticks - 1 if isinstance(node, Outer) and node.all_ticks else 0

"""When every core and link works for a decision, from recorded spikes: counts tick by tick.

``pipelined`` is how a chip runs the network: a message that is sent in one tick arrives in the next, so the population
at stage p (see :func:`dsf.hardware_models.work.stages`) works on a token's tick t in tick p + t, and a decision of n
tokens takes n * T + depth - 1 ticks. A closed loop cannot start the next decision earlier, because its token holds the
action. In the other ticks a neuron has nothing to do, but is updated (inactive) all the same.

``lockstep`` evaluates all populations within each of the n * T ticks, as the engines that simulate the network do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Residual
from dsf.hardware_models.activity import Counts
from dsf.hardware_models.mapping import NetworkMapping
from dsf.hardware_models.work import HOST, Record, Schedule, stages

Spikes = Mapping[str, npt.NDArray[np.integer]]
"""Spikes of every population during one decision: (ticks, neurons), in window mode (ticks, tokens, neurons)."""


@dataclass(frozen=True)
class TickCounts:
    """What some decisions of the same length did.

    Attributes:
        cores: by quantity, (decisions, ticks, cores); updates of idle neurons are among the inactive ones.
        host: by quantity, what the host did in all of them.
        links: (decisions, ticks, links) messages, in the order of the mapping's ``link_work``.
        off_chip: messages to other chips, all together.
        idle_updates: updates of neurons whose token is elsewhere in the pipeline, all together.
    """

    cores: dict[str, Counts]
    host: dict[str, int]
    links: Counts
    off_chip: int
    idle_updates: int


def tokens_of(spikes: Spikes) -> int:
    """Tokens of a decision."""
    values = next(iter(spikes.values()))
    return 1 if values.ndim == 2 else values.shape[1]


def count_ticks(mapping: NetworkMapping, decisions: Sequence[Spikes], schedule: Schedule) -> TickCounts:
    """Count what decisions of the same length did, tick by tick.

    Recorded spikes do not say which updates had work to do, so all of a token's own count as active: an upper bound.
    """
    network = mapping.network
    fired = {name: _in_order([spikes[name] for spikes in decisions]) for name in decisions[0]}
    record, rows = _record(network, fired), next(iter(fired.values())).shape[1]
    begins = {name: max(stage - 1, 0) if schedule == "pipelined" else 0 for name, stage in stages(network).items()}
    ticks = rows + max(begins.values())
    shape = (len(decisions), ticks)
    cores: dict[str, Counts] = {}
    host: dict[str, int] = {}
    for work in mapping.work:
        counts = record.count(work)
        if work.core == HOST:
            host[work.quantity] = host.get(work.quantity, 0) + int(counts.sum())
        else:
            counted = cores.setdefault(work.quantity, np.zeros((*shape, len(mapping.seats)), np.int64))
            _at(counted, begins[work.population], rows)[..., work.core] += counts
    idle = _add_idle_updates(mapping, cores["inactive_updates"], begins, rows)
    links = np.zeros((*shape, len(mapping.link_work[0])), np.int64)
    for link, work in mapping.link_work[1]:
        _at(links, begins[work.population], rows)[..., link] += record.count(work)
    off_chip = sum(int(record.count(work).sum()) for work in mapping.off_chip_work)
    return TickCounts(cores, host, links, off_chip, idle)


def _at(counts: Counts, begin: int, rows: int) -> Counts:
    """A view of the ticks in which a population works on the tokens."""
    return counts[:, begin : begin + rows]


def _in_order(decisions: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.integer]:
    """(decisions, tokens * ticks, neurons), as they happened; engines give (ticks, tokens, neurons)."""
    values = np.stack(decisions)
    if values.ndim == 4:
        values = values.swapaxes(1, 2)
    return values.reshape(len(values), -1, values.shape[-1])


def _record(network: Network, fired: dict[str, npt.NDArray[np.integer]]) -> Record:
    """Every tick counts as one, a token ends with its last tick, and the decision with the last token's."""
    decisions, rows = next(iter(fired.values())).shape[:2]
    active = {
        node.name: np.broadcast_to(np.ones(1, np.int64), (decisions, rows, node.size)) for node in network.of_kind(LIF)
    }
    each = np.ones((decisions, rows), np.int64)
    token_ends, decision_ends = np.zeros_like(each), np.zeros_like(each)
    token_ends[:, network.ticks - 1 :: network.ticks] = 1
    decision_ends[:, -1] = 1
    return Record(fired, active, each, token_ends, decision_ends)


def _add_idle_updates(mapping: NetworkMapping, inactive: Counts, begins: dict[str, int], rows: int) -> int:
    """Neurons that are updated while their token is elsewhere; returns how many updates that adds."""
    before = int(inactive.sum())
    for core in mapping.placement.cores:
        for part in core.slices:
            if isinstance(mapping.network[part.node], (LIF, Residual)):
                inactive[..., core.index] += part.count
                _at(inactive, begins[part.node], rows)[..., core.index] -= part.count
    return int(inactive.sum()) - before

"""Silent channels: neurons that never say anything, taken out of an integer network together with their weights.

A channel is a neuron of the MLP's hidden layer, or of PSSA one neuron each of query, key, value and attention: what can
leave a network without leaving a hole. The neurons that read the residual stay, because each stands for one of its
channels, and so do those of the attentions that sum over channels (TSSA, SSSA, SDSA-1 and SDSA-3).

* Proven: from the weights alone, whatever the inputs. The neuron cannot reach its threshold at any tick even if all
  that excites it fires and nothing else does, or all weights behind it are zero.
* Measured: it never fired on given tokens. It may on others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, SPIKING_KINDS, Gate, Node, PlacedWindow, Synapses, Window
from dsf.export.network.reference import replay_window, shift
from dsf.shell.arrays import Int64Array, IntArray
from dsf.train.quantization.integers import DECAY_BITS, MEMBRANE_FRACTION_BITS

BoolArray = npt.NDArray[np.bool_]
Silence = Literal["proven", "measured"]
LANES_AT_ONCE = 8
"""Windows that are replayed together, so that memory does not grow with their number."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of a network that may leave it.

    Attributes:
        population: whose spikes are all that the rest of the network sees of them.
        size: number of channels.
        readers: the synapses that read the population.
        places: of every node of the group, where its neurons of channel 0 stand; those of channel n stand n later.
    """

    population: str
    size: int
    readers: tuple[str, ...]
    places: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Removal:
    """What is taken out of a network.

    Attributes:
        how: what is known of it.
        channels: how many of each group, by its population.
        of: how many there were.
        kept: which neurons stay, (neurons,) of the node before, for every node that loses some.
        tokens: on which a measured silence was measured; 0 of a proven one.
    """

    how: Silence
    channels: dict[str, int]
    of: dict[str, int]
    kept: dict[str, BoolArray]
    tokens: int = 0

    def summary(self) -> str:
        """In words."""
        count, total = sum(self.channels.values()), sum(self.of.values())
        where = f" on {self.tokens:,} tokens" if self.tokens else " from the weights alone"
        return f"{count:,} of {total:,} channels removed ({self.how}{where})"


def channel_groups(network: Network) -> Iterator[ChannelGroup]:
    """All of them, in evaluation order."""
    for neurons in network.of_kind(LIF):
        readers, source = _readers(network, neurons.name), network[neurons.source]
        if not readers or not all(isinstance(node, Synapses) for node in readers):
            continue
        names = tuple(node.name for node in readers)
        if isinstance(source, Synapses) and _readers(network, source.name) == [neurons]:
            yield ChannelGroup(neurons.name, neurons.size, names, {source.name: (0,), neurons.name: (0,)})
        elif isinstance(source, (Window, PlacedWindow)) and _readers(network, source.name) == [neurons]:
            places = _attention_places(network, source)
            if places:
                yield ChannelGroup(neurons.name, neurons.size, names, {**places, neurons.name: (0,)})


def _attention_places(network: Network, window: Window | PlacedWindow) -> dict[str, tuple[int, ...]]:
    """The nodes in front of a window that belong to its channels; none where others read them, too."""
    gate, spikes = network[window.gate], network[window.query]
    if not (isinstance(gate, Gate) and isinstance(spikes, LIF) and gate.source == spikes.name):
        return {}
    source, parts = network[spikes.source], (window.first, gate.first, gate.second)
    alone = _readers(network, gate.name) == [window] and _readers(network, spikes.name) == [gate, window]
    apart = sorted(parts) == [0, window.size, 2 * window.size] and spikes.size == 3 * window.size
    if not (alone and apart and isinstance(source, Synapses) and _readers(network, source.name) == [spikes]):
        return {}
    return {source.name: parts, spikes.name: parts, gate.name: (0,), window.name: (0,)}


def proven_silent(network: Network) -> dict[str, BoolArray]:
    """Which channels of each group (size,) can say nothing, by the group's population."""
    may_fire: dict[str, BoolArray] = {}
    for node in network.nodes:
        if isinstance(node, LIF):
            highest = _highest_current(network[node.source], network, may_fire)
            fires = np.ones(node.size, bool) if highest is None else _can_fire(node, highest, network.ticks)
            may_fire[node.name] = fires
        elif isinstance(node, Gate):
            both = may_fire[node.source]
            may_fire[node.name] = (
                both[node.first : node.first + node.size] & both[node.second : node.second + node.size]
            )
        elif isinstance(node, SPIKING_KINDS):
            may_fire[node.name] = np.ones(node.size, bool)
    return {
        group.population: ~may_fire[group.population] | _unread(network, group) for group in channel_groups(network)
    }


def measured_silent(network: Network, tokens: IntArray) -> dict[str, BoolArray]:
    """Which channels of each group (size,) are proven to be silent, or did not fire once.

    Args:
        network: in which they stand.
        tokens: encoder integers (tokens, lanes, features), at most K tokens; every lane begins with an empty history.
    """
    fired = {group.population: np.zeros(group.size, bool) for group in channel_groups(network)}

    def observe(name: str, values: Int64Array) -> None:
        if name in fired:
            fired[name] |= values.reshape(-1, values.shape[-1]).any(axis=0)

    for lanes in lane_batches(tokens):
        replay_window(network, lanes, observe=observe)
    return {name: silent | ~fired[name] for name, silent in proven_silent(network).items()}


def without_channels(
    network: Network, silent: dict[str, BoolArray], how: Silence, tokens: int = 0
) -> tuple[Network, Removal]:
    """The network without its silent channels, and what was taken out. A group that would lose all keeps its first.

    Args:
        network: to shrink.
        silent: (size,) by the population of a group.
        how: what is known of the silence.
        tokens: on which it was measured.
    """
    kept: dict[str, BoolArray] = {}
    read: dict[str, BoolArray] = {}
    channels: dict[str, int] = {}
    of: dict[str, int] = {}
    for group in channel_groups(network):
        gone = silent[group.population].copy()
        gone[0] &= not gone.all()
        channels[group.population], of[group.population] = int(gone.sum()), group.size
        for name, places in group.places.items():
            stays = np.ones(network[name].size, bool)
            for place in places:
                stays[place : place + group.size] = ~gone
            kept[name] = stays
        read |= dict.fromkeys(group.readers, ~gone)
    nodes = tuple(_smaller(node, kept, read) for node in network.nodes)
    lost = {name: stays for name, stays in kept.items() if not stays.all()}
    return dataclasses.replace(network, nodes=nodes), Removal(how, channels, of, lost, tokens)


def lane_batches(tokens: IntArray) -> list[IntArray]:
    """Tokens (tokens, lanes, features) cut into batches of lanes."""
    return np.array_split(tokens, max(-(-tokens.shape[1] // LANES_AT_ONCE), 1), axis=1)


def _readers(network: Network, name: str) -> list[Node]:
    return [node for node in network.nodes if name in node.sources]


def _unread(network: Network, group: ChannelGroup) -> BoolArray:
    """Which channels have nothing but zeros behind them."""
    unread = np.ones(group.size, bool)
    for name in group.readers:
        reader = network[name]
        assert isinstance(reader, Synapses)
        unread &= (reader.weights == 0).all(axis=0)
    return unread


def _highest_current(source: Node, network: Network, may_fire: dict[str, BoolArray]) -> Int64Array | None:
    """The largest current (neurons,) that a node can give at a tick; None where this says nothing about it."""
    if isinstance(source, Synapses) and source.source in may_fire:
        excited = np.maximum(source.weights, 0).astype(np.int64) @ may_fire[source.source].astype(np.int64)
        return shift(excited, source.exponent)
    if isinstance(source, (Window, PlacedWindow)):
        most = int(np.maximum(source.weights.astype(np.int64), 0).sum(axis=-1).max())
        asked = may_fire[source.query][source.first : source.first + source.size]
        return most * (asked & may_fire[source.gate]).astype(np.int64)
    return None


def _can_fire(node: LIF, highest: Int64Array, ticks: int) -> BoolArray:
    """Whether the largest current at every tick of a token takes a neuron above its threshold at any of them."""
    membrane, fires = np.zeros(node.size, np.int64), np.zeros(node.size, bool)
    for _ in range(ticks):
        left = (np.maximum(membrane, 0) * ((1 << DECAY_BITS) - node.decays)) >> DECAY_BITS
        membrane = left + (highest << MEMBRANE_FRACTION_BITS) + node.bias
        fires |= membrane > node.threshold.astype(np.int64) << MEMBRANE_FRACTION_BITS
    return fires


def _smaller(node: Node, kept: dict[str, BoolArray], read: dict[str, BoolArray]) -> Node:
    """A node without what is taken out of itself, and of what it reads."""
    stays = kept.get(node.name)
    if isinstance(node, Synapses):
        weights = node.weights if stays is None else node.weights[stays]
        columns = read.get(node.name)
        weights = weights if columns is None else weights[:, columns]
        return dataclasses.replace(node, weights=np.ascontiguousarray(weights))
    if stays is None:
        return node
    if isinstance(node, LIF):
        decay = node.decay[stays] if isinstance(node.decay, np.ndarray) else node.decay
        mantissa = node.bias_mantissa[stays]
        return dataclasses.replace(node, threshold=node.threshold[stays], bias_mantissa=mantissa, decay=decay)
    size = int(stays.sum())
    if isinstance(node, Gate):
        first, second = (int(kept[node.source][:place].sum()) for place in (node.first, node.second))
        return dataclasses.replace(node, first=first, second=second, size=size)
    assert isinstance(node, (Window, PlacedWindow))
    return dataclasses.replace(node, first=int(kept[node.query][: node.first].sum()), size=size)

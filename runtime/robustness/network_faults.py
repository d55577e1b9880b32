"""Faults of the chip under a network, written as networks: every engine runs them spike by spike, and parity applies.

Each function is pure. Of one seed, a larger fault holds every smaller one, so that returns fall along a curve and not
at random; no fault at all gives the network itself back. A faulty network says so in its provenance, and drops its
verification, which was another network's.

- A stuck neuron is one whose threshold lies beyond every membrane, above it or below.
- A weight is stored in two's complement, in as many bits as its matrix needs. Weights are those of Synapses, and PSSA's
  biases; the readout's are not on a core. The most negative pattern, which no network uses, reads as minus the largest
  weight. A membrane that flipped weights can drive to its limit is clipped there, as a LIF says; where anything else
  could overflow, the fault is refused.
- A dead core sends nothing. Where its neurons are no LIF, this is said by what they read: a Gate is silent without its
  first operand, a Window without its query, an Outer without its values, a residual channel without whatever was added
  to it. The decisions are those of the dead core; spikes that it would no longer have heard are not counted. One case
  is harsher than real: where a residual population is spread over several cores, blocks before a dead one lose its
  channels, too. Encoder and readout run on the host or an embedded processor, and never fail.

Not modelled: faults of routers and links, thresholds and biases that flip, faults that come and go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dsf.export.network.bounds import MEMBRANE, compute_bounds, saturating_populations
from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    ALWAYS_FIRES,
    LIF,
    NEVER_FIRES,
    And,
    Count,
    Gate,
    HostEmbedding,
    NetworkError,
    Node,
    Outer,
    PlacedWindow,
    Residual,
    Synapses,
    Window,
)
from dsf.export.placement.chips import Chip, stored_weight_bits
from dsf.export.placement.placement import Slice, place
from dsf.shell.arrays import BoolArray
from dsf.shell.errors import UserError
from dsf.train.quantization.integers import MEMBRANE_FRACTION_BITS

STUCK_THRESHOLDS = (NEVER_FIRES, ALWAYS_FIRES)


def stuck_neurons(network: Network, spike: Literal[0, 1], fraction: float, seed: int) -> Network:
    """A network in which some LIF neurons never fire (``spike`` 0), or fire at every tick (1).

    Args:
        network: before the fault.
        spike: what they are stuck at; the same neurons for either value.
        fraction: of all LIF neurons, rounded to whole ones.
        seed: which neurons.

    Raises:
        UserError: the fraction is not between 0 and 1.
        NetworkError: a membrane can come so close to its limit that no threshold lies beyond it.
    """
    populations = list(network.of_kind(LIF))
    masks = _spread(fraction, [node.size for node in populations], seed)
    threshold = ALWAYS_FIRES if spike else NEVER_FIRES
    changed = {node.name: _stuck(node, mask, threshold) for node, mask in zip(populations, masks) if mask.any()}
    return _faulty(network, changed, {"kind": f"stuck-at-{spike}", "fraction": fraction, "seed": seed})


def flipped_weight_bits(network: Network, fraction: float, seed: int) -> Network:
    """A network in which some bits of its weights are inverted.

    Args:
        network: before the fault.
        fraction: of all stored bits, rounded to whole ones.
        seed: which bits.

    Raises:
        UserError: the fraction is not between 0 and 1.
        OverflowPossible: something other than a membrane could overflow.
    """
    stored = [node for node in network.nodes if isinstance(node, (Synapses, Window, PlacedWindow))]
    widths = [stored_weight_bits(node.weights) for node in stored]
    masks = _spread(fraction, [node.weights.size * bits for node, bits in zip(stored, widths)], seed)
    changed = {
        node.name: dataclasses.replace(node, weights=_flipped(node.weights, mask, bits))
        for node, mask, bits in zip(stored, masks, widths)
        if mask.any()
    }
    return _faulty(network, changed, {"kind": "weight-bit-flips", "fraction": fraction, "seed": seed})


def dead_cores(network: Network, count: int, seed: int, chip: Chip) -> Network:
    """A network some of whose cores are dead, with every population on cores of its own.

    Args:
        network: before the fault.
        count: dead cores.
        seed: which cores.
        chip: that the network is placed on.

    Raises:
        UserError: there are not so many cores.
        NetworkError: the chip cannot hold the network, or see :func:`stuck_neurons`.
    """
    cores = place(network, chip).cores
    if not 0 <= count <= len(cores):
        raise UserError(
            f"{count} dead cores: the network takes {len(cores)} of {chip.title}, so 0 to {len(cores)} can die"
        )
    dead = np.random.default_rng(seed).permutation(len(cores))[:count]
    slices = [part for core in sorted(dead.tolist()) for part in cores[core].slices]
    return _faulty(network, silenced_nodes(network, slices), {"kind": "dead-cores", "cores": count, "seed": seed})


def _faulty(network: Network, changed: Mapping[str, Node], fault: dict[str, Any]) -> Network:
    """The network with other nodes, if there are any.

    Raises:
        NetworkError: it could overflow, or its stuck neurons might not be.
    """
    if not changed:
        return network
    nodes = tuple(changed.get(node.name, node) for node in network.nodes)
    provenance = {**network.provenance, "faults": [*network.provenance.get("faults", []), fault]}
    faulty = dataclasses.replace(network, nodes=nodes, provenance=provenance, verification={})
    saturating_populations(faulty)
    for bound in compute_bounds(faulty):
        node = faulty[bound.node]
        if bound.quantity == MEMBRANE and isinstance(node, LIF) and np.isin(node.threshold, STUCK_THRESHOLDS).any():
            reached, limit = bound.largest, NEVER_FIRES << MEMBRANE_FRACTION_BITS
            if reached >= limit:
                raise NetworkError(
                    f"node '{node.name}' cannot be stuck: its membrane can reach {reached}, the largest threshold is "
                    f"{limit}; use a coarser residual unit"
                )
    return faulty


def _spread(fraction: float, sizes: list[int], seed: int) -> list[BoolArray]:
    """Choose a fraction of all places in some arrays; returns one mask (size,) per array.

    Raises:
        UserError: the fraction is not between 0 and 1.
    """
    if not 0 <= fraction <= 1:
        raise UserError(f"a fraction of {fraction}: it must be between 0 and 1")
    total = sum(sizes)
    chosen = np.zeros(total, np.bool_)
    chosen[np.random.default_rng(seed).permutation(total)[: round(fraction * total)]] = True
    return np.split(chosen, np.cumsum(sizes)[:-1])


def _stuck(node: LIF, mask: BoolArray | slice, threshold: int) -> LIF:
    """A population some of whose neurons are stuck."""
    thresholds = node.threshold.copy()
    thresholds[mask] = threshold
    return dataclasses.replace(node, threshold=thresholds)


def _flipped(weights: npt.NDArray[np.integer], mask: BoolArray, bits: int) -> npt.NDArray[np.int8]:
    """Weights of so many stored bits with the bits of ``mask`` (weights * bits,) inverted."""
    sign = 1 << (bits - 1)
    inverted = mask.reshape(*weights.shape, bits) @ (1 << np.arange(bits))
    pattern = (weights.astype(np.int64) & (2 * sign - 1)) ^ inverted
    return np.maximum((pattern ^ sign) - sign, 1 - sign).astype(np.int8)


def silenced_nodes(network: Network, slices: Iterable[Slice]) -> dict[str, Node]:
    """What has to change so that these neurons send nothing."""
    nodes: dict[str, Node] = {node.name: node for node in network.nodes}
    for part in slices:
        node = nodes[part.node]
        if isinstance(node, Residual):
            _mute(nodes, node, slice(part.first, part.first + part.count))
            continue
        name, offset = _speaker(nodes, node)
        lif = nodes[name]
        assert isinstance(lif, LIF)  # as ALLOWED_SOURCES has it
        first = part.first + offset
        nodes[name] = _stuck(lif, slice(first, first + part.count), NEVER_FIRES)
    return {name: node for name, node in nodes.items() if node is not network[name]}


def _speaker(nodes: dict[str, Node], node: Node) -> tuple[str, int]:
    """The LIF population whose neurons, from an offset on, take a node's neurons into silence, and nothing else."""
    if isinstance(node, (Window, PlacedWindow)):
        return node.query, node.first
    if isinstance(node, Gate):
        return node.source, node.first
    if isinstance(node, Outer):
        return node.source, node.value
    if isinstance(node, And):
        return node.source, 0
    if isinstance(node, Count):
        return _speaker(nodes, nodes[node.source])
    return node.name, 0


def _mute(nodes: dict[str, Node], residual: Residual, channels: slice) -> None:
    """Take everything out of some residual channels, from the encoder to this population."""
    for name in residual.sources:
        source = nodes[name]
        if isinstance(source, Residual):
            _mute(nodes, source, channels)
        else:
            if isinstance(source, HostEmbedding):
                gain, bias = (_zeroed(values, channels) for values in (source.norm_gain, source.norm_bias))
                nodes[name] = dataclasses.replace(source, norm_gain=gain, norm_bias=bias)
                continue
            assert isinstance(source, Synapses)  # as ALLOWED_SOURCES has it
            nodes[name] = dataclasses.replace(source, weights=_zeroed(source.weights, channels))
    nodes[residual.name] = dataclasses.replace(residual, bias=_zeroed(residual.bias, channels))


def _zeroed(values: npt.NDArray[Any], rows: slice) -> npt.NDArray[Any]:
    """A copy with zeros in some rows."""
    values = values.copy()
    values[rows] = 0
    return values

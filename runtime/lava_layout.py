"""What the builder hands to processes: one block's nodes, the clock of a token, and the raster's layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.export.network import Network
from dsf.export.nodes import LIF, Encoder, Gate, NetworkError, Node, Readout, Residual, Synapses, Window

DENSE_TICKS = 1
"""Lava's Dense sends what it computed one tick earlier."""
BLOCK_DEPTH = 4 * DENSE_TICKS
"""qkv, project, expand and contract."""
WORD_BITS = 32

_BLOCK_KINDS = (LIF, Synapses, LIF, Gate, Window, LIF, Synapses, Residual, LIF, Synapses, LIF, Synapses, Residual)


@dataclass(frozen=True)
class BlockNodes:
    """The nodes of one transformer block, in evaluation order."""

    input_lif: LIF
    qkv: Synapses
    qkv_lif: LIF
    gate: Gate
    window: Window
    attention_lif: LIF
    project: Synapses
    middle: Residual
    mlp_lif: LIF
    expand: Synapses
    hidden_lif: LIF
    contract: Synapses
    output: Residual

    @property
    def populations(self) -> tuple[LIF | Gate, ...]:
        """Every spiking population, in raster order."""
        return (self.input_lif, self.qkv_lif, self.gate, self.attention_lif, self.mlp_lif, self.hidden_lif)


@dataclass(frozen=True)
class NetworkParts:
    """A DSFormer network, split for Lava."""

    encoder: Encoder
    embed: Synapses
    embed_residual: Residual
    blocks: tuple[BlockNodes, ...]
    readout: Readout


def split_network(network: Network) -> NetworkParts:
    """Recognise encoder, blocks and readout.

    Raises:
        NetworkError: nodes or wiring are no DSFormer with PSSA.
    """
    head, body, tail = network.nodes[:3], network.nodes[3:-1], network.nodes[-1]
    size = len(_BLOCK_KINDS)
    groups = [body[start : start + size] for start in range(0, len(body), size)]
    fits = _kinds(head) == (Encoder, Synapses, Residual) and all(_kinds(group) == _BLOCK_KINDS for group in groups)
    if fits and groups:
        parts = NetworkParts(*head, tuple(BlockNodes(*group) for group in groups), tail)  # type: ignore[arg-type,call-arg]
        if _wired_as_built(parts):
            return parts
    raise NetworkError("the Lava backend runs DSFormer networks with PSSA only: these nodes form another network")


def _wired_as_built(parts: NetworkParts) -> bool:
    """Whether every node reads what the Lava processes will connect it to."""
    residual = parts.embed_residual
    wires: list[tuple[Node, tuple[Node, ...]]] = [(parts.embed, (parts.encoder,)), (residual, (parts.embed,))]
    for block in parts.blocks:
        wires += [
            (block.input_lif, (residual,)),
            (block.qkv, (block.input_lif,)),
            (block.qkv_lif, (block.qkv,)),
            (block.gate, (block.qkv_lif,)),
            (block.window, (block.qkv_lif, block.gate)),
            (block.attention_lif, (block.window,)),
            (block.project, (block.attention_lif,)),
            (block.middle, (residual, block.project)),
            (block.mlp_lif, (block.middle,)),
            (block.expand, (block.mlp_lif,)),
            (block.hidden_lif, (block.expand,)),
            (block.contract, (block.hidden_lif,)),
            (block.output, (block.middle, block.contract)),
        ]
        residual = block.output
    wires.append((parts.readout, (residual,)))
    return all(node.sources == tuple(source.name for source in sources) for node, sources in wires)


def _kinds(nodes: tuple[Node, ...]) -> tuple[type, ...]:
    return tuple(type(node) for node in nodes)


@dataclass(frozen=True)
class Clock:
    """When a population is valid: ticks [depth, depth + ticks) of every period."""

    ticks: int
    period: int
    depth: int = 0

    def at(self, depth: int) -> Clock:
        """The same clock at another pipeline depth."""
        return Clock(self.ticks, self.period, depth)

    def phase(self, time_step: int) -> int:
        """Tick within the period of Lava's time step, which starts at 1."""
        return (time_step - 1) % self.period

    def token_tick(self, time_step: int) -> int | None:
        """Tick of the token at this depth, None while the population is idle."""
        tick = self.phase(time_step) - self.depth
        return tick if 0 <= tick < self.ticks else None

    def period_ends(self, time_step: int) -> bool:
        """Whether this is the last tick of the period."""
        return self.phase(time_step) == self.period - 1

    @property
    def reset_offset(self) -> int:
        """LIFReset's parameter that clears membranes right before the first valid tick."""
        return self.depth + 1


def raster_words(ticks: int, neurons: int) -> int:
    """Words of a packed raster: ticks x neurons bits, padded."""
    return -(-ticks * neurons // WORD_BITS)


def pack_raster(spikes: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Pack (ticks, neurons) spikes into int32 words."""
    packed = np.packbits(spikes, bitorder="little")
    padding = raster_words(*spikes.shape) * WORD_BITS // 8 - len(packed)
    return np.pad(packed, (0, padding)).view(np.int32)


def unpack_raster(words: npt.NDArray[np.int32], ticks: int, neurons: int) -> npt.NDArray[np.uint8]:
    """Inverse of :func:`pack_raster`: (ticks, neurons), each 0 or 1."""
    bits = np.unpackbits(words.view(np.uint8), count=ticks * neurons, bitorder="little")
    return bits.reshape(ticks, neurons)

"""What the fused Lava processes compute, tick by tick: transformer blocks, and embedding and readout at the ends."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from dsf.export.network.nodes import Readout
from dsf.runtime.lava_backend.stages.arithmetic import DelayLine, Neurons, Weights, history_of
from dsf.runtime.lava_backend.stages.blocks import AttentionNodes, BlockNodes, EmbeddingNodes, MlpNodes
from dsf.shell.arrays import BoolArray, FloatArray, IntArray

ByteArray = npt.NDArray[np.uint8]
Fired = list[list[BoolArray]]
"""Per tick of the present token, the spikes of each population that has fired so far, in raster order."""


class FusedAttention:
    """x + attention(x); where scores need all ticks of a token, it comes ``delay`` ticks later."""

    def __init__(self, nodes: AttentionNodes, fired: Fired) -> None:
        self.fired, self.ticks, self.delay, self.gated = fired, len(fired), nodes.delay, nodes.gated
        self.input_lif, self.qkv, self.qkv_lif = Neurons(nodes.input_lif), Weights(nodes.qkv), Neurons(nodes.qkv_lif)
        self.history, self.attention_lif = history_of(nodes, self.ticks), Neurons(nodes.attention_lif)
        self.project, self.bias = Weights(nodes.project), nodes.output.bias.astype(np.float64)
        self.shortcut = DelayLine(nodes.delay)

    @property
    def neurons(self) -> tuple[Neurons, ...]:
        """Its LIFs, in raster order."""
        return self.input_lif, self.qkv_lif, self.attention_lif

    def start_token(self, start: int) -> None:
        """A new token arrives, with its start flag."""
        self.history.start_token(start)
        for neurons in self.neurons:
            neurons.reset()

    def __call__(self, tick: int, residual: FloatArray) -> FloatArray:
        """Args: the token's tick that arrives, idle outside [0, T). Returns: the residual of ``tick - delay``."""
        if 0 <= tick < self.ticks:
            self._enter(tick, residual)
        leaving, residual = tick - self.delay, self.shortcut(residual)
        return residual + self._leave(leaving) if 0 <= leaving < self.ticks else residual

    def _enter(self, tick: int, residual: FloatArray) -> None:
        entering = self.input_lif.step(residual)
        qkv = self.qkv_lif.step(self.qkv(entering))
        self.fired[tick] += (entering, qkv, self.history.remember(tick, qkv))

    def _leave(self, tick: int) -> FloatArray:
        mixed, fired = self.attention_lif.step(self.history.current(tick)), self.fired[tick]
        fired.append(mixed)
        if self.gated is not None:
            _, qkv, *_ = fired
            mixed = mixed & qkv[self.gated.first :][: self.gated.size]
            fired.append(mixed)
        return self.project(mixed) + self.bias


class FusedMlp:
    """x + MLP(x), without latency."""

    def __init__(self, nodes: MlpNodes, fired: Fired) -> None:
        self.fired, self.ticks = fired, len(fired)
        self.input_lif, self.expand = Neurons(nodes.input_lif), Weights(nodes.expand)
        self.hidden_lif, self.contract = Neurons(nodes.hidden_lif), Weights(nodes.contract)
        self.bias = nodes.output.bias.astype(np.float64)

    @property
    def neurons(self) -> tuple[Neurons, ...]:
        """Its LIFs, in raster order."""
        return self.input_lif, self.hidden_lif

    def start_token(self) -> None:
        """A new token arrives."""
        for neurons in self.neurons:
            neurons.reset()

    def __call__(self, tick: int, residual: FloatArray) -> FloatArray:
        """The residual behind the branch, of the same tick; unchanged where ``tick`` is outside [0, T)."""
        if not 0 <= tick < self.ticks:
            return residual
        entering = self.input_lif.step(residual)
        hidden = self.hidden_lif.step(self.expand(entering))
        self.fired[tick] += (entering, hidden)
        return residual + self.contract(hidden) + self.bias


class FusedBlock:
    """A block, and the spikes of its present token."""

    def __init__(self, nodes: BlockNodes, ticks: int) -> None:
        self.fired: Fired = [[] for _ in range(ticks)]
        self.mlp, self.delay = FusedMlp(nodes.mlp, self.fired), nodes.delay
        self.attention = None if nodes.attention is None else FusedAttention(nodes.attention, self.fired)

    def start_token(self, start: int) -> None:
        """A new token arrives, with its start flag."""
        for populations in self.fired:
            populations.clear()
        self.mlp.start_token()
        if self.attention is not None:
            self.attention.start_token(start)

    def __call__(self, tick: int, residual: FloatArray) -> FloatArray:
        """Args: the token's tick that arrives, idle outside [0, T). Returns: the residual of ``tick - delay``."""
        return self.mlp(tick - self.delay, residual if self.attention is None else self.attention(tick, residual))

    @property
    def raster(self) -> BoolArray:
        """Spikes of the token once it is through, (ticks, neurons)."""
        spikes: BoolArray = np.concatenate(list(itertools.chain.from_iterable(self.fired)))
        return spikes.reshape(len(self.fired), -1)

    @property
    def active(self) -> ByteArray:
        """Updates of the token's LIF neurons that had work to do, in raster order."""
        neurons = self.mlp.neurons if self.attention is None else self.attention.neurons + self.mlp.neurons
        return np.concatenate([population.active for population in neurons])


class FusedEmbedding:
    """Embedding synapses, if there are any, and first residual."""

    def __init__(self, nodes: EmbeddingNodes) -> None:
        self.synapses = [Weights(synapses) for synapses in nodes.all_synapses]
        self.bias = nodes.residual.bias.astype(np.float64)

    def __call__(self, token: IntArray) -> FloatArray:
        """(size,) integers of the host -> (channels,) residual, which is the same at every tick of the token."""
        if not self.synapses:
            return token + self.bias
        return sum((synapses(token) for synapses in self.synapses), self.bias)


class FusedReadout:
    """Sums the residual over a token's ticks and multiplies it by the head."""

    def __init__(self, node: Readout, ticks: int) -> None:
        self.node, self.ticks, self.weights = node, ticks, node.weights.astype(np.int64)
        self.total: FloatArray = np.zeros(self.weights.shape[1])

    def add(self, tick: int, residual: FloatArray) -> None:
        """Args: the token's tick that arrives, idle outside [0, T)."""
        if 0 <= tick < self.ticks:
            self.total = residual + self.total if tick else residual

    @property
    def accumulators(self) -> IntArray:
        """Accumulators (actions,) of the token, once it is through."""
        shift = self.node.shift
        values: IntArray = self.weights @ ((self.total.astype(np.int64) + (1 << shift >> 1)) >> shift) + self.node.bias
        return values

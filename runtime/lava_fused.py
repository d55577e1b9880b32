"""One transformer block's arithmetic in a single process, tick by tick: what the fused Lava block computes."""

from __future__ import annotations

import numpy as np

from dsf.runtime.lava_arithmetic import BoolArray, DelayLine, FloatArray, Neurons, Weights, history_of
from dsf.runtime.lava_layout import AttentionNodes, BlockNodes, MlpNodes


class FusedAttention:
    """x + attention(x); where scores need all ticks of a token, it comes ``delay`` ticks later."""

    def __init__(self, nodes: AttentionNodes, raster: BoolArray) -> None:
        self.nodes, self.raster, self.ticks, self.delay = nodes, raster, len(raster), nodes.delay
        self.input_lif, self.qkv, self.qkv_lif = Neurons(nodes.input_lif), Weights(nodes.qkv), Neurons(nodes.qkv_lif)
        self.history, self.attention_lif = history_of(nodes, self.ticks), Neurons(nodes.attention_lif)
        self.project, self.bias = Weights(nodes.project), nodes.output.bias
        self.shortcut = DelayLine(nodes.delay)
        self.entered = sum(node.size for node in (nodes.input_lif, nodes.qkv_lif, nodes.gate) if node is not None)

    def start_token(self, start: int) -> None:
        """A new token arrives, with its start flag."""
        self.history.start_token(start)
        for neurons in (self.input_lif, self.qkv_lif, self.attention_lif):
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
        coincidence = self.history.remember(tick, qkv)
        np.concatenate([entering, qkv, coincidence], out=self.raster[tick, : self.entered])

    def _leave(self, tick: int) -> FloatArray:
        mixed, gated = self.attention_lif.step(self.history.current(tick)), self.nodes.gated
        leaving = self.raster[tick, self.entered :]
        leaving[: len(mixed)] = mixed
        if gated is not None:
            qkv = self.raster[tick, self.nodes.input_lif.size :]
            mixed = mixed & qkv[gated.first :][: gated.size]
            leaving[-len(mixed) :] = mixed
        return self.project(mixed) + self.bias


class FusedMlp:
    """x + MLP(x), without latency."""

    def __init__(self, nodes: MlpNodes, raster: BoolArray) -> None:
        self.raster, self.ticks = raster, len(raster)
        self.input_lif, self.expand = Neurons(nodes.input_lif), Weights(nodes.expand)
        self.hidden_lif, self.contract = Neurons(nodes.hidden_lif), Weights(nodes.contract)
        self.bias = nodes.output.bias

    def start_token(self) -> None:
        """A new token arrives."""
        self.input_lif.reset()
        self.hidden_lif.reset()

    def __call__(self, tick: int, residual: FloatArray) -> FloatArray:
        """The residual behind the branch, of the same tick; unchanged where ``tick`` is outside [0, T)."""
        if not 0 <= tick < self.ticks:
            return residual
        entering = self.input_lif.step(residual)
        hidden = self.hidden_lif.step(self.expand(entering))
        np.concatenate([entering, hidden], out=self.raster[tick])
        return residual + self.contract(hidden) + self.bias


class FusedBlock:
    """A block with the spikes of its present token: ``raster`` is (ticks, neurons), in raster order."""

    def __init__(self, nodes: BlockNodes, ticks: int) -> None:
        self.raster: BoolArray = np.zeros((ticks, sum(nodes.sizes)), bool)
        mlp_size = nodes.mlp.input_lif.size + nodes.mlp.hidden_lif.size
        self.mlp = FusedMlp(nodes.mlp, self.raster[:, -mlp_size:])
        attention = nodes.attention
        self.attention = None if attention is None else FusedAttention(attention, self.raster[:, :-mlp_size])

    def start_token(self, start: int) -> None:
        """A new token arrives, with its start flag."""
        self.mlp.start_token()
        if self.attention is not None:
            self.attention.start_token(start)

    def __call__(self, tick: int, residual: FloatArray) -> FloatArray:
        """Args: the token's tick that arrives, idle outside [0, T). Returns: the residual of ``tick - delay``."""
        if self.attention is not None:
            residual, tick = self.attention(tick, residual), tick - self.attention.delay
        return self.mlp(tick, residual)

"""Level L1: the folded float network, and a plain numpy engine for it. No norm is left, only affine maps and LIFs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from dsf.export.network.attention import counted, lag_rows, lags_of, scored, windowed
from dsf.shell.arrays import FloatArray
from dsf.train.config.training import AttentionKind
from dsf.train.quantization.codec import CodedArray, InputCodec
from dsf.train.quantization.host_embedding import NormedEmbedding
from dsf.train.quantization.integers import Affine

LANES_AT_ONCE = 2
"""Windows computed together where memory must not grow with their number."""

Observer = Callable[[str, FloatArray, FloatArray], None]
"""Called with a population's name, its membranes before reset, and its spikes, each (ticks, tokens, lanes, neurons)."""


@dataclass(frozen=True)
class FoldedAttention:
    """One attention branch: norm-free query, key and value, a rule, and the projection behind it.

    Attributes:
        kind: the rule.
        qkv, project: affine maps.
        window: tokens PSSA looks back on.
        positional_bias: PSSA's, (window,) over lags or (K, K) over places.
        heads: of the rules with scores.
        scale: factor on the sum in front of attention's neuron.
        log_thresholds: (channels,) of the neurons that read the residual: the logarithms of their factors on the
            threshold; None where they have the common one.
    """

    kind: AttentionKind
    qkv: Affine
    project: Affine
    window: int = 1
    positional_bias: FloatArray | None = None
    heads: int = 1
    scale: float = 1.0
    log_thresholds: FloatArray | None = None


@dataclass(frozen=True)
class FoldedBlock:
    """One block: attention (or none) and MLP (expand, contract), with the MLP's ``log_thresholds`` as attention's."""

    attention: FoldedAttention | None
    expand: Affine
    contract: Affine
    log_thresholds: FloatArray | None = None


@dataclass(frozen=True)
class FoldedModel:
    """The whole folded policy. ``embed`` reads what the codec makes of a token; one that ends in a LayerNorm cannot
    become affine and stays on the host. ``discrete`` heads score choices. ``decays`` has the shares (neurons,) that
    membranes keep per tick, by population, where neurons have learned their own; it is empty, or has all populations.
    """

    codec: InputCodec
    embed: Affine | NormedEmbedding
    blocks: tuple[FoldedBlock, ...]
    head: Affine
    threshold: float
    decay: float
    ticks: int
    context: int
    discrete: bool = False
    decays: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def features(self) -> int:
        """Of a token."""
        return len(self.codec.unit)

    @property
    def learned_thresholds(self) -> bool:
        """Whether neurons that read the residual have thresholds of their own."""
        return any(block.log_thresholds is not None for block in self.blocks)

    def residual_writers(self) -> dict[str, Affine]:
        """The affine maps behind spikes that write the residual, by the names of their synapses."""
        found: dict[str, Affine] = {}
        for index, block in enumerate(self.blocks):
            if block.attention is not None:
                found[f"blocks.{index}.attention.project"] = block.attention.project
            found[f"blocks.{index}.mlp.contract"] = block.contract
        return found


class FoldedEngine:
    """Runs a folded model in float64 over whole windows, all tokens at once, as training does."""

    def __init__(self, model: FoldedModel, observe: Observer | None = None) -> None:
        self.model, self.observe = model, observe

    def decide(self, graded: CodedArray) -> FloatArray:
        """Map what the codec makes of tokens (tokens, lanes, features) to actions, or scores of choices, for each.

        The first token has no past and the last one is the present. At most K tokens.
        """
        model = self.model
        embedding = model.embed(graded.astype(np.float64))
        residual = np.broadcast_to(embedding, (model.ticks, *embedding.shape))
        for index, block in enumerate(model.blocks):
            if block.attention is not None:
                residual = residual + self.attend(f"blocks.{index}.attention", block.attention, residual)
            spikes = self.fire(f"blocks.{index}.mlp.input_lif", scaled(residual, block.log_thresholds))
            residual = residual + block.contract(self.fire(f"blocks.{index}.mlp.hidden_lif", block.expand(spikes)))
        outputs = model.head(residual.mean(axis=0))
        return outputs if model.discrete else np.tanh(outputs)

    def attend(self, name: str, attention: FoldedAttention, residual: FloatArray) -> FloatArray:
        """The attention branch's contribution to the residual, (ticks, tokens, lanes, channels)."""
        spikes = self.fire(f"{name}.input_lif", scaled(residual, attention.log_thresholds))
        query, key, value = np.split(self.fire(f"{name}.qkv_lif", attention.qkv(spikes)), 3, axis=-1)
        neuron, tokens = f"{name}.attention_lif", residual.shape[1]
        if attention.kind == "pssa":
            assert attention.positional_bias is not None
            weights = place_weights(attention.positional_bias, attention.window, tokens)
            fired = self.fire(neuron, windowed(query, lags_of(key * value), weights))
        elif attention.kind == "sdsa1":
            fired = query * self.fire(neuron, attention.scale * counted(lags_of(key * value), tokens))
        else:
            lags, all_ticks = (lags_of(key), lags_of(value), tokens), attention.kind == "tssa"
            fired = self.fire(neuron, attention.scale * scored(query, *lags, attention.heads, all_ticks))
        return attention.project(fired)

    def fire(self, name: str, currents: FloatArray) -> FloatArray:
        """V = decay * v * (1 - s) + x; s = v > threshold; v starts at 0."""
        membranes, spikes = np.empty_like(currents), np.empty_like(currents)
        rest, decay = np.zeros_like(currents[0]), self.model.decays.get(name, self.model.decay)
        for tick, current in enumerate(currents):
            membranes[tick] = decay * rest + current
            spikes[tick] = membranes[tick] > self.model.threshold
            rest = membranes[tick] * (1.0 - spikes[tick])
        if self.observe is not None:
            self.observe(name, membranes, spikes)
        return spikes


def scaled(residual: FloatArray, log_thresholds: FloatArray | None) -> FloatArray:
    """What neurons with the common threshold have to read (..., channels) to fire as those with these factors on it."""
    return residual if log_thresholds is None else residual * np.exp(-log_thresholds)


def place_weights(bias: FloatArray, window: int, tokens: int) -> FloatArray:
    """PSSA's bias for :func:`~dsf.export.network.attention.windowed` over ``tokens`` that end at the present."""
    if bias.ndim == 1:
        return bias
    return lag_rows(bias, window)[-tokens:, None]


def lane_batches(tokens: CodedArray, axis: int) -> list[CodedArray]:
    """Tokens cut into batches of at most LANES_AT_ONCE lanes; ``axis`` is that of the lanes."""
    return np.array_split(tokens, max(-(-tokens.shape[axis] // LANES_AT_ONCE), 1), axis)

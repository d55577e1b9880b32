"""Level L1: the folded float network, and a plain numpy engine for it. No norm is left, only affine maps and LIFs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.tasks.policy import FloatArray
from dsf.train.codec import InputCodec
from dsf.train.integers import Affine

Observer = Callable[[str, FloatArray, FloatArray], None]
"""Called with a population's name, its membranes before reset, and its spikes, each (ticks, lanes, neurons)."""


@dataclass(frozen=True)
class FoldedBlock:
    """One block: PSSA (qkv, positional bias, project) and MLP (expand, contract)."""

    qkv: Affine
    positional_bias: FloatArray  # (window,)
    project: Affine
    expand: Affine
    contract: Affine


@dataclass(frozen=True)
class FoldedModel:
    """The whole folded policy. ``embed`` reads the codec's integers."""

    codec: InputCodec
    embed: Affine
    blocks: tuple[FoldedBlock, ...]
    head: Affine
    threshold: float
    decay: float
    ticks: int
    context: int


class FoldedEngine:
    """Stream-mode engine for a folded model in float64."""

    def __init__(self, model: FoldedModel, lanes: int = 1) -> None:
        self.model, self.lanes = model, lanes
        width = len(model.embed.bias)
        self.history = [np.zeros((len(b.positional_bias), model.ticks, lanes, width)) for b in model.blocks]

    def reset(self, lane: int) -> None:
        """Start a new episode in one lane."""
        for past in self.history:
            past[:, :, lane] = 0.0

    def step_graded(self, graded: npt.NDArray[np.integer], observe: Observer | None = None) -> FloatArray:
        """Consume the codec's integers (lanes, features); return actions (lanes, actions)."""
        model = self.model
        embedding = model.embed(graded.astype(np.float64))
        residual = np.broadcast_to(embedding, (model.ticks, *embedding.shape))
        for index, block in enumerate(model.blocks):
            name = f"blocks.{index}"
            spikes = self.fire(f"{name}.attention.input_lif", residual, observe)
            qkv = self.fire(f"{name}.attention.qkv_lif", block.qkv(spikes), observe)
            query, key, value = np.split(qkv, 3, axis=-1)
            past = self.history[index]
            past[1:] = past[:-1].copy()
            past[0] = key * value
            current = query * np.tensordot(block.positional_bias, past, axes=1)
            attended = self.fire(f"{name}.attention.attention_lif", current, observe)
            residual = residual + block.project(attended)
            spikes = self.fire(f"{name}.mlp.input_lif", residual, observe)
            hidden = self.fire(f"{name}.mlp.hidden_lif", block.expand(spikes), observe)
            residual = residual + block.contract(hidden)
        return np.tanh(model.head(residual.mean(axis=0)))

    def fire(self, name: str, currents: FloatArray, observe: Observer | None) -> FloatArray:
        """V = decay * v * (1 - s) + x; s = v > threshold; v starts at 0."""
        membranes, spikes = np.empty_like(currents), np.empty_like(currents)
        rest = np.zeros_like(currents[0])
        for tick, current in enumerate(currents):
            membranes[tick] = self.model.decay * rest + current
            spikes[tick] = membranes[tick] > self.model.threshold
            rest = membranes[tick] * (1.0 - spikes[tick])
        if observe is not None:
            observe(name, membranes, spikes)
        return spikes

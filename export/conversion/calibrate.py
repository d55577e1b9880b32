"""What a folded network does on given tokens: how often the inputs of every layer fire.

Quantization may weight errors with it (``dsf.train.quantization.rounding``); the report on layers compares integers
with it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from dsf.export.conversion.folded import FoldedEngine, FoldedModel, lane_batches
from dsf.export.network.nodes import NetworkError
from dsf.shell.arrays import FloatArray
from dsf.train.quantization.codec import CodedArray
from dsf.train.quantization.integers import Affine
from dsf.train.quantization.rounding import InputStatistics

OVER = (0, 1, 2)
"""Axes of ticks, tokens and lanes."""


@dataclass(frozen=True)
class Calibration:
    """Statistics of one folded model over tokens, lanes and ticks.

    Attributes:
        inputs: what every layer with weights reads, by the name of its node.
        tokens: how many tokens were seen.
    """

    inputs: dict[str, InputStatistics]
    tokens: int


@dataclass(frozen=True)
class LayerTrace:
    """What a folded model computed on tokens; arrays are (ticks, tokens, lanes, features).

    Attributes:
        layers: the affine map of every layer with weights, by the name of its node.
        inputs: what each of them read. Ticks is 1 for the embedding, which reads the codec's integers at every tick
            alike, and for the readout, which reads the mean over ticks. An embedding on the host is no layer here.
        residual: the last one.
        spikes: every LIF population, by its name.
    """

    layers: dict[str, Affine]
    inputs: dict[str, FloatArray]
    residual: FloatArray
    spikes: dict[str, FloatArray]


def run_layers(model: FoldedModel, tokens: CodedArray) -> LayerTrace:
    """Run level L1 and keep what every layer reads.

    Args:
        model: folded model.
        tokens: what the codec makes of them, (tokens, lanes, features), at most K; a lane is a window of its own.

    Raises:
        NetworkError: no tokens, too many, or of the wrong size.
    """
    _require_tokens(model, tokens)
    spikes: dict[str, FloatArray] = {}

    def observe(name: str, _membranes: FloatArray, fired: FloatArray) -> None:
        spikes[name] = fired

    FoldedEngine(model, observe).decide(tokens)
    coded = tokens[None].astype(np.float64)
    layers: dict[str, Affine] = {}
    inputs: dict[str, FloatArray] = {}
    if isinstance(model.embed, Affine):
        layers["embed"], inputs["embed"] = model.embed, coded
    residual = np.broadcast_to(model.embed(coded), (model.ticks, *tokens.shape[:2], len(model.embed.bias)))
    for index, block in enumerate(model.blocks):
        name, mlp = f"blocks.{index}.attention", f"blocks.{index}.mlp"
        if (attention := block.attention) is not None:
            layers |= {f"{name}.qkv": attention.qkv, f"{name}.project": attention.project}
            fired = spikes[f"{name}.attention_lif"]
            if attention.kind == "sdsa1":  # the query gates what the neurons fire
                fired = fired * np.split(spikes[f"{name}.qkv_lif"], 3, axis=-1)[0]
            inputs |= {f"{name}.qkv": spikes[f"{name}.input_lif"], f"{name}.project": fired}
            residual = residual + attention.project(fired)
        layers |= {f"{mlp}.expand": block.expand, f"{mlp}.contract": block.contract}
        hidden = spikes[f"{mlp}.hidden_lif"]
        inputs |= {f"{mlp}.expand": spikes[f"{mlp}.input_lif"], f"{mlp}.contract": hidden}
        residual = residual + block.contract(hidden)
    layers["readout"], inputs["readout"] = model.head, residual.mean(axis=0, keepdims=True)
    return LayerTrace(layers, inputs, residual, spikes)


def calibrate(model: FoldedModel, tokens: CodedArray) -> Calibration:
    """Statistics of a folded model on tokens; see :func:`run_layers` for the arguments.

    Raises:
        NetworkError: no tokens, too many, or of the wrong size.
    """
    _require_tokens(model, tokens)
    sums: dict[str, FloatArray] = {}
    squares: dict[str, FloatArray] = {}
    rows: Counter[str] = Counter()
    for batch in lane_batches(tokens, axis=1):
        for name, values in run_layers(model, batch).inputs.items():
            sums[name] = sums.get(name, 0.0) + values.sum(axis=OVER)
            squares[name] = squares.get(name, 0.0) + np.square(values).sum(axis=OVER)
            rows[name] += values[..., 0].size
    means = {name: total / rows[name] for name, total in sums.items()}
    inputs = {name: InputStatistics(mean, squares[name] / rows[name] - mean**2) for name, mean in means.items()}
    return Calibration(inputs, tokens.shape[0] * tokens.shape[1])


def _require_tokens(model: FoldedModel, tokens: CodedArray) -> None:
    """Check the shape of calibration tokens.

    Raises:
        NetworkError: no tokens, too many, or of the wrong size.
    """
    features = model.features
    if tokens.ndim != 3 or tokens.shape[2] != features or tokens.size == 0:
        raise NetworkError(f"calibration tokens have shape {tokens.shape}: give some as (tokens, lanes, {features})")
    if len(tokens) > model.context:
        raise NetworkError(
            f"calibration tokens are {len(tokens)} per lane, the network's context is {model.context}: cut them into "
            "more lanes"
        )

"""Random models and integer networks for property tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from dsf.export.conversion.calibrate import calibrate
from dsf.export.conversion.fold import fold
from dsf.export.conversion.folded import FoldedModel
from dsf.export.conversion.quantize import quantize
from dsf.export.network.network import Network
from dsf.export.network.nodes import Node, Readout, Synapses
from dsf.export.proof.rungs import random_entering
from dsf.tasks import get_task
from dsf.testing.narrowed import present
from dsf.train.checkpoint import codec_to_json, save_checkpoint
from dsf.train.config.training import (
    UNQUANTIZED,
    AttentionKind,
    BiasKind,
    EmbedNormKind,
    ModelConfig,
    NormKind,
    to_json,
)
from dsf.train.models.dsformer import DSFormer
from dsf.train.quantization.codec import InputCodec, TokenStatistics
from dsf.train.quantization.integers import Affine
from dsf.train.quantization.rounding import QuantizationConfig

ACTIONS = 3
"""Hopper's, too."""
KINDS: dict[str, dict[str, Any]] = {
    "pssa": {},
    "pssa, full bias": {"positional_bias": "full"},
    "tssa": {"attention": "tssa"},
    "sssa": {"attention": "sssa"},
    "sdsa1": {"attention": "sdsa1"},
    "sdsa3": {"attention": "sdsa3"},
    "none": {"attention": "none"},
    "host embedding, full bias": {"positional_bias": "full", "embed_norm": "layernorm", "input_bits": 0},
    "host embedding, tssa": {"attention": "tssa", "embed_norm": "layernorm", "input_bits": 0},
}
"""Every way to look back, and an embedding on the host, as arguments of :func:`random_network`."""
EXPORTABLE_NORMS: tuple[NormKind, ...] = ("ptbn", "tdbn", "reptbn", "none")


@st.composite
def exportable(
    draw: Any, largest_width: int = 12, largest_blocks: int = 2, largest_context: int = 8, on_host: bool = True
) -> dict[str, Any]:
    """Arguments of :func:`random_model`: every attention, norm, embedding and head that can be exported, with one decay
    or one for each neuron; ``on_host`` allows an embedding there.
    """
    heads, context = draw(st.integers(1, 3)), draw(st.integers(1, largest_context))
    embed_norm = draw(st.sampled_from(get_args(EmbedNormKind))) if on_host else "ptbn"
    unquantized = st.just(UNQUANTIZED) if embed_norm == "layernorm" else st.nothing()
    ticks, decay = draw(st.integers(1, 8)), draw(st.sampled_from([0.25, 0.5, 0.875, 0.0]))
    return {
        "seed": draw(st.integers(0, 2**31)),
        "attention": draw(st.sampled_from(get_args(AttentionKind))),
        "positional_bias": draw(st.sampled_from(get_args(BiasKind))),
        "norm": draw(st.sampled_from(EXPORTABLE_NORMS)),
        "discrete": draw(st.booleans()),
        "heads": heads,
        "width": heads * draw(st.integers(1, largest_width // heads)),
        "blocks": draw(st.integers(1, largest_blocks)),
        "ticks": ticks,
        "context": context,
        "window": draw(st.integers(1, context)),
        "embed_norm": embed_norm,
        "input_bits": draw(unquantized | st.integers(4, 12)),
        "decay": decay,
        "learn_decays": ticks > 1 and decay > 0.0 and draw(st.booleans()),
    }


def random_codec(features: int, bits: int, generator: np.random.Generator) -> InputCodec:
    """A codec fitted to random data."""
    data = generator.normal(generator.normal(size=features), generator.uniform(0.1, 3.0, features), (200, features))
    return InputCodec.fit(TokenStatistics.of(data), np.full((1, features), np.nan), bits)


def random_model(
    seed: int = 0,
    width: int = 12,
    blocks: int = 2,
    ticks: int = 4,
    window: int = 3,
    context: int = 8,
    features: int = 6,
    input_bits: int = 8,
    decay: float = 0.25,
    attention: AttentionKind = "pssa",
    norm: NormKind = "ptbn",
    positional_bias: BiasKind = "relative",
    heads: int = 1,
    embed_norm: EmbedNormKind = "ptbn",
    discrete: bool = False,
    mlp_ratio: int = 2,
    actions: int = ACTIONS,
    learn_thresholds: bool = False,
    learn_decays: bool = False,
) -> DSFormer:
    """A model with random weights, gains and running statistics, such that every population fires."""
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = ModelConfig(
        width=width,
        blocks=blocks,
        ticks=ticks,
        context=context,
        window=min(window, context),
        mlp_ratio=mlp_ratio,
        decay=decay,
        input_bits=input_bits,
        attention=attention,
        norm=norm,
        positional_bias=positional_bias,
        heads=heads,
        embed_norm=embed_norm,
        learn_thresholds=learn_thresholds,
        learn_decays=learn_decays,
    )
    model = DSFormer(config, random_codec(features, input_bits, generator), actions, discrete)
    randomise(model, generator)
    if norm == "tdln" or embed_norm == "layernorm":
        randomise_layer_norms(model, generator)
    return model.eval()


def randomise(model: nn.Module, generator: np.random.Generator) -> None:
    """Move norms, their statistics, skips, positional biases and decays away from their start, so that neurons fire."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for tensor, low, high in (
                (module.weight, 0.3, 1.0),
                (module.bias, -0.2, 1.0),
                (present(module.running_mean), -0.5, 0.5),
                (present(module.running_var), 0.05, 1.5),
            ):
                tensor.data.copy_(torch.from_numpy(generator.uniform(low, high, len(tensor))))
    for name, parameter in model.named_parameters():
        if name.endswith("positional_bias"):
            parameter.data.copy_(torch.from_numpy(generator.normal(0.8, 0.5, tuple(parameter.shape))))
    for name, parameter in model.named_parameters():
        if name.endswith("skip"):
            parameter.data.fill_(generator.normal(0.0, 0.3))
    for name, parameter in model.named_parameters():
        if name.endswith("logit_decay"):
            parameter.data.copy_(torch.from_numpy(generator.normal(0.0, 1.5, len(parameter))))


def randomise_layer_norms(model: nn.Module, generator: np.random.Generator) -> None:
    """The same for layer norms, PTBN's among them."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data.copy_(torch.from_numpy(generator.uniform(0.3, 1.0, len(module.weight))))
            module.bias.data.copy_(torch.from_numpy(generator.uniform(-0.2, 1.0, len(module.bias))))


def random_network(seed: int = 0, bits: int = 8, task: str = "hopper", **sizes: Any) -> Network:
    """An integer network from a random model."""
    return quantize(fold(random_model(seed, **sizes)), task, bits)


def finely_scaled_network(seed: int = 0, bits: int = 8, **sizes: Any) -> Network:
    """The same with two synapses per input feature (none behind a host embedding) and a unit per residual channel."""
    folded = fold(random_model(seed, **sizes))
    tokens = random_coded(folded, 2, seed)
    synapses = 2 if isinstance(folded.embed, Affine) else 1
    rules = QuantizationConfig(bits, embed_synapses=synapses, residual_scales="channel")
    return quantize(folded, "hopper", config=rules, calibration=calibrate(folded, tokens))


def sparser(network: Network, share: float) -> Network:
    """The network with the smallest weights of each matrix set to 0, so that at least ``share`` of them are."""

    def cut(node: Node) -> Node:
        if not isinstance(node, (Synapses, Readout)):
            return node
        order = np.argsort(np.abs(node.weights.astype(np.int64)), axis=None, kind="stable")
        weights = node.weights.copy()
        weights.reshape(-1)[order[: round(share * weights.size)]] = 0
        return dataclasses.replace(node, weights=weights)

    return dataclasses.replace(network, nodes=tuple(map(cut, network.nodes)))


def random_tokens(network: Network, count: int, lanes: int, seed: int) -> np.ndarray:
    """(count, lanes, size) integers that may enter a network: an encoder's over the whole range."""
    return random_entering(network, (count, lanes), np.random.default_rng(seed))


def random_coded(folded: FoldedModel, lanes: int, seed: int) -> np.ndarray:
    """(context, lanes, features) of what a model's codec makes of tokens: integers over its whole range, or normal."""
    generator, codec, shape = np.random.default_rng(seed), folded.codec, (folded.context, lanes, folded.features)
    if not codec.bits:
        return generator.normal(size=shape)
    return generator.integers(-codec.limit, codec.limit + 1, shape)


def write_checkpoint(path: Path, **fields: Any) -> Path:
    """A checkpoint of a small Hopper model that was never trained; ``fields`` as for :func:`random_model`."""
    task = get_task("hopper")
    sizes = {"width": 8, "blocks": 1, "context": 6, "window": 3, **fields}
    model = random_model(features=task.observation_size + task.action_size + 1, **sizes)
    header = {
        "model": to_json(model.config),
        "train": {},
        "codec": codec_to_json(model.codec),
        "task": task.name,
        "dataset": {"id": "test", "sha256": "0"},
        "git_revision": "test",
        "step": 0,
        "scores": [],
    }
    save_checkpoint(path, {f"model.{name}": tensor for name, tensor in model.state_dict().items()}, header)
    return path

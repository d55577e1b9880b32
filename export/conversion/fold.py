"""Level L1 from a trained model: :mod:`dsf.train.models.folding` rids it of its norms, this reads off what is left."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import nn

from dsf.export.conversion.folded import FoldedAttention, FoldedBlock, FoldedModel
from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.train.config.training import ModelConfig, export_obstacles
from dsf.train.models.attention import PSSA, SpikingAttention
from dsf.train.models.dsformer import Block, DSFormer
from dsf.train.models.folding import float64, fold_head, fold_norm
from dsf.train.models.neurons import LIF
from dsf.train.quantization.host_embedding import NormedEmbedding
from dsf.train.quantization.integers import Affine
from dsf.train.quantization.layers import decays_of


def fold_attention(attention: SpikingAttention, config: ModelConfig, where: str) -> FoldedAttention:
    """Fold one attention branch.

    Raises:
        UserError: a norm cannot be folded.
    """
    return FoldedAttention(
        kind=config.attention,
        qkv=fold_norm(attention.qkv, attention.qkv_norm, f"{where}.qkv_norm"),
        project=fold_norm(attention.project, attention.project_norm, f"{where}.project_norm"),
        window=config.window,
        positional_bias=float64(attention.effective_bias) if isinstance(attention, PSSA) else None,
        heads=config.heads,
        scale=attention.scale,
        log_thresholds=learned(attention.input_lif),
    )


def fold_block(block: Block, config: ModelConfig, where: str) -> FoldedBlock:
    """Fold one transformer block.

    Raises:
        UserError: a norm cannot be folded.
    """
    attention, mlp = block.attention, block.mlp
    return FoldedBlock(
        attention=None if attention is None else fold_attention(attention, config, f"{where}.attention"),
        expand=fold_norm(mlp.expand, mlp.expand_norm, f"{where}.mlp.expand_norm"),
        contract=fold_norm(mlp.contract, mlp.contract_norm, f"{where}.mlp.contract_norm"),
        log_thresholds=learned(mlp.input_lif),
    )


def learned(neurons: LIF) -> FloatArray | None:
    """Logarithms of the neurons' factors on the threshold; None where they learned none."""
    return None if neurons.log_threshold is None else float64(neurons.log_threshold)


def fold(model: DSFormer) -> FoldedModel:
    """Fold a trained model.

    Raises:
        UserError: something in it cannot become spikes; the message names all of it.
    """
    config = model.config
    if obstacles := export_obstacles(config):
        raise UserError(f"cannot export: {'; '.join(obstacles)}")
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # what comes of it is refused by name
        folded = _fold(model, config)
    _require_finite(folded)
    return folded


def _fold(model: DSFormer, config: ModelConfig) -> FoldedModel:
    return FoldedModel(
        codec=model.codec,
        embed=fold_embedding(model),
        blocks=tuple(fold_block(cast(Block, b), config, f"blocks.{i}") for i, b in enumerate(model.blocks)),
        head=fold_head(model),
        threshold=config.threshold,
        decay=config.decay,
        ticks=config.ticks,
        context=config.context,
        discrete=model.discrete,
        decays={
            name: decays_of(config.decay, float64(module.logit_decay))
            for name, module in model.named_modules()
            if isinstance(module, LIF) and module.logit_decay is not None
        },
    )


def fold_embedding(model: DSFormer) -> Affine | NormedEmbedding:
    """The embedding, from what the codec makes of a token; a LayerNorm behind it stays.

    Raises:
        UserError: its norm is none that is known here.
    """
    norm, unit = model.embed_norm, float64(model.input_unit)
    if isinstance(norm, nn.LayerNorm):
        weight, bias = float64(model.embed.weight), model.embed.bias
        linear_bias = np.zeros(len(weight)) if bias is None else float64(bias)
        return NormedEmbedding(weight * unit, linear_bias, float64(norm.weight), float64(norm.bias), norm.eps)
    embed = fold_norm(model.embed, norm, "embed_norm")
    return Affine(embed.weight * unit, embed.bias)


def _require_finite(folded: FoldedModel) -> None:
    """Refuse a model whose norms or weights have no finite affine map.

    Raises:
        UserError: naming the layer.
    """
    embed = folded.embed
    maps: dict[str, tuple[FloatArray | None, ...]] = {
        "embed": (embed.weight, embed.bias)
        if isinstance(embed, Affine)
        else (embed.matrix, embed.linear_bias, embed.gain, embed.bias)
    }
    for index, block in enumerate(folded.blocks):
        if (attention := block.attention) is not None:
            name = f"blocks.{index}.attention"
            maps[f"{name}.qkv"] = (attention.qkv.weight, attention.qkv.bias)
            maps[f"{name}.positional_bias"] = (attention.positional_bias,)
            maps[f"{name}.project"] = (attention.project.weight, attention.project.bias)
            maps[f"{name}.input_lif"] = (attention.log_thresholds,)
        maps[f"blocks.{index}.mlp.expand"] = (block.expand.weight, block.expand.bias)
        maps[f"blocks.{index}.mlp.contract"] = (block.contract.weight, block.contract.bias)
        maps[f"blocks.{index}.mlp.input_lif"] = (block.log_thresholds,)
    maps |= {f"{name}.logit_decay": (decays,) for name, decays in folded.decays.items()}
    maps["head"] = (folded.head.weight, folded.head.bias)
    for name, found in maps.items():
        if not all(array is None or np.isfinite(array).all() for array in found):
            raise UserError(
                f"cannot export: {name}, its norm folded in, is not finite (a running variance that is negative, or "
                "weights that overflow): train again"
            )

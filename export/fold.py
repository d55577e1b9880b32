"""Fold every norm into its Linear: BatchNorm at inference is affine, so nothing is lost.

gamma * (W x - mean) / sqrt(var + eps) + beta  =  W' x + b'   with   W' = gamma / sqrt(var + eps) * W,
b' = beta - gamma * mean / sqrt(var + eps).  All folding happens in float64.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from dsf.export.folded import Affine, FoldedBlock, FoldedModel
from dsf.tasks import UserError
from dsf.tasks.policy import FloatArray
from dsf.train.model import Block, DSFormer
from dsf.train.norm import PTBN


def float64(tensor: Tensor) -> FloatArray:
    """A detached float64 copy."""
    return tensor.detach().to(torch.float64).cpu().numpy().copy()


def fold_norm(linear: nn.Linear, norm: nn.Module, where: str) -> Affine:
    """Fold ``norm`` (behind ``linear``) into the Linear in front of it.

    Raises:
        UserError: the norm is not affine at inference; the message names the config field to change.
    """
    weight = float64(linear.weight)
    bias = np.zeros(len(weight)) if linear.bias is None else float64(linear.bias)
    gain, offset = affine_of(norm, where)
    return Affine(gain[:, None] * weight, gain * bias + offset)


def affine_of(norm: nn.Module, where: str) -> tuple[FloatArray, FloatArray]:
    """Gain and offset (channels,) of a norm at inference.

    Raises:
        UserError: the norm computes statistics at inference.
    """
    if not isinstance(norm, PTBN):
        field = "model.embed-norm" if where.startswith("embed") else "model.norm"
        raise UserError(
            f"cannot export: {where} is a {type(norm).__name__}, whose mean and variance are computed per token and "
            f"cannot become spikes; retrain with --{field} ptbn"
        )
    batch = norm.batch
    variance = float64(cast(Tensor, batch.running_var))
    gain = float64(batch.weight) / np.sqrt(variance + batch.eps)
    return gain, float64(batch.bias) - gain * float64(cast(Tensor, batch.running_mean))


def fold_block(block: Block, where: str) -> FoldedBlock:
    """Fold one transformer block."""
    attention, mlp = block.attention, block.mlp
    return FoldedBlock(
        qkv=fold_norm(attention.qkv, attention.qkv_norm, f"{where}.attention.qkv_norm"),
        positional_bias=float64(attention.positional_bias),
        project=fold_norm(attention.project, attention.project_norm, f"{where}.attention.project_norm"),
        expand=fold_norm(mlp.expand, mlp.expand_norm, f"{where}.mlp.expand_norm"),
        contract=fold_norm(mlp.contract, mlp.contract_norm, f"{where}.mlp.contract_norm"),
    )


def fold(model: DSFormer) -> FoldedModel:
    """Fold a trained model.

    Raises:
        UserError: a norm cannot be folded.
    """
    embed = fold_norm(model.embed, model.embed_norm, "embed_norm")
    gain, offset = affine_of(model.final_norm, "final_norm")
    head = float64(model.head.weight)
    config = model.config
    return FoldedModel(
        codec=model.codec,
        embed=Affine(embed.weight * float64(model.input_unit), embed.bias),
        blocks=tuple(fold_block(cast(Block, block), f"blocks.{i}") for i, block in enumerate(model.blocks)),
        # The mean over ticks commutes with the affine norm, so both move into the head.
        head=Affine(head * gain, head @ offset + float64(model.head.bias)),
        threshold=config.threshold,
        decay=config.decay,
        ticks=config.ticks,
        context=config.context,
    )

"""Fold every norm into its Linear: a batch norm at inference is affine, so nothing is lost.

gain * (W x - mean) / sqrt(var + eps) + offset + skip * W x  =  W' x + b'   with
W' = (gain / sqrt(var + eps) + skip) W   and   b' = offset - gain * mean / sqrt(var + eps).
All folding happens in float64.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.norm import BatchNorm
from dsf.train.quantization.integers import Affine

NORM_SUFFIX = "_norm"
"""A norm is named after the Linear in front of it; only ``final_norm`` stands in front of its Linear."""


def float64(tensor: Tensor) -> FloatArray:
    """A detached float64 copy."""
    return tensor.detach().to(torch.float64).cpu().numpy().copy()


def affine_of(norm: nn.Module, channels: int, where: str) -> tuple[FloatArray, FloatArray]:
    """Gain and offset (channels,) of a norm at inference.

    Raises:
        UserError: the norm computes statistics at inference; the message names the config field to change.
    """
    if isinstance(norm, nn.Identity):
        return np.ones(channels), np.zeros(channels)
    if not isinstance(norm, BatchNorm):
        field = "model.embed-norm" if where.startswith("embed") else "model.norm"
        raise UserError(
            f"cannot fold: {where} is a {type(norm).__name__}, whose mean and variance are computed per token and "
            f"cannot become spikes; retrain with --{field} ptbn"
        )
    batch = norm.batch
    slope = float64(batch.weight) / np.sqrt(float64(cast(Tensor, batch.running_var)) + batch.eps)
    offset = float64(batch.bias) - slope * float64(cast(Tensor, batch.running_mean))
    return slope if norm.skip is None else slope + float64(norm.skip), offset


def fold_norm(linear: nn.Linear, norm: nn.Module, where: str) -> Affine:
    """Fold ``norm`` (behind ``linear``) into the Linear in front of it; ``where`` names it in errors.

    Raises:
        UserError: see :func:`affine_of`.
    """
    weight = float64(linear.weight)
    bias = np.zeros(len(weight)) if linear.bias is None else float64(linear.bias)
    gain, offset = affine_of(norm, len(weight), where)
    return Affine(gain[:, None] * weight, gain * bias + offset)


def fold_head(model: DSFormer) -> Affine:
    """Fold the last norm into the head behind it; the mean over ticks between the two commutes with an affine norm.

    Raises:
        UserError: see :func:`affine_of`.
    """
    weight = float64(model.head.weight)
    gain, offset = affine_of(model.final_norm, model.config.width, "final_norm")
    return Affine(weight * gain, weight @ offset + float64(model.head.bias))


def fold_norms(model: DSFormer) -> None:
    """Replace every norm by the identity, in place, and every Linear by one with a bias that does the norm's work.

    Raises:
        UserError: see :func:`affine_of`.
    """
    set_affine(model.head, fold_head(model))
    model.final_norm = nn.Identity()
    for path, parent in list(model.named_modules()):
        for name, norm in list(parent.named_children()):
            linear = getattr(parent, name.removesuffix(NORM_SUFFIX), None)
            if name.endswith(NORM_SUFFIX) and isinstance(linear, nn.Linear):
                set_affine(linear, fold_norm(linear, norm, f"{path}.{name}".lstrip(".")))
                setattr(parent, name, nn.Identity())


def set_affine(linear: nn.Linear, affine: Affine) -> None:
    """Give a Linear this weight and bias, in its own precision."""
    like = linear.weight
    linear.weight = nn.Parameter(torch.from_numpy(affine.weight).to(like))
    linear.bias = nn.Parameter(torch.from_numpy(affine.bias).to(like))

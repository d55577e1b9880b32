"""The norms of DSFormer and of its ablation (arXiv 2504.03800, section 4.3): ptbn, tdbn, tdln, reptbn, none.

All gains start at the firing threshold (the "threshold-dependent" of tdBN, Zheng et al. 2021); statistics of batch
norms run over ticks, batch and tokens (and ranks); padded tokens never get here: the model packs the valid ones.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dsf.train.config.training import EmbedNormKind, NormKind
from dsf.train.models.fused import ChannelMoments, batch_moments, batch_norm


class BatchNorm(nn.Module):
    """tdBN: gain * (x - mean) / sqrt(variance + eps) + offset, plus ``skip`` * x where ``with_skip`` is set.

    The skip (alpha * x with a learned scalar alpha, zero at first) is the release's Adroit variant; like batch norm
    it is affine at inference, so that both fold into the Linear in front.
    """

    def __init__(self, channels: int, gain: float, with_skip: bool = False) -> None:
        super().__init__()
        self.batch = nn.BatchNorm1d(channels)  # holds parameters and running statistics; statistics are our own
        nn.init.constant_(self.batch.weight, gain)
        self.skip = nn.Parameter(torch.zeros(())) if with_skip else None

    @property
    def is_affine(self) -> bool:
        """Whether the norm is now affine in x, given its moments: then it can be fused into a neuron."""
        return True

    def moments(self, x: Tensor) -> ChannelMoments:
        """The moments to normalise by: the batch's while training (they also move the running ones)."""
        batch, momentum = self.batch, self.batch.momentum
        running_mean, running_var = cast(Tensor, batch.running_mean), cast(Tensor, batch.running_var)
        if not self.training:
            return ChannelMoments(running_mean, (running_var + batch.eps).rsqrt(), running_var, 0)
        moments = batch_moments(x, batch.eps)
        unbiased = moments.variance * (moments.count / max(moments.count - 1, 1))
        with torch.no_grad():
            running_mean.lerp_(moments.mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
            cast(Tensor, batch.num_batches_tracked).add_(1)
        return moments

    def normalise(self, x: Tensor) -> Tensor:
        """The norm of (..., channels), unfused."""
        return batch_norm(x, self.batch.weight, self.batch.bias, self.skip, self.moments(x))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of (..., channels)."""
        return self.normalise(x)


class PTBN(BatchNorm):
    """lambda * LayerNorm(x) + (1 - lambda) * BatchNorm(x) while training, BatchNorm(x) afterwards.

    Source: DSFormer section 4.3 (arXiv 2504.03800). ``blend`` is lambda; the trainer lowers it from 1 to 0.
    """

    def __init__(self, channels: int, gain: float, with_skip: bool = False) -> None:
        super().__init__(channels, gain, with_skip)
        self.layer = layer_norm(channels, gain)
        self.blend = 1.0

    @property
    def is_affine(self) -> bool:
        """Only without LayerNorm's share."""
        return not self.training or self.blend == 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of (..., channels)."""
        if self.is_affine:
            return self.normalise(x)
        return self.blend * cast(Tensor, self.layer(x)) + (1.0 - self.blend) * self.normalise(x)


def layer_norm(channels: int, gain: float) -> nn.LayerNorm:
    """TdLN: a layer norm whose gain starts at ``gain``; it divides per token and cannot become spikes."""
    norm = nn.LayerNorm(channels)
    nn.init.constant_(norm.weight, gain)
    return norm


def make_norm(kind: NormKind | EmbedNormKind, channels: int, gain: float) -> nn.Module:
    """Build a norm over ``channels`` whose gain starts at ``gain``."""
    if kind == "none":
        return nn.Identity()
    if kind in ("tdln", "layernorm"):
        return layer_norm(channels, gain)
    if kind == "tdbn":
        return BatchNorm(channels, gain)
    return PTBN(channels, gain, with_skip=kind == "reptbn")


def offset_channels(norm: nn.Module, channels: slice, offset: float) -> None:
    """Set the initial offset of some channels, in every part of a norm that has one."""
    for part in norm.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.LayerNorm)):
            nn.init.constant_(part.bias[channels], offset)


def set_blend(model: nn.Module, blend: float) -> None:
    """Set lambda of every PTBN inside ``model``."""
    for module in model.modules():
        if isinstance(module, PTBN):
            module.blend = blend

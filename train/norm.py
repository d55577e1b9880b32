"""Progressive Threshold-dependent Batch Normalisation (PTBN) and what stands in for it."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from dsf.train.config import NormKind


class PTBN(nn.Module):
    """lambda * LayerNorm(x) + (1 - lambda) * BatchNorm(x) while training, BatchNorm(x) afterwards.

    Source: DSFormer section 4.3 (arXiv 2504.03800). ``blend`` is lambda; the trainer lowers it from 1 to 0. The
    gain of both norms starts at the firing threshold. Statistics run over ticks, batch and tokens; padded tokens
    never get here, because the model packs the valid ones first.
    """

    def __init__(self, channels: int, gain: float) -> None:
        super().__init__()
        self.layer = nn.LayerNorm(channels)
        self.batch = nn.BatchNorm1d(channels)
        nn.init.constant_(self.layer.weight, gain)
        nn.init.constant_(self.batch.weight, gain)
        self.blend = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of (..., channels)."""
        normalised = self.batch(x.reshape(-1, x.shape[-1])).view_as(x)
        if not self.training or self.blend == 0.0:
            return cast(Tensor, normalised)
        return cast(Tensor, self.blend * self.layer(x) + (1.0 - self.blend) * normalised)


def make_norm(kind: NormKind, channels: int, gain: float) -> nn.Module:
    """Build a norm over ``channels`` whose gain starts at ``gain``."""
    if kind == "ptbn":
        return PTBN(channels, gain)
    norm = nn.LayerNorm(channels)
    nn.init.constant_(norm.weight, gain)
    return norm


def set_blend(model: nn.Module, blend: float) -> None:
    """Set lambda of every PTBN inside ``model``."""
    for module in model.modules():
        if isinstance(module, PTBN):
            module.blend = blend

"""Positional Spiking Self-Attention (PSSA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsf.train.config import ModelConfig
from dsf.train.neurons import LIF
from dsf.train.norm import make_norm


class PackedTokens:
    """The valid tokens of a padded (batch, context) window, in one row axis.

    Every part of the network but attention treats tokens alone, so it works on packed rows (ticks, rows, channels)
    and padding can reach no statistic. Attention needs neighbours: :meth:`unpack` puts absent tokens back as zeros.
    """

    def __init__(self, mask: Tensor) -> None:
        """``mask`` is (batch, context), true where a token exists."""
        self.mask = mask

    def pack(self, padded: Tensor) -> Tensor:
        """(batch, context, channels) -> (rows, channels)."""
        return padded[self.mask]

    def unpack(self, rows: Tensor) -> Tensor:
        """(ticks, rows, channels) -> (ticks, batch, context, channels), zeros at absent tokens."""
        padded = rows.new_zeros(rows.shape[0], *self.mask.shape, rows.shape[-1])
        padded[:, self.mask] = rows
        return padded

    def repack(self, padded: Tensor) -> Tensor:
        """(ticks, batch, context, channels) -> (ticks, rows, channels): the inverse of :meth:`unpack`."""
        return padded[:, self.mask]


class PSSA(nn.Module):
    """out_i = norm(Linear(LIF(q_i * sum_k b_k * (k AND v)_{i-k}))), k = 0 .. w-1, for each channel and tick.

    Source: DSFormer Eq. 7 (arXiv 2504.03800), with the positional bias as the relative vector that the equation's
    text names, shared by all channels; the release stores a K x K matrix of absolute positions instead. Missing
    history (before the episode or outside the window) counts as no spikes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, gain = config.width, config.threshold
        self.input_lif = LIF(config.decay, config.threshold)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.qkv_norm = make_norm(config.norm, 3 * width, gain)
        self.qkv_lif = LIF(config.decay, config.threshold)
        self.positional_bias = nn.Parameter(torch.ones(config.window))
        self.attention_lif = LIF(config.decay, config.threshold)
        self.project = nn.Linear(width, width, bias=False)
        self.project_norm = make_norm(config.norm, width, gain)

    def forward(self, residual: Tensor, tokens: PackedTokens) -> Tensor:
        """Map the residual stream (ticks, rows, width) to this branch's contribution, same shape."""
        spikes = self.input_lif(residual)
        query, key, value = self.qkv_lif(self.qkv_norm(self.qkv(spikes))).chunk(3, dim=-1)
        current = query * tokens.repack(self.windowed_sum(tokens.unpack(key * value)))
        output: Tensor = self.project_norm(self.project(self.attention_lif(current)))
        return output

    def windowed_sum(self, coincidences: Tensor) -> Tensor:
        """sum_k b_k * coincidences[:, :, i - k] over the token axis of (ticks, batch, context, width)."""
        total = self.positional_bias[0] * coincidences
        for lag in range(1, len(self.positional_bias)):
            shifted = nn.functional.pad(coincidences[:, :, :-lag], (0, 0, lag, 0))
            total = total + self.positional_bias[lag] * shifted
        return total

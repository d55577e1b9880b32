"""Spiking attentions, all causal and without softmax: PSSA, TSSA, SSSA, SDSA-1 and SDSA-3.

They share one frame (:class:`SpikingAttention`): spikes q, k, v = LIF(norm(Linear(LIF(x)))), then a rule that mixes
tokens, then norm(Linear(.)). Integers and gates only: each rule maps onto additions of spikes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from dsf.train.config.training import AttentionKind, ModelConfig
from dsf.train.models.neurons import LIF, learned_decays, residual_neurons
from dsf.train.models.norm import make_norm, offset_channels


class TokenRows(Protocol):
    """Tokens in one row axis, and how they stand beside each other: all that attention asks for."""

    def unpack(self, rows: Tensor, /) -> Tensor:
        """(ticks, rows, channels) -> (ticks, batch, tokens, channels), zeros at absent tokens."""
        ...

    def repack(self, padded: Tensor, /) -> Tensor:
        """(ticks, batch, tokens, channels) -> (ticks, rows, channels): the inverse of :meth:`unpack`."""
        ...


class PackedTokens:
    """The valid tokens of a padded (batch, context) window, in one row axis.

    Every part of the network but attention treats tokens alone, so it works on packed rows (ticks, rows, channels)
    and padding can reach no statistic. Attention needs neighbours: :meth:`unpack` puts absent tokens back as zeros.
    """

    def __init__(self, mask: Tensor, ends: Tensor | None = None) -> None:
        """``mask`` is (batch, context), true where a token exists; see :meth:`timesteps` for ``ends``."""
        self.mask, self.ends = mask, ends
        self.index = mask.flatten().nonzero().flatten()
        self.full = len(self.index) == mask.numel()

    def pack(self, padded: Tensor) -> Tensor:
        """(batch, context, channels) -> (rows, channels)."""
        return padded.flatten(0, 1).index_select(0, self.index)

    def unpack(self, rows: Tensor) -> Tensor:
        """(ticks, rows, channels) -> (ticks, batch, context, channels), zeros at absent tokens."""
        shape = (rows.shape[0], *self.mask.shape, rows.shape[-1])
        if self.full:
            return rows.reshape(shape)
        padded = rows.new_zeros(rows.shape[0], self.mask.numel(), rows.shape[-1])
        return padded.index_copy(1, self.index, rows).view(shape)

    def timesteps(self) -> Tensor:
        """Each token's step of its episode, (batch, context), from 0; nonsense at absent tokens.

        ``ends``, (batch,), is the step of a window's last token; without it windows begin with their episodes.
        """
        place = self.mask.long().cumsum(dim=1) - 1
        return place if self.ends is None else place + (self.ends - place[:, -1])[:, None]

    def repack(self, padded: Tensor) -> Tensor:
        """(ticks, batch, context, channels) -> (ticks, rows, channels): the inverse of :meth:`unpack`."""
        flat = padded.flatten(1, 2)
        return flat if self.full else flat.index_select(1, self.index)


class SpikingAttention(nn.Module):
    """The frame: spikes of q, k and v in, spikes of :meth:`mix` out, a Linear and its norm behind."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, gain = config.width, config.threshold
        self.heads, self.scale = config.heads, config.scale_of_attention
        self.input_lif = residual_neurons(config)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.qkv_norm = make_norm(config.norm, 3 * width, gain)
        offset_channels(self.qkv_norm, slice(width, 3 * width), config.key_value_offset)
        self.qkv_lif = LIF(config.decay, config.threshold, decays=learned_decays(config, 3 * width))
        own = learned_decays(config, width)
        self.attention_lif = LIF(config.decay, config.threshold, config.attention_surrogate_width, decays=own)
        self.project = nn.Linear(width, width, bias=False)
        self.project_norm = make_norm(config.norm, width, gain)

    def forward(self, residual: Tensor, tokens: TokenRows) -> Tensor:
        """Map the residual stream (ticks, rows, width) to this branch's contribution, same shape."""
        spikes = self.qkv_lif(self.qkv(self.input_lif(residual)), self.qkv_norm)
        query, key, value = (exact(part) for part in spikes.chunk(3, dim=-1))
        output: Tensor = self.project_norm(self.project(self.mix(query, key, value, tokens)))
        return output

    def mix(self, query: Tensor, key: Tensor, value: Tensor, tokens: TokenRows) -> Tensor:
        """Attention's spikes (ticks, rows, width) from those of query, key and value, same shape each."""
        raise NotImplementedError


class PSSA(SpikingAttention):
    """out_i = LIF(q_i * sum_j B_ij (k AND v)_j) for each channel and tick, 0 <= i - j < w (DSFormer Eq. 7).

    B_ij = b_{i-j} with a learned vector b over lags, as the equation's text names it; ``positional_bias: full`` is the
    release's K x K matrix of absolute positions in the window (its last row belongs to the present token). Both start
    at ones and are shared by channels, heads and ticks. Missing history (before the episode or outside the window)
    counts as no spikes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.window = config.window
        shape = (config.window,) if config.positional_bias == "relative" else (config.context, config.context)
        self.positional_bias = nn.Parameter(torch.ones(shape))

    def mix(self, query: Tensor, key: Tensor, value: Tensor, tokens: TokenRows) -> Tensor:
        """See the class."""
        with full_precision(query):
            current = query * tokens.repack(self.windowed_sum(tokens.unpack(key * value)))
        spikes: Tensor = self.attention_lif(current)
        return spikes

    def windowed_sum(self, coincidences: Tensor) -> Tensor:
        """sum_j B_ij * coincidences[:, :, j] over the token axis of (ticks, batch, context, width)."""
        return self.bias_matrix(coincidences.shape[2]) @ coincidences

    @property
    def effective_bias(self) -> Tensor:
        """The positional bias without entries that no token ever meets: what there is to quantize."""
        return self.positional_bias if self.positional_bias.dim() == 1 else self.bias_matrix(len(self.positional_bias))

    def bias_matrix(self, context: int) -> Tensor:
        """B, (context, context), zero outside 0 <= i - j < w."""
        position = torch.arange(context, device=self.positional_bias.device)
        lag = position[:, None] - position[None, :]
        inside = (lag >= 0) & (lag < self.window)
        if self.positional_bias.dim() == 1:
            return torch.where(inside, self.positional_bias[lag.clamp(0, self.window - 1)], 0.0)
        return torch.where(inside, self.positional_bias[-context:, -context:], 0.0)


class SSSA(SpikingAttention):
    """out_i[t] = LIF(scale * sum_{j<=i} (q_i[t] . k_j[t]) v_j[t]) per head: one integer score matrix per tick.

    DSFormer's per-tick baseline (there without scale). SDSA-3 (Spike-driven Transformer v2) writes the same sum as
    q (k^T v), which makes it linear in the context: causal SDSA-3 is this rule with another scale.
    """

    def mix(self, query: Tensor, key: Tensor, value: Tensor, tokens: TokenRows) -> Tensor:
        """See the class."""
        with full_precision(query):
            attended = attend(*(self.split(tokens.unpack(spikes)) for spikes in (query, key, value)))
        spikes: Tensor = self.attention_lif(self.scale * tokens.repack(self.join(attended)))
        return spikes

    def split(self, padded: Tensor) -> Tensor:
        """(ticks, batch, context, width) -> (ticks, batch, heads, context, channels)."""
        return padded.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def join(self, parts: Tensor) -> Tensor:
        """The inverse of :meth:`split`."""
        return parts.transpose(2, 3).flatten(-2)


class TSSA(SpikingAttention):
    """As SSSA with the ticks folded into the features: one score matrix for all ticks (DSFormer, section 4.2).

    A = mask(Q K^T) over ticks * channels features per head, out = LIF(scale * A V), in the paper without scale. So
    tick 0 depends on tick T - 1.
    """

    def mix(self, query: Tensor, key: Tensor, value: Tensor, tokens: TokenRows) -> Tensor:
        """See the class."""
        ticks = query.shape[0]
        with full_precision(query):
            folded = attend(*(self.fold(tokens.unpack(spikes)) for spikes in (query, key, value)))
        current = folded.unflatten(-1, (ticks, -1)).permute(3, 0, 2, 1, 4).flatten(-2)
        spikes: Tensor = self.attention_lif(self.scale * tokens.repack(current))
        return spikes

    def fold(self, padded: Tensor) -> Tensor:
        """(ticks, batch, context, width) -> (batch, heads, context, ticks * channels)."""
        return padded.unflatten(-1, (self.heads, -1)).permute(1, 3, 2, 0, 4).flatten(-2)


class SDSA1(SpikingAttention):
    """out_i = q_i AND LIF(scale * sum_{j<=i} (k AND v)_j) per channel and tick.

    SDSA-1 of Spike-driven Transformer (Yao et al., NeurIPS 2023), whose sum runs over all tokens, made causal. The
    neuron stands before the query's gate.
    """

    def mix(self, query: Tensor, key: Tensor, value: Tensor, tokens: TokenRows) -> Tensor:
        """See the class."""
        summed = tokens.unpack(key * value).cumsum(dim=2)
        spikes: Tensor = query * self.attention_lif(self.scale * tokens.repack(summed))
        return spikes


def exact(spikes: Tensor) -> Tensor:
    """Spikes in a dtype whose sums are exact: bfloat16 would round counts above 256."""
    return spikes.float() if spikes.dtype == torch.bfloat16 else spikes


def full_precision(like: Tensor) -> torch.autocast:
    """No autocast for what happens inside, for the same reason."""
    return torch.autocast(like.device.type, enabled=False)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """mask(Q K^T) V over the last two axes (context, features), causal, without softmax or scale."""
    return (query @ key.transpose(-1, -2)).tril() @ value


ATTENTIONS: dict[AttentionKind, type[SpikingAttention]] = {
    "pssa": PSSA,
    "tssa": TSSA,
    "sssa": SSSA,
    "sdsa1": SDSA1,
    "sdsa3": SSSA,
}


def make_attention(config: ModelConfig) -> SpikingAttention | None:
    """The attention branch a config asks for; None for the ablation without attention."""
    return None if config.attention == "none" else ATTENTIONS[config.attention](config)

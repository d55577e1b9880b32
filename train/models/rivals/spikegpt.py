"""A decision model in the style of SpikeGPT (Zhu et al. 2023, arXiv 2302.13939): RWKV with a neuron behind each branch.

Blocks x += LIF(TimeMix(norm(x))); x += LIF(ChannelMix(norm(x))), where the sequence itself is the neurons' time: a
membrane runs from token to token, one tick each. With z_t = mu x_t + (1 - mu) x_{t-1} (token shift, a mu per use):

    TimeMix:     r, k, v = W_r z, W_k z, W_v z;   y_t = W_o (sigmoid(r_t) * N_t / D_t)
                 N_t = sum_{i<t} e^{k_i - (t-1-i) w} v_i + e^{k_t + u} v_t,   D_t the same without v
    ChannelMix:  y_t = sigmoid(W_r z_t) * W_v relu(W_k z_t)^2

with a decay w > 0 and a bonus u per channel (RWKV, Peng et al. 2023, arXiv 2305.13048). Training computes all tokens at
once, as a softmax over lags; N and D are recurrent, so that inference could be.

"Style", because it differs: one token per environment step with a return-to-go, and a head of actions; neurons are this
project's (decay and threshold of --model; SpikeGPT's code has 1/2 and 1) with a rectangular surrogate, twice as wide as
DSFormer's because SpikeGPT's arctangent never vanishes and its branches start small; initial weights are torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsf.train.config.rivals import RivalConfig
from dsf.train.config.training import ModelConfig
from dsf.train.models.attention import PackedTokens
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.neurons import LIF
from dsf.train.quantization.codec import InputCodec

SURROGATE_WIDTH = 2.0
"""Full width of the surrogate gradient's rectangle (membrane units)."""
SLOWEST, FASTEST = -5.0, 3.0
"""Logarithms of the first and the last channel's decay at the start, as RWKV spreads them."""


class TokenShift(nn.Module):
    """mu x_t + (1 - mu) x_{t-1}, one learned mu per channel, zeros before the first token: (batch, context, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.arange(width) / width)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class; absent tokens must be zero."""
        before = functional.pad(tokens, (0, 0, 1, -1))
        return self.share * tokens + (1.0 - self.share) * before


class TimeMix(nn.Module):
    """Mixes tokens by exponential decay, per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift_r, self.shift_k, self.shift_v = (TokenShift(width) for _ in range(3))
        self.receptance, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.decay = nn.Parameter(torch.linspace(SLOWEST, FASTEST, width))
        self.bonus = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(batch, context, width) with absent tokens zero, (batch, context) -> same shape as the first."""
        gate = torch.sigmoid(self.receptance(self.shift_r(tokens)))
        key, value = self.key(self.shift_k(tokens)), self.value(self.shift_v(tokens))
        weights = torch.softmax(self.preference(mask) + key[:, None], dim=2)
        mixed: Tensor = self.output(gate * (weights * value[:, None]).sum(dim=2))
        return mixed

    def preference(self, mask: Tensor) -> Tensor:
        """What precedes k_i in the exponents, (batch, now, then, width): -inf for absent and future tokens."""
        place = torch.arange(mask.shape[1], device=mask.device)
        lag = (place[:, None] - place[None, :])[..., None]
        faded = -(lag - 1) * torch.exp(self.decay)
        known = torch.where(lag == 0, self.bonus, faded)
        visible = (mask[:, None, :, None] & (lag > 0)) | (lag == 0)  # an absent token sees itself: no NaN
        return known.masked_fill(~visible, float("-inf"))


class ChannelMix(nn.Module):
    """RWKV's MLP, with a gate: (batch, context, width) -> same shape."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.shift_r, self.shift_k = TokenShift(width), TokenShift(width)
        self.receptance = nn.Linear(width, width, bias=False)
        self.key, self.value = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class; absent tokens must be zero."""
        squared = torch.relu(self.key(self.shift_k(tokens))).square()
        output: Tensor = torch.sigmoid(self.receptance(self.shift_r(tokens))) * self.value(squared)
        return output


class SpikeGptBlock(nn.Module):
    """x += LIF(TimeMix(norm(x))); x += LIF(ChannelMix(norm(x)))."""

    def __init__(self, rival: RivalConfig, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = rival.sizes
        self.time_norm, self.channel_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.time_mix, self.channel_mix = TimeMix(width), ChannelMix(width, hidden)
        self.time_lif, self.channel_lif = (LIF(config.decay, config.threshold, SURROGATE_WIDTH) for _ in range(2))

    def forward(self, rows: Tensor, tokens: PackedTokens) -> Tensor:
        """(rows, width) -> same shape."""
        mixed = self.time_mix(unpacked(self.time_norm(rows), tokens), tokens.mask)
        rows = rows + along_tokens(self.time_lif, mixed, tokens)
        return rows + along_tokens(
            self.channel_lif, self.channel_mix(unpacked(self.channel_norm(rows), tokens)), tokens
        )


def unpacked(rows: Tensor, tokens: PackedTokens) -> Tensor:
    """(rows, width) -> (batch, context, width), zero at absent tokens."""
    return tokens.unpack(rows[None])[0]


def along_tokens(lif: LIF, drive: Tensor, tokens: PackedTokens) -> Tensor:
    """Spikes (rows, width) of neurons whose membrane runs along (batch, context, width), from the first token on."""
    driven = torch.where(tokens.mask[..., None], drive, 0.0).transpose(0, 1).contiguous()
    return tokens.repack(lif(driven).transpose(0, 1)[None])[0]


class SpikeGPT(DecisionModel):
    """The policy.

    Args:
        rival: with ``width`` and ``mlp_hidden`` set.
        config, codec, action_size, discrete: see :class:`~dsf.train.models.decision_model.DecisionModel`.
    """

    kind = "spikegpt"

    def __init__(
        self, rival: RivalConfig, config: ModelConfig, codec: InputCodec, action_size: int, discrete: bool = False
    ) -> None:
        super().__init__(config, codec, action_size, discrete)
        width, _ = rival.sizes
        self.rival = rival
        self.embed = nn.Linear(len(codec.unit), width)
        self.embed_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(SpikeGptBlock(rival, config) for _ in range(config.blocks))
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, action_size)

    def decide(self, integers: Tensor, tokens: PackedTokens) -> Tensor:
        """See the base class."""
        rows = self.embed_norm(self.embed(integers * self.input_unit))
        for block in self.blocks:
            rows = block(rows, tokens)
        return self.squash(self.head(self.final_norm(rows)))

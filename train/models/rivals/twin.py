"""DSFormer's dense twin: the same MetaFormer without spikes, so that what spikes cost can be read off the difference.

One token per environment step, the same width, blocks and MLP, x += attention(x); x += MLP(x). What differs: LayerNorm
in front of each branch instead of a neuron, softmax attention over all earlier tokens instead of spikes' coincidences,
ReLU instead of the hidden neurons, one pass instead of T ticks. A learned bias over lags is added to the scores, as
PSSA's bias over lags multiplies its coincidences (DSFormer Eq. 7); there is no table of steps. Dropout has no place
here, because DSFormer has none.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsf.train.config.rivals import RivalConfig
from dsf.train.config.training import ModelConfig
from dsf.train.models.attention import PackedTokens
from dsf.train.models.decision_model import DecisionModel
from dsf.train.quantization.codec import InputCodec


class TwinAttention(nn.Module):
    """softmax(Q K^T / sqrt(d) + b_{i-j}) V over the tokens j <= i that exist, per head."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.lag_bias = nn.Embedding(context, heads)
        nn.init.zeros_(self.lag_bias.weight)

    def forward(self, rows: Tensor, tokens: PackedTokens) -> Tensor:
        """Map packed (rows, width) to the same shape."""
        padded = tokens.unpack(self.qkv(rows)[None])[0]
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in padded.chunk(3, dim=-1))
        scores = self.scores_added(tokens).to(query.dtype)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=scores)
        output: Tensor = self.project(tokens.repack(mixed.transpose(1, 2).flatten(-2)[None])[0])
        return output

    def scores_added(self, tokens: PackedTokens) -> Tensor:
        """What is added to the scores, (batch, heads, context, context): the lag's bias, or -inf for who is not seen.

        Absent tokens see themselves, so that their softmax is defined; nobody sees them.
        """
        place = torch.arange(tokens.mask.shape[1], device=tokens.mask.device)
        lag = place[:, None] - place[None, :]
        seen = ((lag >= 0) & tokens.mask[:, None, :]) | (lag == 0)
        bias = cast(Tensor, self.lag_bias(lag.clamp(min=0))).permute(2, 0, 1)
        return torch.where(seen[:, None], bias, -torch.inf)


class TwinBlock(nn.Module):
    """x += attention(norm(x)); x += MLP(norm(x))."""

    def __init__(self, width: int, hidden: int, heads: int, context: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = TwinAttention(width, heads, context)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, rows: Tensor, tokens: PackedTokens) -> Tensor:
        """Packed (rows, width) -> same shape."""
        rows = rows + self.attention(self.attention_norm(rows), tokens)
        output: Tensor = rows + self.contract(torch.relu(self.expand(self.mlp_norm(rows))))
        return output


class Twin(DecisionModel):
    """The policy.

    Args:
        rival: with ``width`` and ``mlp_hidden`` set: DSFormer's own, unless told otherwise.
        config, codec, action_size, discrete: see :class:`~dsf.train.models.decision_model.DecisionModel`.
    """

    kind = "twin"

    def __init__(
        self, rival: RivalConfig, config: ModelConfig, codec: InputCodec, action_size: int, discrete: bool = False
    ) -> None:
        super().__init__(config, codec, action_size, discrete)
        width, hidden = rival.sizes
        self.rival = rival
        self.embed = nn.Linear(len(codec.unit), width)
        self.embed_norm = nn.LayerNorm(width)
        blocks = (TwinBlock(width, hidden, rival.heads, config.context) for _ in range(config.blocks))
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, action_size)

    def decide(self, integers: Tensor, tokens: PackedTokens) -> Tensor:
        """See the base class."""
        rows = self.embed_norm(self.embed(integers * self.input_unit))
        for block in self.blocks:
            rows = block(rows, tokens)
        return self.squash(self.head(self.final_norm(rows)))

"""Decision Transformer (Chen et al., NeurIPS 2021, arXiv 2106.01345), the dense rival of the same data and size.

Three tokens per environment step (return-to-go, observation, action), a learned embedding of the episode's step added
to each, causal blocks of softmax attention and MLP with LayerNorm in front, and the action read from the observation's
token through tanh (section 3 and algorithm 1 there). ReLU, one head and dropout 0.1 are those of its Gym experiments;
weights start as GPT-2's.

Our window has the action *before* each observation, so the sequence is a_{t-1}, R_t, s_t: what precedes s_t is what
precedes it there. The first action of a window is left out, because there a window starts with a return. What differs:
inputs are this project's standardised 8-bit integers, as every model's here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsf.train.config.rivals import RivalConfig
from dsf.train.config.training import ModelConfig
from dsf.train.models.attention import PackedTokens
from dsf.train.models.decision_model import DecisionModel
from dsf.train.quantization.codec import InputCodec

PER_STEP = 3
"""Tokens for one environment step."""
INITIAL_DEVIATION = 0.02
"""Standard deviation of weights and embeddings at the start, GPT-2's."""


class CausalAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over the tokens that exist and are not in the future, per head."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor, allowed: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape; ``allowed`` is (batch, 1, length, length): may i see j."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
        output: Tensor = self.project(mixed.transpose(1, 2).flatten(-2))
        return output


class TransformerBlock(nn.Module):
    """x += attention(norm(x)); x += MLP(norm(x))."""

    def __init__(self, rival: RivalConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, rival.heads, rival.dropout)
        self.mlp_norm = nn.LayerNorm(width)
        activation = nn.ReLU() if rival.activation == "relu" else nn.GELU()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, width))
        self.drop = nn.Dropout(rival.dropout)

    def forward(self, tokens: Tensor, allowed: Tensor) -> Tensor:
        """(batch, length, width) -> same shape."""
        tokens = tokens + self.drop(self.attention(self.attention_norm(tokens), allowed))
        output: Tensor = tokens + self.drop(self.mlp(self.mlp_norm(tokens)))
        return output


class DecisionTransformer(DecisionModel):
    """The policy.

    Args:
        rival: with ``width`` and ``mlp_hidden`` set.
        config, codec, action_size, discrete: see :class:`~dsf.train.models.decision_model.DecisionModel`.
        steps: of the longest episode; later steps share the last embedding.
    """

    kind = "dt"

    def __init__(
        self,
        rival: RivalConfig,
        config: ModelConfig,
        codec: InputCodec,
        action_size: int,
        discrete: bool = False,
        steps: int = 1000,
    ) -> None:
        super().__init__(config, codec, action_size, discrete)
        width, hidden = rival.sizes
        self.rival, self.randomised = rival, rival.dropout > 0.0
        self.embed_action = nn.Linear(action_size, width)
        self.embed_return = nn.Linear(1, width)
        self.embed_observation = nn.Linear(len(codec.unit) - action_size - 1, width)
        self.embed_step = nn.Embedding(steps, width)
        self.embed_norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(rival.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(rival, width, hidden) for _ in range(config.blocks))
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, action_size)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def decide(self, integers: Tensor, tokens: PackedTokens) -> Tensor:
        """See the base class."""
        sequence, allowed = self.embed(tokens.unpack((integers * self.input_unit)[None])[0], tokens)
        for block in self.blocks:
            sequence = block(sequence, allowed)
        observations = sequence[:, PER_STEP - 1 :: PER_STEP]
        return self.squash(self.head(self.final_norm(tokens.repack(observations[None])[0])))

    def embed(self, padded: Tensor, tokens: PackedTokens) -> tuple[Tensor, Tensor]:
        """The sequence (batch, 3 * context, width) of windows (batch, context, features), and who may see whom."""
        sizes = (padded.shape[-1] - self.action_size - 1, self.action_size, 1)
        observation, action, to_go = padded.split(sizes, dim=-1)
        last = self.embed_step.num_embeddings - 1
        step = tokens.timesteps()
        now, before = (self.embed_step(index.clamp(0, last)) for index in (step, step - 1))
        parts = (
            self.embed_action(action) + before,
            self.embed_return(to_go) + now,
            self.embed_observation(observation) + now,
        )
        sequence = torch.stack(parts, dim=2).flatten(1, 2)
        return self.drop(self.embed_norm(sequence)), causal_mask(tokens.mask)


def causal_mask(mask: Tensor) -> Tensor:
    """Which of a window's tokens may see which, (batch, 1, 3 * context, 3 * context), from (batch, context).

    Absent tokens see themselves alone, so that their softmax is defined; nobody sees them.
    """
    first = mask & (mask.long().cumsum(dim=1) == 1)
    present = torch.stack((mask & ~first, mask, mask), dim=2).flatten(1)
    length = present.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)
    return ((past & present[:, None, :]) | itself)[:, None]

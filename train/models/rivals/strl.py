"""STRL (Spike-Transformer RL, arXiv 2505.14533) as published, and its causal form.

One token per step: the embeddings of state, previous action, return-to-go, the episode's step and the place in the
sequence are added up. Blocks are x += attention(norm(x)); x += MLP(norm(x)) on a float stream with LayerNorm. Inside a
sublayer the stream is held for T ticks: Q, K and V are spikes of multi-step LIF neurons, so are the scores, over which
a softmax is taken all the same; both layers of the MLP fire; each sublayer ends with the mean over its ticks.

Details come from public code that matches the paper (its authors are inferred): no projection behind attention, no norm
in front of the head, dropout on the embeddings alone, Q, K and V without bias. That code has no mask of any kind. Here
padding is masked, because it stands in front of our windows, and ``rival.strl.attention`` says whether the future is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsf.train.config.rivals import RivalConfig
from dsf.train.config.strl import StrlConfig
from dsf.train.config.training import ModelConfig
from dsf.train.models.attention import PackedTokens
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.rivals.sigmoid_neuron import SigmoidLIF
from dsf.train.quantization.codec import InputCodec

PLACE_DEVIATION = 0.02
"""Standard deviation of the embeddings of places at the start."""


class HeldReLU(nn.Module):
    """ReLU where a :class:`~dsf.train.models.rivals.sigmoid_neuron.SigmoidLIF` was: the dense control has one tick."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, currents: Tensor) -> Tensor:
        """Currents (1, ...) -> same shape."""
        return torch.relu(self.scale * currents)

    def hold(self, current: Tensor, ticks: int) -> Tensor:
        """A current (...), held for one tick -> (1, ...)."""
        return torch.relu(self.scale * current).expand(ticks, *current.shape)


def make_neurons(config: StrlConfig, scale: float = 1.0) -> SigmoidLIF | HeldReLU:
    """The neurons of a config, or what stands in their place."""
    return SigmoidLIF(config.tau, config.threshold, scale=scale) if config.neurons == "on" else HeldReLU(scale)


class StrlAttention(nn.Module):
    """mean over ticks of softmax(LIF(Q K^T / sqrt(d))) V, with Q, K, V spikes, per head."""

    def __init__(self, rival: RivalConfig, width: int) -> None:
        super().__init__()
        self.heads, self.ticks = rival.heads, rival.strl.passes
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.qkv_lif = make_neurons(rival.strl)
        self.score_lif = make_neurons(rival.strl, scale=(width // rival.heads) ** -0.5)

    def forward(self, stream: Tensor, unseen: Tensor, tokens: PackedTokens) -> Tensor:
        """Map (rows, width) to the same shape; ``unseen`` is (batch, 1, length, length): -inf where i may not see j."""
        currents = tokens.unpack(self.qkv(stream)[None])[0]
        # Heads come first while there is one tick: those of every head and tick then lie as matrix products want them.
        parts = currents.unflatten(-1, (3, self.heads, -1)).permute(0, 3, 2, 1, 4)
        query, key, value = self.qkv_lif.hold(parts.contiguous(), self.ticks).unbind(dim=3)
        weights = (self.score_lif(query @ key.transpose(-2, -1)) + unseen).softmax(dim=-1)
        output = (weights @ value).mean(dim=0).transpose(-3, -2).flatten(-2)
        return tokens.repack(output[None])[0]


class StrlMLP(nn.Module):
    """mean over ticks of LIF(Linear(LIF(Linear(x))))."""

    def __init__(self, rival: RivalConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.ticks = rival.strl.passes
        self.expand, self.hidden_lif = nn.Linear(width, hidden), make_neurons(rival.strl)
        self.contract, self.output_lif = nn.Linear(hidden, width), make_neurons(rival.strl)

    def forward(self, stream: Tensor) -> Tensor:
        """(rows, width) -> same shape."""
        hidden = self.hidden_lif.hold(self.expand(stream), self.ticks)
        output: Tensor = self.output_lif(self.contract(hidden)).sum(dim=0) / self.ticks  # sends one gradient to all
        return output


class StrlBlock(nn.Module):
    """x += attention(norm(x)); x += MLP(norm(x))."""

    def __init__(self, rival: RivalConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), StrlAttention(rival, width)
        self.mlp_norm, self.mlp = nn.LayerNorm(width), StrlMLP(rival, width, hidden)

    def forward(self, stream: Tensor, unseen: Tensor, tokens: PackedTokens) -> Tensor:
        """(rows, width) -> same shape."""
        stream = stream + self.attention(self.attention_norm(stream), unseen, tokens)
        output: Tensor = stream + self.mlp(self.mlp_norm(stream))
        return output


class Strl(DecisionModel):
    """The policy.

    In the closed loop a window ends at the present, so the bidirectional form has no future to see there: earlier
    tokens see what came after them, the last one decides from the past alone, which it was never trained to do except
    at the ends of windows.

    Args:
        rival: with ``width`` and ``mlp_hidden`` set.
        config, codec, action_size, discrete: see :class:`~dsf.train.models.decision_model.DecisionModel`.
        steps: of the longest episode; later steps share the last embedding.
    """

    kind = "strl"

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
        # One Linear over the whole token is the sum of its parts' embeddings.
        self.embed_token = nn.Linear(len(codec.unit), width)
        self.embed_step = nn.Embedding(steps, width)
        self.embed_place = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.context, width), std=PLACE_DEVIATION))
        self.drop = nn.Dropout(rival.dropout)
        self.embed_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(StrlBlock(rival, width, hidden) for _ in range(config.blocks))
        self.head = nn.Linear(width, action_size)

    def decide(self, integers: Tensor, tokens: PackedTokens) -> Tensor:
        """See the base class."""
        padded = self.embed(tokens.unpack((integers * self.input_unit)[None])[0], tokens)
        allowed, stream = attention_mask(tokens.mask, causal=self.causal), tokens.repack(padded[None])[0]
        unseen = torch.zeros(allowed.shape, dtype=stream.dtype, device=stream.device).masked_fill(~allowed, -torch.inf)
        for block in self.blocks:
            stream = block(stream, unseen, tokens)
        return self.squash(self.head(stream))

    def counts_events(self, linear: str) -> bool:
        """The MLP's second layer reads the hidden neurons' spikes; every other Linear reads the float stream."""
        assert self.rival is not None
        return self.rival.strl.neurons == "on" and linear.endswith("mlp.contract")

    @property
    def ticks(self) -> int:
        """See the base class; ``rival.strl.ticks``, and 1 without neurons."""
        assert self.rival is not None
        return self.rival.strl.passes

    @property
    def causal(self) -> bool:
        """Whether a token sees nothing that comes after it."""
        return self.rival is not None and self.rival.strl.attention == "causal"

    def embed(self, padded: Tensor, tokens: PackedTokens) -> Tensor:
        """The stream (batch, context, width) of windows (batch, context, features)."""
        step = tokens.timesteps().clamp(0, self.embed_step.num_embeddings - 1)
        place = (tokens.mask.long().cumsum(dim=1) - 1).clamp(min=0)
        parts = self.embed_token(padded) + self.embed_step(step) + self.embed_place[place]
        stream: Tensor = self.embed_norm(self.drop(parts))
        return stream


def attention_mask(mask: Tensor, causal: bool) -> Tensor:
    """Which of a window's tokens may see which, (batch, 1, context, context), from (batch, context).

    Absent tokens see themselves as well, so that their softmax is defined; nobody else sees them.
    """
    length = mask.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)
    seen = mask[:, None, :].expand(-1, length, -1)
    if causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return (seen | itself)[:, None]

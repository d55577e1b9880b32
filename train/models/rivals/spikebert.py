"""A decision model in the style of SpikeBERT (Lv et al. 2023, arXiv 2308.15122), a Spikformer for language.

Spikformer's block (Zhou et al., ICLR 2023, arXiv 2209.15425) with SpikeBERT's LayerNorm in place of batch norm: every
Linear and its norm end in a LIF (written L below), shortcuts add spikes up, and attention has no softmax:

    L(x) = LIF(norm(Linear(x)));   q, k, v = L(x), each with its own weights
    x += L(LIF(s * mask(Q K^T) V));   x += L(L(x))

with s = 1/8 as there, per head and tick. The embedding is held for T ticks and fired; the mean over ticks is read out.

"Style", because it differs: the mask makes it causal, since a policy decides at every step (SpikeBERT reads in both
directions); one token per environment step; no distillation from BERT, which is how SpikeBERT is trained; no embedding
of positions, as DSFormer has none; neurons are this project's (decay and threshold of --model, rectangular surrogate).
"""

from __future__ import annotations

from torch import Tensor, nn

from dsf.train.config.rivals import RivalConfig
from dsf.train.config.training import ModelConfig
from dsf.train.models.attention import PackedTokens, attend
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.neurons import LIF
from dsf.train.quantization.codec import InputCodec

SCALE = 0.125
"""Factor on attention's sum before its neuron, Spikformer's."""


class SpikingLayer(nn.Module):
    """LIF(norm(Linear(x))): (ticks, rows, inputs) -> spikes (ticks, rows, outputs)."""

    def __init__(self, inputs: int, outputs: int, config: ModelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.LayerNorm(outputs)
        self.lif = LIF(config.decay, config.threshold)

    def forward(self, values: Tensor) -> Tensor:
        """See the class."""
        spikes: Tensor = self.lif(self.norm(self.linear(values)))
        return spikes


class SpikingSelfAttention(nn.Module):
    """LIF(norm(Linear(LIF(s * mask(Q K^T) V)))) of spikes q, k and v."""

    def __init__(self, width: int, heads: int, config: ModelConfig) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (SpikingLayer(width, width, config) for _ in range(3))
        self.attention_lif = LIF(config.decay, config.threshold)
        self.project = SpikingLayer(width, width, config)

    def forward(self, values: Tensor, tokens: PackedTokens) -> Tensor:
        """(ticks, rows, width) -> spikes of the same shape."""
        parts = [
            tokens.unpack(layer(values)).unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = attend(*parts).transpose(2, 3).flatten(-2)
        spikes: Tensor = self.project(self.attention_lif(SCALE * tokens.repack(mixed)))
        return spikes


class SpikeBertBlock(nn.Module):
    """x += attention(x); x += MLP(x), both of spikes: x counts them."""

    def __init__(self, rival: RivalConfig, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = rival.sizes
        self.attention = SpikingSelfAttention(width, rival.heads, config)
        self.expand = SpikingLayer(width, hidden, config)
        self.contract = SpikingLayer(hidden, width, config)

    def forward(self, counts: Tensor, tokens: PackedTokens) -> Tensor:
        """(ticks, rows, width) -> same shape."""
        counts = counts + self.attention(counts, tokens)
        output: Tensor = counts + self.contract(self.expand(counts))
        return output


class SpikeBERT(DecisionModel):
    """The policy.

    Args:
        rival: with ``width`` and ``mlp_hidden`` set.
        config, codec, action_size, discrete: see :class:`~dsf.train.models.decision_model.DecisionModel`.
    """

    kind = "spikebert"

    def __init__(
        self, rival: RivalConfig, config: ModelConfig, codec: InputCodec, action_size: int, discrete: bool = False
    ) -> None:
        super().__init__(config, codec, action_size, discrete)
        width, _ = rival.sizes
        self.rival = rival
        self.embed = nn.Linear(len(codec.unit), width)
        self.embed_norm = nn.LayerNorm(width)
        self.embed_lif = LIF(config.decay, config.threshold)
        self.blocks = nn.ModuleList(SpikeBertBlock(rival, config) for _ in range(config.blocks))
        self.head = nn.Linear(width, action_size)

    def counts_events(self, linear: str) -> bool:
        """Those inside the blocks read spikes, or counts of spikes: an event for each."""
        return linear.startswith("blocks.")

    def decide(self, integers: Tensor, tokens: PackedTokens) -> Tensor:
        """See the base class."""
        embedding = self.embed_norm(self.embed(integers * self.input_unit))
        counts = self.embed_lif(embedding.expand(self.config.ticks, *embedding.shape))
        for block in self.blocks:
            counts = block(counts, tokens)
        return self.squash(self.head(counts.mean(dim=0)))

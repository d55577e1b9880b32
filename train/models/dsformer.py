"""Decision SpikeFormer (DSFormer): a return-conditioned policy whose Linears see only spikes.

One token per environment step (observation, previous action, return-to-go) is embedded, held for T inner ticks on a
real-valued residual stream, and passed through L blocks x += attention(x); x += MLP(x). Every branch starts with a LIF
on the residual and every Linear is followed by a norm that export folds into it. Source: arXiv 2504.03800, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsf.train.config.training import ModelConfig
from dsf.train.models.attention import TokenRows, make_attention
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.neurons import LIF, learned_decays, residual_neurons
from dsf.train.models.norm import make_norm
from dsf.train.quantization.codec import InputCodec


class MLP(nn.Module):
    """norm(Linear(LIF(norm(Linear(LIF(x)))))) with ``mlp_ratio`` times the width in the middle."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.width * config.mlp_ratio
        self.input_lif = residual_neurons(config)
        self.expand = nn.Linear(width, hidden, bias=False)
        self.expand_norm = make_norm(config.norm, hidden, config.threshold)
        self.hidden_lif = LIF(config.decay, config.threshold, decays=learned_decays(config, hidden))
        self.contract = nn.Linear(hidden, width, bias=False)
        self.contract_norm = make_norm(config.norm, width, config.threshold)

    def forward(self, residual: Tensor) -> Tensor:
        """Map the residual stream (ticks, rows, width) to this branch's contribution, same shape."""
        hidden = self.hidden_lif(self.expand(self.input_lif(residual)), self.expand_norm)
        output: Tensor = self.contract_norm(self.contract(hidden))
        return output


class Block(nn.Module):
    """x += attention(x); x += MLP(x): the membrane shortcut keeps the residual real-valued."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = make_attention(config)
        self.mlp = MLP(config)

    def forward(self, residual: Tensor, tokens: TokenRows) -> Tensor:
        """(ticks, rows, width) -> same shape."""
        if self.attention is not None:
            residual = residual + self.attention(residual, tokens)
        output: Tensor = residual + self.mlp(residual)
        return output


class DSFormer(DecisionModel):
    """The policy; see :class:`~dsf.train.models.decision_model.DecisionModel` for its arguments, inputs and outputs."""

    def __init__(self, config: ModelConfig, codec: InputCodec, action_size: int, discrete: bool = False) -> None:
        super().__init__(config, codec, action_size, discrete)
        # A batch norm would take a bias away again; a LayerNorm, which norms over channels, does not.
        self.embed = nn.Linear(len(codec.unit), config.width, bias=config.embed_norm == "layernorm")
        self.embed_norm = make_norm(config.embed_norm, config.width, config.threshold)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.final_norm = make_norm(config.norm, config.width, config.threshold)
        self.head = nn.Linear(config.width, action_size)

    def counts_events(self, linear: str) -> bool:
        """Those inside the blocks do, and no other."""
        return linear.startswith("blocks.")

    def may_idle(self, population: str) -> bool:
        """Attention's own neurons may: they have no bias, and count coincidences."""
        return population.endswith(".attention_lif")

    def decide(self, integers: Tensor, tokens: TokenRows) -> Tensor:
        """Actions (rows, action_size) for packed tokens (rows, features): the whole network but the padding.

        Under autocast, embedding and head stay in full precision: their inputs are no spikes, and they are small.
        """
        with torch.autocast(integers.device.type, enabled=False):
            embedding = self.embed_norm(self.embed(integers * self.input_unit))
        residual = embedding.expand(self.config.ticks, *embedding.shape)
        for block in self.blocks:
            residual = block(residual, tokens)
        with torch.autocast(integers.device.type, enabled=False):
            output: Tensor = self.head(self.final_norm(residual).mean(dim=0))
        return self.squash(output)

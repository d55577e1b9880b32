"""What the trainer, the closed loop and checkpoints need of a model: DSFormer and its rivals are all one of these."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsf.train.config.rivals import PolicyKind, RivalConfig
from dsf.train.config.training import ModelConfig
from dsf.train.models.attention import PackedTokens
from dsf.train.quantization.codec import InputCodec


class DecisionModel(nn.Module):
    """Maps windows of tokens to actions in (-1, 1), or to scores (logits) of choices. Inputs are the codec's integers.

    Args:
        config: sizes; a rival takes from it what it shares with DSFormer, the context for one.
        codec: quantizes tokens; its ``unit`` turns the integers back into standard deviations.
        action_size: length of the action vector, or number of choices.
        discrete: whether the head scores choices instead of squashing an action vector.
    """

    input_unit: Tensor
    kind: PolicyKind = "dsformer"
    """Which policy this is."""
    rival: RivalConfig | None = None
    """Every size of a rival; None for DSFormer."""
    weight_bits: int | None = None
    """Signed width of the weights that a rival computes with in quantization-aware training; None: floats."""
    engine: str = "torch"
    """What decides, as a score says it: a copy with real integers names their width."""
    randomised: bool = False
    """Whether a forward pass in training draws random numbers (dropout)."""

    def __init__(self, config: ModelConfig, codec: InputCodec, action_size: int, discrete: bool = False) -> None:
        super().__init__()
        self.config, self.codec, self.action_size, self.discrete = config, codec, action_size, discrete
        self.register_buffer("input_unit", torch.tensor(codec.unit, dtype=torch.float32))

    def forward(self, integers: Tensor, mask: Tensor, ends: Tensor | None = None) -> Tensor:
        """Actions for every token of a window.

        Args:
            integers: (batch, context, features), the codec's output in float32.
            mask: (batch, context), true where a token exists. Padding may stand anywhere before the first token.
            ends: (batch,), the episode's step of each window's last token; None: windows begin with their episodes.

        Returns:
            (batch, context, action_size); entries of absent tokens are zero.
        """
        tokens = PackedTokens(mask, ends)
        actions = self.decide(tokens.pack(integers), tokens)
        return tokens.unpack(actions[None])[0]

    def decide(self, integers: Tensor, tokens: PackedTokens) -> Tensor:
        """Actions (rows, action_size) for packed tokens (rows, features): the whole network but the padding."""
        raise NotImplementedError

    @property
    def ticks(self) -> int:
        """Ticks per token of its spiking neurons, where it has any."""
        return self.config.ticks

    @property
    def causal(self) -> bool:
        """Whether a token sees nothing that comes after it."""
        return True

    def counts_events(self, linear: str) -> bool:
        """Whether the Linear of this name reads spikes, so that its synaptic events can be counted."""
        return False

    def may_idle(self, population: str) -> bool:
        """Whether the neurons of this name can have nothing to do at a tick: no current, no bias, no membrane."""
        return False

    def is_prunable(self, linear: str) -> bool:
        """Whether pruning may set weights of the Linear of this name to zero: those that see tokens or write actions
        are few, and stay whole.
        """
        return linear.startswith("blocks.")

    def squash(self, output: Tensor) -> Tensor:
        """What the head's output (rows, action_size) means: scores as they are, actions through tanh."""
        return output if self.discrete else torch.tanh(output)

    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return sum(parameter.numel() for parameter in self.parameters())

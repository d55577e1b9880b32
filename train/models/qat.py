"""Quantization-aware training: the network computes with its integers' values, gradients pass straight through.

The parameters stay floats (folded weights and biases, no norms). Every forward pass sends them through
:mod:`dsf.train.quantization.layers`, so that ``dsf-export`` finds in them exactly the integers they were trained with.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call  # type: ignore[attr-defined]  # torch 2.3 does not list it

from dsf.shell.arrays import FloatArray
from dsf.train.config.training import ModelConfig
from dsf.train.models.attention import PSSA, TokenRows
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.dsformer import Block, DSFormer
from dsf.train.models.folding import float64, fold_norms
from dsf.train.models.neurons import LIF
from dsf.train.quantization.codec import InputCodec
from dsf.train.quantization.integers import Affine, Integers, WindowIntegers
from dsf.train.quantization.layers import (
    decay_logits,
    decays_of,
    embed_integers,
    head_integers,
    learned_decays,
    learned_thresholds,
    lif_integers,
    residual_integers,
    window_integers,
)
from dsf.train.quantization.rounding import QuantizationConfig
from dsf.train.quantization.scales import Scales, decay_units

Model = TypeVar("Model", bound=DecisionModel)


class _StraightThrough(torch.autograd.Function):
    """``value`` forward; backward, the gradient goes to ``parameter`` as it comes."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _PlainDecision(nn.Module):
    """The network's own ``decide``, as the ``forward`` that torch's functional_call asks for."""

    def __init__(self, model: DSFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, integers: Tensor, tokens: TokenRows) -> Tensor:
        return DSFormer.decide(self.model, integers, tokens)


class QuantizedDSFormer(DSFormer):
    """A DSFormer without norms whose ``decide`` uses the values of its parameters' integers.

    What floats cannot say is left out: a sum that is shifted right rounds down on the chip, and so does the leak.

    Args:
        config: architecture; its norms are the ones that were folded.
        codec: see :class:`~dsf.train.models.decision_model.DecisionModel`.
        action_size: length of the action vector.
        discrete: whether the head scores choices.
        bits: signed width of the weights.
        threshold_units: firing threshold in units of the residual; fixed, so that biases keep their grid.
        per_channel: see :class:`~dsf.train.quantization.rounding.QuantizationConfig`.

    Raises:
        UserError: a norm cannot be folded, or bits or decay have no integers.
    """

    def __init__(
        self,
        config: ModelConfig,
        codec: InputCodec,
        action_size: int,
        discrete: bool = False,
        *,
        bits: int,
        threshold_units: int,
        per_channel: bool = True,
    ) -> None:
        super().__init__(config, codec, action_size, discrete)
        rules = QuantizationConfig(bits, per_channel)
        decay = decay_units(config.decay, only_start=config.learn_decays)
        self.scales = Scales(bits, config.threshold, threshold_units, decay, config=rules)
        fold_norms(self)

    def decide(self, integers: Tensor, tokens: TokenRows) -> Tensor:
        """As the base class, with the integers' values in place of the parameters."""
        parameters = dict(self.named_parameters())
        values = {
            f"model.{name}": _StraightThrough.apply(parameters[name], torch.from_numpy(value).to(parameters[name]))
            for name, value in self.values().items()
        }
        output: Tensor = functional_call(_PlainDecision(self), values, (integers, tokens))
        return output

    def integers(self) -> dict[str, Integers]:
        """The integers of every layer, by the name of the network's node that they become.

        Raises:
            UserError: a parameter has left the range of the integers.
        """
        embed, unit = affine(self.embed), float64(self.input_unit)
        found: dict[str, Integers] = {
            "embed": embed_integers(Affine(embed.weight * unit, embed.bias), self.codec.bits, self.scales)
        }
        for index, module in enumerate(self.blocks):
            block, name = cast(Block, module), f"blocks.{index}"
            attention, mlp, expand = block.attention, block.mlp, f"{name}.mlp.expand"
            if attention is not None:
                qkv, window = f"{name}.attention.qkv", f"{name}.attention.window"
                found[qkv] = lif_integers(affine(attention.qkv), self.scales, qkv)
                found[f"{name}.attention.project"] = residual_integers(affine(attention.project), self.scales)
                if isinstance(attention, PSSA):
                    found[window] = window_integers(float64(attention.effective_bias), self.scales, window)
            found[expand] = lif_integers(affine(mlp.expand), self.scales, expand)
            found[f"{name}.mlp.contract"] = residual_integers(affine(mlp.contract), self.scales)
        found["readout"] = head_integers(affine(self.head), self.scales, self.discrete)
        return found

    def values(self) -> dict[str, FloatArray]:
        """What each parameter is worth as integers, by the parameter's name."""
        values: dict[str, FloatArray] = {}
        for node, integers in self.integers().items():
            if isinstance(integers, WindowIntegers):
                values[f"{node.removesuffix('window')}positional_bias"] = integers.dequantized()
                continue
            layer, worth = "head" if node == "readout" else node, integers.dequantized()
            unit = float64(self.input_unit) if node == "embed" else 1.0
            values[f"{layer}.weight"], values[f"{layer}.bias"] = worth.weight / unit, worth.bias
        for name, neurons in self.named_modules():
            if not isinstance(neurons, LIF):
                continue
            if neurons.log_threshold is not None:
                shared = self.scales.residual_thresholds(len(neurons.log_threshold))
                thresholds = learned_thresholds(float64(neurons.log_threshold), shared)
                values[f"{name}.log_threshold"] = np.log(thresholds / shared)
            if neurons.logit_decay is not None:
                common = self.config.decay
                lost = learned_decays(decays_of(common, float64(neurons.logit_decay)))
                values[f"{name}.logit_decay"] = decay_logits(common, lost)
        return values

    def dequantized(self) -> DSFormer:
        """An ordinary model in evaluation mode that decides as this one, without quantizing for every decision."""
        model = DSFormer(self.config, self.codec, self.action_size, self.discrete).to(self.input_unit)
        fold_norms(model)
        values = {name: torch.from_numpy(value) for name, value in self.values().items()}
        model.load_state_dict({**self.state_dict(), **values})
        return model.eval()

    def to_json(self) -> dict[str, int | bool]:
        """What the checkpoint's header says of the quantization."""
        scales = self.scales
        return {
            "bits": scales.bits,
            "threshold_units": scales.threshold_units,
            "per_channel": scales.rules.per_channel,
        }


def affine(linear: nn.Linear) -> Affine:
    """A Linear's weight and bias in float64."""
    return Affine(float64(linear.weight), float64(linear.bias))


def quantization_aware(model: DSFormer, bits: int, threshold_units: int, per_channel: bool = True) -> QuantizedDSFormer:
    """A trained float model, folded and ready for quantization-aware training; ``model`` stays as it is.

    Raises:
        UserError: see :class:`QuantizedDSFormer`.
    """
    folded = copy.deepcopy(model)
    fold_norms(folded)
    quantized = QuantizedDSFormer(
        model.config,
        model.codec,
        model.action_size,
        model.discrete,
        bits=bits,
        threshold_units=threshold_units,
        per_channel=per_channel,
    )
    quantized.load_state_dict(folded.state_dict())
    return quantized.to(model.input_unit)


def deployed(model: Model) -> Model | DSFormer:
    """What ``model`` is as a policy: itself, or the network that its integers stand for."""
    return model.dequantized() if isinstance(model, QuantizedDSFormer) else model

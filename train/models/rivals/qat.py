"""Quantization-aware training of a dense rival: every Linear computes with integers, gradients pass straight through.

The parameters stay floats. In every forward pass a Linear rounds its weights and its inputs as
:mod:`dsf.train.models.rivals.int8` does and multiplies the integers, so that its answers are bit for bit those of
:class:`~dsf.train.models.rivals.int8.Int8Linear`. Backward, the rounding is taken for the identity (straight-through
estimator, Bengio et al. 2013, arXiv 1308.3432) and the scales for constants; no value lies outside its grid, whose ends
are the largest weight and the largest input, so that no gradient is cut off.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.rivals.int8 import (
    ACTIVATION_BITS,
    int8_product,
    replace_linears,
    require_linears,
    to_int8,
    weight_limit,
)


class _IntegerProduct(torch.autograd.Function):
    """Inputs (..., n) times weight (outputs, n), both rounded; backward as if the rounded values had been given."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bits: int) -> Tensor:
        codes, scale = to_int8(values)
        weight_codes, weight_scale = to_int8(weight, weight_limit(bits))
        ctx.save_for_backward(codes, scale, weight_codes, weight_scale)
        return int8_product(codes, weight_codes) * (scale * weight_scale[:, 0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        codes, scale, weight_codes, weight_scale = ctx.saved_tensors
        (grad,) = grads
        of_values = grad @ (weight_codes * weight_scale) if ctx.needs_input_grad[0] else None
        of_weight = grad.flatten(0, -2).T @ (codes * scale).flatten(0, -2) if ctx.needs_input_grad[1] else None
        return of_values, of_weight, None


class QuantizedLinear(nn.Linear):
    """A Linear that answers as :class:`~dsf.train.models.rivals.int8.Int8Linear` does, and can be trained.

    Args:
        linear: whose parameters it takes over.
        bits: signed width of the weights.
    """

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        # On no device: nothing is allocated and no random number drawn for weights that are replaced at once.
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias, self.bits = linear.weight, linear.bias, bits

    def forward(self, values: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), float at both ends."""
        output = cast(Tensor, _IntegerProduct.apply(values, self.weight, self.bits))
        return output if self.bias is None else output + self.bias


def quantization_aware_rival(model: DecisionModel, bits: int) -> DecisionModel:
    """A copy of a float rival that computes with integers, under the same names of parameters.

    Args:
        model: the rival, which stays as it is.
        bits: signed width of the weights.

    Raises:
        UserError: a matrix of it is no Linear.
    """
    require_linears(model, "--qat-steps", "drop it")
    quantized = replace_linears(copy.deepcopy(model), lambda linear: QuantizedLinear(linear, bits))
    quantized.weight_bits = bits
    return quantized


def rival_quantization(model: DecisionModel) -> dict[str, int | bool] | None:
    """What a checkpoint's header says of a rival's quantization-aware training; None of a float model."""
    return None if model.weight_bits is None else {"bits": model.weight_bits, "activation_bits": ACTIVATION_BITS}

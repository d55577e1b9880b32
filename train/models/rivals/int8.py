"""A dense rival at int8: every Linear multiplies 8-bit integers and adds them up in 32 bits.

Weights: symmetric, one scale per output channel, round to nearest. Activations: symmetric, one scale per token, taken
from the token itself (dynamic), so that no calibration data are needed. It is the common W8A8 scheme (Jacob et al.
2018, arXiv 1712.05877, without zero points; per token as in ZeroQuant, Yao et al. 2022, arXiv 2206.01861). Biases,
LayerNorm, softmax and its two products with activations on both sides, activation functions and the table of steps
stay float. Weights may have fewer bits (their codes then end at 2^(bits - 1) - 1); activations always have 8.

A run is quantized after its training, or trained on through these very integers (:mod:`dsf.train.models.rivals.qat`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from dsf.shell.errors import UserError
from dsf.train.config.rivals import RIVAL_NAMES
from dsf.train.models.decision_model import DecisionModel
from dsf.train.quantization.integers import WEIGHT_BITS

Model = TypeVar("Model", bound=DecisionModel)

LIMIT = 127
"""Largest integer; -128 is left out, so that the grid is symmetric."""
ACTIVATION_BITS = 8
"""Signed width of the activations, whatever that of the weights."""
EXACT_FLOAT32 = 1 << 24
"""float32 holds every whole number up to this."""
KEPT_FLOAT = (nn.LayerNorm, nn.Embedding)
"""Modules with parameters that multiply no matrix."""


def to_int8(values: Tensor, limit: int = LIMIT) -> tuple[Tensor, Tensor]:
    """Quantize (..., n) along the last axis: int8 codes of that shape, -limit to limit, and scales (..., 1):
    value = code * scale.
    """
    largest = values.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(largest > 0.0, largest / limit, 1.0)
    return (values / scale).round().clamp(-limit, limit).to(torch.int8), scale


def weight_limit(bits: int) -> int:
    """Largest code of a weight of this signed width."""
    return int(2 ** (bits - 1)) - 1


def int8_product(codes: Tensor, weight: Tensor) -> Tensor:
    """Codes (..., inputs) times weight (outputs, inputs), both int8, as int32 (..., outputs).

    A sum of n products is at most n * 127^2, which 32 bits hold up to n = 133,000. Floats that hold every such sum
    compute it exactly, in any order; torch multiplies no matrices of integers on a GPU, and on a CPU slower.
    """
    exact = torch.float32 if weight.shape[-1] * LIMIT**2 < EXACT_FLOAT32 else torch.float64
    return torch.matmul(codes.to(exact), weight.to(exact).T).to(torch.int32)


class Int8Linear(nn.Module):
    """y_o = (sum_i q_i w_oi) * scale(token) * scale_o + bias_o; the sum is one of integers.

    Args:
        linear: trained.
        bits: signed width of the weights.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, bits: int = WEIGHT_BITS) -> None:
        super().__init__()
        weight, scale = to_int8(linear.weight.detach(), weight_limit(bits))
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, 0])
        self.bias = linear.bias

    def forward(self, values: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), float at both ends."""
        codes, scale = to_int8(values)
        output = int8_product(codes, self.weight) * (scale * self.scale)
        return output if self.bias is None else output + self.bias


def int8_copy(model: DecisionModel, bits: int | None = None) -> DecisionModel:
    """A copy of a trained rival in evaluation mode whose Linears are :class:`Int8Linear`; its ``engine`` says so.

    Args:
        model: the rival.
        bits: signed width of the weights; None: that which it was trained through, or 8.

    Raises:
        UserError: the model is none that has an int8 form here.
    """
    if model.rival is None:
        raise UserError("precision int8 requires a dense rival: a DSFormer becomes integers with dsf-export")
    require_linears(model, "precision int8", "use fp32")
    width = bits or model.weight_bits or WEIGHT_BITS
    integers = replace_linears(copy.deepcopy(model).eval(), lambda linear: Int8Linear(linear, width))
    integers.engine, integers.weight_bits = f"{integers.engine} int{width}", None
    return integers


def replace_linears(model: Model, replacement: Callable[[nn.Linear], nn.Module]) -> Model:
    """Put another module into the place of every Linear; returns ``model``, which is changed."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, replacement(child))
    return model


def require_linears(model: DecisionModel, wanted: str, remedy: str) -> None:
    """Refuse a rival with a matrix that :func:`replace_linears` would leave at full precision.

    Args:
        model: the rival.
        wanted: what asks for integers, for the message.
        remedy: what to do instead.

    Raises:
        UserError: naming the parameter.
    """
    if other := parameters_outside_linears(model):
        raise UserError(
            f"{wanted} requires a rival whose matrices are all Linears, and {RIVAL_NAMES[model.kind]} (--policy "
            f"{model.kind}) has {other[0]} besides: {remedy}"
        )


def parameters_outside_linears(model: nn.Module) -> list[str]:
    """Names of the parameters that replacing Linears would leave at full precision, but for those that are meant to."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if not isinstance(module, (nn.Linear, *KEPT_FLOAT))
        for name, _ in module.named_parameters(recurse=False)
    ]

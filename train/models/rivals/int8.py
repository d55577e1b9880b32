"""A dense rival at int8, after training: every Linear multiplies 8-bit integers and adds them up in 32 bits.

Weights: symmetric, one scale per output channel, round to nearest. Activations: symmetric, one scale per token, taken
from the token itself (dynamic), so that no calibration data are needed. It is the common W8A8 scheme (Jacob et al.
2018, arXiv 1712.05877, without zero points; per token as in ZeroQuant, Yao et al. 2022, arXiv 2206.01861). Biases,
LayerNorm, softmax and its two products with activations on both sides, activation functions and the table of steps
stay float.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dsf.shell.errors import UserError
from dsf.train.config.rivals import RIVAL_NAMES
from dsf.train.models.decision_model import DecisionModel

LIMIT = 127
"""Largest integer; -128 is left out, so that the grid is symmetric."""
KEPT_FLOAT = (nn.LayerNorm, nn.Embedding)
"""Modules with parameters that multiply no matrix."""


def to_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize (..., n) along the last axis: int8 codes of that shape, and scales (..., 1): value = code * scale."""
    largest = values.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(largest > 0.0, largest / LIMIT, 1.0)
    return (values / scale).round().clamp(-LIMIT, LIMIT).to(torch.int8), scale


def int8_product(codes: Tensor, weight: Tensor) -> Tensor:
    """Codes (..., inputs) times weight (outputs, inputs), both int8, as int32 (..., outputs).

    A sum of n products is at most n * 127^2, which 32 bits hold up to n = 133,000.
    """
    return torch.matmul(codes.to(torch.int32), weight.to(torch.int32).T)


class Int8Linear(nn.Module):
    """y_o = (sum_i q_i w_oi) * scale(token) * scale_o + bias_o; the sum is one of integers."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = to_int8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, 0])
        self.bias = linear.bias

    def forward(self, values: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), float at both ends."""
        codes, scale = to_int8(values)
        output = int8_product(codes, self.weight) * (scale * self.scale)
        return output if self.bias is None else output + self.bias


def int8_copy(model: DecisionModel) -> DecisionModel:
    """A copy of a trained rival in evaluation mode whose Linears are :class:`Int8Linear`.

    Raises:
        UserError: the model is none that has an int8 form here.
    """
    if model.rival is None:
        raise UserError("precision int8 requires a dense rival: a DSFormer becomes integers with dsf-export")
    if other := parameters_outside_linears(model):
        raise UserError(
            f"precision int8 requires a rival whose matrices are all Linears, and {RIVAL_NAMES[model.kind]} (--policy "
            f"{model.kind}) has {other[0]} besides: use fp32"
        )
    integers = copy.deepcopy(model).eval()
    for parent in list(integers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
    return integers


def parameters_outside_linears(model: nn.Module) -> list[str]:
    """Names of the parameters that replacing Linears would leave at full precision, but for those that are meant to."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if not isinstance(module, (nn.Linear, *KEPT_FLOAT))
        for name, _ in module.named_parameters(recurse=False)
    ]

"""The kernels' arithmetic in torch operations: for GPUs, for machines without a C compiler, and as their definition.

Pure functions of tensors (ticks, rows, channels) and numbers, so that ``torch.compile`` can turn each into one kernel.
A decay is a number, or where channels have their own a tensor (channels,).
"""

from __future__ import annotations

import torch
from torch import Tensor


def membranes(y: Tensor, scale: Tensor, shift: Tensor, decay: float | Tensor, threshold: float) -> list[Tensor]:
    """Membranes before reset, one (rows, channels) per tick, of currents scale * y + shift."""
    found: list[Tensor] = []
    rest = torch.zeros_like(y[0], dtype=scale.dtype)
    for tick in y.unbind(0):
        membrane = decay * rest + (scale * tick + shift)
        rest = membrane.masked_fill(membrane > threshold, 0.0)
        found.append(membrane)
    return found


def spikes(
    y: Tensor, scale: Tensor, shift: Tensor, decay: float | Tensor, threshold: float, dtype: torch.dtype
) -> Tensor:
    """Spikes of LIF(scale * y + shift)."""
    return torch.stack([membrane > threshold for membrane in membranes(y, scale, shift, decay, threshold)]).to(dtype)


def current_gradient(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    grad: Tensor,
    decay: float | Tensor,
    threshold: float,
    half_width: float,
    slope: float,
) -> Tensor:
    """Gradient to the currents, given the one to the spikes: backward through the ticks, the reset detached."""
    found: list[Tensor] = []
    carry = torch.zeros_like(y[0], dtype=scale.dtype)
    forward = membranes(y, scale, shift, decay, threshold)
    for membrane, upstream in zip(reversed(forward), reversed(grad.unbind(0))):
        near = (membrane - threshold).abs() < half_width
        kept = (decay * carry).masked_fill(membrane > threshold, 0.0)
        carry = (slope * upstream.to(membrane.dtype)).masked_fill(~near, 0.0) + kept
        found.append(carry)
    return torch.stack(found[::-1])


def decay_sums(y: Tensor, scale: Tensor, shift: Tensor, g: Tensor, decay: Tensor, threshold: float) -> Tensor:
    """The gradient to the decays (channels,) in float64, sum g[t] * v[t-1], from the one to the currents."""
    forward = membranes(y, scale, shift, decay, threshold)
    kept = torch.stack([membrane.masked_fill(membrane > threshold, 0.0) for membrane in forward])
    return (g[1:] * kept[:-1]).sum(dim=(0, 1)).double()


def channel_sums(y: Tensor, mean: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel, in float64: sum g and sum g * (y - mean)."""
    axes = tuple(range(y.dim() - 1))
    return g.sum(dim=axes).double(), (g * (y - mean)).sum(dim=axes).double()


def norm_gradient(y: Tensor, mean: Tensor, g: Tensor, gain: Tensor, offset: Tensor, slant: Tensor) -> Tensor:
    """Gain * g + offset + slant * (y - mean), in the dtype of ``y``."""
    return (gain * g + offset + slant * (y - mean)).to(y.dtype)


def compile_kernels(backend: str = "inductor") -> None:
    """Let torch.compile fuse each of the functions above that training calls; the first steps then take a while."""
    global spikes, current_gradient, decay_sums, channel_sums, norm_gradient
    spikes, current_gradient, decay_sums, channel_sums, norm_gradient = (
        torch.compile(kernel, backend=backend)
        for kernel in (spikes, current_gradient, decay_sums, channel_sums, norm_gradient)
    )

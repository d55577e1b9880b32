"""Batch norm, and LIF(batch_norm(y)) in one pass, forward and backward without stored membranes or masks.

snnTorch's ``Leaky`` keeps about ten tensors per tick for autograd; here backward recomputes the membrane from y. The
arithmetic is the definition's (:class:`dsf.train.models.neurons.LIF`), in C on CPUs (:mod:`dsf.train.kernels`) and in
torch operations elsewhere (:mod:`dsf.train.models.portable`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsf.train.distributed import gather_from_ranks, sum_over_ranks, world_size
from dsf.train.kernels import native
from dsf.train.models import portable

Coefficients = tuple[Tensor, Tensor, Tensor]
"""gain, offset and slant (channels,): grad_y = gain * g + offset + slant * (y - mean)."""


@dataclass(frozen=True)
class NeuronConstants:
    """Decay and threshold of the neuron; the surrogate is ``slope`` where |v - threshold| < ``half_width``.

    Where a neuron's decays (channels,) are given beside these, they take the place of the one here.
    """

    decay: float
    threshold: float
    half_width: float
    slope: float


@dataclass(frozen=True)
class ChannelMoments:
    """What a batch norm subtracts and divides by, (channels,) each.

    Attributes:
        mean: channel means.
        inverse_deviation: 1 / sqrt(variance + eps).
        variance: biased channel variances.
        count: samples behind them, over all ranks; 0 where they are constants (inference).
    """

    mean: Tensor
    inverse_deviation: Tensor
    variance: Tensor
    count: int


def batch_moments(y: Tensor, eps: float) -> ChannelMoments:
    """Moments of (..., channels) over all other axes and all ranks (Chan et al. 1983 merges the ranks)."""
    y = y.detach()
    count = y.numel() // y.shape[-1]
    if count == 0:
        raise ValueError("a batch norm without a single token has no statistics")
    if native.covers(y, y.dtype):
        mean, squares = native.moments(y)
    else:
        flat = y.reshape(-1, y.shape[-1])
        # One rank in a GPU's precision; shifted by a sample, so that squares stay small.
        shifted = flat.to(native.real_dtype(y.dtype)) - flat[0]
        average = shifted.mean(dim=0)
        mean, squares = (average + flat[0]).double(), (shifted - average).square().sum(dim=0).double()
    if world_size() > 1:
        mean, squares, count = merge_ranks(mean, squares, count)
    variance = squares / count
    real = native.real_dtype(y.dtype)
    return ChannelMoments(mean.to(real), (variance + eps).rsqrt().to(real), variance.to(real), count)


def merge_ranks(mean: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
    """The ranks' means, squared deviations and counts as one."""
    total, total_mean, total_squares = 0.0, torch.zeros_like(mean), torch.zeros_like(squares)
    for part in gather_from_ranks(torch.cat([mean.new_tensor([count]), mean, squares])):
        size, here, spread = float(part[0]), *part[1:].chunk(2)
        gap = here - total_mean
        total_squares = total_squares + spread + gap.square() * (total * size / (total + size))
        total_mean = total_mean + gap * (size / (total + size))
        total += size
    return total_mean, total_squares, int(total)


def fused_lif(
    current: Tensor, constants: NeuronConstants, spike_dtype: torch.dtype, decays: Tensor | None = None
) -> Tensor:
    """Spikes of currents (ticks, rows, channels)."""
    spikes: Tensor = _LIF.apply(current, constants, spike_dtype, decays)
    return spikes


def fused_batch_norm_lif(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    moments: ChannelMoments,
    constants: NeuronConstants,
    spike_dtype: torch.dtype,
    decays: Tensor | None = None,
) -> Tensor:
    """Spikes of weight * (y - mean) / deviation + bias + skip * y, for y (ticks, rows, channels)."""
    skip = weight.new_zeros(()) if skip is None else skip
    spikes: Tensor = _BatchNormLIF.apply(y, weight, bias, skip, moments, constants, spike_dtype, decays)
    return spikes


def batch_norm(y: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, moments: ChannelMoments) -> Tensor:
    """Weight * (y - mean) / deviation + bias + skip * y, in the dtype of ``y`` (..., channels)."""
    skip = weight.new_zeros(()) if skip is None else skip
    normalised: Tensor = _BatchNormLIF.apply(y, weight, bias, skip, moments, None, y.dtype, None)
    return normalised


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, current: Tensor, constants: NeuronConstants, spike_dtype: torch.dtype, decays: Tensor | None
    ) -> Tensor:
        ones = torch.ones(current.shape[-1], dtype=native.real_dtype(current.dtype), device=current.device)
        ctx.save_for_backward(current, ones, decays)
        ctx.constants = constants
        return _fire(current, ones, torch.zeros_like(ones), constants, spike_dtype, decays)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        current, ones, decays = ctx.saved_tensors
        zeros = torch.zeros_like(ones)
        found = _gradient(current, ones, zeros, zeros, grads[0], ctx.constants, None, decays)
        return found.y, None, None, found.to_decays(decays)


class _BatchNormLIF(torch.autograd.Function):
    """Without ``constants`` there is no neuron, and the answer is the normalised y."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        skip: Tensor,
        moments: ChannelMoments,
        constants: NeuronConstants | None,
        spike_dtype: torch.dtype,
        decays: Tensor | None,
    ) -> Tensor:
        real = native.real_dtype(y.dtype)  # what the kernels read, whatever the norm's own dtype
        slope = weight * moments.inverse_deviation
        scale, shift = (slope + skip).to(real), (bias - moments.mean * slope).to(real)
        ctx.save_for_backward(y, weight, skip, scale, shift, decays)
        ctx.moments, ctx.constants = moments, constants
        return _fire(y, scale, shift, constants, spike_dtype, decays)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, skip, scale, shift, decays = ctx.saved_tensors
        moments: ChannelMoments = ctx.moments

        def coefficients(total: Tensor, product: Tensor) -> Coefficients:
            """Batch norm's own gradient (Ioffe and Szegedy 2015, section 3), over the batches of all ranks."""
            if moments.count == 0:
                return scale, torch.zeros_like(scale), torch.zeros_like(scale)
            total, product = total.clone(), product.clone()  # the local sums stay: they are the parameters' gradients
            sum_over_ranks(total, product)
            deviation = moments.inverse_deviation
            offset = -weight * deviation * (total / moments.count)
            slant = -weight * deviation**3 * (product / moments.count)
            return scale, offset.to(scale.dtype), slant.to(scale.dtype)

        mean = moments.mean.to(scale.dtype)
        found = _gradient(y, scale, shift, mean, grads[0], ctx.constants, coefficients, decays)
        grad_weight = (moments.inverse_deviation * found.product).to(weight.dtype)
        grad_skip = (found.product + moments.mean * found.total).sum().to(skip.dtype)
        grad_bias, grad_decays = found.total.to(weight.dtype), found.to_decays(decays)
        return found.y, grad_weight, grad_bias, grad_skip, None, None, None, grad_decays


def _fire(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    constants: NeuronConstants | None,
    spike_dtype: torch.dtype,
    decays: Tensor | None,
) -> Tensor:
    if constants is None:
        return torch.addcmul(shift, y, scale).to(spike_dtype)
    decay = constants.decay if decays is None else decays.to(scale.dtype)
    if native.covers(y, spike_dtype):
        return native.forward(y, scale, shift, spike_dtype, decay, constants.threshold)
    return portable.spikes(y, scale, shift, decay, constants.threshold, spike_dtype)


class _Gradient(NamedTuple):
    """To y; per channel sum g and sum g * (y - mean), see :func:`_gradient`; and to learned decays, in float64."""

    y: Tensor
    total: Tensor
    product: Tensor
    decays: Tensor | None = None

    def to_decays(self, like: Tensor | None) -> Tensor | None:
        """The gradient to these decays, in their dtype."""
        return None if self.decays is None or like is None else self.decays.to(like.dtype)


def _gradient(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    grad: Tensor,
    constants: NeuronConstants | None,
    coefficients: Callable[[Tensor, Tensor], Coefficients] | None,
    decays: Tensor | None,
) -> _Gradient:
    """Gradient to y, and per channel sum g and sum g * (y - mean), where g is the gradient to scale * y + shift.

    Without ``coefficients`` the gradient is g itself, and nobody asks for the sums; without ``constants`` there is no
    neuron.
    """
    none = torch.zeros_like(scale)
    if native.covers(y, grad.dtype):
        if constants is None:
            assert coefficients is not None
            total, product = native.affine_sums(y, mean, grad)
            return _Gradient(native.affine_apply(y, mean, coefficients(total, product), grad), total, product)
        decay, *numbers = astuple(constants)
        if decays is not None:
            decay = decays.to(scale.dtype)
        total, product, towards = none, none, None
        if coefficients is not None or decays is not None:
            total, product, towards = native.backward_sums(y, scale, shift, mean, grad, decay, *numbers)
        chosen = (torch.ones_like(scale), none, none) if coefficients is None else coefficients(total, product)
        grad_y = native.backward_apply(y, scale, shift, mean, chosen, grad, decay, *numbers)
        return _Gradient(grad_y, total, product, towards)
    g, towards = grad.to(scale.dtype), None
    if constants is not None:
        decay, *numbers = astuple(constants)
        if decays is not None:
            decay = decays.to(scale.dtype)
        g = portable.current_gradient(y, scale, shift, grad, decay, *numbers)
        if decays is not None:
            towards = portable.decay_sums(y, scale, shift, g, decay, constants.threshold)
    if coefficients is None:
        return _Gradient(g.to(y.dtype), none, none, towards)
    total, product = portable.channel_sums(y, mean, g)
    return _Gradient(portable.norm_gradient(y, mean, g, *coefficients(total, product)), total, product, towards)

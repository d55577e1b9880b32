"""The neuron of STRL: leaky integrate-and-fire with a scaled input and the derivative of a sigmoid as surrogate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import snntorch
import torch
from snntorch import surrogate
from torch import Tensor, nn

from dsf.train.kernels import sigmoid_native
from dsf.train.models.neurons import LIF

SURROGATE_SLOPE = 4.0
"""Slope of the surrogate's sigmoid, SpikingJelly's default."""


class SigmoidLIF(LIF):
    """v[t] = decay * v[t-1] * (1 - s[t-1]) + gain * x[t];  s[t] = v[t] > threshold;  decay = 1 - 1 / tau.

    SpikingJelly's multi-step LIF, whose reset is hard and outside the gradient. It fires at the threshold too; here, as
    everywhere in this project, only above it. ``kind`` is that of :class:`~dsf.train.models.neurons.LIF`: snnTorch's
    ``Leaky`` is the definition, "fused" computes the same values and gradients and keeps nothing but its input.

    Args:
        tau: membrane time constant, in ticks.
        threshold: membrane potential above which (strictly) it fires.
        scale: factor on the currents; gain = scale / tau.
    """

    def __init__(self, tau: float, threshold: float, scale: float = 1.0) -> None:
        nn.Module.__init__(self)  # not LIF's, whose surrogate is another
        self.log_threshold = self.logit_decay = None  # nothing of it is learned
        self.gain, self.decay, self.threshold = scale / tau, 1.0 - 1.0 / tau, threshold
        self.leaky = snntorch.Leaky(
            beta=self.decay,
            threshold=threshold,
            reset_mechanism="zero",
            spike_grad=surrogate.sigmoid(slope=SURROGATE_SLOPE),
        )

    def forward(self, drive: Tensor, norm: nn.Module | None = None, hold: int | None = None) -> Tensor:
        """Spikes (ticks, ...), each 0.0 or 1.0, in the dtype of the currents.

        Args:
            drive: currents (ticks, ...), or (...) that stay the same for ``hold`` ticks.
            norm: applied to ``drive`` first.
            hold: number of ticks; None: ``drive`` has its own.
        """
        drive = drive if norm is None else norm(drive)
        if self.kind == "snntorch":
            return self.fire_with_snntorch(self.gain * (drive if hold is None else drive.expand(hold, *drive.shape)))
        spikes: Tensor = _Fire.apply(drive, hold, self.gain, self.decay, self.threshold)
        return spikes

    def hold(self, drive: Tensor, ticks: int) -> Tensor:
        """Spikes (ticks, ...) for a current (...) that stays the same for all ticks."""
        spikes: Tensor = self(drive, hold=ticks)
        return spikes


class _Fire(torch.autograd.Function):
    """The fused neuron: backward recomputes the membrane. In C on CPUs, in torch operations elsewhere."""

    @staticmethod
    def forward(ctx: Any, drive: Tensor, hold: int | None, gain: float, decay: float, threshold: float) -> Tensor:
        """See :meth:`SigmoidLIF.forward`."""
        ctx.save_for_backward(drive)
        ctx.hold, ctx.constants = hold, (gain, decay, threshold)
        ticks = len(drive) if hold is None else hold
        if sigmoid_native.covers(drive, ticks):
            return sigmoid_native.forward(drive, ticks, hold is not None, *ctx.constants)
        membranes = _membranes(drive, hold, *ctx.constants)
        return torch.stack([(membrane > threshold).to(drive.dtype) for membrane in membranes])

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor | None, ...]:
        """Back through the ticks; the reset is a constant, as in snnTorch."""
        (drive,), (grad,), held = ctx.saved_tensors, arriving, ctx.hold is not None
        if sigmoid_native.covers(drive, len(grad)):
            gradient = sigmoid_native.backward(drive, grad, held, SURROGATE_SLOPE, *ctx.constants)
        else:
            gradient = _gradient(drive, grad, ctx.hold, *ctx.constants)
        return gradient, None, None, None, None


def _membranes(drive: Tensor, hold: int | None, gain: float, decay: float, threshold: float) -> Iterator[Tensor]:
    """Each tick's membrane potential, before it is reset."""
    currents = drive if hold is None else drive.expand(hold, *drive.shape)
    rest = torch.zeros_like(currents[0])
    for tick in currents:
        membrane = decay * rest + gain * tick
        rest = membrane.masked_fill(membrane > threshold, 0.0)
        yield membrane


def _gradient(drive: Tensor, grad: Tensor, hold: int | None, gain: float, decay: float, threshold: float) -> Tensor:
    """The kernels' backward in torch operations."""
    found: list[Tensor] = []
    later = torch.zeros_like(grad[0])
    for membrane, upstream in zip(reversed(list(_membranes(drive, hold, gain, decay, threshold))), grad.flip(0)):
        falling = torch.exp(-SURROGATE_SLOPE * (membrane - threshold).abs())
        own = SURROGATE_SLOPE * falling / (1.0 + falling).square()  # slope * p * (1 - p), p the sigmoid
        later = own * upstream + (decay * later).masked_fill(membrane > threshold, 0.0)
        found.append(later)
    return gain * (torch.stack(found[::-1]) if hold is None else torch.stack(found).sum(dim=0))

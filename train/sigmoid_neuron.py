"""The neuron of STRL: leaky integrate-and-fire with a scaled input and the derivative of a sigmoid as surrogate."""

from __future__ import annotations

from typing import Any

import snntorch
import torch
from snntorch import surrogate
from torch import Tensor, nn

from dsf.train.neurons import LIF

SURROGATE_SLOPE = 4.0
"""Slope of the surrogate's sigmoid, SpikingJelly's default."""


class SigmoidLIF(LIF):
    """v[t] = decay * v[t-1] * (1 - s[t-1]) + x[t] / tau;  s[t] = v[t] > threshold;  decay = 1 - 1 / tau.

    SpikingJelly's multi-step LIF, whose reset is hard and outside the gradient. It fires at the threshold too; here, as
    everywhere in this project, only above it. ``kind`` is that of :class:`~dsf.train.neurons.LIF`: snnTorch's ``Leaky``
    is the definition, "fused" computes the same values and gradients and keeps nothing but its input.
    """

    def __init__(self, tau: float, threshold: float) -> None:
        nn.Module.__init__(self)  # not LIF's, whose surrogate is another
        self.tau, self.decay, self.threshold = tau, 1.0 - 1.0 / tau, threshold
        self.leaky = snntorch.Leaky(
            beta=self.decay,
            threshold=threshold,
            reset_mechanism="zero",
            spike_grad=surrogate.sigmoid(slope=SURROGATE_SLOPE),
        )

    def forward(self, drive: Tensor, norm: nn.Module | None = None) -> Tensor:
        """Map currents (ticks, ...) to spikes of the same shape, each 0.0 or 1.0; ``norm`` is applied first."""
        current = (drive if norm is None else norm(drive)) / self.tau
        if self.kind == "snntorch":
            return self.fire_with_snntorch(current)
        spikes: Tensor = _Fire.apply(current, self.decay, self.threshold)
        return spikes

    def hold(self, drive: Tensor, ticks: int) -> Tensor:
        """Spikes (ticks, ...) for a current (...) that stays the same for all ticks."""
        return self(drive.expand(ticks, *drive.shape))


class _Fire(torch.autograd.Function):
    """The fused neuron: backward recomputes the membrane from the currents."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, decay: float, threshold: float) -> Tensor:
        """See :class:`SigmoidLIF`, with ``current`` x / tau."""
        ctx.save_for_backward(current)
        ctx.constants = decay, threshold
        return torch.stack([(v > threshold).to(current.dtype) for v in _membranes(current, decay, threshold)])

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor | None, ...]:
        """Back through the ticks; the reset is a constant, as in snnTorch."""
        (current,), (decay, threshold), (spikes,) = ctx.saved_tensors, ctx.constants, arriving
        membranes = list(_membranes(current, decay, threshold))
        gradient = torch.empty(current.shape, dtype=current.dtype, device=current.device)
        later = torch.zeros_like(current[0])
        for tick in reversed(range(len(membranes))):
            share = torch.sigmoid(SURROGATE_SLOPE * (membranes[tick] - threshold))
            own = spikes[tick] * (SURROGATE_SLOPE * share * (1.0 - share))
            later = own + decay * later * (membranes[tick] <= threshold)
            gradient[tick] = later
        return gradient, None, None


def _membranes(current: Tensor, decay: float, threshold: float) -> Any:
    """Each tick's membrane potential, before it is reset."""
    membrane = torch.zeros_like(current[0])
    for tick in current:
        membrane = decay * membrane * (membrane <= threshold) + tick
        yield membrane

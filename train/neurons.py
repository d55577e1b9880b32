"""The leaky integrate-and-fire neuron of DSFormer, as an snnTorch ``Leaky``."""

from __future__ import annotations

import snntorch
import torch
from snntorch import surrogate
from torch import Tensor, nn

SURROGATE_WIDTH = 1.0
"""Full width of the rectangular surrogate gradient, centred on the threshold (membrane units)."""


def rectangular_gradient(shifted: Tensor, gradient: Tensor, _spikes: Tensor) -> Tensor:
    """Surrogate of the Heaviside step: pass the gradient where |v - threshold| < width / 2, over the width.

    ``shifted`` is v - threshold. DSFormer's release uses this rectangle with width 1.
    """
    return gradient * (shifted.abs() < SURROGATE_WIDTH / 2) / SURROGATE_WIDTH


class LIF(nn.Module):
    """v[t] = decay * v[t-1] * (1 - s[t-1]) + x[t];  s[t] = v[t] > threshold;  v starts at 0 for every token.

    snnTorch's ``reset_mechanism="zero"`` resets at the *start* of the next tick, so its membrane still shows the
    value that fired; Loihi and our integer engines reset in the same tick. The spikes are the same, and so is the
    state: v_loihi[t] = v_snntorch[t] * (1 - s[t]). tests/train/test_neurons.py proves both, tick by tick.
    """

    def __init__(self, decay: float, threshold: float) -> None:
        super().__init__()
        self.leaky = snntorch.Leaky(
            beta=decay,
            threshold=threshold,
            reset_mechanism="zero",
            spike_grad=surrogate.custom_surrogate(rectangular_gradient),
        )

    def forward(self, current: Tensor) -> Tensor:
        """Map currents (ticks, ...) to spikes of the same shape, each 0.0 or 1.0."""
        membrane = torch.zeros_like(current[0])
        spikes = []
        for tick in current:
            spike, membrane = self.leaky(tick, membrane)
            spikes.append(spike.to(current.dtype))  # snnTorch always answers in float32
        return torch.stack(spikes)

"""The leaky integrate-and-fire neuron of DSFormer: snnTorch's ``Leaky`` as the definition, and a fused equivalent."""

from __future__ import annotations

from collections.abc import Callable

import snntorch
import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.func import functional_call  # type: ignore[attr-defined]  # torch 2.3 does not list it

from dsf.train.config.training import ModelConfig, NeuronKind
from dsf.train.models.fused import ChannelMoments, NeuronConstants, fused_batch_norm_lif, fused_lif
from dsf.train.models.norm import BatchNorm

SURROGATE_WIDTH = 1.0
"""Full width of the rectangular surrogate gradient, centred on the threshold (membrane units)."""


def rectangular_gradient(width: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Surrogate of the Heaviside step: pass the gradient where |v - threshold| < width / 2, over the width.

    DSFormer's release uses this rectangle with width 1. The answer is what snnTorch's ``custom_surrogate`` takes: a
    function of v - threshold, the gradient that arrives, and the spikes.
    """

    def gradient(shifted: Tensor, arriving: Tensor, _spikes: Tensor) -> Tensor:
        return arriving * (shifted.abs() < width / 2) / width

    return gradient


def spike_dtype(drive: Tensor) -> torch.dtype:
    """The dtype spikes take: autocast's, because the Linears behind would cast them to it anyway (exactly)."""
    device = drive.device.type
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4 and later
        enabled = torch.is_autocast_enabled(device)  # type: ignore[call-arg]  # 2.3's takes nothing
        return torch.get_autocast_dtype(device) if enabled else drive.dtype
    if device == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else drive.dtype
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else drive.dtype


class LIF(nn.Module):
    """v[t] = decay * v[t-1] * (1 - s[t-1]) + x[t];  s[t] = v[t] > threshold;  v starts at 0 for every token.

    snnTorch's ``reset_mechanism="zero"`` resets at the *start* of the next tick, so its membrane still shows the
    value that fired; Loihi and our integer engines reset in the same tick. The spikes are the same, and so is the
    state: v_loihi[t] = v_snntorch[t] * (1 - s[t]). tests/train/test_neurons.py proves both, tick by tick.

    With ``learned`` neurons each has a factor exp(log_threshold) of its own on the threshold. It is computed as the
    same neuron with a current divided by it, which fires at the same ticks; the surrogate's width grows with it.

    With ``decays`` neurons each has a decay of its own, with ``logit_decay`` added to the logit of the common one: it
    stays between 0 and 1, and a weight decay draws it back to where it started.

    ``kind`` chooses how this is computed: ``snntorch`` calls ``leaky`` tick by tick, ``fused`` computes the same
    values and gradients in one pass (:mod:`dsf.train.models.fused`).
    """

    kind: NeuronKind = "fused"

    def __init__(
        self,
        decay: float,
        threshold: float,
        surrogate_width: float = SURROGATE_WIDTH,
        learned: int | None = None,
        decays: int | None = None,
    ) -> None:
        super().__init__()
        self.log_threshold = None if learned is None else nn.Parameter(torch.zeros(learned))
        self.logit_decay = None if decays is None else nn.Parameter(torch.zeros(decays))
        self.constants = NeuronConstants(decay, threshold, surrogate_width / 2, 1.0 / surrogate_width)
        self.leaky = snntorch.Leaky(
            beta=decay,
            threshold=threshold,
            reset_mechanism="zero",
            spike_grad=surrogate.custom_surrogate(rectangular_gradient(surrogate_width)),
        )

    def forward(self, drive: Tensor, norm: nn.Module | None = None) -> Tensor:
        """Map currents (ticks, rows, channels) to spikes of the same shape, each 0.0 or 1.0.

        Args:
            drive: currents, or what ``norm`` still has to normalise.
            norm: applied to ``drive`` first; a batch norm is fused into the neuron.

        Returns:
            spikes in the dtype of ``drive``; in bfloat16 under autocast, whose Linears would cast them anyway.
        """
        gain, decays = None if self.log_threshold is None else torch.exp(-self.log_threshold), self.decays
        if self.kind == "snntorch":
            current = drive if norm is None else norm(drive)
            return self.fire_with_snntorch(current if gain is None else current * gain)
        dtype = spike_dtype(drive)
        if gain is not None:
            nothing, one = torch.zeros_like(gain), torch.ones_like(gain)
            unmoved = ChannelMoments(nothing, one, one, 0)
            current = drive if norm is None else norm(drive)
            return fused_batch_norm_lif(current, gain, nothing, None, unmoved, self.constants, dtype, decays)
        if isinstance(norm, BatchNorm) and norm.is_affine:
            batch, moments = norm.batch, norm.moments(drive)
            affine = (batch.weight, batch.bias, norm.skip, moments)
            return fused_batch_norm_lif(drive, *affine, self.constants, dtype, decays)
        return fused_lif(drive if norm is None else norm(drive), self.constants, dtype, decays)

    @property
    def decays(self) -> Tensor | None:
        """(channels,) the share of its membrane that each neuron keeps; None where all have the common one.

        d / (d + (1 - d) exp(-x)) is sigmoid(logit(d) + x), and exactly d where x is 0.
        """
        if self.logit_decay is None:
            return None
        common = self.constants.decay
        return common / (common + (1.0 - common) * torch.exp(-self.logit_decay))

    def fire_with_snntorch(self, current: Tensor) -> Tensor:
        """The definition: one call of snnTorch's ``Leaky`` per tick."""
        membrane, decays = torch.zeros_like(current[0]), self.decays
        spikes = []
        for tick in current:
            if decays is None:
                spike, membrane = self.leaky(tick, membrane)
            else:
                spike, membrane = functional_call(self.leaky, {"beta": decays}, (tick, membrane))
            spikes.append(spike.to(current.dtype))  # snnTorch always answers in float32
        return torch.stack(spikes)


def residual_neurons(config: ModelConfig) -> LIF:
    """The neurons that read the residual stream."""
    learned = config.width if config.learn_thresholds else None
    return LIF(config.decay, config.threshold, learned=learned, decays=learned_decays(config, config.width))


def learned_decays(config: ModelConfig, channels: int) -> int | None:
    """How many decays a population of so many neurons learns; None where all have the common one."""
    return channels if config.learn_decays else None


def set_neuron_kind(model: nn.Module, kind: NeuronKind) -> None:
    """Choose how every LIF inside ``model`` computes."""
    for module in model.modules():
        if isinstance(module, LIF):
            module.kind = kind

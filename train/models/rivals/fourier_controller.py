"""Fourier Controller Network (Tan et al., ICML 2024, arXiv 2405.19885): a sliding Fourier transform for attention.

One token per environment step, embedded, then blocks x += gelu(CSC(norm(x))); x += MLP(norm(x)), then a decoder of two
layers. The causal spectral convolution (CSC, section 3 and figure 2 there) works on each channel by itself, over a
window of the last n tokens:

    X_t[k] = sum_{i=0}^{n-1} x_{t-n+1+i} exp(-2 pi j k i / n)     the m lowest modes k of the short-time transform
    Y_t[l] = sum_k W[k, l] X_t[k]                                 complex weights between modes, per channel
    y_t = Re( 1/n sum_l c_l Y_t[l] exp(2 pi j l (n-1) / n) )      the inverse transform's last sample, c_0 = 1, else 2

X_t follows from X_{t-1} (sliding transform): X_t[k] = exp(2 pi j k / n) (X_{t-1}[k] + x_t - x_{t-n}). All of it is
linear in the window, so per channel it is one filter of n taps. Training convolves with that filter, which gives the
paper's parallel form without a spectrum per token; :class:`SlidingSpectrum` is its recurrent form, and tests prove them
equal.

Inferred: that the weights mix modes within a channel, not channels within a mode, and where norms and activations
stand, is what the authors' code does. Missing history is zero there, too. Ours: the window is the context, and the
closed loop replays the context as for every model here; the recurrent form's later blocks would see farther back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsf.shell.errors import UserError
from dsf.train.config.rivals import RivalConfig
from dsf.train.config.training import ModelConfig
from dsf.train.models.attention import PackedTokens
from dsf.train.models.decision_model import DecisionModel
from dsf.train.quantization.codec import InputCodec

MOST_MODES = 10
"""Modes that are kept unless told otherwise, where the window has as many."""


def default_modes(window: int) -> int:
    """Modes to keep of a window: a real signal of n samples has (n + 1) // 2 that are no mirror images."""
    return min((window + 1) // 2, MOST_MODES)


class SpectralConvolution(nn.Module):
    """The causal spectral convolution: (batch, context, width) -> same shape; see the module for its equations."""

    def __init__(self, width: int, window: int, modes: int) -> None:
        super().__init__()
        self.window, self.modes = window, modes
        mixing = torch.randn(modes, modes, width, dtype=torch.complex64) / modes
        self.mixing = nn.Parameter(torch.view_as_real(mixing))

    def angles(self) -> Tensor:
        """2 pi k / n of every mode, (modes,)."""
        return torch.arange(self.modes, device=self.mixing.device) * (2.0 * math.pi / self.window)

    def readout(self) -> Tensor:
        """What each mode's X is worth in y, complex (modes, width): sum_l W[k, l] c_l exp(2 pi j l (n-1) / n) / n."""
        counted = torch.full((self.modes,), 2.0, device=self.mixing.device)
        counted[0] = 1.0
        inverse = torch.polar(counted / self.window, self.angles() * (self.window - 1))
        return torch.einsum("klc,l->kc", torch.view_as_complex(self.mixing), inverse)

    def taps(self) -> Tensor:
        """The filter, real (width, window): y_t = sum_i taps[i] x_{t-n+1+i}."""
        place = torch.arange(self.window, device=self.mixing.device)
        phase = -self.angles()[:, None] * place
        forward = torch.polar(torch.ones_like(phase), phase)
        return torch.einsum("kc,ki->ci", self.readout(), forward).real

    def forward(self, padded: Tensor) -> Tensor:
        """Convolve; absent tokens must be zero."""
        history = functional.pad(padded.transpose(1, 2), (self.window - 1, 0))
        return functional.conv1d(history, self.taps()[:, None], groups=padded.shape[-1]).transpose(1, 2)


class SlidingSpectrum:
    """The recurrent form of a trained convolution: m complex numbers per channel and a ring of the last n inputs."""

    def __init__(self, convolution: SpectralConvolution, lanes: int) -> None:
        width, window = convolution.mixing.shape[2], convolution.window
        self.readout = convolution.readout().detach()
        angles = convolution.angles()
        self.turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        self.spectrum = torch.zeros(lanes, convolution.modes, width, dtype=self.readout.dtype)
        self.recent = torch.zeros(window, lanes, width)
        self.oldest = 0

    def step(self, token: Tensor) -> Tensor:
        """Take x_t (lanes, width), answer y_t of the same shape, at a cost that does not depend on the window."""
        change = token - self.recent[self.oldest]
        self.recent[self.oldest] = token
        self.oldest = (self.oldest + 1) % len(self.recent)
        self.spectrum = self.turn * (self.spectrum + change[:, None])
        return (self.spectrum * self.readout).sum(dim=1).real


class FourierBlock(nn.Module):
    """x += gelu(CSC(norm(x))); x += MLP(norm(x))."""

    def __init__(self, width: int, hidden: int, window: int, modes: int) -> None:
        super().__init__()
        self.convolution_norm = nn.LayerNorm(width)
        self.convolution = SpectralConvolution(width, window, modes)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, rows: Tensor, tokens: PackedTokens) -> Tensor:
        """(rows, width) -> same shape."""
        history = tokens.unpack(self.convolution_norm(rows)[None])[0]
        rows = rows + functional.gelu(tokens.repack(self.convolution(history)[None])[0])
        output: Tensor = rows + self.mlp(self.mlp_norm(rows))
        return output


class FourierController(DecisionModel):
    """The policy.

    Args:
        rival: with ``width``, ``mlp_hidden``, ``fourier_window`` and ``fourier_modes`` set.
        config, codec, action_size, discrete: see :class:`~dsf.train.models.decision_model.DecisionModel`.

    Raises:
        UserError: more modes than the window has.
    """

    kind = "fcnet"

    def __init__(
        self, rival: RivalConfig, config: ModelConfig, codec: InputCodec, action_size: int, discrete: bool = False
    ) -> None:
        super().__init__(config, codec, action_size, discrete)
        width, hidden = rival.sizes
        window = rival.fourier_window or config.context
        modes = rival.fourier_modes or default_modes(window)
        if modes > (window + 1) // 2:
            raise UserError(f"rival.fourier_modes is {modes}: a window of {window} has at most {(window + 1) // 2}")
        self.rival = rival
        self.embed = nn.Linear(len(codec.unit), width)
        self.blocks = nn.ModuleList(FourierBlock(width, hidden, window, modes) for _ in range(config.blocks))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, action_size))

    def decide(self, integers: Tensor, tokens: PackedTokens) -> Tensor:
        """See the base class."""
        rows = self.embed(integers * self.input_unit)
        for block in self.blocks:
            rows = block(rows, tokens)
        return self.squash(self.head(rows))

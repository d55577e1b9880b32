"""Integers of a network's layers, the widths they have on the chip, and the float values they stand for. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray

MEMBRANE_FRACTION_BITS = 6
"""Currents enter the membrane shifted left by this much; biases are in units of 2**-6 synaptic units (Loihi)."""
DECAY_BITS = 12
"""Decays are fractions of 2**12 (Loihi)."""
WEIGHT_BITS = 8
BIAS_MANTISSA_BITS = 13
BIAS_EXPONENT_BITS = 3
THRESHOLD_BITS = 17
MAX_INPUT_BITS = 16
"""Signed bits of the encoder's integers, shift included."""
MAX_GRADED_BITS = 24
"""Signed bits of a graded spike, :data:`ACCUMULATOR_LIMIT`: what a host embedding may send to the first residual."""
MAX_EXPONENT = 15
"""Largest shift of a synaptic sum, in either direction."""
CURRENT_LIMIT = 1 << 17
"""A LIF's current: from here on, Lava's 24-bit current register wraps (64 * 2**17 = 2**23)."""
ACCUMULATOR_LIMIT = 1 << 23
"""Synaptic sums, graded spikes, membranes and readout accumulators: 24 signed bits."""
MEMBRANE_LIMIT = ACCUMULATOR_LIMIT - 1
"""Membranes are clipped at this magnitude, as Lava's are."""


@dataclass(frozen=True)
class Affine:
    """weight (outputs, inputs) and bias (outputs,)."""

    weight: FloatArray
    bias: FloatArray

    def __call__(self, x: FloatArray) -> FloatArray:
        """Map (..., inputs) to (..., outputs)."""
        rows = x.reshape(-1, x.shape[-1])  # one large product, not a stack of small ones
        return (rows @ self.weight.T + self.bias).reshape(*x.shape[:-1], len(self.bias))


@dataclass(frozen=True)
class LifIntegers:
    """A Linear that feeds only a LIF, whose thresholds and biases absorb one scale per neuron.

    Attributes:
        weights: (neurons, inputs) int8.
        exponent: power of two on the synaptic sum.
        thresholds: (neurons,) int32, synaptic units.
        mantissa: (neurons,) int16; the bias is mantissa * 2**bias_exponent / 64 synaptic units.
        bias_exponent: shared by the population.
        threshold: of the float model, which ``thresholds`` stand for.
        clipped: weights that were out of range and saturate.
    """

    weights: npt.NDArray[np.int8]
    exponent: int
    thresholds: npt.NDArray[np.int32]
    mantissa: npt.NDArray[np.int16]
    bias_exponent: int
    threshold: float
    clipped: int = 0

    def dequantized(self) -> Affine:
        """The float map these integers compute."""
        scale = self.threshold / self.thresholds
        weight = self.weights * (scale * 2.0**self.exponent)[:, None]
        return Affine(weight, self.mantissa * (scale * 2.0 ** (self.bias_exponent - MEMBRANE_FRACTION_BITS)))


@dataclass(frozen=True)
class ResidualIntegers:
    """A Linear that writes the residual.

    Attributes:
        weights: (channels, inputs) int8.
        exponent: power of two on the synaptic sum.
        bias: (channels,) int32, residual units.
        unit: (channels,) float value of one residual unit.
        clipped: weights that were out of range and saturate.
    """

    weights: npt.NDArray[np.int8]
    exponent: int
    bias: npt.NDArray[np.int32]
    unit: FloatArray
    clipped: int = 0

    def dequantized(self) -> Affine:
        """The float map these integers compute, but for the rounding of a sum that is shifted right."""
        return Affine(self.weights * (self.unit * 2.0**self.exponent)[:, None], self.bias * self.unit)


@dataclass(frozen=True)
class EmbedIntegers:
    """The embedding: it writes the residual, from the codec's integers shifted left by (features,) ``shifts``.

    Attributes:
        shifts: (features,).
        synapses: its weights and bias.
        fine: further weights, of what rounding the first has lost; None without. Their bias is zero.
    """

    shifts: npt.NDArray[np.int8]
    synapses: ResidualIntegers
    fine: ResidualIntegers | None = None

    def dequantized(self) -> Affine:
        """The float map these integers compute, from the codec's integers."""
        affine = self.synapses.dequantized()
        weight = affine.weight if self.fine is None else affine.weight + self.fine.dequantized().weight
        return Affine(weight * 2.0**self.shifts, affine.bias)


@dataclass(frozen=True)
class WindowIntegers:
    """PSSA's bias, int8, (window,) over lags or (K, K) over places, and the ``threshold_units`` of its LIF."""

    weights: npt.NDArray[np.int8]
    threshold_units: int
    threshold: float

    def dequantized(self) -> FloatArray:
        """The float bias these integers stand for, same shape."""
        return self.weights * (self.threshold / self.threshold_units)


@dataclass(frozen=True)
class CountIntegers:
    """The scale of an attention that counts: an integer ``gain`` on the count, and ``threshold_units`` of its LIF."""

    gain: int
    threshold_units: int


@dataclass(frozen=True)
class HeadIntegers:
    """The head: (actions, channels) int8 weights with one float scale per action.

    The bias stays a float here. Its integer is in units of the readout's accumulator, whose size the overflow proof
    decides when the network is exported (:meth:`readout`); they are so fine that rounding to them changes nothing.

    Attributes:
        weights: (actions, channels).
        weight_scale: (actions,), float value of one integer.
        bias: (actions,).
        clipped: weights that were out of range and saturate.
    """

    weights: npt.NDArray[np.int8]
    weight_scale: FloatArray
    bias: FloatArray
    clipped: int = 0

    def dequantized(self) -> Affine:
        """The float map these integers compute, from the residual's mean over ticks."""
        return Affine(self.weights * self.weight_scale[:, None], self.bias)

    def readout(self, unit: float, ticks: int, shift: int) -> tuple[npt.NDArray[np.int32], FloatArray]:
        """Bias (actions,) in accumulator units, and the float value of one such unit (actions,).

        Args:
            unit: float value of one residual unit.
            ticks: summed over.
            shift: low bits of the summed residual that the head does not see.
        """
        scale = self.weight_scale * unit * 2.0**shift / ticks
        return np.rint(self.bias / scale).astype(np.int32), scale


Integers = LifIntegers | EmbedIntegers | ResidualIntegers | WindowIntegers | HeadIntegers

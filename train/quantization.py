"""The numerics of quantization: float weights and biases to integers (:mod:`dsf.train.integers`). Numpy only.

``dsf.export.quantize`` wraps these integers into a network's nodes, and quantization-aware training
(:mod:`dsf.train.qat`) computes with the float values they stand for: both see the same integers, bit for bit.

* A Linear that feeds only a LIF takes its own scale per output neuron, chosen so that the threshold is an exact
  integer: thresholds are per neuron on the chip, so nothing else has to know that scale.
* A Linear that writes the residual shares the residual's unit, times a power of two per layer. One common scale fitted
  to the largest of these layers destroys the policy (the fold behind a nearly silent attention population makes its
  weights tens of times larger), so the unit is fine and the exponents do the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.tasks import UserError
from dsf.tasks.policy import FloatArray
from dsf.train.integers import (
    ACCUMULATOR_LIMIT,
    BIAS_EXPONENT_BITS,
    BIAS_MANTISSA_BITS,
    CURRENT_LIMIT,
    DECAY_BITS,
    MAX_EXPONENT,
    MAX_INPUT_BITS,
    MEMBRANE_FRACTION_BITS,
    THRESHOLD_BITS,
    WEIGHT_BITS,
    Affine,
    CountIntegers,
    EmbedIntegers,
    HeadIntegers,
    LifIntegers,
    ResidualIntegers,
    WindowIntegers,
)

MIN_BITS = 2
FINEST_THRESHOLD_UNITS, COARSEST_THRESHOLD_UNITS = 4096, 16
"""Range of the residual LIFs' threshold, in residual units (powers of two)."""
FINE_BIAS_UNITS = 1023
"""Biases up to this many synaptic units keep a resolution of a quarter unit (13-bit mantissa, 1/64 unit, 2**4)."""
RATIO_DECIMALS = 12
"""Relative errors of a count's scale that agree to so many decimals are equal."""
FINE_THRESHOLD_UNITS = 64
"""Thresholds below this many synaptic units would round the scale noticeably; an exponent on the sum refines them."""


@dataclass(frozen=True)
class Scales:
    """What all layers share while a model is quantized.

    Attributes:
        bits: signed width of the weights.
        threshold: firing threshold of the float model.
        threshold_units: the same threshold in residual units; unit = threshold / threshold_units.
        decay: of 4096, what a membrane loses per tick; see :func:`decay_units`.
    """

    bits: int
    threshold: float
    threshold_units: int
    decay: int

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= WEIGHT_BITS:
            raise UserError(f"--bits is {self.bits}: synapses have {MIN_BITS} to {WEIGHT_BITS} bits")

    @property
    def weight_limit(self) -> int:
        """Largest weight: the range is symmetric."""
        return (1 << (self.bits - 1)) - 1

    @property
    def unit(self) -> float:
        """Float value of one residual unit."""
        return self.threshold / self.threshold_units


def decay_units(decay: float) -> int:
    """What a membrane loses per tick, of 4096, where it keeps the share ``decay``.

    Raises:
        UserError: 12 bits cannot say it.
    """
    lost = (1.0 - decay) * (1 << DECAY_BITS)
    if lost != int(lost):
        raise UserError(f"cannot quantize: decay {decay} is no multiple of 1/{1 << DECAY_BITS}; retrain with one")
    return int(lost)


def lif_integers(affine: Affine, scales: Scales, name: str) -> LifIntegers:
    """Quantize a Linear that feeds only a LIF; ``name`` is for errors.

    Raises:
        UserError: a weight or a bias leaves the range of the integers.
    """
    strongest = np.abs(affine.weight).max(axis=1)
    exponent = threshold_exponent(strongest, affine.weight.shape[1], scales)
    thresholds = neuron_thresholds(strongest, scales.weight_limit << exponent, name, scales)
    thresholds = np.minimum(thresholds, largest_threshold_for_bias(affine.bias, scales))
    scale = scales.threshold / thresholds
    weights = np.rint(affine.weight / scale[:, None] / (1 << exponent)).astype(np.int8)
    mantissa, bias_exponent = bias_parts(affine.bias / scale, name)
    return LifIntegers(weights, exponent, thresholds, mantissa, bias_exponent, scales.threshold)


def residual_integers(affine: Affine, scales: Scales) -> ResidualIntegers:
    """Quantize a Linear that writes the residual, with the smallest power of two that fits its weights."""
    wanted = affine.weight / scales.unit
    strongest = float(np.abs(wanted).max()) / scales.weight_limit
    exponent = max(math.ceil(math.log2(strongest)), -MAX_EXPONENT) if strongest > 0 else 0
    weights = np.rint(wanted / 2.0**exponent).astype(np.int8)
    return ResidualIntegers(weights, exponent, np.rint(affine.bias / scales.unit).astype(np.int32), scales.unit)


def embed_integers(affine: Affine, input_bits: int, scales: Scales) -> EmbedIntegers:
    """Quantize the embedding, which reads the codec's integers of ``input_bits`` bits."""
    shifts = feature_shifts(affine, input_bits, scales)
    return EmbedIntegers(shifts, residual_integers(Affine(affine.weight / 2.0**shifts, affine.bias), scales))


def window_integers(bias: FloatArray, scales: Scales, name: str) -> WindowIntegers:
    """Quantize PSSA's bias, of any shape, with a scale of its own; ``name`` is for errors.

    Raises:
        UserError: a bias exceeds the range of the integers.
    """
    limit = (1 << (WEIGHT_BITS - 1)) - 1  # few numbers per block: never worth fewer bits
    units = int(neuron_thresholds(np.abs(bias).max(keepdims=True), limit, name, scales).item())
    weights = np.rint(bias * units / scales.threshold).astype(np.int8)
    return WindowIntegers(weights, units, scales.threshold)


def count_integers(scale: float, largest: int, scales: Scales) -> CountIntegers:
    """The gain and threshold whose ratio is nearest to scale / threshold; the smallest gain among equals.

    Args:
        scale: float factor on the count.
        largest: largest count.
        scales: float threshold.
    """
    ratio = scales.threshold / scale
    gains = np.arange(1, max(1, min((1 << (WEIGHT_BITS - 1)) - 1, (CURRENT_LIMIT - 1) // largest)) + 1)
    thresholds = np.clip(np.rint(gains * ratio), 1, (1 << THRESHOLD_BITS) - 1)
    best = int(np.argmin(np.round(np.abs(thresholds / gains / ratio - 1.0), RATIO_DECIMALS)))
    return CountIntegers(int(gains[best]), int(thresholds[best]))


def head_integers(head: Affine, scales: Scales, discrete: bool = False) -> HeadIntegers:
    """Quantize the head, with a scale per action; choices share one, so that integers decide between them."""
    strongest = np.abs(head.weight).max(axis=1)
    if discrete:
        strongest = np.full_like(strongest, strongest.max())
    weight_scale = np.maximum(strongest, np.finfo(float).tiny) / scales.weight_limit
    return HeadIntegers(np.rint(head.weight / weight_scale[:, None]).astype(np.int8), weight_scale, head.bias)


def feature_shifts(embed: Affine, input_bits: int, scales: Scales) -> npt.NDArray[np.int8]:
    """A power of two per input feature that evens out the columns of the embedding.

    The widths of graded spikes and of the synaptic accumulator limit the largest shift.
    """
    strongest = np.abs(embed.weight).max(axis=0)
    input_limit = (1 << (input_bits - 1)) - 1
    room = ACCUMULATOR_LIMIT // (scales.weight_limit * input_limit * len(strongest))
    largest = min(int(math.log2(max(room, 1))), MAX_INPUT_BITS - input_bits)
    base = strongest.max() / 2.0**largest
    with np.errstate(divide="ignore"):
        return np.clip(np.ceil(np.log2(strongest / base)), 0, largest).astype(np.int8)


def neuron_thresholds(strongest: FloatArray, limit: int, name: str, scales: Scales) -> npt.NDArray[np.int32]:
    """Per-neuron thresholds floor(threshold * limit / max |w|): the scale threshold / theta then fits the weights.

    Args:
        strongest: (neurons,) largest magnitude among each neuron's weights.
        limit: largest integer a weight may become.
        name: node name for the error.
        scales: float threshold.

    Raises:
        UserError: a weight exceeds ``limit`` thresholds, so no integer threshold is left.
    """
    ceiling = (1 << THRESHOLD_BITS) - 1
    with np.errstate(divide="ignore"):
        thresholds = np.minimum(np.floor(scales.threshold * limit / strongest), ceiling)
    if thresholds.min() < 1:
        raise UserError(
            f"cannot quantize: {name} has a folded weight of {strongest.max():.3g}, above {limit} thresholds; use more "
            "--bits, or retrain: a nearly constant population inflates the weights behind it"
        )
    return thresholds.astype(np.int32)


def threshold_exponent(strongest: FloatArray, inputs: int, scales: Scales) -> int:
    """The exponent that gives every threshold FINE_THRESHOLD_UNITS, as far as the current's range allows."""
    wanted = FINE_THRESHOLD_UNITS * float(strongest.max()) / (scales.threshold * scales.weight_limit)
    room = CURRENT_LIMIT // 2 // (inputs * scales.weight_limit)
    return max(0, min(math.ceil(math.log2(max(wanted, 1.0))), int(math.log2(max(room, 1))), MAX_EXPONENT))


def largest_threshold_for_bias(bias: FloatArray, scales: Scales) -> npt.NDArray[np.int32]:
    """Per-neuron cap on the threshold that keeps biases within FINE_BIAS_UNITS.

    All neurons of a population share one bias exponent. A neuron with tiny weights would otherwise take so fine a
    scale that its bias coarsens everybody's.
    """
    with np.errstate(divide="ignore"):
        cap = np.floor(FINE_BIAS_UNITS * scales.threshold / np.abs(bias))
    return np.clip(cap, FINE_THRESHOLD_UNITS, (1 << THRESHOLD_BITS) - 1).astype(np.int32)


def bias_parts(bias: FloatArray, name: str) -> tuple[npt.NDArray[np.int16], int]:
    """Split biases (synaptic units) into mantissas and one exponent: bias = mantissa * 2**exponent / 64.

    Raises:
        UserError: the largest bias needs an exponent that Loihi does not have.
    """
    fixed = bias * (1 << MEMBRANE_FRACTION_BITS)
    limit = (1 << (BIAS_MANTISSA_BITS - 1)) - 1
    largest = float(np.abs(fixed).max())
    exponent = max(0, math.ceil(math.log2(largest / limit))) if largest > 0 else 0
    if exponent >= 1 << BIAS_EXPONENT_BITS:
        raise UserError(
            f"cannot quantize: {name} has a folded bias of {np.abs(bias).max():.3g} synaptic units; retrain"
        )
    return np.rint(fixed / (1 << exponent)).astype(np.int16), exponent

"""The numerics of quantization: float weights and biases to :mod:`dsf.train.quantization.integers`. Numpy only.

``dsf.export.conversion.quantize`` wraps these integers into a network's nodes, and quantization-aware training
(:mod:`dsf.train.models.qat`) computes with the float values they stand for: both see the same integers, bit for bit.

* A Linear that feeds only a LIF takes its own scale per output neuron, chosen so that the threshold is an exact
  integer: thresholds are per neuron on the chip, so nothing else has to know that scale.
* A Linear that writes the residual shares the residual's unit, times a power of two per layer. One common scale fitted
  to the largest of these layers destroys the policy (the fold behind a nearly silent attention population makes its
  weights tens of times larger), so the unit is fine and the exponents do the rest.

:mod:`dsf.train.quantization.rounding` has the choices and applies them, :mod:`dsf.train.quantization.scales` has the
sizes.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.train.quantization.integers import (
    BIAS_EXPONENT_BITS,
    BIAS_MANTISSA_BITS,
    CURRENT_LIMIT,
    DECAY_BITS,
    MAX_EXPONENT,
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
from dsf.train.quantization.rounding import InputStatistics, least_error, reaches, round_weights
from dsf.train.quantization.scales import (
    Scales,
    feature_shifts,
    head_reaches,
    largest_threshold_for_bias,
    neuron_thresholds,
    threshold_exponent,
)

RATIO_DECIMALS = 12
"""Relative errors of a count's scale that agree to so many decimals are equal."""
FINE_EMBEDDING = "embed.fine"
"""Name of the embedding's second synapses."""
LARGEST_RATIO_ERROR = 1e-3
"""Relative error of a count's scale that passes for the scale: a quarter of what rounding to 8 bits may lose."""


def lif_integers(affine: Affine, scales: Scales, name: str) -> LifIntegers:
    """Quantize a Linear that feeds only a LIF; ``name`` is for errors and finds the layer's inputs.

    Raises:
        UserError: a weight or a bias leaves the range of the integers, or a calibration is missing.
    """
    exponent, thresholds = _exponent_and_thresholds(affine, scales, name)
    scale = scales.threshold / thresholds
    weights, clipped = round_weights(affine.weight / scale[:, None] / (1 << exponent), scales.rules, name)
    bias = _corrected_bias(affine, weights * (scale * 2.0**exponent)[:, None], scales, scales.inputs_of(name))
    mantissa, bias_exponent = bias_parts(bias / scale, name, scales.whole_biases)
    return LifIntegers(weights, exponent, thresholds, mantissa, bias_exponent, scales.threshold, clipped)


def _exponent_and_thresholds(affine: Affine, scales: Scales, name: str) -> tuple[int, npt.NDArray[np.int32]]:
    """The exponent of a LIF's synapses and the thresholds (neurons,), which say the scales of its weights."""
    rules, shared = scales.rules, not scales.rules.per_channel
    tried = reaches(affine.weight, rules, shared)
    exponent = threshold_exponent(tried[0], affine.weight.shape[1], scales)
    cap = largest_threshold_for_bias(affine.bias, scales)
    cap = np.full_like(cap, cap.min()) if shared else cap
    limit = scales.weight_limit << exponent
    thresholds = np.stack([np.minimum(neuron_thresholds(reach, limit, name, scales), cap) for reach in tried])
    steps = scales.threshold / thresholds * 2.0**exponent
    best = least_error(affine.weight, steps, rules, scales.inputs_of(name), name, shared)
    return exponent, thresholds[best, np.arange(len(best))]


def residual_integers(affine: Affine, scales: Scales, name: str = "") -> ResidualIntegers:
    """Quantize a Linear that writes the residual, with the smallest power of two that fits its weights.

    Args:
        affine: what it computes from its inputs.
        scales: unit of the residual.
        name: of the layer; finds its inputs, and decides what stochastic rounding draws.

    Raises:
        UserError: a calibration is missing.
    """
    return _residual_integers(affine, scales, name, scales.inputs_of(name))


def _residual_integers(affine: Affine, scales: Scales, name: str, inputs: InputStatistics | None) -> ResidualIntegers:
    rules, units = scales.rules, scales.residual_units(len(affine.weight))
    wanted = affine.weight / units[:, None]
    tried = reaches(wanted, rules, shared=True)[:, 0] / scales.weight_limit
    exponents = list(dict.fromkeys(_fitting_exponent(float(strongest)) for strongest in tried))
    steps = np.stack([units * 2.0**exponent for exponent in exponents])
    exponent = exponents[least_error(affine.weight, steps, rules, inputs, name, shared=True)[0]]
    weights, clipped = round_weights(wanted / 2.0**exponent, rules, name)
    bias = _corrected_bias(affine, weights * (units * 2.0**exponent)[:, None], scales, inputs)
    return ResidualIntegers(weights, exponent, np.rint(bias / units).astype(np.int32), units, clipped)


def _fitting_exponent(strongest: float) -> int:
    """The smallest power of two that is no less than ``strongest``, but for the range of exponents."""
    return max(math.ceil(math.log2(strongest)), -MAX_EXPONENT) if strongest > 0 else 0


def embed_integers(affine: Affine, input_bits: int, scales: Scales, name: str = "embed") -> EmbedIntegers:
    """Quantize the embedding, which reads the codec's integers of ``input_bits`` bits.

    Raises:
        UserError: a calibration is missing.
    """
    shifts, inputs = feature_shifts(affine, input_bits, scales), scales.inputs_of(name)
    shifted = None if inputs is None else inputs.scaled(2.0**shifts)
    wanted = Affine(affine.weight / 2.0**shifts, affine.bias)
    if scales.rules.embed_synapses == 1:
        return EmbedIntegers(shifts, _residual_integers(wanted, scales, name, shifted))
    # The bias corrects the mean error of both together, so neither does on its own.
    alone = dataclasses.replace(scales, config=dataclasses.replace(scales.rules, bias_correction=False))
    first = _residual_integers(wanted, alone, name, shifted)
    held = first.dequantized().weight
    fine = _residual_integers(Affine(wanted.weight - held, np.zeros_like(wanted.bias)), alone, FINE_EMBEDDING, shifted)
    bias = _corrected_bias(wanted, held + fine.dequantized().weight, scales, shifted)
    first = dataclasses.replace(first, bias=np.rint(bias / first.unit).astype(np.int32))
    return EmbedIntegers(shifts, first, fine)


def learned_thresholds(log_factors: FloatArray, shared: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Thresholds (channels,) in units of the residual: the shared ones times exp(log_factors), as whole numbers.

    Args:
        log_factors: (channels,) learned.
        shared: (channels,) what the threshold of the float model is in these units.
    """
    ceiling = (1 << THRESHOLD_BITS) - 1
    with np.errstate(over="ignore"):
        return np.clip(np.rint(shared * np.exp(log_factors)), 1, ceiling).astype(np.int32)


def decays_of(common: float, logits: FloatArray) -> FloatArray:
    """Shares (channels,) of their membranes that neurons keep, of the logits ``logits`` above the common one's."""
    with np.errstate(over="ignore"):
        return common / (common + (1.0 - common) * np.exp(-logits))


def learned_decays(shares: FloatArray) -> npt.NDArray[np.int16]:
    """What membranes (channels,) lose per tick, of 4096, as the nearest whole numbers; none loses nothing or all.

    Args:
        shares: (channels,) that they keep.
    """
    whole = 1 << DECAY_BITS
    return np.clip(np.rint((1.0 - shares) * whole), 1, whole - 1).astype(np.int16)


def decay_logits(common: float, lost: npt.NDArray[np.int16]) -> FloatArray:
    """The ``logits`` of :func:`decays_of` (channels,) for what membranes lose per tick, of 4096."""
    kept: FloatArray = ((1 << DECAY_BITS) - lost.astype(np.float64)) / lost
    return np.log(kept) - math.log(common / (1.0 - common))


def window_integers(bias: FloatArray, scales: Scales, name: str) -> WindowIntegers:
    """Quantize PSSA's bias, of any shape, with a scale of its own; ``name`` is for errors.

    Few numbers, read by every channel: they always round to nearest, none is clipped.

    Raises:
        UserError: a bias exceeds the range of the integers.
    """
    limit = (1 << (WEIGHT_BITS - 1)) - 1  # few numbers per block: never worth fewer bits
    units = int(neuron_thresholds(np.abs(bias).max(keepdims=True), limit, name, scales).item())
    weights = np.rint(bias * units / scales.threshold).astype(np.int8)
    return WindowIntegers(weights, units, scales.threshold)


def count_integers(scale: float, largest: int, scales: Scales, name: str) -> CountIntegers:
    """The gain and threshold whose ratio is nearest to scale / threshold; the smallest gain among equals.

    Args:
        scale: float factor on the count.
        largest: largest count.
        scales: float threshold.
        name: of the attention, for the error.

    Raises:
        UserError: even the nearest ratio is off by more than LARGEST_RATIO_ERROR.
    """
    ratio, most = scales.threshold / scale, (1 << THRESHOLD_BITS) - 1
    gains = np.arange(1, max(1, min((1 << (WEIGHT_BITS - 1)) - 1, (CURRENT_LIMIT - 1) // largest)) + 1)
    thresholds = np.clip(np.rint(gains * ratio), 1, most)
    errors = np.round(np.abs(thresholds / gains / ratio - 1.0), RATIO_DECIMALS)
    best = int(np.argmin(errors))
    if errors[best] > LARGEST_RATIO_ERROR:
        raise UserError(
            f"cannot quantize: {name} multiplies counts of up to {largest} by {scale:g}, and no integers come nearer "
            f"to that than {errors[best]:.1%}: retrain with more --model.heads, a shorter --model.context, or an "
            f"--model.attention-scale that divides the threshold {scales.threshold:g} (up to {most} times)"
        )
    return CountIntegers(int(gains[best]), int(thresholds[best]))


def head_integers(head: Affine, scales: Scales, discrete: bool = False, name: str = "readout") -> HeadIntegers:
    """Quantize the head, with a scale per action; choices share one, so that integers decide between them.

    Raises:
        UserError: a calibration is missing.
    """
    rules, shared, inputs = scales.rules, discrete or not scales.rules.per_channel, scales.inputs_of(name)
    tried = head_reaches(head, reaches(head.weight, rules, shared)) / scales.weight_limit
    best = least_error(head.weight, tried, rules, inputs, name, shared)
    weight_scale = tried[best, np.arange(len(best))]
    weights, clipped = round_weights(head.weight / weight_scale[:, None], rules, name)
    bias = _corrected_bias(head, weights * weight_scale[:, None], scales, inputs)
    return HeadIntegers(weights, weight_scale, bias, clipped)


def _corrected_bias(
    affine: Affine, dequantized: FloatArray, scales: Scales, inputs: InputStatistics | None
) -> FloatArray:
    """The bias (outputs,), plus the mean error E[(W - Wq) s] of the synaptic sums if the rules ask for it."""
    if inputs is None or not scales.rules.bias_correction:
        return affine.bias
    return affine.bias + (affine.weight - dequantized) @ inputs.mean


def bias_parts(bias: FloatArray, name: str, whole: bool = False) -> tuple[npt.NDArray[np.int16], int]:
    """Split biases (synaptic units) into mantissas and one exponent: bias = mantissa * 2**exponent / 64.

    With ``whole`` the exponent is at least 6, so that every bias is a whole number of synaptic units.

    Raises:
        UserError: the largest bias needs an exponent that Loihi does not have.
    """
    fixed = bias * (1 << MEMBRANE_FRACTION_BITS)
    limit = (1 << (BIAS_MANTISSA_BITS - 1)) - 1
    largest = float(np.abs(fixed).max())
    finest = MEMBRANE_FRACTION_BITS if whole else 0
    exponent = max(finest, math.ceil(math.log2(largest / limit))) if largest > 0 else finest
    if exponent >= 1 << BIAS_EXPONENT_BITS:
        raise UserError(
            f"cannot quantize: {name} has a folded bias of {np.abs(bias).max():.3g} synaptic units; retrain, or drop "
            "--bias-correction if it is on"
        )
    return np.rint(fixed / (1 << exponent)).astype(np.int16), exponent

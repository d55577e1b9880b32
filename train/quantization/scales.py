"""What decides the size of an integer: thresholds, exponents, and the scales all layers share. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.train.quantization.integers import (
    ACCUMULATOR_LIMIT,
    CURRENT_LIMIT,
    DECAY_BITS,
    MAX_EXPONENT,
    MAX_INPUT_BITS,
    THRESHOLD_BITS,
    Affine,
)
from dsf.train.quantization.rounding import InputStatistics, QuantizationConfig

FINEST_THRESHOLD_UNITS, COARSEST_THRESHOLD_UNITS = 4096, 16
"""Range of the residual LIFs' threshold, in residual units (powers of two)."""
FINE_BIAS_UNITS = 1023
"""Biases up to this many synaptic units keep a resolution of a quarter unit (13-bit mantissa, 1/64 unit, 2**4)."""
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
        whole_biases: round LIF biases to whole synaptic units, for targets that have no finer ones (netx).
        config: how weights become integers, with the same ``bits``; None stands for the defaults.
        inputs: what the layers read on the calibration data, by the layer's name; empty without a calibration.
        channel_thresholds: (channels,) the threshold in units of each residual channel, at most ``threshold_units``;
            None where all channels share one unit.
    """

    bits: int
    threshold: float
    threshold_units: int
    decay: int
    whole_biases: bool = False
    config: QuantizationConfig | None = None
    inputs: Mapping[str, InputStatistics] = field(default_factory=dict)
    channel_thresholds: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if self.rules.bits != self.bits:
            raise ValueError(f"Scales of {self.bits} bits got a config of {self.rules.bits}")

    @cached_property
    def rules(self) -> QuantizationConfig:
        """How weights become integers."""
        return QuantizationConfig(self.bits) if self.config is None else self.config

    @property
    def weight_limit(self) -> int:
        """Largest weight: the range is symmetric."""
        return self.rules.weight_limit

    @property
    def unit(self) -> float:
        """Float value of the finest residual unit."""
        return self.threshold / self.threshold_units

    def residual_thresholds(self, channels: int) -> npt.NDArray[np.int32]:
        """(channels,) thresholds of the neurons that read the residual, in its units: exact by the choice of these."""
        shared = np.full(channels, self.threshold_units, np.int32)
        return shared if self.channel_thresholds is None else self.channel_thresholds

    def residual_units(self, channels: int) -> FloatArray:
        """(channels,) float value of one unit of each residual channel."""
        return self.threshold / self.residual_thresholds(channels)

    def inputs_of(self, name: str) -> InputStatistics | None:
        """What the layer reads; None without a calibration.

        Raises:
            UserError: the rules need it and there is none.
        """
        found = self.inputs.get(name)
        if found is None and self.rules.bias_correction:
            raise UserError(f"bias correction needs the mean inputs of {name}: calibrate, or drop --bias-correction")
        return found


def decay_units(decay: float, only_start: bool = False) -> int:
    """What a membrane loses per tick, of 4096, where it keeps the share ``decay``.

    Args:
        decay: the common one of all neurons.
        only_start: whether learned ones have taken its place (:func:`dsf.train.quantization.layers.learned_decays`); it
            may then be any, and is rounded.

    Raises:
        UserError: 12 bits cannot say it.
    """
    lost = (1.0 - decay) * (1 << DECAY_BITS)
    if lost != int(lost) and not only_start:
        raise UserError(f"cannot quantize: decay {decay} is no multiple of 1/{1 << DECAY_BITS}; retrain with one")
    return int(lost)


def feature_shifts(embed: Affine, input_bits: int, scales: Scales) -> npt.NDArray[np.int8]:
    """A power of two per input feature that evens out the columns of the embedding.

    The widths of graded spikes and of the synaptic accumulator limit the largest shift.
    """
    strongest = np.abs(embed.weight).max(axis=0)
    input_limit = (1 << (input_bits - 1)) - 1
    room = ACCUMULATOR_LIMIT // (scales.weight_limit * input_limit * len(strongest))
    largest = min(int(math.log2(max(room, 1))), MAX_INPUT_BITS - input_bits)
    base = np.maximum(strongest.max(), np.finfo(float).tiny) / 2.0**largest  # an embedding may be all zeros
    with np.errstate(divide="ignore"):
        return np.clip(np.ceil(np.log2(strongest / base)), 0, largest).astype(np.int8)


def neuron_thresholds(strongest: FloatArray, limit: int, name: str, scales: Scales) -> npt.NDArray[np.int32]:
    """Per-neuron thresholds floor(threshold * limit / max |w|): the scale threshold / theta then fits the weights.

    Args:
        strongest: (neurons,) largest magnitude that each neuron's weights must reach.
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


def head_reaches(head: Affine, tried: FloatArray) -> FloatArray:
    """Reaches (candidates, actions) of the head, with one for every action: an output may be a constant.

    A row of zeros fits any scale, but a tiny one would leave no integer for its bias. It takes that of the strongest
    row, and in a head of nothing but zeros the size of the largest bias.
    """
    strongest = float(tried.max()) or float(np.abs(head.bias).max()) or 1.0
    return np.where(tried > 0.0, tried, strongest)


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

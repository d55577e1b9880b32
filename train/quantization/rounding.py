"""How float weights become integers of few bits: which scales are tried, how weights round, what is lost. Numpy only.

A scale is chosen through its reach: the largest magnitude that the integers still hold. Weights beyond it saturate.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.train.quantization.integers import WEIGHT_BITS

Rounding = Literal["nearest", "stochastic"]
Clipping = Literal["max", "percentile", "mse"]
ResidualScales = Literal["shared", "channel"]

MIN_BITS = 2
REACHES = np.linspace(1.0, 0.2, 41)
"""Shares of the largest magnitude that clipping "mse" tries. The first is no clipping at all, and ties go to it."""
REACH_TOLERANCE = 1e-9
"""Weights that exceed the reach relatively by no more than this are not clipped, only rounded by the processor."""


@dataclass(frozen=True)
class QuantizationConfig:
    """How weights become integers. By default no weight is clipped, and nothing is left to chance or to data."""

    bits: int = WEIGHT_BITS
    """Signed width of the weights, 2 to 8."""
    per_channel: bool = True
    """One scale per neuron, which the neuron's threshold absorbs, and one per action; False: one per layer. What writes
    the residual follows ``residual_scales``."""
    rounding: Rounding = "nearest"
    """To the nearest integer (ties to even), or at random up or down so that the mean is kept."""
    seed: int = 0
    """Seed of stochastic rounding; every layer draws its own numbers from it."""
    clipping: Clipping = "max"
    """What a scale must hold: the largest weight; a percentile of the magnitudes; or whatever makes the squared error
    smallest, weighted with how often inputs fire where there is a calibration."""
    percentile: float = 99.9
    """Percentile of the magnitudes that a scale must hold, for clipping "percentile"."""
    bias_correction: bool = False
    """Whether biases make good the mean error of the synaptic sums; needs a calibration."""
    residual_scales: ResidualScales = "shared"
    """One unit for the whole residual, or one per channel, which the thresholds of the neurons that read it absorb
    (:mod:`dsf.train.quantization.residual_scales`); the latter needs a calibration."""
    embed_synapses: int = 1
    """Synapses from each input feature to each channel: a second one holds what rounding the first has lost. Graded
    inputs ask more of a weight than spikes do, and there are few of them."""

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= WEIGHT_BITS:
            raise UserError(f"--bits is {self.bits}: synapses have {MIN_BITS} to {WEIGHT_BITS} bits")
        if not 0.0 < self.percentile <= 100.0:
            raise UserError(f"--percentile is {self.percentile}: it must be above 0 and at most 100")
        if self.seed < 0:
            raise UserError(f"--rounding-seed is {self.seed}: it must be 0 or more")
        if self.embed_synapses not in (1, 2):
            raise UserError(f"--embed-synapses is {self.embed_synapses}: use 1 or 2")
        for name, value, known in (
            ("rounding", self.rounding, get_args(Rounding)),
            ("clipping", self.clipping, get_args(Clipping)),
            ("residual-scales", self.residual_scales, get_args(ResidualScales)),
        ):
            if value not in known:
                raise UserError(f"--{name} is '{value}': use one of {', '.join(known)}")

    @property
    def weight_limit(self) -> int:
        """Largest weight: the range is symmetric."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True)
class InputStatistics:
    """What a layer's inputs do on the calibration data, in the units in which the float layer reads them.

    Attributes:
        mean: (inputs,); of spikes this is the firing rate per tick.
        variance: (inputs,); of spikes it is rate * (1 - rate).
    """

    mean: FloatArray
    variance: FloatArray

    def scaled(self, factors: FloatArray) -> InputStatistics:
        """Statistics of the inputs times (inputs,) ``factors``."""
        return InputStatistics(self.mean * factors, self.variance * factors**2)


def round_weights(wanted: FloatArray, config: QuantizationConfig, name: str) -> tuple[npt.NDArray[np.int8], int]:
    """Round weights in units of their integers; those out of range saturate.

    Args:
        wanted: any shape.
        config: rounding, and the range.
        name: of the layer, which decides the numbers that stochastic rounding draws.

    Returns:
        int8, and how many weights were out of range.
    """
    limit = config.weight_limit
    if config.rounding == "stochastic":
        generator = np.random.default_rng([config.seed, zlib.crc32(name.encode())])
        rounded = np.floor(wanted + generator.random(wanted.shape))
    else:
        rounded = np.rint(wanted)
    clipped = int((np.abs(wanted) > limit * (1.0 + REACH_TOLERANCE)).sum())
    return np.clip(rounded, -limit, limit).astype(np.int8), clipped


def reaches(weight: FloatArray, config: QuantizationConfig, shared: bool) -> FloatArray:
    """The reaches to try, (candidates, rows), for weights (rows, inputs).

    Where half of a row is zero its percentile may be; such a row keeps its largest magnitude.

    Args:
        weight: (rows, inputs).
        config: the clipping.
        shared: whether all rows have one reach.
    """
    magnitudes = np.abs(weight).reshape(1, -1) if shared else np.abs(weight)
    largest = magnitudes.max(axis=1)
    if config.clipping == "percentile":
        cut = np.percentile(magnitudes, config.percentile, axis=1)
        found = np.where(cut > 0.0, cut, largest)[None]
    elif config.clipping == "mse":
        found = REACHES[:, None] * largest
    else:
        found = largest[None]
    return np.broadcast_to(found, (len(found), len(weight)))


def sum_error(error: FloatArray, inputs: InputStatistics | None, config: QuantizationConfig) -> FloatArray:
    """Expected squared error (rows,) of synaptic sums whose weights are wrong by ``error`` (rows, inputs).

    Inputs are taken as independent: the variance of the sum's error, plus the square of its mean where no bias
    correction removes it. Without statistics, every input counts the same.
    """
    if inputs is None:
        return np.square(error).sum(axis=1)
    spread: FloatArray = np.square(error) @ inputs.variance
    return spread if config.bias_correction else spread + np.square(error @ inputs.mean)


def least_error(
    weight: FloatArray,
    steps: FloatArray,
    config: QuantizationConfig,
    inputs: InputStatistics | None,
    name: str,
    shared: bool,
) -> npt.NDArray[np.intp]:
    """The candidate (rows,) with which every row has the least :func:`sum_error`; the first among equals.

    Args:
        weight: (rows, inputs).
        steps: (candidates, rows), float value of one integer step.
        config: rounding, and the range.
        inputs: what the layer reads.
        name: of the layer; see :func:`round_weights`.
        shared: whether all rows must take the same candidate: the one with the least sum.
    """
    if len(steps) == 1:
        return np.zeros(len(weight), np.intp)
    errors = np.stack([rounding_error(weight, step, config, inputs, name) for step in steps])
    if shared:
        errors = np.broadcast_to(errors.sum(axis=1, keepdims=True), errors.shape)
    return errors.argmin(axis=0)


def rounding_error(
    weight: FloatArray, step: FloatArray, config: QuantizationConfig, inputs: InputStatistics | None, name: str
) -> FloatArray:
    """:func:`sum_error` of weights (rows, inputs) rounded to steps (rows,)."""
    step = np.maximum(step, np.finfo(float).tiny)[:, None]  # a row of zeros may have no step
    weights, _ = round_weights(weight / step, config, name)
    return sum_error(weights * step - weight, inputs, config)

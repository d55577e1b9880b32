"""One unit per residual channel, chosen by how much the layers that write the channel lose. Numpy only.

Channels of the residual never mix: synapses write them, one threshold per neuron reads them, the head multiplies them.
So each may count in units of its own; a layer's weights to a channel have steps of unit[channel] * 2**exponent[layer].
Layers whose weights are large in few channels then leave the others their precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray
from dsf.train.quantization.integers import Affine
from dsf.train.quantization.rounding import InputStatistics
from dsf.train.quantization.scales import Scales

LARGEST_SPREAD = 16
"""No channel's unit is more than so many times the finest: an all too coarse one would round biases and sums."""


@dataclass(frozen=True)
class Writer:
    """What matters of a layer that writes the residual.

    Attributes:
        strongest: (channels,) largest magnitude of the weights to each channel.
        power: sum over the inputs of their mean square, which a rounding error of the weights multiplies.
    """

    strongest: FloatArray
    power: float

    @staticmethod
    def of(affine: Affine, inputs: InputStatistics | None, scales: Scales) -> Writer:
        """From an affine map (channels, inputs); biases that make good the mean error leave the inputs' variance."""
        strongest = np.abs(affine.weight).max(axis=1)
        if inputs is None:
            return Writer(strongest, float(affine.weight.shape[1]))
        mean_square = 0.0 if scales.rules.bias_correction else np.square(inputs.mean)
        return Writer(strongest, float((inputs.variance + mean_square).sum()))


Exponents = tuple[int, ...]


def channel_thresholds(writers: Sequence[Writer], scales: Scales) -> npt.NDArray[np.int32]:
    """The threshold in units of each residual channel, of which the least expected error of all sums follows.

    The error of a sum behind weights that are rounded to steps d is d**2 / 12 times the power of its inputs on the
    calibration data. Exponents descend from those of one shared unit, one layer and one power of two at a time, as long
    as that lowers the error; every channel then takes the finest unit that clips no weight.

    Args:
        writers: all layers that write the residual.
        scales: ``threshold_units``, which no channel exceeds, and the range of the weights.

    Returns:
        (channels,) int32.
    """
    exponents = tuple(_shared_exponent(writer, scales) for writer in writers)
    best = _error(exponents, writers, scales)
    while True:
        tried = [_moved(exponents, layer, step) for layer in range(len(exponents)) for step in (-1, 1)]
        errors = [_error(candidate, writers, scales) for candidate in tried]
        first = int(np.argmin(errors))
        if not errors[first] < best:
            return _finest_thresholds(exponents, writers, scales).astype(np.int32)
        exponents, best = tried[first], errors[first]


def _moved(exponents: Exponents, layer: int, step: int) -> Exponents:
    return (*exponents[:layer], exponents[layer] + step, *exponents[layer + 1 :])


def _shared_exponent(writer: Writer, scales: Scales) -> int:
    largest = float(writer.strongest.max()) / (scales.unit * scales.weight_limit)
    return int(np.ceil(np.log2(largest))) if largest > 0.0 else 0


def _finest_thresholds(exponents: Exponents, writers: Sequence[Writer], scales: Scales) -> FloatArray:
    """(channels,) whole numbers: the finest units with which every layer's largest weight fits its integers."""
    found = np.full(len(writers[0].strongest), float(scales.threshold_units))
    for exponent, writer in zip(exponents, writers):
        with np.errstate(divide="ignore"):
            fits = np.floor(scales.threshold * scales.weight_limit * 2.0**exponent / writer.strongest)
        found = np.minimum(found, fits)
    return found


def _error(exponents: Exponents, writers: Sequence[Writer], scales: Scales) -> float:
    """Expected squared error of all sums into the residual, but for a factor; infinite where a unit is too coarse."""
    thresholds = _finest_thresholds(exponents, writers, scales)
    if thresholds.min() * LARGEST_SPREAD < scales.threshold_units or thresholds.min() < 1.0:
        return float("inf")
    layers = sum(4.0**exponent * writer.power for exponent, writer in zip(exponents, writers))
    return float(layers * np.square(1.0 / thresholds).sum())

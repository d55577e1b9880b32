"""The input codec: standardise a token and quantize it to the integers that enter the network as graded spikes.

Training sees the same integers as deployment, so quantizing the inputs loses nothing between the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError

RANGE_SIGMAS = 5.0
"""Features are clipped this many standard deviations from their mean, where the data reach that far."""
LEAST_SPREAD = 2.0**-20
"""A feature whose standard deviation is no more than this share of its largest magnitude does not change: eight of
float32's steps, so what spread there is may be rounding."""
ZERO_REACH = 1.0
"""The codec of a feature that is always 0 reaches so far (units of the feature)."""

CodedArray = npt.NDArray[np.number[Any]]
"""What a codec makes of tokens, (..., features): integers, or floats where it does not quantize."""
MEAN, SQUARES, LOW, HIGH = range(4)
"""Rows of a part's summary: mean, sum of squared deviations from it, smallest and largest value."""


def single_precision(values: npt.NDArray[np.floating]) -> FloatArray:
    """Token vectors (..., features) rounded to float32, in float64; what float32 cannot hold becomes infinite.

    Data sets hold tokens in float32 and environments speak float64. Whatever encodes a token rounds it here first, so
    that training and the closed loop get the same integer even of a feature that hardly changes.
    """
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64)


def summarise_parts(values: npt.NDArray[np.floating], lengths: npt.NDArray[np.int64]) -> FloatArray:
    """Summarise the parts of a data set that lie end to end, as (parts, 4, features) in float64.

    Args:
        values: (samples, features).
        lengths: (parts,), samples of each part, none of them zero; all samples together.
    """
    exact = values.astype(np.float64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    bounds = list(zip(starts.tolist(), ends.tolist()))

    def add_up(sums: FloatArray) -> None:
        # One sample after the other, however the parts are read; np.add.reduceat would group them by its own rules.
        for part, (start, end) in enumerate(bounds):
            np.add.reduce(exact[start:end], axis=0, out=sums[part])

    summaries = np.empty((len(lengths), 4, exact.shape[1]))
    np.minimum.reduceat(exact, starts, axis=0, out=summaries[:, LOW])
    np.maximum.reduceat(exact, starts, axis=0, out=summaries[:, HIGH])
    add_up(summaries[:, MEAN])
    summaries[:, MEAN] /= lengths[:, None]
    exact -= np.repeat(summaries[:, MEAN], lengths, axis=0)
    np.square(exact, out=exact)
    add_up(summaries[:, SQUARES])
    return summaries


@dataclass(frozen=True)
class TokenStatistics:
    """What the codec needs to know of its data, per feature in float64 (feature units).

    Attributes:
        mean: (features,).
        std: (features,), of the population (divided by the number of samples).
        low: (features,), smallest value.
        high: (features,), largest value.
    """

    mean: FloatArray
    std: FloatArray
    low: FloatArray
    high: FloatArray

    @property
    def largest(self) -> FloatArray:
        """Largest magnitude, (features,)."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def constant(self) -> npt.NDArray[np.bool_]:
        """Which features do not change, (features,): their spread is within :data:`LEAST_SPREAD`."""
        return self.std <= LEAST_SPREAD * self.largest

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> TokenStatistics:
        """The statistics of (samples, features) held in memory."""
        lengths = np.array([len(values)])
        return cls.merge([(lengths, summarise_parts(values, lengths))])

    @classmethod
    def merge(cls, chunks: Iterable[tuple[npt.NDArray[np.int64], FloatArray]]) -> TokenStatistics:
        """The statistics of all parts together, from their summaries alone (Chan, Golub and LeVeque 1983).

        Deviations are taken from means and never from zero, so nothing cancels where a mean dwarfs its deviation.

        Args:
            chunks: (parts,) numbers of samples with (parts, 4, features) summaries; at least one part in all.
        """
        count = 0
        mean, squares, low, high = (np.array(start) for start in (0.0, 0.0, np.inf, -np.inf))
        for lengths, parts in chunks:
            weights = lengths[:, None].astype(np.float64)
            added = int(lengths.sum())
            chunk_mean = (weights * parts[:, MEAN]).sum(axis=0) / added
            chunk_squares = (parts[:, SQUARES] + weights * np.square(parts[:, MEAN] - chunk_mean)).sum(axis=0)
            shift = chunk_mean - mean
            squares = squares + chunk_squares + np.square(shift) * (count * added / (count + added))
            mean = mean + shift * (added / (count + added))
            low = np.minimum(low, parts[:, LOW].min(axis=0))
            high = np.maximum(high, parts[:, HIGH].max(axis=0))
            count += added
        return cls(mean=mean, std=np.sqrt(squares / count), low=low, high=high)


@dataclass(frozen=True)
class InputCodec:
    """q = clip(round_half_even((float32(x) - offset) / step), -limit, limit);  the network sees z = q * unit.

    With bits = 0 nothing is rounded or clipped: q = (float32(x) - offset) / step, step is the deviation and unit 1.

    Attributes:
        offset: (features,), the mean of the training data (feature units).
        step: (features,), feature units per integer step.
        unit: (features,), standard deviations per integer step; reaches per integer step of a constant feature.
        bits: signed width of q; limit = 2**(bits - 1) - 1. 0: tokens are standardised and no more.
        constant: features that did not change in the training data, ascending: nothing was learnt about them.
    """

    offset: FloatArray
    step: FloatArray
    unit: FloatArray
    bits: int
    constant: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not (self.offset.ndim == 1 and self.offset.shape == self.step.shape == self.unit.shape):
            raise UserError("input codec: offset, step and unit must be vectors of one length")
        if not (np.isfinite(self.offset).all() and (self.step > 0).all() and (self.unit > 0).all()):
            raise UserError("input codec: offsets must be finite, steps and units positive")
        if not all(0 <= feature < len(self.offset) for feature in self.constant):
            raise UserError(f"input codec: constant names features beyond its {len(self.offset)}")

    @property
    def limit(self) -> int:
        """Largest integer the codec emits.

        Raises:
            ValueError: it does not quantize.
        """
        return (1 << (self.bits - 1)) - 1

    def largest(self, feature: int) -> float:
        """The largest value of a feature that is not clipped (feature units)."""
        if not self.bits:
            return float("inf")
        return float(self.offset[feature] + self.limit * self.step[feature])

    def encode(self, features: npt.NDArray[np.floating]) -> CodedArray:
        """Quantize finite (..., features), so that training and every engine get the same integers (int32).

        Without quantization they are only standardised, in float64.

        Raises:
            UserError: nothing is quantized, and a value lies beyond what float32 holds.
        """
        scaled: FloatArray = (single_precision(features) - self.offset) / self.step
        if self.bits:
            return np.clip(np.rint(scaled), -self.limit, self.limit).astype(np.int32)
        if not (np.abs(scaled) <= np.finfo(np.float32).max).all():
            raise UserError(
                "an observation, action or return-to-go is too large for float32, and this network's inputs are not "
                "clipped: check the environment and the target"
            )
        return scaled

    @classmethod
    def fit(cls, statistics: TokenStatistics, must_reach: FloatArray, bits: int) -> InputCodec:
        """Fit a codec to data.

        Args:
            statistics: of the training set's tokens.
            must_reach: (values, features) points that must not be clipped (NaN where a feature has no such wish);
                target returns at the first step of an episode are the reason.
            bits: signed width of the integers; 0 for none.
        """
        offset, constant = statistics.mean, statistics.constant
        farthest = np.maximum(statistics.high - offset, offset - statistics.low)
        reach = np.minimum(farthest, RANGE_SIGMAS * statistics.std)
        # Its own magnitude is the one scale that a constant has: rounding is invisible on it, no change is amplified.
        reach = np.where(constant, np.where(statistics.largest > 0.0, statistics.largest, ZERO_REACH), reach)
        reach = np.maximum(reach, np.nan_to_num(np.abs(must_reach - offset), nan=0.0).max(axis=0, initial=0.0))
        deviation = np.where(constant, reach, statistics.std)
        step = reach / ((1 << (bits - 1)) - 1) if bits else deviation
        unchanging = tuple(np.flatnonzero(constant).tolist())
        return cls(offset=offset, step=step, unit=step / deviation, bits=bits, constant=unchanging)

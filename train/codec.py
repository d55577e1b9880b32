"""The input codec: standardise a token and quantize it to the integers that enter the network as graded spikes.

Training sees the same integers as deployment, so quantizing the inputs loses nothing between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.tasks import UserError
from dsf.tasks.policy import FloatArray

RANGE_SIGMAS = 5.0
"""Features are clipped this many standard deviations from their mean, where the data reach that far."""
SMALLEST_DEVIATION = 1e-6
"""Floor for the standard deviation of a constant feature (units of the feature)."""


@dataclass(frozen=True)
class InputCodec:
    """q = clip(round_half_even((x - offset) / step), -limit, limit);  the network sees z = q * unit.

    Attributes:
        offset: (features,), the mean of the training data (feature units).
        step: (features,), feature units per integer step.
        unit: (features,), standard deviations per integer step.
        bits: signed width of q; limit = 2**(bits - 1) - 1.
    """

    offset: FloatArray
    step: FloatArray
    unit: FloatArray
    bits: int

    def __post_init__(self) -> None:
        if not (self.offset.ndim == 1 and self.offset.shape == self.step.shape == self.unit.shape):
            raise UserError("input codec: offset, step and unit must be vectors of one length")
        if not (np.isfinite(self.offset).all() and (self.step > 0).all() and (self.unit > 0).all()):
            raise UserError("input codec: offsets must be finite, steps and units positive")

    @property
    def limit(self) -> int:
        """Largest integer the codec emits."""
        return (1 << (self.bits - 1)) - 1

    def encode(self, features: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
        """Quantize (..., features) in float64, so that every engine gets the same integers."""
        scaled = np.rint((features.astype(np.float64) - self.offset) / self.step)
        return np.clip(scaled, -self.limit, self.limit).astype(np.int32)

    @classmethod
    def fit(cls, features: npt.NDArray[np.floating], must_reach: FloatArray, bits: int) -> InputCodec:
        """Fit a codec to data.

        Args:
            features: (samples, features) tokens of the training set.
            must_reach: (values, features) points that must not be clipped (NaN where a feature has no such wish);
                target returns at the first step of an episode are the reason.
            bits: signed width of the integers.
        """
        values = features.astype(np.float64)
        offset = values.mean(axis=0)
        deviation = np.maximum(values.std(axis=0), SMALLEST_DEVIATION)
        reach = np.minimum(np.abs(values - offset).max(axis=0), RANGE_SIGMAS * deviation)
        wished = np.nan_to_num(np.abs(must_reach - offset), nan=0.0).max(axis=0, initial=0.0)
        reach = np.maximum(np.maximum(reach, wished), SMALLEST_DEVIATION)
        step = reach / ((1 << (bits - 1)) - 1)
        return cls(offset=offset, step=step, unit=step / deviation, bits=bits)

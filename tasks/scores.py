"""Statistics that accompany every reported score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ConfidenceInterval:
    """A sample mean with its bootstrap interval, in the units of the sample."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def mean_confidence_interval(sample: Sequence[float], seed: int = 0) -> ConfidenceInterval:
    """95 % percentile-bootstrap interval of the mean (Efron 1979); a single value is its own interval.

    Returns of locomotion tasks are far from normal (an episode hops to the end or falls), hence the bootstrap.
    """
    values = np.asarray(sample, np.float64)
    draws = np.random.default_rng(seed).choice(values, size=(RESAMPLES, values.size)).mean(axis=1)
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return ConfidenceInterval(float(values.mean()), float(low), float(high))

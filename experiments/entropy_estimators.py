"""Entropy of a discrete source from counts of its states, corrected for the bias of few samples; sources to test with.

All entropies are in bits. The plug-in estimate is too low by about (states - 1) / (2 ln 2 samples), and more where many
states were never seen. That bias feigns dependence: a joint entropy has more states than its parts, so it is
underestimated more than their sum. So every estimate here stands beside sources whose entropy has a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray, Int64Array

BitArray = npt.NDArray[np.uint8]
Estimator = Callable[[Int64Array], float]
"""From how often each state was seen, (states,), zeros allowed, to bits."""


def plug_in(counts: Int64Array) -> float:
    """Entropy of the relative frequencies: the maximum-likelihood estimate."""
    seen = _seen(counts)
    return float(math.log2(seen.sum()) - (seen * np.log2(seen)).sum() / seen.sum())


def miller_madow(counts: Int64Array) -> float:
    """Plug-in plus the first term of its bias, with the states that were seen as the number of states (Miller 1955)."""
    seen = _seen(counts)
    return plug_in(counts) + (len(seen) - 1) / (2 * math.log(2) * float(seen.sum()))


def jackknife(counts: Int64Array) -> float:
    """Plug-in without the bias that leaving out one sample after the other shows (Zahl 1977)."""
    seen = _seen(counts)
    total = float(seen.sum())
    if total < 2:
        return 0.0
    terms, fewer = seen * np.log2(seen), seen - 1
    without = terms.sum() - terms + fewer * np.log2(np.maximum(fewer, 1))
    left_out = math.log2(total - 1) - without / (total - 1)
    return float(total * plug_in(counts) - (total - 1) / total * (seen * left_out).sum())


def chao_shen(counts: Int64Array) -> float:
    """Frequencies shrunk by the coverage, each state weighed by the chance to be seen at all (Chao and Shen 2003)."""
    seen = _seen(counts)
    total = float(seen.sum())
    share = max(coverage(counts), 1.0 / total) * seen / total
    found = -np.expm1(total * np.log1p(-np.minimum(share, 1 - 1e-15)))
    return float(-(share * np.log2(share) / found).sum())


def coverage(counts: Int64Array) -> float:
    """Share of the source's probability on states that were seen (Good and Turing): 1 - singletons / samples."""
    return 1.0 - float(np.count_nonzero(counts == 1)) / float(counts.sum())


def _seen(counts: Int64Array) -> FloatArray:
    return counts[counts > 0].astype(np.float64)


ESTIMATORS: dict[str, Estimator] = {
    "plug-in": plug_in,
    "miller-madow": miller_madow,
    "jackknife": jackknife,
    "chao-shen": chao_shen,
}


@dataclass(frozen=True)
class Source:
    """Spikes of independent, equal neurons, a Markov chain each: a tick repeats the last one, or is drawn anew.

    Attributes:
        name: for people.
        rate: spikes per neuron and tick.
        repeat: probability that a neuron repeats its last tick.
    """

    name: str
    rate: float
    repeat: float

    def joint(self, neurons: int, ticks: int) -> float:
        """Entropy of all ticks together: H(first) + (ticks - 1) H(next | last), for each neuron (bits)."""
        rise, fall = (1 - self.repeat) * self.rate, (1 - self.repeat) * (1 - self.rate)
        following = self.rate * binary_entropy(fall) + (1 - self.rate) * binary_entropy(rise)
        return neurons * (binary_entropy(self.rate) + (ticks - 1) * following)

    def sum_of_ticks(self, neurons: int, ticks: int) -> float:
        """Sum of the ticks' own entropies (bits)."""
        return neurons * ticks * binary_entropy(self.rate)

    def draw(self, ticks: int, samples: int, neurons: int, generator: np.random.Generator) -> BitArray:
        """Spikes, (ticks, samples, neurons), each 0 or 1."""
        spikes = (generator.random((ticks, samples, neurons)) < self.rate).astype(np.uint8)
        for tick in range(1, ticks):
            repeated = generator.random((samples, neurons)) < self.repeat
            spikes[tick][repeated] = spikes[tick - 1][repeated]
        return spikes


SOURCES = (Source("independent ticks", 0.5, 0.0), Source("Markov chain", 0.25, 0.6), Source("repeated ticks", 0.5, 1.0))
"""From ticks that say nothing of each other to ticks that are all the same; the joint entropy has a closed form."""


def binary_entropy(probability: float) -> float:
    """Of one coin (bits)."""
    return sum(-p * math.log2(p) for p in (probability, 1 - probability) if p > 0)

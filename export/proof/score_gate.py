"""Whether integers keep the score: paired episodes, judged by the interval of their difference at planned looks.

Both policies run on the same reset seeds, so each seed gives one difference of scores, in which much of what the start
of an episode decides cancels. What is compared with the limit is not the mean of these differences but its interval,
Student's t for paired samples (Student 1908): the drop is proven to be small where the whole interval is at or below
the limit, proven to be too large where all of it is above, and undecided between.

While it is undecided more episodes run, twice as many at every look. Who looks several times and stops when he likes
what he sees errs more often than one look says, so every look gets an equal share of the error (Bonferroni): of three
looks each has an interval of 98.33 %, and all three hold at once with 95 %. Nothing here is random.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dsf.tasks.scores import CONFIDENCE

Verdict = Literal["proven", "refused", "unproven"]
METHOD = "paired t interval (Student 1908), error shared equally by the planned looks (Bonferroni)"
DOUBLINGS = 2
"""How often episodes are doubled at most, unless a number is given."""
BISECTIONS = 100
"""Halvings of the range of an angle: more than a double has bits."""
LARGEST_ADVICE = 10_000
"""Episodes: where more would be needed, nobody is told to run them."""


def planned_looks(first: int, most: int) -> tuple[int, ...]:
    """Numbers of episodes at which the difference is judged: the first, doubled until there are ``most``."""
    looks = [first]
    while looks[-1] < most:
        looks.append(min(2 * looks[-1], most))
    return tuple(looks)


def default_most(first: int) -> int:
    """Episodes at most, unless a number is given."""
    return first << DOUBLINGS


@dataclass(frozen=True)
class Drop:
    """What the integers lose, in points of the task's score.

    Attributes:
        mean: of the paired differences; below 0 the integers gain.
        low, high: its interval at ``level``; without bounds for a single pair.
        level: of this look.
        pairs: episodes that both policies ran.
    """

    mean: float
    low: float
    high: float
    level: float
    pairs: int

    def verdict(self, limit: float) -> Verdict:
        """What the interval says of a limit; scores that are no finite numbers are refused."""
        if self.high <= limit:
            return "proven"
        return "unproven" if self.low <= limit < self.high else "refused"

    def to_settle(self, limit: float) -> int | None:
        """Pairs at which the interval would end at the limit, if mean and spread stay; None where that is too many."""
        half, room = self.high - self.mean, abs(limit - self.mean)
        if self.pairs == 1 or not math.isfinite(half) or half >= room * math.sqrt(LARGEST_ADVICE / self.pairs):
            return None
        return math.ceil(self.pairs * (half / room) ** 2)


def paired_drop(floats: Sequence[float], integers: Sequence[float], looks: int) -> Drop:
    """The mean drop from float to integer scores of the same seeds, with the interval of one of several looks.

    Args:
        floats: scores of the float policy (points), one per seed.
        integers: of the integers, on the same seeds.
        looks: how many are planned, at most.
    """
    level, pairs = 1.0 - (1.0 - CONFIDENCE) / looks, len(floats)
    if not all(map(math.isfinite, (*floats, *integers))):
        return Drop(math.nan, math.nan, math.nan, level, pairs)
    differences = np.asarray(floats, np.float64) - np.asarray(integers, np.float64)
    mean = float(differences.mean())
    if pairs == 1:
        return Drop(mean, -math.inf, math.inf, level, pairs)
    half = student_quantile(level, pairs - 1) * float(differences.std(ddof=1)) / math.sqrt(pairs)
    return Drop(mean, mean - half, mean + half, level, pairs)


@functools.cache
def student_quantile(level: float, freedom: int) -> float:
    """T with P(|T| <= t) = ``level`` for Student's T of so many degrees of freedom (1 or more)."""
    low, high = 0.0, math.pi / 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)), a finite sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    sine, squared = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for order in range(2 + odd, freedom - 1, 2):
        term *= squared * (order - 1) / order
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total

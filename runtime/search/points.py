"""Points of score and energy: which of them no other beats, and which few stand for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Placed(Protocol):
    """What has a place in the picture."""

    @property
    def score(self) -> float:
        """Normalised, the higher the better."""

    @property
    def microjoules(self) -> float:
        """Per decision, the lower the better."""


Point = TypeVar("Point", bound=Placed)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none has at least its score for at most its energy, and one of them better. The
    cheapest first; of equals the first.
    """
    ordered = sorted(points, key=lambda point: (point.microjoules, -point.score))
    found: list[Point] = []
    for point in ordered:
        if not found or point.score > found[-1].score:
            found.append(point)
    return found


def shares(points: Sequence[Placed], floor: float, ceiling: float) -> list[float]:
    """What of the area below a front only each of its points covers, in score times log10 of the microjoules. Nothing
    stands for the front's ends, so theirs counts as endless.

    Args:
        points: a :func:`front`.
        floor: score at which the area ends.
        ceiling: microjoules at which the area ends.
    """
    right = [*(point.microjoules for point in points[1:]), ceiling]
    below = [floor, *(point.score for point in points[:-1])]
    found = [(point.score - low) * math.log10(end / point.microjoules) for point, low, end in zip(points, below, right)]
    return [math.inf if index in (0, len(found) - 1) else share for index, share in enumerate(found)]


def chosen(points: Sequence[Point], most: int, family_of: Callable[[Point], str]) -> list[Point]:
    """The points of a side's front that stand for it: as long as a family has more than ``most`` of them, that one of
    its points goes which covers the smallest share of the front's area alone (S-metric selection, as in SMS-EMOA,
    Beume et al. 2007).
    """
    found = front(points)
    floor = min((point.score for point in points), default=0.0)
    ceiling = max((point.microjoules for point in points), default=0.0)
    while True:
        families = [family_of(point) for point in found]
        crowded = {family for family in families if families.count(family) > most}
        if not crowded:
            return found
        covered = shares(found, floor, ceiling)
        gone = min((share, index) for index, share in enumerate(covered) if families[index] in crowded)[1]
        del found[gone]

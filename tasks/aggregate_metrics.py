"""What a score table reports of several training runs: rliable's statistics (Agarwal et al., NeurIPS 2021) in numpy.

A score matrix is (runs, tasks): one row per training seed, one column per dataset, each entry the mean normalised score
of that run's episodes (D4RL points). Runs are the unit that is drawn again, because they are what a reader would
repeat; episodes of one run share its weights. Definitions and names follow rliable's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dsf.tasks.scores import CONFIDENCE, RESAMPLES, ConfidenceInterval

Scores = npt.NDArray[np.float64]
TRIMMED = 0.25
"""Share that the interquartile mean leaves out at either end."""
FEWEST_FOR_TRIMMING = 4
"""With fewer scores nothing is left out: the interquartile mean is then the mean."""


def interquartile_mean(scores: npt.ArrayLike) -> float:
    """Mean of the middle half of all entries, runs and tasks together.

    ``scipy.stats.trim_mean(scores, 0.25, axis=None)``: floor(n / 4) entries are left out at either end.
    """
    return float(_middle_mean(np.asarray(scores, np.float64).reshape(1, -1))[0])


def _middle_mean(rows: Scores, trimmed: float = TRIMMED) -> Scores:
    """Mean of each row without that share at either end."""
    count = rows.shape[1]
    cut = int(trimmed * count)
    middle: Scores = np.sort(rows, axis=1)[:, cut : count - cut].mean(axis=1)
    return middle


def stratified_bootstrap(
    scores: Sequence[Sequence[float]], seed: int = 0, trimmed: float = TRIMMED
) -> ConfidenceInterval:
    """Interquartile mean (or another trimmed mean) with its 95 % percentile interval; runs are drawn with replacement
    task by task.

    Args:
        scores: the runs' scores of each task; tasks may have different numbers of runs.
        seed: of the resampling.
        trimmed: share of all entries that is left out at either end; 0 gives the mean.

    Where a task has a single run there is nothing to draw: the interval then only covers the other tasks. With three
    runs per task, the usual number, percentile intervals are too narrow; they compare, they do not prove.
    """
    draws = np.concatenate(_resampled(scores, np.random.default_rng(seed)), axis=1)
    entries = np.concatenate([np.asarray(runs, np.float64) for runs in scores])
    return _interval(float(_middle_mean(entries.reshape(1, -1), trimmed)[0]), _middle_mean(draws, trimmed))


def _resampled(scores: Sequence[Sequence[float]], generator: np.random.Generator) -> list[Scores]:
    """Each task's runs drawn with replacement, (resamples, runs), independent of the other tasks."""
    tasks = [np.asarray(runs, np.float64) for runs in scores]
    return [runs[generator.integers(runs.size, size=(RESAMPLES, runs.size))] for runs in tasks]


def probability_of_improvement(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], seed: int = 0
) -> ConfidenceInterval:
    """Chance that a run of one method beats a run of another on a task drawn at random, with its 95 % interval.

    Mann-Whitney's U over the number of pairs, averaged over the tasks; a tie counts half. It says how often, not by how
    much. For the interval the runs of both methods are drawn again, independently and task by task.

    Args:
        ours: scores of the runs of each task.
        theirs: of the other method, the same tasks in the same order.
        seed: of the resampling.
    """
    generator = np.random.default_rng(seed)
    drawn = [_wins(x, y) for x, y in zip(_resampled(ours, generator), _resampled(theirs, generator))]
    found = [_wins(np.array([x], float), np.array([y], float))[0] for x, y in zip(ours, theirs)]
    return _interval(float(np.mean(found)), np.mean(drawn, axis=0))


def _wins(ours: Scores, theirs: Scores) -> Scores:
    """Share of the pairs that each row wins, ties counting half."""
    difference = ours[:, :, None] - theirs[:, None, :]
    wins: Scores = ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(1, 2))
    return wins


def _interval(point: float, draws: Scores) -> ConfidenceInterval:
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return ConfidenceInterval(point, float(low), float(high))

"""Statistics of score tables against answers worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dsf.tasks.aggregate_metrics import interquartile_mean, probability_of_improvement, stratified_bootstrap


def test_interquartile_mean_leaves_a_quarter_out_at_either_end() -> None:
    assert interquartile_mean([0, 10, 20, 1000]) == 15.0
    assert interquartile_mean([[9, 1, 4, 3], [100, -100, 2, 5]]) == 3.5  # -100 1 | 2 3 4 5 | 9 100
    assert interquartile_mean([1, 2, 30]) == 11.0  # floor(3 / 4) = 0: the mean
    assert interquartile_mean([0, 1, 2, 3, 4, 5, 60]) == 3.0  # floor(7 / 4) = 1


def test_interval_of_one_task_is_that_of_all_equally_likely_samples() -> None:
    runs = [0.0, 1.0, 5.0]
    means = sorted(float(np.mean(drawn)) for drawn in itertools.product(runs, repeat=3))
    found = stratified_bootstrap([runs])
    assert found.mean == 2.0
    # 27 equally likely samples; 2.5 % is less than 1 of 27, so the ends are the extremes
    assert (found.low, found.high) == (means[0], means[-1]) == (0.0, 5.0)


def test_runs_are_drawn_within_their_task() -> None:
    """Two tasks far apart, no spread within either: any mix between them would widen the interval."""
    found = stratified_bootstrap([[10.0, 10.0], [90.0, 90.0]])
    assert (found.mean, found.low, found.high) == (50.0, 50.0, 50.0)


def test_tasks_may_have_different_numbers_of_runs() -> None:
    found = stratified_bootstrap([[1.0], [2.0, 4.0]])
    assert found.mean == pytest.approx(7 / 3)
    assert (found.low, found.high) == pytest.approx((5 / 3, 3.0))  # 1 2 2 and 1 4 4, a quarter each


def test_probability_of_improvement_counts_pairs_and_half_of_ties() -> None:
    # first task: 3 beats 1, 2; 1 ties 1, loses to 2: 2.5 of 4. Second: 1 of 1.
    found = probability_of_improvement([[3.0, 1.0], [7.0]], [[1.0, 2.0], [6.0]])
    assert found.mean == (2.5 / 4 + 1) / 2
    assert (found.low, found.high) == (0.5, 1.0)  # 1, 1 against 2, 2 (one draw in 16): nothing; 3, 3: everything
    assert probability_of_improvement([[1.0, 1.0]], [[1.0, 1.0]]).mean == 0.5
    assert probability_of_improvement([[2.0, 3.0]], [[0.0, 1.0]]).low == 1.0


def test_what_is_better_than_the_other_is_so_by_what_is_left() -> None:
    ours, theirs = [[5.0, 2.0, 3.0]], [[1.0, 4.0, 3.0]]
    there, back = probability_of_improvement(ours, theirs).mean, probability_of_improvement(theirs, ours).mean
    assert there + back == pytest.approx(1.0) and there == pytest.approx(5.5 / 9)
    # pairs: 5 wins 3, 2 wins 1, 3 wins 1 and ties 1 -> 5.5 of 9

"""Closed-loop scores of a model: of its floats, or of the integers that a rival was trained through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dsf.tasks import Task, rollout
from dsf.train.evaluation.score import Score
from dsf.train.evaluation.stream_policy import float_policy
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.rivals.int8 import int8_copy

MAX_LANES = 32
"""Environments that decide in lockstep; more would only wait for one another."""


def evaluate(
    model: DecisionModel,
    task: Task,
    checkpoint: str,
    step: int,
    targets: Sequence[float],
    seeds: Sequence[int],
    on_step: Callable[[int], None] | None = None,
) -> list[Score]:
    """Score ``model`` at each target return, all environments side by side.

    In stream mode where that is exact, see :mod:`dsf.train.evaluation.stream_policy`. A rival in quantization-aware
    training is scored by its integers, never by the float weights behind them.

    Args:
        model: put into evaluation mode and back.
        task: what to solve.
        checkpoint: "last" or "best": which rule chose these weights.
        step: optimizer step of the weights.
        targets: returns to ask for (reward units).
        seeds: reset seeds, one episode each.
        on_step: see :func:`dsf.tasks.rollout`.
    """
    training = model.training
    playing = model if model.weight_bits is None else int8_copy(model)
    scores = []
    for target in targets:
        policy = float_policy(playing, lanes=min(len(seeds), MAX_LANES))
        episodes = rollout(task, policy, seeds, target, on_step)
        scores.append(Score.of(playing.engine, checkpoint, step, target, task, episodes))
    model.train(training)
    return scores

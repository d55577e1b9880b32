"""How the learning rate, PTBN's lambda, the penalty on activity and the zeros of pruning move over a run."""

from __future__ import annotations

import math

from dsf.train.config.training import TrainConfig


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine to zero; 0 <= step < config.steps."""
    warmup = config.warmup_fraction * config.steps
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    progress = (step - warmup) / max(config.steps - warmup, 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def blend_factor(step: int, config: TrainConfig) -> float:
    """PTBN's lambda: 1 at the first step, 0 from ``blend_fraction`` of the steps on (DSFormer section 4.3).

    A trained model has left its LayerNorms behind: fine-tuning goes on with lambda 0.
    """
    if config.fine_tunes:
        return 0.0
    span = config.blend_fraction * config.steps
    return max(0.0, 1.0 - step / span) if span > 0 else 0.0


def penalty_factor(step: int, config: TrainConfig) -> float:
    """Share of ``rate_penalty`` that a step pays: 0 before its start, then rising linearly to 1."""
    start, ramp = config.penalty_start(config.steps), config.penalty_ramp(config.steps)
    if step < start:
        return 0.0
    return min(1.0, (step + 1 - start) / ramp) if ramp else 1.0


def pruning_factor(steps_done: int, config: TrainConfig) -> float:
    """Share of the zeros asked for that are there after so many steps: 1 - (1 - progress)**3.

    Source: Zhu and Gupta 2017 (arXiv 1710.01878), section 3, from no zeros on.
    """
    progress = (steps_done / config.steps - config.prune_start) / (config.prune_end - config.prune_start)
    return 1.0 - (1.0 - min(max(progress, 0.0), 1.0)) ** 3

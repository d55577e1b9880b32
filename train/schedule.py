"""How the learning rate and PTBN's lambda move over a run."""

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
    """PTBN's lambda: 1 at the first step, 0 from ``blend_fraction`` of the steps on (DSFormer section 4.3)."""
    span = config.blend_fraction * config.steps
    return max(0.0, 1.0 - step / span) if span > 0 else 0.0

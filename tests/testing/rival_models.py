"""Random rivals and windows for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsf.tasks import get_task
from dsf.testing.random_networks import ACTIONS, random_codec
from dsf.train.config.rivals import PolicyKind, RivalConfig
from dsf.train.config.strl import StrlConfig
from dsf.train.config.training import ModelConfig
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.rivals.build import make_rival

CAUSAL = StrlConfig(attention="causal")
CONTEXT, OBSERVATIONS = 8, 11
FEATURES = OBSERVATIONS + ACTIONS + 1
SMALL = ModelConfig(width=32, blocks=2, context=CONTEXT, window=3, ticks=3)


def small_model(kind: PolicyKind, seed: int = 0, **settings: Any) -> DecisionModel:
    """A random rival for hopper, in evaluation mode and a little away from its start."""
    torch.manual_seed(seed)
    codec = random_codec(FEATURES, 8, np.random.default_rng(seed))
    rival = RivalConfig(strl=CAUSAL, **settings) if kind == "strl" else RivalConfig(**settings)
    model = make_rival(kind, rival, SMALL, codec, get_task("hopper")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def windows(count: int, seed: int = 1) -> Tensor:
    """Random integers (count, context, features)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (count, CONTEXT, FEATURES), generator=generator).float()

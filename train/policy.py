"""The float policy in window mode: replay the last K tokens for each decision, as the paper does."""

from __future__ import annotations

import numpy as np
import torch

from dsf.tasks import Token
from dsf.tasks.policy import FloatArray
from dsf.train.model import DSFormer


class TorchPolicy:
    """Level L0 of the verification ladder: the trained model itself, for ``lanes`` episodes at once."""

    def __init__(self, model: DSFormer, lanes: int = 1) -> None:
        self.model, self.lanes = model.eval(), lanes
        features = len(model.codec.unit)
        self.windows = np.zeros((lanes, model.config.context, features), np.float32)
        self.mask = np.zeros((lanes, model.config.context), bool)

    def reset(self, lane: int) -> None:
        """Empty one lane's window."""
        self.windows[lane] = 0.0
        self.mask[lane] = False

    def act(self, token: Token) -> FloatArray:
        """Append the token to each lane's window and return the last position's actions (lanes, action_size)."""
        self.windows = np.roll(self.windows, -1, axis=1)
        self.mask = np.roll(self.mask, -1, axis=1)
        self.windows[:, -1] = self.model.codec.encode(token.vector())
        self.mask[:, -1] = True
        device = self.model.input_unit.device
        with torch.inference_mode():
            actions = self.model(torch.from_numpy(self.windows).to(device), torch.from_numpy(self.mask).to(device))
        return actions[:, -1].cpu().numpy().astype(np.float64)

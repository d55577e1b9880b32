"""The float policy in window mode: replay the last K tokens for each decision, as the paper does."""

from __future__ import annotations

import numpy as np
import torch

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.tasks import Token
from dsf.tasks.policy import NOT_FINITE
from dsf.train.models.decision_model import DecisionModel


class TorchPolicy:
    """Level L0 of the verification ladder: the trained model itself, for ``lanes`` episodes at once."""

    def __init__(self, model: DecisionModel, lanes: int = 1) -> None:
        self.model, self.lanes = model.eval(), lanes
        features = len(model.codec.unit)
        self.windows = np.zeros((lanes, model.config.context, features), np.float32)
        self.mask = np.zeros((lanes, model.config.context), bool)
        self.ends = np.full(lanes, -1, np.int64)

    def reset(self, lane: int) -> None:
        """Empty one lane's window."""
        self.windows[lane] = 0.0
        self.mask[lane] = False
        self.ends[lane] = -1

    def act(self, token: Token) -> FloatArray:
        """Append the token to each lane's window and return the last position's actions (lanes, action_size).

        Raises:
            UserError: a value of the token is not finite.
        """
        vector = token.vector()
        if not np.isfinite(vector).all():
            raise UserError(NOT_FINITE)
        self.windows = np.roll(self.windows, -1, axis=1)
        self.mask = np.roll(self.mask, -1, axis=1)
        self.windows[:, -1] = self.model.codec.encode(vector)
        self.mask[:, -1] = True
        self.ends += 1
        device = self.model.input_unit.device
        with torch.inference_mode():
            window = (torch.from_numpy(array).to(device) for array in (self.windows, self.mask, self.ends))
            actions = self.model(*window)
        return actions[:, -1].cpu().numpy().astype(np.float64)

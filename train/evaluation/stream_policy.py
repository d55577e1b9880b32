"""The float policy in stream mode: one token per decision, as the deployed network decides.

Where a DSFormer's receptive field fits into its context, stream mode computes what the replayed window does, within
float rounding, at a twentieth of the work. Scores during and after training come from here wherever that holds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.tasks import Policy, Token
from dsf.tasks.policy import NOT_FINITE
from dsf.train.evaluation.torch_policy import TorchPolicy
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.dsformer import DSFormer


def float_policy(model: DecisionModel, lanes: int) -> Policy:
    """The policy that computes what ``model`` was trained to, by the cheapest way that is exact.

    Args:
        model: put into evaluation mode.
        lanes: episodes at once.
    """
    if isinstance(model, DSFormer) and model.config.stream_is_exact:
        return StreamPolicy(model, lanes)
    return TorchPolicy(model, lanes)


class StreamedTokens:
    """Stands for :class:`~dsf.train.models.attention.PackedTokens` where each lane has one new token per step.

    A block asks once per step for its coincidences side by side with the earlier ones; they are kept here, block by
    block in the order of asking.

    Args:
        lanes: one row each.
        window: tokens that a block sees, the present one included.
    """

    def __init__(self, lanes: int, window: int) -> None:
        self.lanes, self.window = lanes, window
        self.kept: list[Tensor] = []
        self.asked = 0

    def begin(self) -> None:
        """The next token starts."""
        self.asked = 0

    def forget(self, lane: int) -> None:
        """A new episode starts in a lane: nothing fired before it."""
        with torch.inference_mode():  # which made them
            for history in self.kept:
                history[:, lane] = 0.0

    def unpack(self, rows: Tensor) -> Tensor:
        """(ticks, lanes, channels) of the present -> (ticks, lanes, window, channels), the present last."""
        ticks, _, channels = rows.shape
        if self.asked == len(self.kept):
            self.kept.append(rows.new_zeros(ticks, self.lanes, self.window, channels))
        history = torch.cat((self.kept[self.asked][:, :, 1:], rows[:, :, None]), dim=2)
        self.kept[self.asked] = history
        self.asked += 1
        return history

    def repack(self, padded: Tensor) -> Tensor:
        """The present's part of (ticks, lanes, window, channels)."""
        return padded[:, :, -1]


class StreamPolicy:
    """A DSFormer whose stream mode is exact, for ``lanes`` episodes at once."""

    def __init__(self, model: DSFormer, lanes: int = 1) -> None:
        self.model, self.lanes = model.eval(), lanes
        self.tokens = StreamedTokens(lanes, model.config.window)

    def reset(self, lane: int) -> None:
        """A new episode starts in a lane."""
        self.tokens.forget(lane)

    def act(self, token: Token) -> FloatArray:
        """Consume one token per lane and return actions (lanes, action_size).

        Raises:
            UserError: a value of the token is not finite.
        """
        vector = token.vector()
        if not np.isfinite(vector).all():
            raise UserError(NOT_FINITE)
        integers = torch.from_numpy(self.model.codec.encode(vector).astype(np.float32))
        self.tokens.begin()
        with torch.inference_mode():
            actions = self.model.decide(integers.to(self.model.input_unit.device), self.tokens)
        return actions.cpu().numpy().astype(np.float64)

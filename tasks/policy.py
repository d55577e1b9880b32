"""The one protocol between a closed loop and whatever decides: torch, integer engines and Lava all implement it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dsf.shell.arrays import FloatArray

NOT_FINITE = "an observation, action or return-to-go is not finite: check the environment and the target"
"""What a policy says to a token that holds no numbers."""


@dataclass(frozen=True)
class Token:
    """What a return-conditioned policy sees at one environment step (DSFormer, section 3: one token per step).

    Attributes:
        observation: (lanes, observation_size), environment units.
        previous_action: (lanes, action_size), the action commanded one step earlier, clipped as it is executed (at
            once, unless a disturbance delays it); zeros at an episode's start.
        return_to_go: (lanes,), reward still wanted, divided by the task's return scale.
    """

    observation: FloatArray
    previous_action: FloatArray
    return_to_go: FloatArray

    def vector(self) -> FloatArray:
        """The token as (lanes, observation_size + action_size + 1): observation, previous action, return-to-go."""
        return np.concatenate([self.observation, self.previous_action, self.return_to_go[:, None]], axis=1)


class Policy(Protocol):
    """Decides for ``lanes`` independent episodes at once; each lane has its own memory."""

    lanes: int

    def reset(self, lane: int) -> None:
        """Forget everything about this lane: a new episode starts there."""
        ...

    def act(self, token: Token) -> FloatArray:
        """Consume one token per lane and return (lanes, action_size) actions in [-1, 1]."""
        ...

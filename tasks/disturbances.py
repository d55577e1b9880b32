"""What a robot puts between its environment and its policy: late actions, noisy sensors, lost messages."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.tasks.task import Task


@dataclass(frozen=True)
class Disturbances:
    """How sensors, actuators and the links to them fall short; the defaults change nothing, not even the last bit.

    Random numbers depend on ``seed`` and on an episode's reset seed alone: neither the order of episodes nor how many
    run side by side matters. They do not depend on the other fields, so a larger value disturbs the same moments more:
    of two dropouts, the larger one loses whatever the smaller one loses.

    Attributes:
        action_latency: control periods between an answer and its execution; until the first one arrives, zeros are
            executed (of a discrete task: choice 0).
        observation_noise: standard deviation of the Gaussian noise on every element, in units of its scale.
        observation_scale: (observation_size,) environment units; empty where there is no noise.
        observation_dropout: probability that a decision's observation is lost as a whole; the policy sees the last one
            that arrived. The first of an episode always arrives.
        sensor_dropout: the same for every element of an observation on its own.
        seed: of the random numbers, 0 or more.
    """

    action_latency: int = 0
    observation_noise: float = 0.0
    observation_scale: tuple[float, ...] = ()
    observation_dropout: float = 0.0
    sensor_dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("action_latency", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        if not (math.isfinite(self.observation_noise) and self.observation_noise >= 0):
            raise UserError(f"observation_noise is {self.observation_noise}: it must be a finite number, 0 or more")
        for name in ("observation_dropout", "sensor_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be between 0 and 1")

    def require_fits(self, task: Task) -> None:
        """Check that noise has a scale for every element of a task's observations.

        Raises:
            UserError: it has not.
        """
        if self.observation_noise > 0 and len(self.observation_scale) != task.observation_size:
            raise UserError(
                f"observation_scale has {len(self.observation_scale)} elements, an observation of task {task.name} has "
                f"{task.observation_size}: give one scale for each"
            )


UNDISTURBED = Disturbances()


class DisturbedLink:
    """The way from an environment to its policy and back, for one episode."""

    def __init__(self, disturbances: Disturbances, task: Task, reset_seed: int) -> None:
        self._disturbances, self._scale = disturbances, np.array(disturbances.observation_scale)
        self._generator = np.random.default_rng([disturbances.seed, reset_seed])
        self._under_way = deque(np.zeros(task.action_size) for _ in range(disturbances.action_latency))
        self._received: FloatArray | None = None

    def actuate(self, action: FloatArray) -> FloatArray:
        """Send a policy's answer (action_size,); returns the one that arrives now."""
        self._under_way.append(action.copy())  # a policy may overwrite its answers
        return self._under_way.popleft()

    def sense(self, observation: FloatArray) -> FloatArray:
        """What the policy sees of an observation (observation_size,)."""
        levels = self._disturbances
        if not (levels.observation_noise or levels.observation_dropout or levels.sensor_dropout):
            return observation
        # Always drawn all three, so that one field's random numbers do not depend on another field.
        noise, whole = self._generator.standard_normal(observation.size), self._generator.random()
        each = self._generator.random(observation.size)
        if levels.observation_noise:
            observation = observation + levels.observation_noise * self._scale * noise
        if self._received is not None:
            lost = (whole < levels.observation_dropout) | (each < levels.sensor_dropout)
            observation = np.where(lost, self._received, observation)
        self._received = observation
        return observation

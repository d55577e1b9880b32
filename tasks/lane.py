"""One environment with the bookkeeping of a return-conditioned policy: what every closed loop is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import CommandFailed
from dsf.tasks.disturbances import UNDISTURBED, Disturbances, DisturbedLink
from dsf.tasks.policy import Token
from dsf.tasks.task import Task


@dataclass(frozen=True)
class Episode:
    """One finished episode.

    Attributes:
        seed: reset seed.
        episode_return: undiscounted (reward units).
        decisions: their number.
        success: whether the goal was reached at any step, where the environment says so; recordings do not keep it.
        shortest: decisions that the best policy needs, where the environment says so.
    """

    seed: int
    episode_return: float
    decisions: int
    success: bool | None = field(default=None, compare=False)
    shortest: int | None = field(default=None, compare=False)


class Lane:
    """An environment and its running episode; :meth:`close` frees it.

    Rewards are what the environment gave, whatever its disturbances: return-to-go and totals are exact.

    Attributes:
        running: whether an episode is on.
        observation: (observation_size,), as the policy sees it.
        previous_action: (action_size,), as the policy commanded it, clipped to what can be executed; zeros at an
            episode's start. With latency something older is executed, but a robot's policy knows what it commanded.
        wanted: return still asked for (reward units).
        total, decisions: of the running episode so far.
        reward: of the last step.
        info: what the environment told beside it.
        reached: whether the goal was reached so far; None where the environment does not say.

    Raises:
        UserError: the disturbances are another task's.
    """

    def __init__(self, task: Task, disturbances: Disturbances = UNDISTURBED) -> None:
        disturbances.require_fits(task)
        self.task, self.disturbances, self.env = task, disturbances, task.make_env()
        self.running = False
        self.info: Mapping[str, Any] = {}

    def start(self, seed: int, target_return: float) -> None:
        """Reset the environment.

        Raises:
            CommandFailed: what it shows is no observation of the task.
        """
        self.seed, self.wanted, self.total, self.decisions = seed, target_return, 0.0, 0
        observation, self.info = self.env.reset(seed=seed)
        self.link = DisturbedLink(self.disturbances, self.task, seed)
        self.observation: FloatArray = self.link.sense(self._flat(observation))
        self.previous_action: FloatArray = np.zeros(self.task.action_size)
        self.reached: bool | None = None
        self.running = True

    def token(self) -> Token:
        """What a policy sees now, (1, ...)."""
        wanted = np.array([self.wanted / self.task.return_scale])
        return Token(self.observation[None], self.previous_action[None], wanted)

    def step(self, action: FloatArray) -> Episode | None:
        """Take a policy's answer (action_size,), move on by a control period; return the episode if that ended it.

        Raises:
            CommandFailed: an action is no finite number, and the environment does not get it; or its answer is none of
                the task's.
        """
        if not np.isfinite(action).all():
            found = ", ".join(f"{value:g}" for value in np.ravel(action))
            raise CommandFailed(
                f"{self.task.env_id}, seed {self.seed}, decision {self.decisions}: the policy's actions are {found}: "
                "nothing but finite numbers is sent to a robot"
            )
        arrived = self.task.env_action(self.link.actuate(action))
        observation, reward, terminated, truncated, self.info = self.env.step(arrived)
        self.observation = self.link.sense(self._flat(observation))
        self.previous_action = self.task.executed(action)
        if (told := _number(self.info.get("success"))) is not None:
            self.reached = bool(told) or bool(self.reached)
        self.reward = self._number_of(reward)
        if not np.isfinite(self.reward):
            raise CommandFailed(
                f"{self.task.env_id}, seed {self.seed}, decision {self.decisions}: the environment's reward is "
                f"{self.reward:g}: there is no return to report, correct the environment"
            )
        if not self.task.delayed_reward:  # else the whole reward comes with the last step, after the last decision
            self.wanted -= self.reward
        self.total += self.reward
        self.decisions += 1
        return self.cut() if terminated or truncated else None

    def _flat(self, observation: Any) -> FloatArray:
        """The observation as a vector of the task's size.

        Raises:
            CommandFailed: it is none, whatever the environment's observation space says.
        """
        try:
            flat = self.task.flat_observation(observation)
        except (TypeError, ValueError):
            flat = None
        if flat is None or flat.shape != (self.task.observation_size,):
            found = "no numbers" if flat is None else f"of shape {flat.shape}"
            raise CommandFailed(
                f"{self.task.env_id}, seed {self.seed}, decision {self.decisions}: the observation is {found}, not "
                f"{self.task.observation_size} numbers as its space says: the environment contradicts itself"
            )
        return flat

    def _number_of(self, reward: Any) -> float:
        """A reward of shape () or (1,).

        Raises:
            CommandFailed: it is no such number.
        """
        try:
            return float(np.asarray(reward, np.float64).item())
        except (TypeError, ValueError):
            raise CommandFailed(
                f"{self.task.env_id}, seed {self.seed}, decision {self.decisions}: the reward is no single number"
            ) from None

    def cut(self) -> Episode:
        """End the running episode here."""
        self.running = False
        shortest = _number(self.info.get("shortest"))
        return Episode(self.seed, self.total, self.decisions, self.reached, None if shortest is None else int(shortest))

    def close(self) -> None:
        """Free the environment."""
        self.env.close()


def _number(told: Any) -> float | None:
    """What an environment tells as a bool, a number, or an array of one; None where it is none of these."""
    if told is None:
        return None
    try:
        value = float(np.asarray(told, np.float64).item())
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def stack_tokens(lanes: list[Lane], task: Task, idle: int = 0) -> Token:
    """The lanes' tokens, followed by ``idle`` tokens of zeros."""
    token = Token(
        observation=np.stack([lane.observation for lane in lanes]),
        previous_action=np.stack([lane.previous_action for lane in lanes]),
        return_to_go=np.array([lane.wanted / task.return_scale for lane in lanes]),
    )
    if not idle:
        return token
    return Token(
        observation=np.pad(token.observation, ((0, idle), (0, 0))),
        previous_action=np.pad(token.previous_action, ((0, idle), (0, 0))),
        return_to_go=np.pad(token.return_to_go, (0, idle)),
    )

"""The closed loop: environments and a policy in lockstep, one lane per environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dsf.tasks.policy import FloatArray, Policy, Token
from dsf.tasks.task import Task


@dataclass(frozen=True)
class Episode:
    """One finished episode: its reset seed, undiscounted return (reward units) and number of decisions."""

    seed: int
    episode_return: float
    decisions: int


class _Lane:
    """One environment with the return-to-go bookkeeping of its running episode."""

    def __init__(self, task: Task) -> None:
        self.task, self.env = task, task.make_env()
        self.running = False

    def start(self, seed: int, target_return: float) -> None:
        observation, _ = self.env.reset(seed=seed)
        self.observation: FloatArray = self.task.flat_observation(observation)
        self.previous_action: FloatArray = np.zeros(self.task.action_size)
        self.seed, self.wanted, self.total, self.decisions = seed, target_return, 0.0, 0
        self.running = True

    def step(self, action: FloatArray) -> Episode | None:
        """Execute one action; return the episode if this ended it."""
        observation, reward, terminated, truncated, _ = self.env.step(self.task.env_action(action))
        self.observation, self.previous_action = self.task.flat_observation(observation), self.task.executed(action)
        if not self.task.delayed_reward:  # else the whole reward comes with the last step, after the last decision
            self.wanted -= float(reward)
        self.total += float(reward)
        self.decisions += 1
        if not (terminated or truncated):
            return None
        self.running = False
        return Episode(self.seed, self.total, self.decisions)


def rollout(
    task: Task,
    policy: Policy,
    seeds: Sequence[int],
    target_return: float,
    on_step: Callable[[int], None] | None = None,
) -> list[Episode]:
    """Run one episode per seed and return them in the order of ``seeds``.

    Args:
        task: environment and return scale.
        policy: decides for ``policy.lanes`` episodes at a time.
        seeds: environment reset seeds, one episode each.
        target_return: return asked for at the first step (reward units); lowered by each reward received.
        on_step: called with the number of running lanes after every lockstep decision (progress bars).
    """
    lanes = [_Lane(task) for _ in range(min(policy.lanes, len(seeds)))]
    idle = policy.lanes - len(lanes)
    waiting, finished = list(seeds), []
    try:
        while waiting or any(lane.running for lane in lanes):
            for index, lane in enumerate(lanes):
                if not lane.running and waiting:
                    lane.start(waiting.pop(0), target_return)
                    policy.reset(index)
            actions = policy.act(_token(lanes, task, idle))
            running = [(lane, action) for lane, action in zip(lanes, actions) if lane.running]
            finished += [episode for lane, action in running if (episode := lane.step(action)) is not None]
            if on_step is not None:
                on_step(len(running))
    finally:
        for lane in lanes:
            lane.env.close()
    return sorted(finished, key=lambda episode: list(seeds).index(episode.seed))


def _token(lanes: list[_Lane], task: Task, idle: int) -> Token:
    """Stack the lanes' tokens; lanes without an environment get zeros."""
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

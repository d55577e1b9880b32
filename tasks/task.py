"""Registered control tasks: which environment, how its returns are scored, and what a policy is asked to reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsf.tasks.console import UserError

if TYPE_CHECKING:
    import gymnasium

SCORE_SCALE = 100.0
"""D4RL scores are percentages: 0 is a random policy, 100 the reference expert."""


@dataclass(frozen=True)
class Task:
    """One closed-loop control task.

    Attributes:
        name: short name used on the command line.
        env_id: Gymnasium id.
        observation_size: length of the flat observation vector.
        action_size: length of the action vector; every action lies in [-1, 1].
        return_scale: returns-to-go are divided by this before a policy sees them (reward units).
        target_returns: returns to ask for, best first (reward units); the first is the default.
        random_return: mean return of D4RL's random policy (reward units).
        expert_return: mean return of D4RL's expert (reward units).
        control_period_s: simulated seconds between two decisions.
        max_steps: decisions after which an episode is cut.
    """

    name: str
    env_id: str
    observation_size: int
    action_size: int
    return_scale: float
    target_returns: tuple[float, ...]
    random_return: float
    expert_return: float
    control_period_s: float
    max_steps: int

    def score(self, episode_return: float) -> float:
        """D4RL-normalised score: 100 * (return - random) / (expert - random) (Fu et al. 2020, section 5)."""
        return SCORE_SCALE * (episode_return - self.random_return) / (self.expert_return - self.random_return)

    def make_env(self) -> gymnasium.Env:
        """Create a fresh environment. MuJoCo is imported here, so that naming a task stays cheap."""
        import gymnasium

        return gymnasium.make(self.env_id)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        # Reference returns: D4RL infos.py. Targets and scale: DSFormer's released configuration.
        # Hopper-v5 decides every 4 frames of 2 ms.
        Task(
            name="hopper",
            env_id="Hopper-v5",
            observation_size=11,
            action_size=3,
            return_scale=1000.0,
            target_returns=(3600.0, 1800.0),
            random_return=-20.272305,
            expert_return=3234.3,
            control_period_s=0.008,
            max_steps=1000,
        ),
    )
}


def get_task(name: str) -> Task:
    """Look a task up by name.

    Raises:
        UserError: no task has this name.
    """
    if name not in TASKS:
        raise UserError(f"unknown task '{name}': choose one of {', '.join(sorted(TASKS))}")
    return TASKS[name]


def task_for_env(env_id: str) -> Task:
    """Look a task up by its Gymnasium id.

    Raises:
        UserError: no registered task uses this environment.
    """
    for task in TASKS.values():
        if task.env_id == env_id:
            return task
    known = ", ".join(sorted(task.env_id for task in TASKS.values()))
    raise UserError(f"environment '{env_id}' belongs to no registered task: known environments are {known}")

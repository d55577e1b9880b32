"""The maze as registered tasks: one per observation, on unseen test mazes of 21 x 21 cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dsf.shell.errors import UserError
from dsf.tasks.maze_views import DEFAULT_WINDOW, MazeObservation, MazeView
from dsf.tasks.mazes import DEFAULT_SIZE, open_cells
from dsf.tasks.task import Task

MODULE = "dsf.tasks.maze_env"
ENV_IDS: dict[MazeObservation, str] = {
    "walls": "dsf/Maze-v0",
    "position": "dsf/MazePosition-v0",
    "view": "dsf/MazeView-v0",
}
STEP_REWARD, GOAL_REWARD = -0.1, 1.0
"""Rewards of every move, and of the one that reaches the goal in addition."""
MOVES_PER_CELL = 4
"""The default horizon in moves per open cell of a perfect maze; the right-hand rule needs less than two."""
RANDOM_RETURN, SHORTEST_RETURN, WALL_FOLLOWER_RETURN = -80.37, -8.28, -18.95
"""Means over the test mazes of seeds 0 to 999: dsf-data reference maze --episodes 1000."""
_OF_EVERY_TASK: dict[str, Any] = {"size": DEFAULT_SIZE, "window": DEFAULT_WINDOW, "walls": None, "horizon": None}


def default_horizon(size: int) -> int:
    """Moves after which an episode is cut."""
    return MOVES_PER_CELL * open_cells(size)


def maze_task_name(observation: MazeObservation) -> str:
    """What the task of an observation is called; walls are the default."""
    return "maze" if observation == "walls" else f"maze-{observation}"


def _maze(observation: MazeObservation) -> Task:
    """Reset seeds give test mazes. A maze has no clock, so no control period is stated."""
    return Task(
        maze_task_name(observation),
        ENV_IDS[observation],
        observation_size=MazeView(observation, DEFAULT_SIZE).length,
        action_size=4,
        return_scale=10.0,
        target_returns=(WALL_FOLLOWER_RETURN, SHORTEST_RETURN),
        random_return=RANDOM_RETURN,
        expert_return=SHORTEST_RETURN,
        control_period_s=math.nan,
        max_steps=default_horizon(DEFAULT_SIZE),
        discrete=True,
        reference="dsf",
        registered_by=MODULE,
    )


MAZE_TASKS = tuple(_maze(observation) for observation in ENV_IDS)


def require_task_mazes(env_id: str, env_kwargs: Mapping[str, Any]) -> None:
    """Refuse data from mazes that no task would evaluate on; other environments are left alone.

    Raises:
        UserError: the environment was made with another size, window, horizon, observation, or with own walls.
    """
    observations = {other: observation for observation, other in ENV_IDS.items()}
    if env_id not in observations:
        return
    known = {**_OF_EVERY_TASK, "observation": observations[env_id]}
    for name, value in env_kwargs.items():
        if name in known and value != known[name]:
            raise UserError(
                f"environment '{env_id}' with {name}={value} belongs to no registered task: "
                f"tasks have {name}={known[name]}"
            )

"""Hand-written behaviour policies: waypoints through a maze, and a balanced pole."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dsf.tasks import Task
from dsf.tasks.maze_experts import EXPERTS, MazeExpert

MazeCell = tuple[int, int]
"""Row and column of a maze map."""

WALL = 1
POSITION_GAIN, VELOCITY_GAIN = 20.0, 1.0
"""Force per metre to the waypoint and per metre per second: brakes in time from any speed that a corridor allows."""


class Behaviour(Protocol):
    """What collects data: one action for one raw observation of the environment."""

    def sample(self, observation: Any, generator: np.random.Generator) -> Any:
        """Draw an action."""
        ...


@dataclass
class WaypointController:
    """Pushes the ball of a PointMaze to its goal along a shortest path of cells, then holds it there.

    Attributes:
        maze: the environment's maze; tells cells from coordinates.
        noise: standard deviation of the Gaussian that is added to the action before it is clipped.
    """

    maze: Any
    noise: float
    _distances: dict[MazeCell, dict[MazeCell, int]] = field(default_factory=dict)

    def sample(self, observation: dict[str, Any], generator: np.random.Generator) -> npt.NDArray[np.float32]:
        """A force (2,) in [-1, 1]: proportional to the way to the next waypoint, damped by the velocity."""
        position, velocity = observation["observation"][:2], observation["observation"][2:]
        error = self._waypoint(position, observation["desired_goal"]) - position
        force = POSITION_GAIN * error - VELOCITY_GAIN * velocity + self.noise * generator.standard_normal(2)
        return np.clip(force, -1.0, 1.0).astype(np.float32)

    def _waypoint(self, position: npt.NDArray[np.float64], goal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The centre of the neighbouring cell that is nearer to the goal; the goal itself once no cell is."""
        cell, goal_cell = self._cell(position), self._cell(goal)
        if goal_cell not in self._distances:
            self._distances[goal_cell] = cell_distances(self.maze.maze_map, goal_cell)
        distances = self._distances[goal_cell]
        here = distances.get(cell, len(distances))
        nearer = [near for near in neighbours(cell) if distances.get(near, here) < here]
        return self.maze.cell_rowcol_to_xy(np.array(nearer[0])) if nearer else goal

    def _cell(self, position: npt.NDArray[np.float64]) -> MazeCell:
        row, column = self.maze.cell_xy_to_rowcol(position)
        return int(row), int(column)


def neighbours(cell: MazeCell) -> list[MazeCell]:
    """The four cells that share an edge with this one."""
    row, column = cell
    return [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]


def cell_distances(maze_map: list[list[Any]], goal: MazeCell) -> dict[MazeCell, int]:
    """Steps from every free cell to ``goal``, by breadth-first search. The outer ring of a map is wall."""
    distances, queue = {goal: 0}, deque([goal])
    while queue:
        cell = queue.popleft()
        for near in neighbours(cell):
            if near not in distances and maze_map[near[0]][near[1]] != WALL:
                distances[near] = distances[cell] + 1
                queue.append(near)
    return distances


POLE_WEIGHTS = np.array([0.05, 0.2, 1.0, 0.6])
"""Weights of cart position, cart velocity, pole angle and angular velocity: push to the side where the sum falls."""


@dataclass(frozen=True)
class BalanceController:
    """Balances CartPole: pushes the cart towards the side to which pole and cart tend.

    ``noise`` is the probability of a random push instead.
    """

    noise: float

    def sample(self, observation: npt.NDArray[np.floating], generator: np.random.Generator) -> np.int64:
        """0 pushes to the left, 1 to the right."""
        if generator.random() < self.noise:
            return np.int64(generator.integers(2))
        return np.int64(observation @ POLE_WEIGHTS > 0.0)


@dataclass(frozen=True)
class RandomBehaviour:
    """Uniformly random actions: the zero of a normalised score."""

    task: Task

    def sample(self, observation: Any, generator: np.random.Generator) -> Any:
        """Draw an action, whatever is seen."""
        size = self.task.action_size
        return generator.integers(size) if self.task.discrete else generator.uniform(-1.0, 1.0, size).astype(np.float32)


@dataclass(frozen=True)
class MazeWalker:
    """Does what a maze's expert does; it asks the environment, which knows the walls and the last move."""

    maze: Any
    expert: MazeExpert

    def sample(self, observation: Any, generator: np.random.Generator) -> np.int64:
        """A move, whatever is seen and drawn."""
        return np.int64(self.maze.expert_move(self.expert))


CONTROLLERS = ("waypoint", "balance", *EXPERTS)


def make_controller(name: str, noise: float, env: Any) -> Behaviour:
    """The controller called ``name`` for this environment."""
    if name in EXPERTS:
        return MazeWalker(env.unwrapped, name)
    return WaypointController(env.unwrapped.maze, noise) if name == "waypoint" else BalanceController(noise)


def episode_returns(task: Task, behaviour: str, episodes: int) -> npt.NDArray[np.float64]:
    """Returns (episodes,) of "random" or of a controller without noise, reset seeds 0 upwards."""
    env = task.make_env()
    policy = RandomBehaviour(task) if behaviour == "random" else make_controller(behaviour, 0.0, env)
    returns = np.zeros(episodes)
    for seed in range(episodes):
        generator = np.random.default_rng(seed)
        observation, _ = env.reset(seed=seed)
        done = False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(policy.sample(observation, generator))
            returns[seed] += float(reward)
            done = terminated or truncated
    env.close()
    return returns

"""The maze as a Gymnasium environment; importing this module registers dsf/Maze-v0 and its two other observations."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete

from dsf.shell.arrays import Int8Array
from dsf.shell.errors import UserError
from dsf.tasks.maze_experts import NO_MOVE, RIGHT_HAND_RULE, MazeExpert, check_expert, neighbour_walls
from dsf.tasks.maze_picture import Picture, draw
from dsf.tasks.maze_tasks import ENV_IDS, GOAL_REWARD, STEP_REWARD, default_horizon
from dsf.tasks.maze_views import DEFAULT_WINDOW, MazeObservation, MazeView
from dsf.tasks.mazes import (
    DEFAULT_SIZE,
    Split,
    check_size,
    check_split,
    check_walls,
    digests,
    distances_to_goal,
    draw_maze,
    entrance_cell,
    goal_cell,
    move_offsets,
    split_of,
)


class MazeEnv(gymnasium.Env[Int8Array, np.int64]):
    """A perfect maze, another one at every reset; left, right, up, down; what a move into a wall costs is the move.

    Every move earns -0.1, the one that reaches the goal 1 more, which ends the episode. ``info`` holds ``success`` (the
    goal was reached), ``shortest`` (moves of the shortest path from the entrance), ``maze`` (digest of the walls) and
    ``split``.

    Args:
        observation: see :class:`~dsf.tasks.maze_views.MazeView`.
        size: height and width (cells), odd.
        split: mazes are drawn from it: "train", "validation" or "test".
        horizon: moves after which an episode is cut; None is four per open cell of a perfect maze.
        window: height and width (cells) of the observation "view".
        walls: a maze of your own for all episodes, (size, size) of 0 and 1, perfect or not; its split is what its
            digest says.
        render_mode: "rgb_array" or None.

    Raises:
        UserError: an argument is wrong, or the goal of a maze of your own cannot be reached.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        observation: MazeObservation = "walls",
        size: int = DEFAULT_SIZE,
        split: Split = "test",
        horizon: int | None = None,
        window: int = DEFAULT_WINDOW,
        walls: npt.ArrayLike | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.own_walls = None if walls is None else check_walls(walls)
        self.size = size if self.own_walls is None else len(self.own_walls)
        check_size(self.size)
        check_split(split)
        self.horizon = default_horizon(self.size) if horizon is None else horizon
        if self.horizon < 1:
            raise UserError(f"maze horizon is {horizon}: it must be at least 1 move")
        self.split, self.render_mode = split, render_mode
        self.view = MazeView(observation, self.size, window)
        low, high = self.view.bounds
        self.observation_space = Box(low, high, dtype=np.int8)
        self.action_space = Discrete(4)
        self.offsets = move_offsets(self.size).tolist()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Int8Array, dict[str, Any]]:
        """Draw a maze and enter it."""
        super().reset(seed=seed)
        if self.own_walls is None:
            self.walls, self.digest = draw_maze(self.size, self.split, self.np_random)
        else:
            self.walls, self.digest = self.own_walls, digests(self.own_walls[None])[0]
        self.distances = distances_to_goal(self.walls)
        self.table = self.view.tables(self.walls[None])[0]
        self.neighbours = neighbour_walls(self.walls[None])[0].tolist()
        self.cell, self.last_move, self.moves = entrance_cell(self.size), NO_MOVE, 0
        self.visited = {self.cell}
        return self.table[self.cell].copy(), self._info()

    def step(self, action: np.int64) -> tuple[Int8Array, float, bool, bool, dict[str, Any]]:
        """Move by a cell, or not, where a wall is in the way.

        Raises:
            UserError: the action is none of 0 to 3.
        """
        move = int(action)
        if not 0 <= move < len(self.offsets):
            raise UserError(f"maze action is {move}: it must be 0 to 3 (left, right, up, down)")
        if not self.neighbours[self.cell] >> move & 1:
            self.cell += self.offsets[move]
            self.visited.add(self.cell)
        self.last_move = move
        self.moves += 1
        info = self._info()
        reward = STEP_REWARD + (GOAL_REWARD if info["success"] else 0.0)
        return self.table[self.cell].copy(), reward, info["success"], self.moves >= self.horizon, info

    def expert_move(self, expert: MazeExpert) -> int:
        """What an expert would do here: by the walls beside it and the last move alone, or by the whole maze.

        Raises:
            UserError: no expert has this name.
        """
        check_expert(expert)
        if expert == "wall_follower":
            return int(RIGHT_HAND_RULE[self.neighbours[self.cell], self.last_move])
        free = [move for move in range(4) if not self.neighbours[self.cell] >> move & 1]
        return min(free, key=lambda move: self.distances[self.cell + self.offsets[move]])

    def render(self) -> Picture | None:
        """The maze, the cells walked through, the goal and the agent; None unless the mode is rgb_array."""
        return draw(self.walls, self.visited, self.cell) if self.render_mode == "rgb_array" else None

    def _info(self) -> dict[str, Any]:
        return {
            "success": self.cell == goal_cell(self.size),
            "shortest": self.distances[entrance_cell(self.size)],
            "maze": self.digest,
            "split": split_of(self.digest),
        }


for _observation, _env_id in ENV_IDS.items():
    gymnasium.register(_env_id, f"{__name__}:{MazeEnv.__name__}", kwargs={"observation": _observation})

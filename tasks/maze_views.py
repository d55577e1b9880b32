"""What an agent in a maze observes: its position, the walls beside it too, or a window of the maze around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dsf.shell.arrays import Int8Array
from dsf.shell.errors import UserError
from dsf.tasks.maze_experts import neighbour_walls
from dsf.tasks.mazes import WallArray, goal_cell

MazeObservation = Literal["position", "walls", "view"]

OBSERVATIONS: tuple[MazeObservation, ...] = get_args(MazeObservation)
DEFAULT_WINDOW = 5
MAX_WINDOW = 15


def check_observation(observation: str) -> None:
    """Refuse the name of no observation.

    Raises:
        UserError: names the three.
    """
    if observation not in OBSERVATIONS:
        raise UserError(f"maze observation is '{observation}': choose one of {', '.join(OBSERVATIONS)}")


@dataclass(frozen=True)
class MazeView:
    """How mazes of one size are observed.

    Attributes:
        observation: "position" is x and y (STRL's); "walls" is x, y, whether a wall is to the left, to the right, above
            and below (1 for wall), and how far the goal is in x and in y; "view" is the window of k x k cells around
            the agent, row by row, 1 for wall, and for what lies beyond the border.
        size: of the maze (cells).
        window: k, of "view" alone.

    Raises:
        UserError: no such observation, or a window that has no middle or is too large.
    """

    observation: MazeObservation
    size: int
    window: int = DEFAULT_WINDOW

    def __post_init__(self) -> None:
        check_observation(self.observation)
        if self.window % 2 == 0 or not 3 <= self.window <= MAX_WINDOW:
            raise UserError(f"maze window is {self.window}: it must be odd, 3 to {MAX_WINDOW}, the agent in its middle")

    @property
    def length(self) -> int:
        """Numbers in an observation."""
        return {"position": 2, "walls": 8, "view": self.window**2}[self.observation]

    @property
    def bounds(self) -> tuple[Int8Array, Int8Array]:
        """Smallest and largest observation, (length,) each."""
        zeros, last = np.zeros(self.length, np.int8), self.size - 1
        if self.observation == "view":
            return zeros, zeros + np.int8(1)
        low, high = [0, 0, 0, 0, 0, 0, 0, -1], [last, last, 1, 1, 1, 1, last, last]
        return np.array(low[: self.length], np.int8), np.array(high[: self.length], np.int8)

    def tables(self, walls: WallArray) -> Int8Array:
        """What is observed in every cell of (mazes, size, size): (mazes, cells, length)."""
        if self.observation == "view":
            return self._windows(walls)
        count, cells = len(walls), self.size**2
        table = np.empty((count, cells, self.length), np.int8)
        y, x = np.divmod(np.arange(cells), self.size)
        table[:, :, 0], table[:, :, 1] = x, y
        if self.observation == "walls":
            sets = neighbour_walls(walls)
            for move in range(4):
                table[:, :, 2 + move] = (sets >> np.uint8(move)) & np.uint8(1)
            goal_y, goal_x = divmod(goal_cell(self.size), self.size)
            table[:, :, 6], table[:, :, 7] = goal_x - x, goal_y - y
        return table

    def _windows(self, walls: WallArray) -> Int8Array:
        reach = self.window // 2
        padded = np.pad(walls.astype(np.int8), ((0, 0), (reach, reach), (reach, reach)), constant_values=1)
        table = np.empty((len(walls), self.size, self.size, self.length), np.int8)
        for place in range(self.length):
            y, x = divmod(place, self.window)
            table[..., place] = padded[:, y : y + self.size, x : x + self.size]
        return table.reshape(len(walls), self.size**2, self.length)

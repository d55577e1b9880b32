"""A maze as a picture: walls, the cells walked through, the goal and the agent."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dsf.tasks.mazes import WallArray, goal_cell

Picture = npt.NDArray[np.uint8]

PIXELS = 8
"""Height and width of a cell in pixels."""
# Colours: red, green, blue.
WALL = (40, 44, 52)
FLOOR = (245, 245, 240)
PATH = (150, 190, 235)
GOAL = (60, 160, 90)
AGENT = (210, 60, 50)


def draw(walls: WallArray, visited: Iterable[int], agent: int) -> Picture:
    """Picture (size * PIXELS, size * PIXELS, 3) of walls (size, size), cell numbers walked through, and the agent's."""
    size = len(walls)
    cells = np.where(walls.reshape(-1, 1) == 1, np.array(WALL, np.uint8), np.array(FLOOR, np.uint8))
    cells[list(visited)] = PATH
    cells[goal_cell(size)] = GOAL
    cells[agent] = AGENT
    return cells.reshape(size, size, 3).repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)

"""Random perfect mazes, many at a time, and the split that each one belongs to by its walls alone.

A maze is a square of cells, walls[y, x] = 1 for wall. Cells with two odd coordinates are rooms; the passages opened
between them make a spanning tree of the rooms, so one way leads from any open cell to any other. The entrance is at
(x, y) = (0, 1), the exit (goal) at (size - 1, size - 2). Flat cell numbers are y * size + x.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from dsf.shell.errors import UserError

WallArray = npt.NDArray[np.uint8]
Split = Literal["train", "validation", "test"]

DEFAULT_SIZE = 21
MIN_SIZE, MAX_SIZE = 9, 99
"""Carving finds 322 mazes of 9 x 9, but 14 of 7 x 7 and none of those for validation; 99 keeps offsets in int8."""
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_ENDS = (70, 85, 100)
"""Percent of all mazes at which train, validation and test end (STRL, arXiv 2505.14533, splits 70 / 15 / 15)."""
DIGEST_BYTES = 8
CHUNK, SEARCH_CHUNK = 4096, 16
"""Mazes carved at a time, for datasets and for one maze of a certain split; other numbers give other mazes."""

_CHOICES = 12
"""A number below 12 picks uniformly among one, two, three or four ways."""
_WAYS = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Left, right, up and down as (x, y): the four actions in their order."""


def check_size(size: int) -> None:
    """Refuse a size that no maze has.

    Raises:
        UserError: it is even, too small or too large.
    """
    if not MIN_SIZE <= size <= MAX_SIZE or size % 2 == 0:
        raise UserError(f"maze size is {size}: it must be odd, {MIN_SIZE} to {MAX_SIZE} (rooms lie between walls)")


def check_split(split: str) -> None:
    """Refuse the name of no split.

    Raises:
        UserError: names the three.
    """
    if split not in SPLITS:
        raise UserError(f"maze split is '{split}': choose one of {', '.join(SPLITS)}")


def move_offsets(size: int) -> npt.NDArray[np.int64]:
    """What left, right, up and down add to a cell number, (4,)."""
    return np.array([x + y * size for x, y in _WAYS])


def entrance_cell(size: int) -> int:
    """Cell number of (0, 1)."""
    return size


def goal_cell(size: int) -> int:
    """Cell number of (size - 1, size - 2)."""
    return (size - 1) * size - 1


def open_cells(size: int) -> int:
    """Open cells of a perfect maze: rooms, passages, entrance and exit."""
    rooms = (size // 2) ** 2
    return 2 * rooms + 1


def carve(count: int, size: int, generator: np.random.Generator) -> WallArray:
    """Carve ``count`` mazes by randomised depth-first search from the room (1, 1); walls (count, size, size).

    All mazes take a step at once: to a random unvisited neighbour, or back where there is none. Each needs as many
    steps back as it has passages, so all end together.
    """
    check_size(size)
    side, rooms = size // 2 + 2, (size // 2) ** 2  # rooms with a ring of visited ones around, to need no bounds
    walls = np.ones((count, size * size), np.uint8)
    visited = np.ones((count, side, side), np.uint8)
    visited[:, 1:-1, 1:-1] = 0
    room_grid, cell_grid = visited.reshape(-1), walls.reshape(-1)
    room_base, cell_base, stack_base = (np.arange(count) * width for width in (side * side, size * size, rooms))
    room_steps = np.array([x + y * side for x, y in _WAYS])
    cell_steps = move_offsets(size)
    cell_of_room = np.array([[(2 * y - 1) * size + 2 * x - 1 for x in range(side)] for y in range(side)]).reshape(-1)
    stack, depth = np.full(count * rooms, side + 1), np.zeros(count, np.int64)
    room = np.full(count, side + 1)
    room_grid[room_base + room] = 1
    cell_grid[cell_base + cell_of_room[room]] = 0
    weights = np.array([1, 2, 4, 8], np.uint8)
    for _ in range(2 * (rooms - 1)):
        place = room_base + room
        taken = (room_grid[place[:, None] + room_steps] * weights).sum(axis=1, dtype=np.uint8)
        way = _PICKED[taken, generator.integers(0, _CHOICES, count, np.uint8)]
        ahead = np.flatnonzero(taken < 15)
        depth += np.where(taken < 15, 1, -1)
        step, start = way[ahead], room[ahead]
        entered = start + room_steps[step]
        stack[stack_base[ahead] + depth[ahead]] = entered
        room_grid[room_base[ahead] + entered] = 1
        passage = cell_base[ahead] + cell_of_room[start] + cell_steps[step]
        cell_grid[passage] = 0
        cell_grid[passage + cell_steps[step]] = 0
        room = stack[stack_base + depth]
    walls[:, [entrance_cell(size), goal_cell(size)]] = 0
    return walls.reshape(count, size, size)


def _picked() -> npt.NDArray[np.int64]:
    """Way for (16 sets of taken ways, 12 numbers): every way that is left for the same share of the numbers."""
    table = np.zeros((16, _CHOICES), np.int64)
    for taken in range(15):
        left = [way for way in range(4) if not taken & (1 << way)]
        table[taken] = [left[number % len(left)] for number in range(_CHOICES)]
    return table


_PICKED = _picked()


def digests(walls: WallArray) -> list[str]:
    """What a maze is known by, in hexadecimal: BLAKE2b over its walls (mazes, size, size), eight to a byte."""
    packed = np.packbits(walls.reshape(len(walls), -1), axis=1)
    return [hashlib.blake2b(row.tobytes(), digest_size=DIGEST_BYTES).hexdigest() for row in packed]


def split_of(digest: str) -> Split:
    """The split that a maze belongs to, whoever drew it: its digest modulo 100 against 70 and 85."""
    percent = int(digest, 16) % SPLIT_ENDS[-1]
    return next(split for split, end in zip(SPLITS, SPLIT_ENDS) if percent < end)


def draw_maze(size: int, split: Split, generator: np.random.Generator) -> tuple[WallArray, str]:
    """The generator's next maze of a split: walls (size, size) and digest."""
    while True:
        walls = carve(SEARCH_CHUNK, size, generator)
        for maze, digest in zip(walls, digests(walls)):
            if split_of(digest) == split:
                return maze, digest


def maze_stream(size: int, split: Split, generator: np.random.Generator) -> Iterator[tuple[WallArray, list[str]]]:
    """The generator's mazes of a split without end, as many at a time as were carved: (mazes, size, size), digests."""
    while True:
        walls = carve(CHUNK, size, generator)
        found = digests(walls)
        kept = [index for index, digest in enumerate(found) if split_of(digest) == split]
        yield walls[kept], [found[index] for index in kept]


def distances_to_goal(walls: WallArray) -> dict[int, int]:
    """Moves from every cell to the goal, for the cells that have a way to it, by breadth-first search.

    Any maze (size, size) whose border is wall but for entrance and goal; it need not be perfect.
    """
    size, flat = len(walls), walls.reshape(-1)
    found, queue = {goal_cell(size): 0}, deque([goal_cell(size)])
    while queue:
        cell = queue.popleft()
        for x, y in _WAYS:
            column, row = cell % size + x, cell // size + y
            near = row * size + column
            if 0 <= column < size and 0 <= row < size and near not in found and not flat[near]:
                found[near] = found[cell] + 1
                queue.append(near)
    return found


def check_walls(walls: npt.ArrayLike) -> WallArray:
    """A maze of the user's own, (size, size) of 0 (open) and 1 (wall).

    Raises:
        UserError: it is no such square, its border has other openings, or no way leads to the goal.
    """
    array = np.asarray(walls)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise UserError(f"maze walls have shape {array.shape}: they must be a square of 0 (open) and 1 (wall)")
    size = len(array)
    check_size(size)
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise UserError("maze walls hold something else than 0 (open) and 1 (wall): write the maze with these two")
    own = array.astype(np.uint8)
    border = np.ones((size, size), bool)
    border[1:-1, 1:-1] = False
    openings = set(np.flatnonzero((own == 0) & border).tolist())
    entrance, goal = entrance_cell(size), goal_cell(size)
    if openings != {entrance, goal}:
        raise UserError(
            f"maze walls have {len(openings)} openings in the border: they need two, the entrance (x, y) = (0, 1) "
            f"and the goal ({size - 1}, {size - 2})"
        )
    if entrance not in distances_to_goal(own):
        raise UserError(
            f"the maze's goal ({size - 1}, {size - 2}) is walled in: no way leads there from the entrance (0, 1); "
            "open one"
        )
    return own

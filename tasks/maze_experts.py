"""Two experts for perfect mazes: the right-hand rule, and the shortest path; and their walks through many at once.

Moves are 0 left, 1 right, 2 up, 3 down. An expert's walk starts at the entrance and ends at the goal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from dsf.shell.errors import UserError
from dsf.tasks.mazes import WallArray, entrance_cell, goal_cell, move_offsets, open_cells

MazeExpert = Literal["wall_follower", "shortest"]

EXPERTS: tuple[MazeExpert, ...] = get_args(MazeExpert)
LEFT, RIGHT, UP, DOWN = range(4)
NO_MOVE = 4
"""What the last move is at the entrance; the wall follower then heads right, into the maze."""
RIGHT_HAND = {LEFT: UP, UP: RIGHT, RIGHT: DOWN, DOWN: LEFT}
"""The move to the right hand of somebody who came by the key."""


def check_expert(expert: str) -> None:
    """Refuse the name of no expert.

    Raises:
        UserError: names the two.
    """
    if expert not in EXPERTS:
        raise UserError(f"maze expert is '{expert}': choose one of {', '.join(EXPERTS)}")


def _right_hand_rule() -> npt.NDArray[np.int8]:
    """Move for (16 sets of neighbouring walls, 5 last moves): the first open way of right, ahead, left and back."""
    table = np.zeros((16, NO_MOVE + 1), np.int8)
    for walls in range(15):
        for last in range(NO_MOVE + 1):
            heading = RIGHT if last == NO_MOVE else last
            right = RIGHT_HAND[heading]
            back = RIGHT_HAND[right]
            ways = (right, heading, RIGHT_HAND[back], back)
            table[walls, last] = next(way for way in ways if not walls & (1 << way))
    return table


RIGHT_HAND_RULE = _right_hand_rule()


def neighbour_walls(walls: WallArray) -> WallArray:
    """For every cell of (mazes, size, size) the set of its neighbouring walls, (mazes, cells): bit m is move m's.

    Beyond the border lies wall: flat numbers wrap around onto walls of the border there.
    """
    count, size = len(walls), walls.shape[-1]
    flat = walls.reshape(count, -1)
    sets = np.zeros_like(flat)
    for move, offset in enumerate(move_offsets(size)):
        sets |= np.roll(flat, -offset, axis=1) << np.uint8(move)
    return sets


@dataclass(frozen=True)
class Walks:
    """One walk per maze, laid end to end.

    Attributes:
        lengths: (mazes,) moves of each.
        moves: (all moves,).
        cells: (all moves + mazes,) where each move started, and where each walk ended.
    """

    lengths: npt.NDArray[np.int64]
    moves: npt.NDArray[np.int8]
    cells: npt.NDArray[np.int64]


def expert_walks(walls: WallArray, expert: MazeExpert) -> Walks:
    """How an expert walks through perfect mazes (mazes, size, size)."""
    check_expert(expert)
    moves, lengths = _follow_walls(walls)
    if expert == "shortest":
        moves, lengths = _without_detours(moves, lengths, walls.shape[-1])
    taken = np.arange(moves.shape[1]) < lengths[:, None]
    cells = _visited(moves, walls.shape[-1])
    stood = np.arange(cells.shape[1]) <= lengths[:, None]
    return Walks(lengths, moves[taken], cells[stood])


def _follow_walls(walls: WallArray) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """The right-hand rule's moves (mazes, longest) and how many each maze needs; what follows the goal is 0."""
    count, size = len(walls), walls.shape[-1]
    sets, offsets, goal = neighbour_walls(walls).reshape(-1), move_offsets(size), goal_cell(size)
    limit = 2 * open_cells(size)  # every passage once there and once back
    moves, lengths = np.zeros((limit, count), np.int8), np.zeros(count, np.int64)
    walking = np.arange(count)
    cell, last = np.full(count, entrance_cell(size)), np.full(count, NO_MOVE, np.int8)
    step = 0
    while len(walking):
        last = RIGHT_HAND_RULE[sets[walking * size * size + cell], last]
        moves[step, walking] = last
        cell = cell + offsets[last]
        step += 1
        there = cell == goal
        if there.any():
            lengths[walking[there]] = step
            walking, cell, last = (values[~there] for values in (walking, cell, last))
    return np.ascontiguousarray(moves[:step].T), lengths


def _visited(moves: npt.NDArray[np.int8], size: int) -> npt.NDArray[np.int64]:
    """Cells that moves (mazes, longest) lead through, (mazes, longest + 1), entrance first."""
    cells = np.empty((len(moves), moves.shape[1] + 1), np.int64)
    cells[:, 0] = entrance_cell(size)
    np.cumsum(move_offsets(size)[moves], axis=1, out=cells[:, 1:])
    cells[:, 1:] += entrance_cell(size)
    return cells


def _without_detours(
    moves: npt.NDArray[np.int8], lengths: npt.NDArray[np.int64], size: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """The shortest paths within walks: from every cell on, what was done when it was left for the last time.

    In a perfect maze one way leads to the goal, so who leaves a cell of it for good leaves it along that way.
    """
    count, goal = len(moves), goal_cell(size)
    base = np.arange(count) * size * size
    cells = _visited(moves, size)
    left_at = np.zeros(count * size * size, np.int64)
    for step in range(moves.shape[1]):
        walking = np.flatnonzero(step < lengths)
        left_at[base[walking] + cells[walking, step]] = step
    path = np.zeros((moves.shape[1], count), np.int8)
    needed = np.zeros(count, np.int64)
    walking, cell, offsets = np.arange(count), np.full(count, entrance_cell(size)), move_offsets(size)
    step = 0
    while len(walking):
        move = moves[walking, left_at[base[walking] + cell]]
        path[step, walking] = move
        cell = cell + offsets[move]
        step += 1
        there = cell == goal
        needed[walking[there]] = step
        walking, cell = walking[~there], cell[~there]
    return np.ascontiguousarray(path[:step].T), needed

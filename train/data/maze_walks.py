"""Episodes of experts' walks through mazes, thousands a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from minari.data_collector import EpisodeBuffer

from dsf.shell.arrays import Int8Array
from dsf.tasks.maze_experts import Walks, expert_walks
from dsf.tasks.maze_tasks import GOAL_REWARD, STEP_REWARD
from dsf.tasks.maze_views import MazeView
from dsf.tasks.mazes import DEFAULT_SIZE, WallArray, maze_stream
from dsf.train.data.maze_sets import MazeSet


def collect_mazes(maze_set: MazeSet, count: int, seed: int, on_maze: Callable[[int], None]) -> list[EpisodeBuffer]:
    """Walk through ``count`` mazes; the same seed gives the same ones, and more mazes begin with the fewer ones.

    Args:
        maze_set: which dataset.
        count: mazes, one episode each.
        seed: of the mazes; an expert's walk has no chance in it.
        on_maze: called with the number of mazes that were added (progress bars).
    """
    episodes: list[EpisodeBuffer] = []
    view = MazeView(maze_set.observation, DEFAULT_SIZE)
    for walls, digests in maze_stream(DEFAULT_SIZE, maze_set.split, np.random.default_rng(seed)):
        left = count - len(episodes)
        walls, digests = walls[:left], digests[:left]
        walks = expert_walks(walls, maze_set.expert)
        episodes += _episodes(walks, observed(walls, walks, view), digests)
        on_maze(len(digests))
        if len(episodes) == count:
            break
    return episodes


def observed(walls: WallArray, walks: Walks, view: MazeView) -> Int8Array:
    """What is observed at every step and after the last one, (all moves + mazes, length)."""
    cells = walls.shape[-1] ** 2
    maze = np.repeat(np.arange(len(walls)), walks.lengths + 1)
    return view.tables(walls).reshape(-1, view.length)[maze * cells + walks.cells]


def _episodes(walks: Walks, observations: Int8Array, digests: list[str]) -> Iterator[EpisodeBuffer]:
    """The walks one by one, every array a view into the common ones."""
    longest = int(walks.lengths.max(initial=1))
    rewards, ended, cut = np.full(longest, STEP_REWARD), np.zeros(longest, bool), np.zeros(longest, bool)
    rewards[-1] += GOAL_REWARD
    ended[-1] = True
    ends = np.cumsum(walks.lengths)
    for index, (length, end) in enumerate(zip(walks.lengths.tolist(), ends.tolist())):
        begin = end - length
        yield EpisodeBuffer(
            id=None,
            options={"maze": digests[index]},
            observations=observations[begin + index : end + index + 1],
            actions=walks.moves[begin:end],
            rewards=rewards[longest - length :],
            terminations=ended[longest - length :],
            truncations=cut[longest - length :],
        )

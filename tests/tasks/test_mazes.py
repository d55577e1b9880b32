"""Perfect mazes: what they are, which split each belongs to, and both experts' walks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.shell.errors import UserError
from dsf.tasks.maze_experts import (
    EXPERTS,
    NO_MOVE,
    RIGHT_HAND_RULE,
    MazeExpert,
    Walks,
    expert_walks,
    neighbour_walls,
)
from dsf.tasks.maze_views import MazeView
from dsf.tasks.mazes import (
    SPLITS,
    WallArray,
    carve,
    check_walls,
    digests,
    distances_to_goal,
    draw_maze,
    entrance_cell,
    goal_cell,
    maze_stream,
    move_offsets,
    open_cells,
    split_of,
)

SIZES = st.integers(4, 15).map(lambda half: 2 * half + 1)
FIRST_TEST_MAZE = "b7d55b0cdda1305e"
"""What seed 0 draws; another digest means that nobody's mazes and datasets can be made again."""


def mazes(size: int, seed: int, count: int = 4) -> WallArray:
    return carve(count, size, np.random.default_rng(seed))


def walk_of(walks: Walks, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Moves of one maze's walk, and the cells that it leads through."""
    end = int(walks.lengths[: index + 1].sum())
    begin = end - int(walks.lengths[index])
    return walks.moves[begin:end], walks.cells[begin + index : end + index + 1]


@given(size=SIZES, seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_every_maze_is_a_spanning_tree(size: int, seed: int) -> None:
    """Connected, with one edge less than cells: no loops, no closed room."""
    for walls in mazes(size, seed):
        is_open = walls == 0
        assert is_open.sum() == open_cells(size) and is_open[1:-1:2, 1:-1:2].all()
        edges = (is_open[1:] & is_open[:-1]).sum() + (is_open[:, 1:] & is_open[:, :-1]).sum()
        assert edges == is_open.sum() - 1
        assert len(distances_to_goal(walls)) == is_open.sum()
        assert walls[1, 0] == walls[size - 2, size - 1] == 0 and is_open[1:-1, 1:-1].sum() == is_open.sum() - 2
        assert (check_walls(walls) == walls).all()


@given(size=SIZES, seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_experts_reach_the_goal_through_open_cells(size: int, seed: int) -> None:
    walls = mazes(size, seed)
    sets = neighbour_walls(walls)
    for expert in EXPERTS:
        walks = expert_walks(walls, expert)
        for index, maze in enumerate(walls):
            moves, cells = walk_of(walks, index)
            assert cells[0] == entrance_cell(size) and cells[-1] == goal_cell(size)
            assert (cells[:-1] != goal_cell(size)).all() and not maze.reshape(-1)[cells].any()
            assert (np.diff(cells) == move_offsets(size)[moves]).all()
            if expert == "shortest":
                assert len(moves) == distances_to_goal(maze)[entrance_cell(size)]
            else:
                assert len(moves) < 2 * open_cells(size)
                last = np.concatenate([[NO_MOVE], moves[:-1]])
                assert (RIGHT_HAND_RULE[sets[index, cells[:-1]], last] == moves).all()


def test_the_wall_follower_keeps_its_right_hand_on_the_wall() -> None:
    """By the definition of the rule, on the walls as the observation shows them."""
    turn_right = {0: 2, 2: 1, 1: 3, 3: 0}
    for walls in range(15):
        for last in range(5):
            heading = 1 if last == NO_MOVE else last
            right = turn_right[heading]
            tried = [right, heading, turn_right[turn_right[right]], turn_right[right]]
            chosen = RIGHT_HAND_RULE[walls, last]
            assert not walls & (1 << chosen)
            assert all(walls & (1 << way) for way in tried[: tried.index(chosen)])


def test_what_walls_and_last_move_tell_decides_the_wall_followers_move() -> None:
    """Over all steps in many mazes, equal local walls and last moves never come with different moves."""
    for expert, is_decided in (("wall_follower", True), ("shortest", False)):
        walls = mazes(21, 5, 50)
        walks = expert_walks(walls, expert)  # type: ignore[arg-type]
        seen: dict[tuple, set[int]] = {}
        table = MazeView("walls", 21).tables(walls)
        for index in range(len(walls)):
            moves, cells = walk_of(walks, index)
            local = table[index, cells[:-1], 2:6].tolist()
            for known, last, move in zip(local, [NO_MOVE, *moves[:-1]], moves):
                seen.setdefault((*known, int(last)), set()).add(int(move))
        assert all(len(moves) == 1 for moves in seen.values()) == is_decided


@pytest.mark.parametrize("expert", EXPERTS)
def test_a_walk_does_not_depend_on_the_other_mazes(expert: MazeExpert) -> None:
    walls = mazes(11, 3, 6)
    together = expert_walks(walls, expert)
    for index in range(len(walls)):
        alone = expert_walks(walls[index : index + 1], expert)
        moves, cells = walk_of(together, index)
        assert np.array_equal(alone.moves, moves) and np.array_equal(alone.cells, cells)


def test_splits_are_disjoint_by_content_whoever_draws() -> None:
    found: dict[str, set[str]] = {split: set() for split in SPLITS}
    for seed in range(3):
        for split in SPLITS:
            walls, names = next(maze_stream(11, split, np.random.default_rng(seed)))
            assert names == digests(walls) and all(split_of(name) == split for name in names)
            found[split] |= set(names)
    for split in SPLITS:
        others = set().union(*(found[other] for other in SPLITS if other != split))
        assert found[split] and not found[split] & others
    names = digests(mazes(21, 0, 8000))
    assert len(set(names)) == 8000
    for split, share in zip(SPLITS, (0.70, 0.15, 0.15)):
        assert abs(sum(split_of(name) == split for name in names) / 8000 - share) < 0.02


@pytest.mark.parametrize("split", SPLITS)
def test_the_smallest_mazes_have_every_split(split: str) -> None:
    assert split_of(draw_maze(9, split, np.random.default_rng(0))[1]) == split  # type: ignore[arg-type]


def test_the_same_seed_draws_the_same_mazes() -> None:
    first, again, other = (draw_maze(21, "test", np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first[1] == again[1] == FIRST_TEST_MAZE != other[1]
    assert np.array_equal(first[0], again[0])


def test_views_show_what_the_walls_say() -> None:
    walls = mazes(11, 2, 3)
    position, beside, window = (MazeView(name, 11, 3).tables(walls) for name in ("position", "walls", "view"))
    for index, maze in enumerate(walls):
        for cell in distances_to_goal(maze):
            y, x = divmod(cell, 11)
            padded = np.pad(maze, 1, constant_values=1)
            assert position[index, cell].tolist() == [x, y]
            around = [padded[y + 1, x], padded[y + 1, x + 2], padded[y, x + 1], padded[y + 2, x + 1]]
            assert beside[index, cell].tolist() == [x, y, *around, 10 - x, 9 - y]
            assert np.array_equal(window[index, cell].reshape(3, 3), padded[y : y + 3, x : x + 3])


def own_maze() -> WallArray:
    return mazes(9, 0, 1)[0].copy()


def test_wrong_mazes_are_refused_in_one_line() -> None:
    walled_in = own_maze()
    walled_in[7, 7] = walled_in[7, 6] = walled_in[6, 7] = 1
    third_way, strange = own_maze(), own_maze().astype(float)
    third_way[0, 1], strange[1, 1] = 0, 0.5
    cases = {
        "walled in: no way leads there from the entrance": walled_in,
        "3 openings in the border": third_way,
        "something else than 0": strange,
        r"have shape \(9, 8\)": own_maze()[:, :8],
        "size is 8: it must be odd": own_maze()[:8, :8],
        "size is 3: it must be odd, 9 to 99": np.ones((3, 3)),
    }
    for words, walls in cases.items():
        with pytest.raises(UserError, match=words) as refusal:
            check_walls(walls)
        assert "\n" not in str(refusal.value)

"""The maze as an environment and as a task."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.tasks import Token, get_task, rollout
from dsf.tasks.maze_env import MazeEnv
from dsf.tasks.maze_experts import EXPERTS, NO_MOVE, RIGHT_HAND_RULE, MazeExpert
from dsf.tasks.maze_picture import AGENT, GOAL, PATH, PIXELS, WALL
from dsf.tasks.maze_tasks import ENV_IDS
from dsf.tasks.mazes import carve, open_cells, split_of
from dsf.tasks.registry import task_for_env

LEFT, RIGHT = 0, 1


def walk(env: MazeEnv, expert: MazeExpert, seed: int) -> tuple[float, int, dict[str, Any]]:
    """Return, moves and the last info of an expert's episode."""
    _, info = env.reset(seed=seed)
    total, moves, done = 0.0, 0, False
    while not done:
        _, reward, terminated, truncated, info = env.step(np.int64(env.expert_move(expert)))
        total, moves, done = total + reward, moves + 1, terminated or truncated
    return total, moves, info


@pytest.mark.parametrize("env_id", ENV_IDS.values())
def test_gymnasiums_checker_finds_nothing(env_id: str) -> None:
    env = gymnasium.make(env_id, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("expert", EXPERTS)
def test_experts_solve_unseen_mazes_within_the_horizon(expert: MazeExpert) -> None:
    env = MazeEnv()
    for seed in range(5):
        total, moves, info = walk(env, expert, seed)
        assert info["success"] and info["split"] == "test" == split_of(info["maze"])
        assert total == pytest.approx(1.0 - 0.1 * moves)
        assert moves == info["shortest"] if expert == "shortest" else info["shortest"] <= moves < 2 * open_cells(21)


def test_a_seed_gives_the_same_maze_in_every_observation_and_split_gives_another() -> None:
    names = [
        MazeEnv(**options).reset(seed=7)[1]["maze"]  # type: ignore[arg-type]
        for options in ({}, {"observation": "position"}, {"observation": "view"}, {"split": "train"})
    ]
    assert names[0] == names[1] == names[2] != names[3] and split_of(names[3]) == "train"
    env = MazeEnv()
    assert env.reset(seed=7)[1]["maze"] == names[0] != env.reset()[1]["maze"]


def test_a_wall_stops_the_agent_and_the_horizon_ends_the_episode() -> None:
    env = MazeEnv(horizon=3, size=9)
    first, _ = env.reset(seed=0)
    for step in range(3):
        observation, reward, terminated, truncated, info = env.step(np.int64(LEFT))
        assert np.array_equal(observation, first) and reward == -0.1
        assert not terminated and truncated == (step == 2) and not info["success"]
    for move in (4, -1):
        with pytest.raises(UserError, match=rf"maze action is {move}: it must be 0 to 3 \(left, right, up, down\)"):
            env.step(np.int64(move))
    assert MazeEnv().horizon == 4 * open_cells(21) == get_task("maze").max_steps


def test_pictures_show_walls_path_goal_and_agent() -> None:
    env = MazeEnv(size=9, render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.int64(RIGHT))
    picture = env.render()
    assert picture is not None and picture.shape == (9 * PIXELS, 9 * PIXELS, 3) and picture.dtype == np.uint8
    cells = picture[::PIXELS, ::PIXELS]
    shown = {"wall": cells[0, 0], "path": cells[1, 0], "agent": cells[1, 1], "goal": cells[7, 8]}
    assert {name: tuple(colour.tolist()) for name, colour in shown.items()} == {
        "wall": WALL,
        "path": PATH,
        "agent": AGENT,
        "goal": GOAL,
    }
    assert MazeEnv().render() is None


def test_ones_own_maze_may_have_loops() -> None:
    walls = carve(1, 9, np.random.default_rng(0))[0]
    walls[1:-1, 1:-1] = 0
    env = MazeEnv(walls=walls.tolist(), split="train")
    assert walk(env, "shortest", 0)[1] == 8 + 6 == env.reset()[1]["shortest"]
    assert env.reset(seed=1)[1]["maze"] == env.reset(seed=2)[1]["maze"]


def test_wrong_arguments_are_refused_in_one_line() -> None:
    walls = carve(1, 9, np.random.default_rng(0))[0]
    walls[7, 7] = 1
    cases: list[tuple[dict[str, Any], str]] = [
        ({"size": 20}, "maze size is 20: it must be odd, 9 to 99"),
        ({"size": 3}, "maze size is 3: it must be odd, 9 to 99"),
        ({"split": "dev"}, "maze split is 'dev': choose one of train, validation, test"),
        ({"observation": "map"}, "maze observation is 'map': choose one of position, walls, view"),
        ({"observation": "view", "window": 4}, "maze window is 4: it must be odd"),
        ({"horizon": 0}, "maze horizon is 0: it must be at least 1"),
        ({"walls": walls}, r"goal \(8, 7\) is walled in"),
    ]
    for options, words in cases:
        with pytest.raises(UserError, match=words) as refusal:
            gymnasium.make("dsf/Maze-v0", **options)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="maze expert is 'oracle': choose one of wall_follower, shortest"):
        MazeEnv().expert_move("oracle")  # type: ignore[arg-type]


def test_environments_of_other_mazes_belong_to_no_task() -> None:
    assert task_for_env("dsf/Maze-v0", {"observation": "walls", "split": "train"}) is get_task("maze")
    assert task_for_env("dsf/MazeView-v0", {"window": 5}) is get_task("maze-view")
    for options, words in (({"size": 11}, "size=11 .*: tasks have size=21"), ({"observation": "view"}, "=walls")):
        with pytest.raises(UserError, match=words):
            task_for_env("dsf/Maze-v0", options)


class RightHand:
    """Follows the wall by the token alone: four walls of the observation, one-hot last move."""

    lanes = 3

    def reset(self, lane: int) -> None:
        """No memory."""

    def act(self, token: Token) -> FloatArray:
        answers = np.zeros((self.lanes, 4))
        for row, (seen, last) in enumerate(zip(token.observation, token.previous_action)):
            walls = int(seen[2:6] @ [1, 2, 4, 8])
            if walls < 15:  # an idle lane sees zeros, a finished one its last cell
                answers[row, RIGHT_HAND_RULE[walls, int(last.argmax()) if last.any() else NO_MOVE]] = 1.0
        return answers


def test_the_token_is_enough_for_the_wall_follower() -> None:
    task = get_task("maze")
    for episode in rollout(task, RightHand(), range(6), task.target_returns[0]):
        assert episode.success and episode.shortest is not None and episode.decisions >= episode.shortest
        assert task.score(episode.episode_return) > 50.0

"""Environments as users have them, registered by importing this module: ``--env dsf.testing.gym_worlds:Point-v0``."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete

STARTED_VARIABLE = "GYM_WORLDS_STARTED"
"""Names a directory in which every process that resets an Endless-v0 leaves a file called by its process id."""
OBSERVATION, ACTION = 11, 3
"""Hopper's sizes, so that networks of that task fit."""


class Point(gymnasium.Env):
    """A point that actions push around; it falls after some steps, sooner or later by its seed."""

    dt: float | None = 0.02
    observation_space: Space[Any] = Box(-np.inf, np.inf, (OBSERVATION,), np.float64)
    action_space: Space[Any] = Box(-1.0, 1.0, (ACTION,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=OBSERVATION)
        self.left = int(self.np_random.integers(4, 9))
        return self.place.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place[:ACTION] += 0.3 * np.asarray(action, np.float64) + 0.01
        self.left -= 1
        return self.place.copy(), float(self.place.sum()), self.left == 0, False, {}


class Throttle(Point):
    """Actions between 0 and 2, and no control period."""

    dt = None
    action_space = Box(0.0, 2.0, (ACTION,), np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert np.min(action) >= 0.0 and np.max(action) <= 2.0
        return super().step(action)


class Unbounded(Point):
    action_space = Box(-np.inf, np.inf, (ACTION,), np.float32)


class Image(Point):
    observation_space = Box(0.0, 1.0, (OBSERVATION, 1), np.float64)


class Parts(Point):
    observation_space = Dict({"observation": Point.observation_space})


class Choices(Point):
    action_space = Discrete(ACTION)


class Eight(Point):
    """As many observations as the maze, and continuous actions."""

    observation_space = Box(-np.inf, np.inf, (8,), np.float64)


class Broken(Point):
    """Nobody can make one."""

    def __init__(self) -> None:
        raise RuntimeError("no robot\nis connected")


class WholeNumbers(Point):
    action_space = Box(0, 10, (ACTION,), np.int64)


class Boundless(Point):
    """float32's largest numbers as bounds, which is how people say that there are none."""

    action_space = Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (ACTION,), np.float32)


class Lopsided(Point):
    """Bounds that no power of two divides; an action beyond them breaks it."""

    action_space = Box(np.array([-0.1, 0.0, -0.7], np.float32), np.array([0.3, 1.1, 3.3], np.float32))

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        return super().step(action)


class NumpyTold(Point):
    """Success as every comparison of numpy gives it, a number in an array, and a reward of numpy's."""

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict]:
        place, reward, fallen, cut, _ = super().step(action)
        told = {"success": np.linalg.norm(place) >= 0.0, "shortest": np.array([3])}
        return place, np.float32(reward), fallen, cut, told


class Longer(Point):
    """Shows one number more than its space says."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        place, info = super().reset(seed=seed)
        return np.append(place, 0.0), info


class Wordy(Point):
    """Shows words from its second step on."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        place, reward, fallen, cut, info = super().step(action)
        return (place if self.left > 2 else ["fallen"] * OBSERVATION), reward, fallen, cut, info


class TwoRewards(Point):
    """Pays two agents."""

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict]:
        place, reward, fallen, cut, info = super().step(action)
        return place, np.array([reward, reward]), fallen, cut, info


class WrongUnits(Point):
    """Observation 2 is far beyond what any codec reaches, from the second one on; observation 5 is no float32."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        place, reward, fallen, cut, told = super().step(action)
        place[2], place[5] = 1e30, -1e300
        return place, reward, fallen, cut, told


class NoReward(Point):
    """Its fourth reward is no number."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        place, reward, fallen, cut, told = super().step(action)
        self.steps = getattr(self, "steps", 0) + 1
        return place, np.nan if self.steps == 4 else reward, fallen, cut, told


class Failing(Point):
    """Breaks in the third step of some seeds."""

    FAILS_FROM_SEED = 3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.seed = seed
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self.seed is not None and self.seed >= self.FAILS_FROM_SEED:
            raise ZeroDivisionError("the world\nended")
        return super().step(action)


class Endless(Point):
    """Tells who runs it, and never ends."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        (Path(os.environ[STARTED_VARIABLE]) / str(os.getpid())).touch()
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(0.001)
        return np.zeros(OBSERVATION), 0.0, False, False, {}


class Unrepeatable(Point):
    """A world that can be reset once, as one behind a wire, and tells of its goal when it is reached, not later."""

    was_reset = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        if Unrepeatable.was_reset:
            raise RuntimeError("the robot is <asleep>")
        Unrepeatable.was_reset = True
        self.steps = 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return (*super().step(action)[:4], {"success": float(self.steps == 2)})


class Reach(gymnasium.Env):
    """A finger on a line that a goal lies on, in the parts of a goal-conditioned task, one of them nested."""

    dt = 0.1
    observation_space: Space[Any] = Dict(
        {
            "observation": Dict({"speed": Box(-1.0, 1.0, (1,)), "place": Box(-2.0, 2.0, (2,))}),
            "desired_goal": Box(-1.0, 1.0, (1,)),
            "achieved_goal": Box(-2.0, 2.0, (1,)),
        }
    )
    action_space: Space[Any] = Box(np.array([-0.25, 0.0], np.float32), np.array([0.5, 1.0], np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.place, self.speed, self.grip = 0.0, 0.0, 0.0
        self.goal = float(self.np_random.uniform(-1.0, 1.0))
        return self.seen(), {}

    def seen(self) -> Any:
        one = lambda *values: np.array(values, np.float32)  # noqa: E731
        inner = {"speed": one(self.speed), "place": one(self.place, self.grip)}
        return {"observation": inner, "desired_goal": one(self.goal), "achieved_goal": one(self.place)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        push, self.grip = map(float, action)
        self.speed = float(np.clip(push - 0.125, -1.0, 1.0))
        self.place = float(np.clip(self.place + self.speed, -2.0, 2.0))
        near = abs(self.place - self.goal) < 0.15
        return self.seen(), -abs(self.place - self.goal), False, False, {"success": near}


class Hill(gymnasium.Env):
    """MountainCar, whose three choices are 1, 2 and 3."""

    def __init__(self) -> None:
        self.car = gymnasium.make("MountainCar-v0", max_episode_steps=10_000)
        self.observation_space: Space[Any] = self.car.observation_space
        self.action_space: Space[Any] = Discrete(3, start=1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return self.car.reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        place, reward, *rest = self.car.step(int(action) - 1)
        return place, float(reward), *rest


class Tight(gymnasium.Env):
    """Three observations, and an action between -1 and 1."""

    observation_space: Space[Any] = Box(-8.0, 8.0, (3,))
    action_space: Space[Any] = Box(-1.0, 1.0, (1,))


def driven(env: gymnasium.Env, act: Callable[[Any, np.random.Generator], Any], count: int) -> list[Any]:
    """Minari's buffers of so many episodes, reset seeds 0 upwards.

    Args:
        env: that is reset and stepped.
        act: gives an action for an observation.
        count: of episodes.
    """
    from minari.data_collector import EpisodeBuffer

    generator, made = np.random.default_rng(0), []
    for seed in range(count):
        observations = [env.reset(seed=seed)[0]]
        actions: list[Any] = []
        rewards: list[float] = []
        ends: list[list[bool]] = []
        while not ends or not any(ends[-1]):
            actions.append(act(observations[-1], generator))
            observation, reward, *end, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
            ends.append(list(map(bool, end)))
        terminations, truncations = map(list, zip(*ends))
        made.append(
            EpisodeBuffer(
                id=seed,
                observations=stacked(observations),
                actions=np.array(actions),
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
            )
        )
    return made


def stacked(values: list[Any]) -> Any:
    """Nested observations of single steps as one of arrays."""
    if isinstance(values[0], dict):
        return {key: stacked([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stacked([value[place] for value in values]) for place in range(len(values[0])))
    return np.array(values)


def write_set(dataset_id: str, episodes: list[Any], **arguments: Any) -> Any:
    """Write a Minari dataset into the store."""
    import minari

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing evaluation environments
        return minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
            algorithm_name="scripted",
            author="nobody",
            author_email="nobody@example.org",
            code_permalink="https://example.org",
            **arguments,
        )


def swing(observation: Any, generator: np.random.Generator) -> Any:
    """Pendulum: pump energy, then balance; noise on top."""
    cosine, sine, speed = observation
    angle = np.arctan2(sine, cosine)
    energy = speed**2 / 6.0 + 5.0 * (cosine - 1.0)
    push = -10.0 * angle - 2.5 * speed if abs(angle) < 0.5 else -2.0 * np.sign(energy) * np.sign(speed or 1.0)
    return np.clip([push + generator.normal() * 0.3], -2.0, 2.0).astype(np.float32)


def approach(observation: Any, generator: np.random.Generator) -> Any:
    """Reach: towards the goal, with noise."""
    gap = observation["desired_goal"][0] - observation["achieved_goal"][0] + 0.1 * generator.normal()
    low, high = Reach.action_space.low, Reach.action_space.high  # type: ignore[attr-defined]
    return np.clip([0.125 + gap, 0.5 + 0.25 * gap], low, high).astype(np.float32)


def rock(observation: Any, generator: np.random.Generator) -> Any:
    """Hill: push the way that the car moves, most of the time; choices are 1 to 3."""
    return int(generator.integers(1, 4)) if generator.random() < 0.2 else 3 if observation[1] >= 0.0 else 1


OWN = (WholeNumbers, Boundless, Lopsided, NumpyTold, WrongUnits, NoReward, Longer, Wordy, TwoRewards, Unrepeatable)
for world in (*OWN, Point, Throttle, Unbounded, Image, Parts, Choices, Eight, Broken, Failing):
    steps = None if world is Throttle else 50
    gymnasium.register(f"{world.__name__}-v0", f"{__name__}:{world.__name__}", max_episode_steps=steps)
gymnasium.register("MinusOne-v0", f"{__name__}:Point", max_episode_steps=-1)
gymnasium.register("Reach-v0", f"{__name__}:Reach", max_episode_steps=20)
gymnasium.register("Tight-v0", f"{__name__}:Tight", max_episode_steps=20)
gymnasium.register("Hill-v0", f"{__name__}:Hill", max_episode_steps=200)
gymnasium.register("Endless-v0", f"{__name__}:Endless", max_episode_steps=10**9)

"""Make Minari datasets with D4RL's roles by rolling out the shipped behaviour policies."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from minari.data_collector import EpisodeBuffer

from dsf.tasks import Task, UserError, get_task
from dsf.tasks.behaviour import Actor, load_actor
from dsf.train.data import LOCAL_NAMESPACE, store_path

REPLAY_SNAPSHOTS = 8
"""Actors, in the order of training, that stand for D4RL's replay buffer up to the medium policy."""


@dataclass(frozen=True)
class Recipe:
    """Which actors make a dataset, in which order; each contributes an equal share of the steps.

    ``noise`` scales the standard deviation of the actors' Gaussian: 1 is the policy as it was trained.
    """

    task: str
    role: str
    actors: tuple[tuple[str, float], ...]

    @property
    def dataset_id(self) -> str:
        """Minari id of the dataset."""
        return f"{LOCAL_NAMESPACE}/{self.task}/{self.role}-v0"


EXPERT_NOISE = 0.3
"""The expert acts with less noise than it was trained with: at full noise it falls in a third of its episodes."""

_MEDIUM = ("hopper_medium", 1.0)
_EXPERT = ("hopper_expert", EXPERT_NOISE)

RECIPES: dict[str, Recipe] = {
    f"{recipe.task}-{recipe.role}": recipe
    for recipe in (
        Recipe("hopper", "medium", (_MEDIUM,)),
        Recipe("hopper", "medium-replay", tuple((f"hopper_replay_{i}", 1.0) for i in range(REPLAY_SNAPSHOTS))),
        Recipe("hopper", "medium-expert", (_MEDIUM, _EXPERT)),
        Recipe("hopper", "expert", (_EXPERT,)),
    )
}


def get_recipe(name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        UserError: no recipe has this name.
    """
    if name not in RECIPES:
        raise UserError(f"unknown dataset '{name}': dsf-data can collect {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def collect_episodes(recipe: Recipe, steps: int, seed: int, on_step: Callable[[], None]) -> list[EpisodeBuffer]:
    """Roll out the recipe's actors with sampled actions until each has given its share of ``steps``.

    The same recipe, steps and seed give the same arrays. An actor's last episode is cut (truncated) at its share.
    """
    task = get_task(recipe.task)
    shares = [steps // len(recipe.actors) + (i < steps % len(recipe.actors)) for i in range(len(recipe.actors))]
    seeds = np.random.SeedSequence(seed).spawn(len(recipe.actors))
    episodes: list[EpisodeBuffer] = []
    for (name, noise), share, entropy in zip(recipe.actors, shares, seeds):
        actor = load_actor(name, noise)
        episodes += _actor_episodes(task, actor, share, np.random.default_rng(entropy), on_step)
    return episodes


def _actor_episodes(
    task: Task, actor: Actor, steps: int, generator: np.random.Generator, on_step: Callable[[], None]
) -> list[EpisodeBuffer]:
    episodes: list[EpisodeBuffer] = []
    env = task.make_env()
    while steps > 0:
        seed = int(generator.integers(2**31))
        observation, _ = env.reset(seed=seed)
        observations, actions, rewards, terminations, truncations = [observation], [], [], [], []
        done = False
        while not done:
            action = actor.sample(observation, generator)
            observation, reward, terminated, truncated, _ = env.step(action)
            steps -= 1
            truncated = truncated or (steps == 0 and not terminated)
            observations.append(observation)
            actions.append(action)
            rewards.append(float(reward))
            terminations.append(bool(terminated))
            truncations.append(bool(truncated))
            done = terminated or truncated
            on_step()
        episodes.append(
            EpisodeBuffer(
                id=None,
                seed=seed,
                observations=np.array(observations),
                actions=np.array(actions),
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
            )
        )
    env.close()
    return episodes


def require_free_place(recipe: Recipe, overwrite: bool) -> Path:
    """Where the dataset will live.

    Raises:
        UserError: one is there already and ``overwrite`` is false.
    """
    store = Path(store_path())
    if store.exists() and not store.is_dir():
        raise UserError(f"MINARI_DATASETS_PATH is {store}, which is no directory: set it to one")
    final = store / recipe.dataset_id
    if final.exists() and not overwrite:
        raise UserError(f"dataset '{recipe.dataset_id}' exists in {store_path()}: pass --overwrite to replace it")
    return final


def write_dataset(recipe: Recipe, episodes: list[EpisodeBuffer], description: str, overwrite: bool) -> Path:
    """Write a Minari dataset whole or not at all: it is built beside its place and renamed into it.

    Raises:
        UserError: the dataset exists and ``overwrite`` is false.
    """
    import minari

    task = get_task(recipe.task)
    final = require_free_place(recipe, overwrite)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store_path(), prefix=".collect-") as staging:
        with _minari_store(staging), warnings.catch_warnings():
            # Minari asks for an author, a permalink and an evaluation environment; a local dataset needs none.
            warnings.filterwarnings("ignore", message=".* is set to None", category=UserWarning)
            minari.create_dataset_from_buffers(
                recipe.dataset_id,
                episodes,
                env=task.env_id,
                algorithm_name="SAC snapshots shipped with dsf",
                ref_min_score=task.random_return,
                ref_max_score=task.expert_return,
                description=description,
            )
        for level in (LOCAL_NAMESPACE, f"{LOCAL_NAMESPACE}/{recipe.task}"):
            metadata = Path(staging) / level / "namespace_metadata.json"
            target = Path(store_path()) / level / metadata.name
            if metadata.exists() and not target.exists():
                metadata.replace(target)
        if final.exists():
            final.replace(Path(staging) / "replaced")
        (Path(staging) / recipe.dataset_id).replace(final)
    return final


@contextmanager
def _minari_store(path: str) -> Iterator[None]:
    """Point Minari at another store for a while; it reads this variable on every call."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = path
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before

"""Make Minari datasets by rolling out behaviour policies, and write them whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from minari.data_collector import EpisodeBuffer

from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.processes.workers import WorkerDied, crew, send, speaking, told
from dsf.shell.scratch_directory import scratch_directory
from dsf.tasks import Task, get_task
from dsf.tasks.behaviour import load_actor
from dsf.train.data.controllers import CONTROLLERS, Behaviour, make_controller
from dsf.train.data.episode_file import append_episodes
from dsf.train.data.minari_store import minari_store, store_directory, store_path
from dsf.train.data.recipes import RECIPES, Recipe, get_recipe

if TYPE_CHECKING:
    import gymnasium

EPISODE_BYTES, GROWTH = 24_000, 1.5
"""Bounds of what Minari's HDF5 file takes: bytes per episode (22,100 were measured), and times what the arrays take."""
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""How a disk says that it has no more room."""

__all__ = ["RECIPES", "Recipe", "collect_episodes", "get_recipe", "require_free_place", "write_dataset"]


@dataclass(frozen=True)
class _Share:
    """One behaviour policy's part of a dataset; ``entropy`` seeds its resets and its noise."""

    task: str
    actor: str
    noise: float
    steps: int
    entropy: np.random.SeedSequence


def collect_episodes(
    recipe: Recipe, steps: int, seed: int, on_step: Callable[[], None], workers: int = 1
) -> list[EpisodeBuffer]:
    """Roll out the recipe's actors with sampled actions until each has given its share of ``steps``.

    The same recipe, steps and seed give the same arrays, whatever ``workers``: every actor has a random stream of its
    own and is rolled out in one process. An actor's last episode is cut (truncated) at its share.

    Raises:
        CommandFailed: a worker process died.
    """
    count = len(recipe.actors)
    seeds = np.random.SeedSequence(seed).spawn(count)
    shares = [
        _Share(recipe.task, name, noise, steps // count + (index < steps % count), seeds[index])
        for index, (name, noise) in enumerate(recipe.actors)
    ]
    if min(workers, count) == 1:
        return [episode for share in shares for episode in _share_episodes(share, on_step)]
    made: dict[int, list[EpisodeBuffer]] = {}
    waiting = list(enumerate(shares))
    try:
        with crew(_work, min(workers, count)) as started:
            for worker in started:
                worker.send(waiting.pop(0))
            busy = list(started)
            while busy:
                for worker in speaking(busy):
                    index, answer = worker.receive()
                    if isinstance(answer, Exception):
                        raise answer
                    made[index] = answer
                    for _ in range(shares[index].steps):
                        on_step()
                    if not waiting:
                        busy.remove(worker)
                    worker.send(waiting.pop(0) if waiting else None)
    except WorkerDied as death:
        raise CommandFailed(f"{death} of --workers {workers}: try fewer, memory may be short") from None
    return [episode for index in range(count) for episode in made[index]]


def _work(connection: Connection) -> None:
    """A worker's life: shares come in, their episodes go out."""
    for index, share in iter(connection.recv, None):
        try:
            answer: list[EpisodeBuffer] | Exception = _share_episodes(share)
        except Exception as error:
            answer = told(error, "a worker")
        send(connection, (index, answer))


def _share_episodes(share: _Share, on_step: Callable[[], None] = lambda: None) -> list[EpisodeBuffer]:
    episodes: list[EpisodeBuffer] = []
    generator, steps = np.random.default_rng(share.entropy), share.steps
    env = get_task(share.task).make_env()
    behaviour: Behaviour = (
        make_controller(share.actor, share.noise, env)
        if share.actor in CONTROLLERS
        else load_actor(share.actor, share.noise)
    )
    while steps > 0:
        seed = int(generator.integers(2**31))
        observation, _ = env.reset(seed=seed)
        observations, actions, rewards = [observation], [], []
        terminations, truncations = [], []
        done = False
        while not done:
            action = behaviour.sample(observation, generator)
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
                observations=_stacked(observations),
                actions=np.array(actions),
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
            )
        )
    env.close()
    return episodes


def _stacked(observations: list[Any]) -> Any:
    """Observations (steps + 1, d), or a dict of such arrays from goal environments."""
    if isinstance(observations[0], dict):
        return {key: np.array([observation[key] for observation in observations]) for key in observations[0]}
    return np.array(observations)


class Destination(Protocol):
    """What a dataset is called, whose environment it belongs to, and how its actions came about."""

    @property
    def dataset_id(self) -> str:
        """Minari id."""
        ...

    @property
    def task(self) -> str:
        """Name of the task."""
        ...

    @property
    def algorithm(self) -> str:
        """Where the actions come from, in words."""
        ...


def require_free_place(dataset_id: str, overwrite: bool) -> Path:
    """Where the dataset will live.

    Raises:
        UserError: one is there already and ``overwrite`` is false.
    """
    final = store_directory() / dataset_id
    if final.exists() and not overwrite:
        raise UserError(f"dataset '{dataset_id}' exists in {store_path()}: pass --overwrite to replace it")
    return final


def write_dataset(
    destination: Destination,
    episodes: list[EpisodeBuffer],
    description: str,
    overwrite: bool,
    facts: Mapping[str, Any] | None = None,
    on_episode: Callable[[int], None] | None = None,
    max_steps: int | None = None,
    own: Task | None = None,
) -> Path:
    """Write a Minari dataset whole or not at all: it is built beside its place and renamed into it.

    Args:
        destination: what it is called, and whose environment it belongs to.
        episodes: in their order.
        description: for Minari.
        overwrite: replace a dataset of the same id.
        facts: more for Minari's metadata, as JSON can hold it.
        on_episode: given for many short episodes of flat observations, which are then written by
            :func:`~dsf.train.data.episode_file.append_episodes`; called with the number of those written since.
        max_steps: horizon to state, where episodes may be longer than the task's.
        own: the task, where no registry holds it.

    Raises:
        OSError: the store cannot be written.
        UserError: the dataset exists and ``overwrite`` is false, or the disk is full.
    """
    final = require_free_place(destination.dataset_id, overwrite)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with scratch_directory(Path(store_path()), ".collect-") as staging:
            _write(destination, episodes, description, staging, facts or {}, on_episode, max_steps, own)
            for level in PurePosixPath(destination.dataset_id).parents:
                metadata = staging / level / "namespace_metadata.json"
                target = Path(store_path()) / level / metadata.name
                if metadata.exists() and not target.exists():
                    metadata.replace(target)
            if final.exists():
                final.replace(staging / "replaced")
            (staging / destination.dataset_id).replace(final)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"dataset '{destination.dataset_id}' could not be written to {store_path()} ({error.strerror}): "
            "free some space there, or set MINARI_DATASETS_PATH to a directory with more"
        ) from None
    return final


def _write(
    destination: Destination,
    episodes: list[EpisodeBuffer],
    description: str,
    staging: Path,
    facts: Mapping[str, Any],
    on_episode: Callable[[int], None] | None,
    max_steps: int | None,
    own: Task | None,
) -> None:
    """Write a Minari dataset into an empty store."""
    import minari

    task = get_task(destination.task) if own is None else own
    if on_episode is None:
        _require_room(episodes, staging)
    with minari_store(str(staging)), warnings.catch_warnings():
        # Minari asks for an author, a permalink and an evaluation environment; a local dataset needs none.
        warnings.filterwarnings("ignore", message=".* is set to None", category=UserWarning)
        warnings.filterwarnings("ignore", message="env_spec is None", category=UserWarning)
        world, spaces = _world(replace(task, max_steps=max(task.max_steps, max_steps or 0)))
        dataset = minari.create_dataset_from_buffers(
            destination.dataset_id,
            episodes if on_episode is None else [],
            env=world,
            algorithm_name=destination.algorithm,
            description=description,
            **spaces,
        )
        if world is not None:
            world.close()
        if on_episode is not None:
            append_episodes(dataset.storage, episodes, on_episode)
        # Given to the call above, they would make Minari build another environment, only to drop it.
        references = {"ref_min_score": task.random_return, "ref_max_score": task.expert_return}
        dataset.storage.update_metadata({**(references if task.reference else {}), **facts})


def _world(task: Task) -> tuple[gymnasium.Env | None, dict[str, Any]]:
    """The environment that a dataset names, and the spaces that it states where they are the task's own."""
    if task.definition is None:
        return task.make_env(), {}
    from gymnasium.spaces import Box, Discrete

    low, high = (np.array(bound, np.float32) for bound in (task.action_low or (-1.0,), task.action_high or (1.0,)))
    shape = (task.action_size,)
    spaces = {
        "observation_space": Box(-np.inf, np.inf, (task.observation_size,), np.float64),
        "action_space": Discrete(task.action_size, start=task.first_choice)
        if task.discrete
        else Box(np.broadcast_to(low, shape), np.broadcast_to(high, shape), shape, np.float32),
    }
    try:
        return task.make_env(), spaces
    except UserError:  # the dataset's own metadata say what its environment is called
        return None, spaces


def _require_room(episodes: list[EpisodeBuffer], directory: Path) -> None:
    """Find a full disk before Minari's writer does, which would not survive it (:mod:`dsf.shell.hdf5_image` says why).

    Raises:
        OSError: the disk has less room than the episodes may need.
    """

    def size(values: Any) -> int:
        return sum(map(size, values.values())) if isinstance(values, dict) else np.asarray(values).nbytes

    names = ("observations", "actions", "rewards", "terminations", "truncations")
    arrays = sum(size(getattr(episode, name)) for episode in episodes for name in names)
    expected = EPISODE_BYTES * (1 + len(episodes)) + int(GROWTH * arrays)
    if sys.platform != "darwin":  # which has no such call
        with tempfile.TemporaryFile(dir=directory) as room:
            try:
                os.posix_fallocate(room.fileno(), 0, expected)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:  # some C libraries do not help file systems that cannot do it
                    raise

"""Offline datasets: loading any Minari id into flat arrays, and sampling training windows from them."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dsf.tasks import Task, UserError
from dsf.tasks.task import task_for_env

Float32Array = npt.NDArray[np.float32]

LOCAL_NAMESPACE = "dsf"
"""Minari namespace of the datasets that ``dsf-data collect`` makes."""
DATASET_ID = re.compile(r"([\w-]+/)*[\w-]+-v\d+")
"""Minari's ids: namespaces, a name, and a version."""


@dataclass(frozen=True)
class OfflineDataset:
    """Episodes laid end to end.

    Attributes:
        dataset_id: Minari id.
        task: the task whose environment produced the data.
        content_hash: SHA-256 over all episodes' arrays.
        tokens: (steps, features) observation, previous executed action (zeros at a start), return-to-go / scale.
        actions: (steps, action_size) what the behaviour policy did.
        starts: (episodes + 1,) index of each episode's first step, closed by the number of steps.
    """

    dataset_id: str
    task: Task
    content_hash: str
    tokens: Float32Array
    actions: Float32Array
    starts: npt.NDArray[np.int64]

    @property
    def episode_returns(self) -> Float32Array:
        """(episodes,), reward units."""
        return self.tokens[self.starts[:-1], -1] * self.task.return_scale


@dataclass(frozen=True)
class Windows:
    """A batch of token windows; ``mask`` is true where a token exists (padding comes first)."""

    tokens: Float32Array
    actions: Float32Array
    mask: npt.NDArray[np.bool_]


def sample_windows(data: OfflineDataset, count: int, context: int, generator: np.random.Generator) -> Windows:
    """Draw windows whose last token is uniform over all steps, so that episodes weigh in by their length.

    A window that begins before its episode is padded in front, exactly what a policy sees early in an episode.
    """
    last = generator.integers(0, len(data.tokens), size=count)
    start = data.starts[np.searchsorted(data.starts, last, side="right") - 1]
    index = last[:, None] + np.arange(1 - context, 1)
    mask = index >= start[:, None]
    index = np.maximum(index, 0)
    return Windows(data.tokens[index], data.actions[index], mask)


def load_dataset(dataset_id: str) -> OfflineDataset:
    """Load a Minari dataset, downloading a remote one where there is a network.

    Raises:
        UserError: no such dataset, no network, an environment without a task, or spaces that do not fit it.
    """
    dataset = open_minari(dataset_id)
    spec = dataset.env_spec
    if spec is None:
        raise UserError(f"dataset '{dataset_id}' does not name its environment: it cannot be used for a task")
    check_spaces(dataset_id, dataset.observation_space, dataset.action_space)
    task = task_for_env(spec.id)
    episodes = [episode_arrays(episode) for episode in dataset.iterate_episodes()]
    if not episodes:
        raise UserError(f"dataset '{dataset_id}' has no episodes")
    return assemble(dataset_id, task, episodes)


def open_minari(dataset_id: str) -> Any:
    """Open a dataset from the local store or the remote hub; every failure is one line.

    Raises:
        UserError: the dataset is neither here nor reachable.
    """
    import minari

    local = (
        f"make a local one with 'dsf-data collect hopper-medium-expert' (id {LOCAL_NAMESPACE}/hopper/medium-expert-v0)"
    )
    if not DATASET_ID.fullmatch(dataset_id):
        raise UserError(f"'{dataset_id}' is no Minari dataset id (such as mujoco/hopper/medium-v0): {local}")
    store = Path(store_path())
    if store.exists() and not store.is_dir():
        raise UserError(f"MINARI_DATASETS_PATH is {store}, which is no directory: set it to one")
    if (store / dataset_id / "data").exists():
        return minari.load_dataset(dataset_id)
    if dataset_id.startswith(f"{LOCAL_NAMESPACE}/"):
        raise UserError(f"dataset '{dataset_id}' is not in {store}: {local}")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the hub client's retries would bury the one line below
    new_store = not store.exists()
    try:
        return minari.load_dataset(dataset_id, download=True)
    except Exception as error:  # the hub's client raises types of its own, not OSError, when there is no network
        if new_store and store.is_dir() and not any(store.iterdir()):
            store.rmdir()  # Minari makes it before it looks
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"dataset '{dataset_id}' could not be downloaded ({reason}); {local}") from None


def one_line(error: Exception, limit: int = 120) -> str:
    """The start of an exception's message, on one line."""
    return " ".join(str(error).split())[:limit]


def store_path() -> str:
    """Where Minari keeps datasets."""
    return os.environ.get("MINARI_DATASETS_PATH", str(Path.home() / ".minari" / "datasets"))


def check_spaces(dataset_id: str, observation_space: Any, action_space: Any) -> None:
    """Refuse spaces that no continuous-control task has.

    Raises:
        UserError: the action space is not a Box, or the observation space is no flat Box.
    """
    if type(action_space).__name__ != "Box":
        raise UserError(
            f"dataset '{dataset_id}' has a {type(action_space).__name__} action space: "
            "this policy needs continuous actions (a Box); choose a continuous-control dataset"
        )
    if type(observation_space).__name__ != "Box" or len(observation_space.shape) != 1:
        raise UserError(f"dataset '{dataset_id}' has no flat Box observation space: choose one that has")


def episode_arrays(episode: Any) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one Minari episode that define its content; the final observation is kept for the hash."""
    return {
        "observations": np.asarray(episode.observations),
        "actions": np.asarray(episode.actions),
        "rewards": np.asarray(episode.rewards),
        "terminations": np.asarray(episode.terminations),
        "truncations": np.asarray(episode.truncations),
    }


def assemble(dataset_id: str, task: Task, episodes: list[dict[str, npt.NDArray[Any]]]) -> OfflineDataset:
    """Build the flat training arrays.

    Raises:
        UserError: sizes do not fit the task, an episode is empty, or a value is not finite.
    """
    digest = hashlib.sha256()
    tokens, actions = [], []
    for number, episode in enumerate(episodes):
        where = f"dataset '{dataset_id}', episode {number}"
        steps = len(episode["actions"])
        expected = {
            "observations": (steps + 1, task.observation_size),
            "actions": (steps, task.action_size),
            "rewards": (steps,),
        }
        for name, shape in expected.items():
            if steps == 0 or episode[name].shape != shape:
                raise UserError(f"{where}: {name} has shape {episode[name].shape}, expected {shape} with steps > 0")
            if not np.isfinite(episode[name]).all():
                raise UserError(f"{where}: {name} holds a value that is not finite; clean the dataset first")
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            digest.update(np.ascontiguousarray(episode[name]).tobytes())
        previous = np.vstack([np.zeros((1, task.action_size)), episode["actions"][:-1]])
        return_to_go = np.cumsum(episode["rewards"][::-1])[::-1] / task.return_scale
        tokens.append(np.hstack([episode["observations"][:-1], previous, return_to_go[:, None]]))
        actions.append(episode["actions"])
    lengths = [len(part) for part in actions]
    return OfflineDataset(
        dataset_id=dataset_id,
        task=task,
        content_hash=digest.hexdigest(),
        tokens=np.concatenate(tokens).astype(np.float32),
        actions=np.concatenate(actions).astype(np.float32),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )

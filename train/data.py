"""Offline datasets: any Minari id as flat arrays on disk, and sampling training windows from them.

A dataset may be larger than memory: its episodes are read one by one into flat files (:mod:`dsf.train.flat_store`),
once, and training maps those files into memory. What a run takes from them (:class:`DataConfig`) is applied to each
batch, so every choice shares the same files.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dsf.tasks import Task, UserError
from dsf.tasks.policy import FloatArray
from dsf.tasks.task import task_for_env
from dsf.train import flat_store
from dsf.train.codec import HIGH, LOW, MEAN, SQUARES, TokenStatistics
from dsf.train.config import DataConfig
from dsf.train.flat_store import FlatEpisode, FlatStore, Float32Array, IntArray

LOCAL_NAMESPACE = "dsf"
"""Minari namespace of the datasets that ``dsf-data collect`` makes."""
DATASET_ID = re.compile(r"([\w-]+/)*[\w-]+-v\d+")
"""Minari's ids: namespaces, a name, and a version."""
CACHE_NAME = ".dsf-cache"
"""Directory of the flat files inside a dataset's own: they leave with it, and Minari does not look at hidden names."""
EPISODES_PER_CHUNK = 1024
"""Episodes whose summaries are held in memory at once."""
AS_RECORDED = DataConfig()
"""The whole dataset as it is."""


@dataclass(frozen=True)
class OfflineDataset:
    """Episodes laid end to end, and what a run takes from them.

    ``tokens``, ``actions``, ``starts`` and ``returns`` are the whole dataset as recorded, usually read-only maps of
    files; ``kept`` and ``delayed_reward`` take effect in :func:`sample_windows`, ``statistics``, ``steps`` and
    ``episode_returns``.

    Attributes:
        dataset_id: Minari id.
        task: the task whose environment produced the data.
        content_hash: SHA-256 over all episodes' arrays.
        tokens: (steps, features) observation, previous action (zeros at a start), return-to-go / scale.
        actions: (steps, action_size) what the behaviour policy did; one-hot where the task is discrete.
        starts: (episodes + 1,) index of each episode's first step, closed by the number of steps.
        returns: (episodes,) sums of rewards (reward units).
        kept: (kept episodes,) which episodes are sampled, ascending.
        delayed_reward: whether an episode's whole reward comes with its last step.
        statistics: of the tokens that :func:`sample_windows` can draw, over all their steps.
        out_of_range_actions: recorded steps whose action leaves [-1, 1].
    """

    dataset_id: str
    task: Task
    content_hash: str
    tokens: Float32Array
    actions: Float32Array
    starts: IntArray
    returns: FloatArray
    kept: IntArray
    delayed_reward: bool
    statistics: TokenStatistics
    out_of_range_actions: int

    @property
    def episode_returns(self) -> FloatArray:
        """Of the kept episodes, (kept episodes,), reward units."""
        return self.returns[self.kept]

    @property
    def steps(self) -> int:
        """Steps of the kept episodes."""
        return int(self.kept_ends[-1])

    @cached_property
    def lengths(self) -> IntArray:
        """Steps of each kept episode, (kept episodes,)."""
        return np.diff(self.starts)[self.kept]

    @cached_property
    def kept_ends(self) -> IntArray:
        """Where each kept episode would end if the kept ones were laid end to end, (kept episodes,)."""
        return np.cumsum(self.lengths)

    @cached_property
    def kept_starts(self) -> IntArray:
        """Index of each kept episode's first step in ``tokens``, (kept episodes,)."""
        return self.starts[self.kept]

    @cached_property
    def kept_returns_to_go(self) -> Float32Array:
        """Each kept episode's whole return as tokens hold it, (kept episodes,), return / scale."""
        return scaled_returns(self.episode_returns, self.task)


@dataclass(frozen=True)
class Windows:
    """A batch of token windows; ``mask`` is true where a token exists. Padding comes first and is zero.

    Attributes:
        tokens: (count, context, features).
        actions: (count, context, action_size).
        mask: (count, context).
    """

    tokens: Float32Array
    actions: Float32Array
    mask: npt.NDArray[np.bool_]


def sample_windows(data: OfflineDataset, count: int, context: int, generator: np.random.Generator) -> Windows:
    """Draw windows whose last token is uniform over all kept steps, so that episodes weigh in by their length.

    A window that begins before its episode is padded in front, exactly what a policy sees early in an episode.
    """
    drawn = generator.integers(0, data.steps, size=count)
    episode = np.searchsorted(data.kept_ends, drawn, side="right")
    start = data.kept_starts[episode]
    last = start + drawn - (data.kept_ends[episode] - data.lengths[episode])
    index = last[:, None] + np.arange(1 - context, 1)
    mask = index >= start[:, None]
    index = np.maximum(index, start[:, None])
    tokens, actions = data.tokens[index], data.actions[index]
    if data.delayed_reward:
        tokens[:, :, -1] = data.kept_returns_to_go[episode][:, None]
    padding = ~mask
    tokens[padding] = 0.0
    actions[padding] = 0.0
    return Windows(tokens, actions, mask)


def require_context(data: OfflineDataset, context: int) -> None:
    """Refuse windows of which no episode fills one.

    Raises:
        UserError: ``context`` is longer than every kept episode.
    """
    longest = int(data.lengths.max())
    if context > longest:
        episode = int(data.kept[data.lengths.argmax()])
        raise UserError(
            f"--model.context is {context}, longer than every episode of dataset '{data.dataset_id}' "
            f"(episode {episode} is the longest with {longest} steps): choose {longest} or less"
        )


def load_dataset(dataset_id: str, config: DataConfig = AS_RECORDED) -> OfflineDataset:
    """Load a Minari dataset, downloading a remote one where there is a network.

    Raises:
        UserError: no such dataset, no network, an environment without a task, spaces or episodes that do not fit it,
            or no place for the flat files.
    """
    dataset = open_minari(dataset_id)
    spec = dataset.env_spec
    if spec is None:
        raise UserError(f"dataset '{dataset_id}' does not name its environment: it cannot be used for a task")
    task = task_for_env(spec.id, spec.kwargs)
    check_spaces(dataset_id, task, dataset.observation_space, dataset.action_space)
    directory = Path(store_path()) / dataset_id
    fingerprint = source_fingerprint(directory, task)

    def write(place: Path) -> None:
        episodes = flat_episodes(dataset_id, task, dataset)
        flat_store.write_store(place, episodes, task.observation_size + task.action_size + 1, task.action_size)
        if source_fingerprint(directory, task) != fingerprint:
            raise UserError(f"dataset '{dataset_id}' changed while it was read: run the command again")

    places = (directory / CACHE_NAME, user_cache_path() / dataset_id)
    store = flat_store.obtain_store(f"dataset '{dataset_id}'", places, fingerprint, write)
    return configure(dataset_id, task, store, config)


def configure(dataset_id: str, task: Task, store: FlatStore, config: DataConfig) -> OfflineDataset:
    """What a run takes from a store."""
    kept = best_episodes(store.returns, config.top_percent)
    return OfflineDataset(
        dataset_id=dataset_id,
        task=task.delayed() if config.delayed_reward else task,  # scores must be conditioned as training was
        content_hash=store.content_hash,
        tokens=store.tokens,
        actions=store.actions,
        starts=store.starts,
        returns=store.returns,
        kept=kept,
        delayed_reward=config.delayed_reward,
        statistics=TokenStatistics.merge(summary_chunks(store, task, kept, config.delayed_reward)),
        out_of_range_actions=store.out_of_range,
    )


def best_episodes(returns: FloatArray, top_percent: float) -> IntArray:
    """Ascending indices of the episodes with the highest returns, at least one; of equal ones the earlier."""
    # Exact, since 0.07 * 100 is more than 7 in floating point, and its ceiling 8.
    count = math.ceil(Fraction(str(top_percent)) * len(returns) / 100)
    return np.sort(np.argsort(-returns, kind="stable")[:count])


def scaled_returns(returns: FloatArray, task: Task) -> Float32Array:
    """Returns (reward units) as tokens hold them."""
    return (returns / task.return_scale).astype(np.float32)


def summary_chunks(
    store: FlatStore, task: Task, kept: IntArray, delayed_reward: bool
) -> Iterator[tuple[IntArray, FloatArray]]:
    """Lengths and token summaries of the kept episodes, as the options make them, a few episodes at a time."""
    lengths = np.diff(store.starts)
    for begin in range(0, len(kept), EPISODES_PER_CHUNK):
        chosen = kept[begin : begin + EPISODES_PER_CHUNK]
        summaries = store.summaries[chosen]
        if delayed_reward:  # return-to-go is then one value throughout an episode
            summaries[:, [MEAN, LOW, HIGH], -1] = scaled_returns(store.returns[chosen], task)[:, None]
            summaries[:, SQUARES, -1] = 0.0
        yield lengths[chosen], summaries


def open_minari(dataset_id: str) -> Any:
    """Open a dataset from the local store or the remote hub; every failure is one line.

    Raises:
        UserError: the dataset is neither here nor reachable.
    """
    import minari

    local = (
        f"make a local one with 'dsf-data collect hopper-medium-expert' (id {LOCAL_NAMESPACE}/hopper/medium-expert-v1)"
    )
    if not DATASET_ID.fullmatch(dataset_id):
        raise UserError(f"'{dataset_id}' is no Minari dataset id (such as mujoco/hopper/medium-v0): {local}")
    store = Path(store_path())
    if store.exists() and not store.is_dir():
        raise UserError(f"MINARI_DATASETS_PATH is {store}, which is no directory: set it to one")
    if (store / dataset_id / "data").exists():
        try:
            return minari.load_dataset(dataset_id)
        except Exception as error:  # damaged metadata fail in as many ways as there are
            raise unreadable(dataset_id, error) from None
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


def unreadable(dataset_id: str, error: Exception) -> UserError:
    """The one line for a local dataset that Minari cannot read."""
    reason = f"{type(error).__name__}: {one_line(error)}"
    return UserError(f"dataset '{dataset_id}' in {store_path()} cannot be read ({reason}): make or download it again")


def one_line(error: Exception, limit: int = 120) -> str:
    """The start of an exception's message, on one line."""
    return " ".join(str(error).split())[:limit]


def store_path() -> str:
    """Where Minari keeps datasets."""
    return os.environ.get("MINARI_DATASETS_PATH", str(Path.home() / ".minari" / "datasets"))


def user_cache_path() -> Path:
    """Where flat files go if the Minari store cannot be written; every store has a directory of its own there."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "dsf" / flat_store.checksum(str(Path(store_path()).resolve()))[:16]


def source_fingerprint(directory: Path, task: Task) -> str:
    """Changes whenever the flat files of the Minari dataset in ``directory`` could: with its files, task or format."""
    source = directory / "data"
    files = sorted(path for path in source.rglob("*") if path.is_file())
    states = [[str(path.relative_to(source)), *flat_store.file_state(path)] for path in files]
    sizes = [task.observation_size, task.action_size, task.return_scale, task.discrete, task.observation_keys]
    return flat_store.checksum([flat_store.FORMAT, sizes, states])


def check_spaces(dataset_id: str, task: Task, observation_space: Any, action_space: Any) -> None:
    """Refuse spaces that do not fit the task; sizes of boxes are left to the episodes, which may differ from them.

    Raises:
        UserError: names the space and what the task needs.
    """
    actions = type(action_space).__name__
    if task.discrete:
        if actions != "Discrete":
            raise UserError(
                f"dataset '{dataset_id}' has a {actions} action space, but task '{task.name}' chooses among "
                f"{task.action_size} actions (a Discrete space): choose a dataset with discrete actions"
            )
        if (action_space.n, action_space.start) != (task.action_size, 0):
            raise UserError(
                f"dataset '{dataset_id}' has actions {action_space.start} to "
                f"{action_space.start + action_space.n - 1}, but task '{task.name}' has 0 to {task.action_size - 1}: "
                f"choose a dataset of {task.env_id} as it is registered"
            )
    elif actions != "Box":
        raise UserError(
            f"dataset '{dataset_id}' has a {actions} action space: "
            "this policy needs continuous actions (a Box); choose a continuous-control dataset"
        )
    if task.observation_keys:
        missing = set(task.observation_keys) - set(getattr(observation_space, "spaces", None) or ())
        if type(observation_space).__name__ != "Dict" or missing:
            raise UserError(
                f"dataset '{dataset_id}' has no Dict observation space with {', '.join(task.observation_keys)}: "
                f"task '{task.name}' needs them all; choose a dataset of {task.env_id} as it is registered"
            )
    elif type(observation_space).__name__ != "Box" or len(observation_space.shape) != 1:
        raise UserError(f"dataset '{dataset_id}' has no flat Box observation space: choose one that has")


def flat_episodes(dataset_id: str, task: Task, dataset: Any) -> Iterator[FlatEpisode]:
    """Read a Minari dataset one episode at a time.

    Raises:
        UserError: it cannot be read, has no episodes, or one of them is wrong.
    """
    episodes = iter(dataset.iterate_episodes())
    number = 0
    while True:
        try:
            episode = next(episodes, None)
        except Exception as error:  # h5py and pyarrow have their own for each way in which a file can be damaged
            raise unreadable(dataset_id, error) from None
        if episode is None:
            break
        yield flatten(f"dataset '{dataset_id}', episode {number}", task, episode)
        number += 1
    if number == 0:
        raise UserError(f"dataset '{dataset_id}' has no episodes")


def flatten(where: str, task: Task, episode: Any) -> FlatEpisode:
    """Turn one Minari episode into tokens and actions.

    Raises:
        UserError: sizes do not fit the task, the episode is empty, or a value is not usable.
    """
    steps = len(episode.actions)
    if steps == 0:
        raise UserError(f"{where} is empty: it has no steps; remove it from the dataset")
    arrays = {
        "observations": flat_observations(where, task, episode.observations),
        "actions": np.asarray(episode.actions),
        "rewards": np.asarray(episode.rewards),
    }
    expected = {
        "observations": (steps + 1, task.observation_size),
        "actions": (steps,) if task.discrete else (steps, task.action_size),
        "rewards": (steps,),
    }
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise UserError(
                f"{where}: {name} has shape {arrays[name].shape}, expected {shape} with steps > 0; "
                "write the dataset again with arrays of these shapes"
            )
        if arrays[name].dtype.kind not in "biuf" or not np.isfinite(arrays[name]).all():
            raise UserError(f"{where}: {name} holds a value that is not finite; clean the dataset first")
    vectors = one_hot(where, task, arrays["actions"]) if task.discrete else arrays["actions"]
    # The closed loop executes actions clipped, and its tokens say so; recorded ones may lie outside (Adroit's humans).
    previous = np.vstack([np.zeros((1, task.action_size)), np.clip(vectors[:-1], -1.0, 1.0)])
    with np.errstate(over="ignore"):
        return_to_go = np.cumsum(arrays["rewards"][::-1], dtype=np.float64)[::-1]
        scaled = return_to_go[:, None] / task.return_scale
        tokens = np.hstack([arrays["observations"][:-1], previous, scaled]).astype(np.float32)
        actions = vectors.astype(np.float32)
    if not (np.isfinite(tokens).all() and np.isfinite(actions).all()):
        raise UserError(f"{where}: it holds a value too large for 32-bit floats; clean the dataset first")
    return FlatEpisode(
        tokens=tokens,
        actions=actions,
        episode_return=float(return_to_go[0]),
        out_of_range=int((np.abs(vectors) > 1.0).any(axis=1).sum()),
        source=(*arrays.values(), np.asarray(episode.terminations), np.asarray(episode.truncations)),
    )


def flat_observations(where: str, task: Task, observations: Any) -> npt.NDArray[Any]:
    """Observations as recorded where they are flat, else the task's parts of them side by side.

    Raises:
        UserError: the parts have different lengths.
    """
    if not task.observation_keys:
        return np.asarray(observations)
    shapes = {key: np.shape(observations[key]) for key in task.observation_keys}
    if any(len(shape) != 2 for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) != 1:
        found = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise UserError(
            f"{where}: observations has shapes {found}, expected a row per step and one for the end in each; "
            "write the dataset again with arrays of these shapes"
        )
    return task.flat_observation(observations)


def one_hot(where: str, task: Task, choices: npt.NDArray[Any]) -> FloatArray:
    """Discrete actions (steps,) as (steps, action_size).

    Raises:
        UserError: a choice is none of the task's.
    """
    known = np.isin(choices, np.arange(task.action_size))
    if not known.all():
        raise UserError(
            f"{where}: actions holds {choices[~known][0]}, expected 0 to {task.action_size - 1}; "
            "clean the dataset first"
        )
    return np.eye(task.action_size)[choices.astype(np.int64)]

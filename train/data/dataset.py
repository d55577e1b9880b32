"""Offline datasets: any Minari id as flat arrays on disk, and sampling training windows from them.

A dataset may be larger than memory: its episodes are read once, some at a time, into flat files
(:mod:`dsf.train.data.flat_store`), and training maps those files into memory. What a run takes from them
(:class:`DataConfig`) is applied to each batch, so every choice shares the same files.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import Float32Array, FloatArray, Int64Array
from dsf.shell.errors import UserError
from dsf.tasks import Task
from dsf.tasks.data_returns import RETURNS_FACT, DataReturns, held_targets
from dsf.tasks.definition import TaskDefinition
from dsf.tasks.maze_tasks import ENV_IDS as MAZE_ENV_IDS
from dsf.tasks.registry import ENVIRONMENT_FACT, TASK_FACT, get_task, own_task
from dsf.train.config.training import DataConfig
from dsf.train.data import flat_store
from dsf.train.data.env_spec import recorded_task, registered_task
from dsf.train.data.flat_store import FlatStore
from dsf.train.data.flatten import check_spaces, flat_episodes, readable
from dsf.train.data.minari_files import HDF5, recorded_episodes, recorded_rewards
from dsf.train.data.minari_store import open_minari, store_path, user_cache_path
from dsf.train.data.own_task import NOTHING_STATED, TASK_METADATA, Draft, draft, returns_of, scale_of, settled
from dsf.train.data.registry import has_declared_targets
from dsf.train.quantization.codec import HIGH, LOW, MEAN, SQUARES, TokenStatistics

CACHE_NAME = ".dsf-cache"
"""Directory of the flat files inside a dataset's own: they leave with it, and Minari does not look at hidden names."""
EPISODES_PER_CHUNK = 1024
"""Episodes whose summaries are held in memory at once."""
MAZE_IDS = frozenset(MAZE_ENV_IDS.values())
"""Our own mazes; other sizes of them than the tasks' are refused, not taken for another robot."""
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
        task: the task whose environment produced the data; its targets are the data's own, unless declared ones hold.
        content_hash: SHA-256 over all episodes' arrays.
        tokens: (steps, features) observation, previous action (zeros at a start), return-to-go / scale.
        actions: (steps, action_size) what the behaviour policy did; one-hot where the task is discrete.
        starts: (episodes + 1,) index of each episode's first step, closed by the number of steps.
        returns: (episodes,) sums of rewards (reward units).
        kept: (kept episodes,) which episodes are sampled, ascending.
        delayed_reward: whether an episode's whole reward comes with its last step.
        statistics: of the tokens that :func:`sample_windows` can draw, over all their steps.
        out_of_range_actions: recorded steps whose action leaves [-1, 1], or the task's bounds where it has others.
        unscored: why no policy of these data can be scored here; empty where one can.
        reasons: where each field of the task's definition comes from, where it has one.
    """

    dataset_id: str
    task: Task
    content_hash: str
    tokens: Float32Array
    actions: Float32Array
    starts: Int64Array
    returns: FloatArray
    kept: Int64Array
    delayed_reward: bool
    statistics: TokenStatistics
    out_of_range_actions: int
    unscored: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def episode_returns(self) -> FloatArray:
        """Returns of the kept episodes, (kept episodes,), reward units."""
        return self.returns[self.kept]

    @property
    def data_returns(self) -> DataReturns:
        """What the kept episodes returned, and the targets where they are not the registered task's."""
        returns, targets = self.episode_returns, self.task.target_returns
        declared = self.task.definition is None and targets == get_task(self.task.name).target_returns
        return DataReturns(float(returns.min()), float(returns.max()), () if declared else targets)

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of them, beside the task's name, for :func:`dsf.tasks.registry.described_task`."""
        facts: dict[str, Any] = {RETURNS_FACT: self.data_returns.to_json()}
        if self.task.recorded is not None:
            facts[ENVIRONMENT_FACT] = self.task.recorded.to_json()
        if self.task.definition is not None:
            facts[TASK_FACT] = self.task.definition.to_json()
        return facts

    @property
    def steps(self) -> int:
        """Steps of the kept episodes."""
        return int(self.kept_ends[-1])

    @cached_property
    def lengths(self) -> Int64Array:
        """Steps of each kept episode, (kept episodes,)."""
        return np.diff(self.starts)[self.kept]

    @cached_property
    def kept_ends(self) -> Int64Array:
        """Where each kept episode would end if the kept ones were laid end to end, (kept episodes,)."""
        return np.cumsum(self.lengths)

    @cached_property
    def kept_starts(self) -> Int64Array:
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
        ends: (count,) step of its episode at which each window ends, from 0.
    """

    tokens: Float32Array
    actions: Float32Array
    mask: npt.NDArray[np.bool_]
    ends: Int64Array


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
    return Windows(tokens, actions, mask, last - start)


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


def load_dataset(
    dataset_id: str,
    config: DataConfig = AS_RECORDED,
    written: Iterable[Any] | None = None,
    definition: TaskDefinition | None = None,
) -> OfflineDataset:
    """Load a Minari dataset, downloading a remote one where there is a network.

    Args:
        dataset_id: Minari id.
        config: what a run takes from it.
        written: its episodes in their order, from who has just written them: nothing is read back then.
        definition: of a task of one's own, which need not say more than that the registered one is not meant. Without
            it, the registered task whose environment the dataset names; where there is none, the dataset's own.

    Raises:
        UserError: no such dataset, no network, spaces or episodes that fit no policy or not the task, or no place for
            the flat files.
    """
    dataset = open_minari(dataset_id)
    spec, own = dataset.env_spec, definition
    if own is None and not belongs_to_registered(dataset_id, spec, dataset.storage.metadata):
        own = NOTHING_STATED
    if own is not None:
        of_dataset = draft(dataset_id, dataset, own)
        task, horizon = of_dataset.unsettled, of_dataset.definition.horizon or sys.maxsize
        scaled = of_dataset.definition.return_scale is not None
    else:
        of_dataset, scaled = None, True
        task = registered_task(dataset_id, spec)
        check_spaces(dataset_id, task, dataset.observation_space, dataset.action_space)
        horizon = max(task.max_steps, spec.max_episode_steps or 0)
        task = recorded_task(dataset_id, task, spec, dataset.storage.metadata)
    directory = Path(store_path()) / dataset_id
    fingerprint = source_fingerprint(directory, task, scaled)

    data, stated = directory / "data", dataset.storage.FORMAT

    def recorded() -> Iterable[Any]:
        if written is not None:
            return written
        if stated == HDF5:
            return recorded_episodes(dataset_id, data, task, len(dataset))
        episodes: Iterable[Any] = dataset.iterate_episodes()
        return episodes

    def write(place: Path) -> None:
        with_scale = task
        if not scaled:
            by_file = written is None and stated == HDF5
            rewards = (
                recorded_rewards(dataset_id, data, len(dataset))
                if by_file
                else (episode.rewards for episode in recorded())
            )
            with_scale = replace(task, return_scale=scale_of(returns_of(readable(dataset_id, rewards))))
        episodes = flat_episodes(dataset_id, with_scale, recorded(), horizon=horizon)
        flat_store.write_store(place, episodes, task.observation_size + task.action_size + 1, task.action_size)
        if source_fingerprint(directory, task, scaled) != fingerprint:
            raise UserError(f"dataset '{dataset_id}' changed while it was read: run the command again")

    of_user = user_cache_path()
    places = [directory / CACHE_NAME, *([] if of_user is None else [of_user / dataset_id])]
    store = _same_scale(directory, task, places) if of_dataset is not None and scaled else None
    if store is None:
        store = flat_store.obtain_store(f"dataset '{dataset_id}'", places, fingerprint, write)
    return configure(dataset_id, task, store, config, of_dataset)


def _same_scale(directory: Path, task: Task, places: Sequence[Path]) -> FlatStore | None:
    """Files that were made with the return scale of the episodes, if that is the one that a task states, as the
    definition in a checkpoint does: they are the same, and need not be made again.
    """
    fingerprint = source_fingerprint(directory, task, scaled=False)
    found = (flat_store.find_store(place, fingerprint) for place in places)
    return next((store for store in found if store is not None and scale_of(store.returns) == task.return_scale), None)


def belongs_to_registered(dataset_id: str, spec: Any, metadata: Mapping[str, Any]) -> bool:
    """Whether a dataset names the environment of a registered task, and carries no task of its own.

    Raises:
        UserError: it names one of ours, made otherwise than any task's.
    """
    if spec is None or TASK_METADATA in metadata:
        return False
    try:
        registered_task(dataset_id, spec)
    except UserError:
        if isinstance(spec.id, str) and spec.id in MAZE_IDS:
            raise
        return False
    return True


def configure(
    dataset_id: str, task: Task, store: FlatStore, config: DataConfig, of_dataset: Draft | None = None
) -> OfflineDataset:
    """What a run takes from a store.

    The task's declared targets hold for the paper's datasets and those that ship, in the task's own environment; all
    others get theirs from the kept episodes.
    """
    kept = best_episodes(store.returns, config.top_percent)
    returns = store.returns[kept]
    reasons: Mapping[str, str] = {}
    if of_dataset is not None:
        definition, reasons = settled(of_dataset, store.returns, np.diff(store.starts), kept)
        task = own_task(definition, f"dataset '{dataset_id}'")
        declared = True
    else:
        declared = task.recorded is None and has_declared_targets(dataset_id)
    task = task.with_data(float(returns.min()), float(returns.max()), () if declared else held_targets(returns))
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
        unscored="" if of_dataset is None else of_dataset.unscored,
        reasons=reasons,
    )


def best_episodes(returns: FloatArray, top_percent: float) -> Int64Array:
    """Ascending indices of the episodes with the highest returns, at least one; of equal ones the earlier."""
    # Exact, since 0.07 * 100 is more than 7 in floating point, and its ceiling 8.
    count = math.ceil(Fraction(str(top_percent)) * len(returns) / 100)
    return np.sort(np.argsort(-returns, kind="stable")[:count])


def scaled_returns(returns: FloatArray, task: Task) -> Float32Array:
    """Returns (reward units) as tokens hold them."""
    return (returns / task.return_scale).astype(np.float32)


def summary_chunks(
    store: FlatStore, task: Task, kept: Int64Array, delayed_reward: bool
) -> Iterator[tuple[Int64Array, FloatArray]]:
    """Lengths and token summaries of the kept episodes, as the options make them, a few episodes at a time."""
    lengths = np.diff(store.starts)
    for begin in range(0, len(kept), EPISODES_PER_CHUNK):
        chosen = kept[begin : begin + EPISODES_PER_CHUNK]
        summaries = store.summaries[chosen]
        if delayed_reward:  # return-to-go is then one value throughout an episode
            summaries[:, [MEAN, LOW, HIGH], -1] = scaled_returns(store.returns[chosen], task)[:, None]
            summaries[:, SQUARES, -1] = 0.0
        yield lengths[chosen], summaries


def source_fingerprint(directory: Path, task: Task, scaled: bool = True) -> str:
    """Changes whenever the flat files of the Minari dataset in ``directory`` could: with its files, task or format.

    Args:
        directory: of the dataset.
        task: as far as it is known before an episode is read.
        scaled: whether its return scale is stated; else the episodes say it, which the files stand for.
    """
    source = directory / "data"
    files = sorted(path for path in source.rglob("*") if path.is_file())
    states = [[str(path.relative_to(source)), *flat_store.file_state(path)] for path in files]
    sizes = [task.observation_size, task.action_size, task.return_scale, task.discrete, task.observation_keys]
    if task.recorded is not None and task.recorded.low:
        sizes += [task.recorded.low, task.recorded.high]
    if task.definition is not None:
        sizes[2] = task.return_scale if scaled else "of the episodes"
        sizes += ["own", task.observation_parts, task.action_low, task.action_high, task.first_choice]
    return flat_store.checksum([flat_store.FORMAT, sizes, states])

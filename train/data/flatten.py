"""Minari episodes as tokens and actions, and every way in which they can be unusable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.tasks import Task
from dsf.train.data.episode_ends import require_possible
from dsf.train.data.flat_store import FlatEpisodes
from dsf.train.data.minari_store import unreadable

BATCH_STEPS = 1 << 14
"""Steps that are flattened together: enough that numpy's calls cost little, and no more than a cache holds."""


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


@dataclass(frozen=True)
class EpisodeArrays:
    """What a Minari episode says, in shapes that were checked.

    Attributes:
        where: dataset and episode, for messages.
        observations: (steps + 1, observation_size).
        actions: (steps, action_size), or (steps,) numbers of discrete ones.
        rewards: (steps,).
        ends: terminations and truncations, as recorded.
    """

    where: str
    observations: npt.NDArray[Any]
    actions: npt.NDArray[Any]
    rewards: npt.NDArray[Any]
    ends: tuple[npt.NDArray[Any], npt.NDArray[Any]]


def flat_episodes(
    dataset_id: str, task: Task, recorded: Iterable[Any], batch_steps: int = BATCH_STEPS, horizon: int | None = None
) -> Iterator[FlatEpisodes]:
    """Read a Minari dataset's episodes, and flatten some at a time.

    Args:
        dataset_id: for messages.
        task: whose observations and actions they hold.
        recorded: Minari's episodes.
        batch_steps: episodes are flattened together until they have so many steps; nothing else depends on it.
        horizon: steps after which the dataset's environment cuts an episode (default: the task's).

    Raises:
        UserError: it cannot be read, has no episodes, or one of them is wrong: the first one; or it is too long to be
            one, which is said last.
    """
    batch: list[EpisodeArrays] = []
    lengths: list[int] = []
    flags: list[tuple[bool, bool]] = []
    steps, number = 0, -1
    try:
        for number, episode in enumerate(readable(dataset_id, recorded)):
            batch.append(episode_arrays(f"dataset '{dataset_id}', episode {number}", task, episode))
            steps += len(batch[-1].actions)
            lengths.append(len(batch[-1].actions))
            flags.append((bool(batch[-1].ends[0][-1]), bool(batch[-1].ends[1][-1])))
            if steps >= batch_steps:
                yield flatten(task, batch)
                batch, steps = [], 0
    except UserError:
        if batch:
            flatten(task, batch)  # whatever is wrong in an earlier episode is said first
        raise
    if batch:
        yield flatten(task, batch)
    elif number < 0:
        raise UserError(f"dataset '{dataset_id}' has no episodes")
    require_possible(dataset_id, task, lengths, flags, task.max_steps if horizon is None else horizon)


def readable(dataset_id: str, recorded: Iterable[Any]) -> Iterator[Any]:
    """The episodes.

    Raises:
        UserError: the dataset's file is damaged.
    """
    episodes = iter(recorded)
    while True:
        try:
            episode = next(episodes, None)
        except UserError:
            raise
        except Exception as error:  # h5py and pyarrow have their own for each way in which a file can be damaged
            raise unreadable(dataset_id, error) from None
        if episode is None:
            return
        yield episode


def episode_arrays(where: str, task: Task, episode: Any) -> EpisodeArrays:
    """Take from a Minari episode what counts.

    Raises:
        UserError: an array has another shape than the task's or holds no numbers, or there are no steps.
    """
    steps = len(episode.actions)
    if steps == 0:
        raise UserError(f"{where} is empty: it has no steps; remove it from the dataset")
    found = EpisodeArrays(
        where,
        flat_observations(where, task, episode.observations),
        np.asarray(episode.actions),
        np.asarray(episode.rewards),
        (np.asarray(episode.terminations), np.asarray(episode.truncations)),
    )
    expected = (
        ("observations", found.observations, (steps + 1, task.observation_size)),
        ("actions", found.actions, (steps,) if task.discrete else (steps, task.action_size)),
        ("rewards", found.rewards, (steps,)),
        ("terminations", found.ends[0], (steps,)),
        ("truncations", found.ends[1], (steps,)),
    )
    for name, values, shape in expected:
        if values.shape != shape:
            raise UserError(
                f"{where}: {name} has shape {values.shape}, expected {shape} with steps > 0; "
                "write the dataset again with arrays of these shapes"
            )
        if values.dtype.kind not in "biuf":
            raise UserError(f"{where}: {name} holds a value that is not finite; clean the dataset first")
    for name, flag in zip(("terminations", "truncations"), found.ends):
        if flag.dtype != np.bool_ and not np.isin(flag, (0, 1)).all():
            raise UserError(f"{where}: {name} holds a value that is neither 0 nor 1; clean the dataset first")
        if flag[:-1].any():
            raise UserError(
                f"{where}: {name} is set at step {np.argmax(flag)} of {steps}, before the last: write the dataset "
                "again with an episode that ends there, or without that flag"
            )
    return found


def flatten(task: Task, episodes: Sequence[EpisodeArrays]) -> FlatEpisodes:
    """Turn episodes, at least one, into tokens and actions.

    Raises:
        UserError: a value of one is not usable; the message names the first such episode.
    """
    try:
        return _flattened(task, episodes)
    except UserError:
        if len(episodes) > 1:
            for episode in episodes:
                _flattened(task, [episode])
        raise


def _flattened(task: Task, episodes: Sequence[EpisodeArrays]) -> FlatEpisodes:
    """All episodes at once; the messages are right where there is one."""
    where = episodes[0].where
    observations = np.concatenate([episode.observations for episode in episodes])
    actions = np.concatenate([episode.actions for episode in episodes])
    rewards = np.concatenate([episode.rewards for episode in episodes])
    for name, values in (("observations", observations), ("actions", actions), ("rewards", rewards)):
        if not np.isfinite(values).all():
            raise UserError(f"{where}: {name} holds a value that is not finite; clean the dataset first")
    lengths = np.array([len(episode.actions) for episode in episodes])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    vectors = one_hot(where, task, actions) if task.discrete else task.policy_actions(actions)
    rows = np.empty((len(vectors), task.observation_size + task.action_size + 1))
    observed, previous, to_go = rows[:, : task.observation_size], rows[:, task.observation_size : -1], rows[:, -1]
    # The closed loop executes actions clipped, and its tokens say so; recorded ones may lie outside (Adroit's humans).
    np.clip(vectors[:-1], -1.0, 1.0, out=previous[1:])
    previous[starts] = 0.0
    with np.errstate(over="ignore"):
        last_observations = ends + np.arange(len(ends))  # an episode has one more than it has steps
        observed[:] = np.delete(observations, last_observations, axis=0)
        for start, end in zip(starts.tolist(), ends.tolist()):
            np.cumsum(rewards[start:end][::-1], dtype=np.float64, out=to_go[start:end][::-1])
        returns = to_go[starts]
        to_go /= task.return_scale
        tokens, targets = rows.astype(np.float32), vectors.astype(np.float32)
    if not (np.isfinite(tokens).all() and np.isfinite(targets).all()):
        raise UserError(f"{where}: it holds a value too large for 32-bit floats; clean the dataset first")
    return FlatEpisodes(
        tokens=tokens,
        actions=targets,
        lengths=lengths,
        returns=returns,
        out_of_range=int((np.abs(vectors) > 1.0).any(axis=1).sum()),
        source=[
            array
            for episode in episodes
            for array in (episode.observations, episode.actions, episode.rewards, *episode.ends)
        ],
    )


def flat_observations(where: str, task: Task, observations: Any) -> npt.NDArray[Any]:
    """Observations as recorded where they are flat, else the task's parts of them side by side.

    Raises:
        UserError: the parts have different lengths.
    """
    if not task.paths:
        return np.asarray(observations)
    parts, missing = task.parts_of(observations)
    if missing:
        raise UserError(f"{where}: observations lacks {', '.join(missing)}: write the dataset again with all parts")
    shapes = {name: np.shape(values) for name, values in parts.items()}
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
    with np.errstate(invalid="ignore"):  # a float that no integer holds is none of them
        numbers = choices.astype(np.int64)
    numbers, first = numbers - task.first_choice, task.first_choice
    known = (numbers >= 0) & (numbers < task.action_size) & (numbers + first == choices)
    if not known.all():
        raise UserError(
            f"{where}: actions holds {choices[~known][0]}, expected {first} to {first + task.action_size - 1}; "
            "clean the dataset first"
        )
    return np.eye(task.action_size).take(numbers, axis=0)

"""Minari episodes as tokens and actions, and every way in which they can be unusable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dsf.tasks import Task, UserError
from dsf.tasks.policy import FloatArray
from dsf.train.flat_store import FlatEpisodes
from dsf.train.minari_store import unreadable

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


def flat_episodes(dataset_id: str, task: Task, recorded: Iterable[Any]) -> Iterator[FlatEpisodes]:
    """Read a Minari dataset's episodes, some at a time.

    Raises:
        UserError: it cannot be read, has no episodes, or one of them is wrong.
    """
    what = f"dataset '{dataset_id}'"
    episodes = iter(recorded)
    batch: list[Any] = []
    first = steps = 0
    while True:
        try:
            episode = next(episodes, None)
        except Exception as error:  # h5py and pyarrow have their own for each way in which a file can be damaged
            raise unreadable(dataset_id, error) from None
        if episode is None:
            break
        batch.append(episode)
        steps += len(episode.actions)
        if steps >= BATCH_STEPS:
            yield flatten(what, task, batch, first)
            first += len(batch)
            batch, steps = [], 0
    if batch:
        yield flatten(what, task, batch, first)
    elif first == 0:
        raise UserError(f"{what} has no episodes")


def flatten(what: str, task: Task, episodes: Sequence[Any], first: int = 0) -> FlatEpisodes:
    """Turn Minari episodes into tokens and actions.

    Args:
        what: the dataset, for messages.
        task: whose observations and actions they hold.
        episodes: at least one.
        first: number of the first of them in the dataset.

    Raises:
        UserError: sizes do not fit the task, an episode is empty, or a value is not usable.
    """
    parts = [arrays(f"{what}, episode {first + number}", task, episode) for number, episode in enumerate(episodes)]
    observations, actions, rewards = (np.concatenate(same) for same in zip(*parts))
    lengths = np.array([len(part[1]) for part in parts])
    ends = np.cumsum(lengths)
    starts = ends - lengths

    def where(row: int, row_ends: npt.NDArray[np.int64] = ends) -> str:
        return f"{what}, episode {first + int(np.searchsorted(row_ends, row, side='right'))}"

    observed_ends = ends + np.arange(1, len(lengths) + 1)  # an episode ends with one observation more
    recorded = (("observations", observations, observed_ends), ("actions", actions, ends), ("rewards", rewards, ends))
    for name, values, row_ends in recorded:
        finite = np.isfinite(values)
        if not finite.all():
            place = where(first_row(~finite), row_ends)
            raise UserError(f"{place}: {name} holds a value that is not finite; clean the dataset first")
    vectors = one_hot(where, task, actions) if task.discrete else actions
    rows = np.empty((len(vectors), task.observation_size + task.action_size + 1))
    observed, previous, to_go = rows[:, : task.observation_size], rows[:, task.observation_size : -1], rows[:, -1]
    # The closed loop executes actions clipped, and its tokens say so; recorded ones may lie outside (Adroit's humans).
    np.clip(vectors[:-1], -1.0, 1.0, out=previous[1:])
    previous[starts] = 0.0
    with np.errstate(over="ignore"):
        observed[:] = np.delete(observations, observed_ends - 1, axis=0)
        for start, end in zip(starts.tolist(), ends.tolist()):
            np.cumsum(rewards[start:end][::-1], dtype=np.float64, out=to_go[start:end][::-1])
        returns = to_go[starts]
        to_go /= task.return_scale
        tokens, targets = rows.astype(np.float32), vectors.astype(np.float32)
    for values in (tokens, targets):
        finite = np.isfinite(values)
        if not finite.all():
            place = where(first_row(~finite))
            raise UserError(f"{place}: it holds a value too large for 32-bit floats; clean the dataset first")
    ended = ((np.asarray(episode.terminations), np.asarray(episode.truncations)) for episode in episodes)
    return FlatEpisodes(
        tokens=tokens,
        actions=targets,
        lengths=lengths,
        returns=returns,
        out_of_range=int((np.abs(vectors) > 1.0).any(axis=1).sum()),
        source=[array for part, flags in zip(parts, ended) for array in (*part, *flags)],
    )


def arrays(where: str, task: Task, episode: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """An episode's observations, actions and rewards, of the shapes that the task asks for.

    Raises:
        UserError: one of them has another shape or holds no numbers, or there are no steps.
    """
    steps = len(episode.actions)
    if steps == 0:
        raise UserError(f"{where} is empty: it has no steps; remove it from the dataset")
    found = (
        flat_observations(where, task, episode.observations),
        np.asarray(episode.actions),
        np.asarray(episode.rewards),
    )
    expected = (
        (steps + 1, task.observation_size),
        (steps,) if task.discrete else (steps, task.action_size),
        (steps,),
    )
    for name, values, shape in zip(("observations", "actions", "rewards"), found, expected):
        if values.shape != shape:
            raise UserError(
                f"{where}: {name} has shape {values.shape}, expected {shape} with steps > 0; "
                "write the dataset again with arrays of these shapes"
            )
        if values.dtype.kind not in "biuf":
            raise UserError(f"{where}: {name} holds a value that is not finite; clean the dataset first")
    return found


def first_row(wrong: npt.NDArray[np.bool_]) -> int:
    """Number of the first row with anything wrong, of (rows, ...)."""
    return int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))[0])


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


def one_hot(where: Callable[[int], str], task: Task, choices: npt.NDArray[Any]) -> FloatArray:
    """Discrete actions (steps,) as (steps, action_size).

    Args:
        where: names the episode of a step, for messages.
        task: whose actions they are.
        choices: numbers of actions.

    Raises:
        UserError: a choice is none of the task's.
    """
    numbers = choices.astype(np.int64)
    known = (numbers >= 0) & (numbers < task.action_size) & (numbers == choices)
    if not known.all():
        step = first_row(~known)
        raise UserError(
            f"{where(step)}: actions holds {choices[step]}, expected 0 to {task.action_size - 1}; "
            "clean the dataset first"
        )
    return np.eye(task.action_size).take(numbers, axis=0)

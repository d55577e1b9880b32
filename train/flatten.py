"""One Minari episode as tokens and actions, and every way in which it can be unusable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dsf.tasks import Task, UserError
from dsf.tasks.policy import FloatArray
from dsf.train.flat_store import FlatEpisode
from dsf.train.minari_store import unreadable


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


def flat_episodes(dataset_id: str, task: Task, recorded: Iterable[Any]) -> Iterator[FlatEpisode]:
    """Read a Minari dataset's episodes one at a time.

    Raises:
        UserError: it cannot be read, has no episodes, or one of them is wrong.
    """
    episodes = iter(recorded)
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
    rows = np.zeros((steps, task.observation_size + task.action_size + 1))
    observed, previous, to_go = rows[:, : task.observation_size], rows[:, task.observation_size : -1], rows[:, -1]
    # The closed loop executes actions clipped, and its tokens say so; recorded ones may lie outside (Adroit's humans).
    np.clip(vectors[:-1], -1.0, 1.0, out=previous[1:])
    with np.errstate(over="ignore"):
        observed[:] = arrays["observations"][:-1]
        return_to_go = np.cumsum(arrays["rewards"][::-1], dtype=np.float64)[::-1]
        to_go[:] = return_to_go / task.return_scale
        tokens, actions = rows.astype(np.float32), vectors.astype(np.float32)
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
    known = (choices >= 0) & (choices < task.action_size) & (choices == np.floor(choices))
    if not known.all():
        raise UserError(
            f"{where}: actions holds {choices[~known][0]}, expected 0 to {task.action_size - 1}; "
            "clean the dataset first"
        )
    return np.eye(task.action_size)[choices.astype(np.int64)]

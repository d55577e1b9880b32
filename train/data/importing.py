"""Read other people's files of steps (npz, or D4RL's hdf5) into episodes, and refuse what cannot be trusted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from minari.data_collector import EpisodeBuffer

from dsf.shell.errors import UserError
from dsf.tasks import Task, get_task
from dsf.tasks.recorded import SHOWN_ID, UNSHOWN
from dsf.tasks.registry import same_robot, task_for_env
from dsf.train.data.env_spec import TAKEN_FOR
from dsf.train.data.episode_ends import EpisodeEnds, find_ends
from dsf.train.data.names import DATASET_ID
from dsf.train.data.step_files import ENVIRONMENT, Arrays, read_arrays

FOREIGN_NAMESPACES = ("D4RL", "mujoco")
"""Namespaces of Minari's hub: an imported set there would pass for the real one."""


@dataclass(frozen=True)
class Imported:
    """A file's episodes, ready for :func:`dsf.train.data.collect.write_dataset`.

    ``notes`` say what was changed; ``facts`` are for the dataset's metadata.
    """

    dataset_id: str
    task: str
    algorithm: str
    episodes: list[EpisodeBuffer]
    notes: tuple[str, ...]
    facts: dict[str, str] = field(default_factory=dict)


def import_file(
    path: Path, dataset_id: str, task_name: str | None, clip_actions: bool, max_steps: int | None = None
) -> Imported:
    """Turn a file into episodes.

    Args:
        path: npz (one array per quantity, episodes end to end) or D4RL-style hdf5.
        dataset_id: Minari id that the dataset will have.
        task_name: the task, where the file does not name a known environment.
        clip_actions: clip actions that leave [-1, 1] instead of keeping them.
        max_steps: steps of the longest episode; the file's are cut after every so many. None: the task's horizon, and
            what is longer is refused rather than cut.

    Raises:
        UserError: the file, its arrays or the id cannot be used, or the end flags cannot be right.
    """
    if not DATASET_ID.fullmatch(dataset_id):
        raise UserError(f"--dataset-id '{dataset_id}' is no Minari dataset id: use one such as dsf/hopper/imported-v0")
    if dataset_id.split("/")[0] in FOREIGN_NAMESPACES:
        raise UserError(f"--dataset-id '{dataset_id}' is in a namespace of Minari's hub: choose another, such as dsf/")
    arrays, ends = read_arrays(path)
    notes: list[str] = []
    task, facts = _task(path, arrays, task_name, notes)
    drop_single_columns(task, arrays, ends)
    check_arrays(path, task, arrays, ends)
    if not task.discrete:
        arrays["actions"] = _report_range(arrays["actions"], clip_actions, notes)
    found = find_ends(path, task, arrays, ends, max_steps, notes)
    final = _final_observations(path, arrays, found, notes)
    episodes = _episodes(task, arrays, ends, found.last, final)
    return Imported(dataset_id, task.name, f"imported from {path.name}", episodes, tuple(notes), facts)


def _task(path: Path, arrays: Arrays, task_name: str | None, notes: list[str]) -> tuple[Task, dict[str, str]]:
    """The task that the user or else the file names, and what the dataset has to remember of the file's own name for
    it; goal environments have no flat file of steps.
    """
    stated = " ".join(str(arrays[ENVIRONMENT]).split()) if ENVIRONMENT in arrays else ""
    facts: dict[str, str] = {}
    if task_name is not None:
        task = get_task(task_name)
        if stated and not _is_of(path, stated, task):
            shown = UNSHOWN.sub("?", stated)[:SHOWN_ID]
            notes.append(f"the file says that it was recorded in {shown}: taken for {task.env_id}, without a score")
            facts[TAKEN_FOR] = shown
    elif stated:
        try:
            task = task_for_env(id_of(stated))
        except UserError as error:
            raise UserError(f"{path}: {error}; or pass --task NAME if you know that it fits") from None
    else:
        raise UserError(f"{path} does not name its environment: pass --task NAME")
    if task.observation_keys:
        raise UserError(f"{path}: task '{task.name}' has goals beside its observations: such files cannot be imported")
    return task, facts


def id_of(stated: str) -> str:
    """The id in what a file says of its environment, such as the first word of "door-v0 (mj_envs)"."""
    return stated.partition(" ")[0]


def _is_of(path: Path, stated: str, task: Task) -> bool:
    """Whether what a file calls its environment is known to be the task's.

    Raises:
        UserError: it is known to be another task's.
    """
    try:
        known = task_for_env(id_of(stated))
    except UserError:
        return False  # nobody knows, or it behaves differently
    if not same_robot(known, task):
        raise UserError(
            f"{path} says that it was recorded in {known.env_id}, which is task '{known.name}', and --task says "
            f"'{task.name}': drop --task, or env_id from the file if that is wrong"
        )
    return True


def drop_single_columns(task: Task, arrays: Arrays, ends: tuple[str, str]) -> None:
    """Take (steps, 1) for (steps,), as many tools write rewards, flags and choices."""
    for name in ("rewards", *ends, *(("actions",) if task.discrete else ())):
        if arrays[name].ndim == 2 and arrays[name].shape[1] == 1:
            arrays[name] = arrays[name][:, 0]


def check_arrays(path: Path, task: Task, arrays: Arrays, ends: tuple[str, str]) -> None:
    """Check shapes, kinds and values.

    Raises:
        UserError: names the array and, for a value, its step.
    """
    steps = len(arrays["rewards"]) if arrays["rewards"].ndim else 0
    expected: dict[str, tuple[int, ...]] = {
        "observations": (steps, task.observation_size),
        "actions": (steps,) if task.discrete else (steps, task.action_size),
        "rewards": (steps,),
        ends[0]: (steps,),
        ends[1]: (steps,),
        "next_observations": (steps, task.observation_size),
    }
    for name, shape in expected.items():
        if name not in arrays:
            continue
        values = arrays[name]
        if values.shape != shape or steps == 0:
            raise UserError(
                f"{path}: {name} has shape {values.shape}, expected {shape} for {steps} rewards of task '{task.name}'; "
                "make all arrays equally long, or pass the right --task"
            )
        if values.dtype.kind not in "biuf":
            raise UserError(f"{path}: {name} holds {values.dtype}, not numbers: convert it")
        usable = np.isfinite(values) if values.dtype.kind == "f" else np.ones(shape, bool)
        problem = "not finite"
        if name in ends:
            usable, problem = np.isin(values, (0, 1)), "neither 0 nor 1"
        elif name == "actions" and task.discrete:
            usable, problem = np.isin(values, np.arange(task.action_size)), f"not 0 to {task.action_size - 1}"
        if not usable.all():
            raise UserError(f"{path}: {name} is {problem} at step {np.argwhere(~usable)[0][0]}: clean the file first")


def _report_range(actions: npt.NDArray[Any], clip: bool, notes: list[str]) -> npt.NDArray[Any]:
    """Say which actions leave [-1, 1]; clipping them is the user's decision."""
    outside = np.abs(actions) > 1.0
    if not outside.any():
        return actions
    share = f"{outside.sum()} of {actions.size} action values ({100 * outside.mean():.1f} %)"
    finding = f"{share} leave [-1, 1], the largest is {np.abs(actions).max():.4g}"
    if not clip:
        notes.append(f"{finding}: kept as they are; pass --clip-actions to clip them")
        return actions
    notes.append(f"{finding}: clipped")
    return np.clip(actions, -1.0, 1.0)


def _final_observations(path: Path, arrays: Arrays, ends: EpisodeEnds, notes: list[str]) -> npt.NDArray[Any]:
    """The observation after each episode's last step, (episodes, observation_size)."""
    last, known = ends.last, np.zeros(len(ends.last), bool)
    final = arrays["observations"][last]
    if "next_observations" in arrays:
        final, known[:] = arrays["next_observations"][last], True
    if "final_observations" in arrays:
        given = arrays["final_observations"]
        shape = (int(ends.marked.sum()), final.shape[1])
        if given.shape != shape or given.dtype.kind not in "biuf" or not np.isfinite(given).all():
            raise UserError(
                f"{path}: final_observations has shape {given.shape} or values that are not finite, "
                f"expected {shape} numbers: one row per episode; correct or drop it"
            )
        final = final.astype(given.dtype) if given.dtype.itemsize > final.dtype.itemsize else final
        final[ends.marked], known[ends.marked] = given, True
    if not known.any():
        notes.append(
            f"the file holds no final observations: the last one of each of the {len(last)} episodes is repeated"
        )
    elif not known.all():
        notes.append(
            f"the file holds no final observation of {(~known).sum()} cut episodes: their last one is repeated"
        )
    return final


def _episodes(
    task: Task, arrays: Arrays, ends: tuple[str, str], last: npt.NDArray[np.int64], final: npt.NDArray[Any]
) -> list[EpisodeBuffer]:
    """Cut the arrays into Minari's episodes, in the number formats of the task's environment."""
    env = task.make_env()
    kinds = env.observation_space.dtype, env.action_space.dtype
    env.close()
    episodes = []
    for start, stop, after in zip([0, *(last[:-1] + 1)], last + 1, final):
        steps = slice(start, stop)
        episodes.append(
            EpisodeBuffer(
                observations=np.vstack([arrays["observations"][steps], after]).astype(kinds[0]),
                actions=arrays["actions"][steps].astype(kinds[1]),
                rewards=arrays["rewards"][steps].astype(np.float64).tolist(),
                terminations=arrays[ends[0]][steps].astype(bool).tolist(),
                truncations=arrays[ends[1]][steps].astype(bool).tolist(),
            )
        )
    return episodes

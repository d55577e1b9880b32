"""Read other people's files of steps (npz, or D4RL's hdf5) into episodes, and refuse what cannot be trusted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from minari.data_collector import EpisodeBuffer

from dsf.shell.errors import UserError
from dsf.tasks import Task, get_task
from dsf.tasks.definition import TaskDefinition
from dsf.tasks.own_environment import find, told
from dsf.tasks.recorded import SHOWN_ID, UNSHOWN
from dsf.tasks.registry import OTHER_DYNAMICS, same_robot, task_for_env
from dsf.tasks.spaces import stretched
from dsf.train.data.env_spec import TAKEN_FOR
from dsf.train.data.episode_ends import EpisodeEnds, find_ends
from dsf.train.data.names import DATASET_ID
from dsf.train.data.own_task import NOTHING_STATED, TASK_METADATA, draft, read_task_file
from dsf.train.data.step_files import ENVIRONMENT, Arrays, read_arrays

TASK_FILES = (".yaml", ".yml")
"""How the name of a file that describes a task ends; any other word is the name of a registered task."""
FOREIGN_NAMESPACES = ("D4RL", "mujoco")
"""Namespaces of Minari's hub: an imported set there would pass for the real one."""


@dataclass(frozen=True)
class Imported:
    """A file's episodes, ready for :func:`dsf.train.data.collect.write_dataset`.

    ``notes`` say what was changed; ``facts`` are for the dataset's metadata; ``own`` is the task where no registry
    holds it.
    """

    dataset_id: str
    task: str
    algorithm: str
    episodes: list[EpisodeBuffer]
    notes: tuple[str, ...]
    facts: dict[str, str] = field(default_factory=dict)
    own: Task | None = None


def import_file(
    path: Path,
    dataset_id: str,
    task_name: str | None,
    clip_actions: bool,
    max_steps: int | None = None,
    rescale_actions: bool = False,
) -> Imported:
    """Turn a file into episodes.

    Args:
        path: npz (one array per quantity, episodes end to end) or D4RL-style hdf5.
        dataset_id: Minari id that the dataset will have.
        task_name: the task, where the file does not name a known environment; or a YAML file that describes one.
        clip_actions: clip actions that leave their bounds instead of keeping them.
        max_steps: steps of the longest episode; the file's are cut after every so many. None: the task's horizon, and
            what is longer is refused rather than cut.
        rescale_actions: the file's actions lie in [-1, 1] and are stretched to the task's bounds.

    Raises:
        UserError: the file, its arrays or the id cannot be used, or the end flags cannot be right.
    """
    if not DATASET_ID.fullmatch(dataset_id):
        raise UserError(f"--dataset-id '{dataset_id}' is no Minari dataset id: use one such as dsf/hopper/imported-v0")
    if dataset_id.split("/")[0] in FOREIGN_NAMESPACES:
        raise UserError(f"--dataset-id '{dataset_id}' is in a namespace of Minari's hub: choose another, such as dsf/")
    arrays, ends = read_arrays(path)
    notes: list[str] = []
    task, facts = _task(path, dataset_id, arrays, task_name, notes)
    if rescale_actions and not task.action_low:
        raise UserError(f"--rescale-actions: actions of task '{task.name}' have no bounds but -1 and 1: drop it")
    drop_single_columns(task, arrays, ends)
    check_arrays(path, task, arrays, ends)
    if not task.discrete:
        if rescale_actions:
            arrays["actions"] = _rescaled(path, task, arrays["actions"], clip_actions, notes)
        arrays["actions"] = _report_range(task, arrays["actions"], clip_actions, notes)
    found = find_ends(path, task, arrays, ends, max_steps, notes)
    final = _final_observations(path, arrays, found, notes)
    episodes = _episodes(task, arrays, ends, found.last, final)
    own = None if task.definition is None else task
    return Imported(dataset_id, task.name, f"imported from {path.name}", episodes, tuple(notes), facts, own)


def _task(
    path: Path, dataset_id: str, arrays: Arrays, task_name: str | None, notes: list[str]
) -> tuple[Task, dict[str, str]]:
    """The task that the user or else the file names, and what the dataset has to remember of it; goal environments have
    no flat file of steps.
    """
    stated = " ".join(str(arrays[ENVIRONMENT]).split()) if ENVIRONMENT in arrays else ""
    facts: dict[str, str] = {}
    if task_name is not None and task_name.endswith(TASK_FILES):
        return _own(path, dataset_id, arrays, read_task_file(Path(task_name)), id_of(stated), notes)
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
            if id_of(stated) not in OTHER_DYNAMICS and find(id_of(stated)) is not None:
                return _own(path, dataset_id, arrays, NOTHING_STATED, id_of(stated), notes)
            raise UserError(
                f"{path}: {error}; or pass --task NAME if you know that it fits, or --task FILE.yaml that describes it"
            ) from None
    else:
        raise UserError(f"{path} does not name its environment: pass --task NAME, or --task FILE.yaml")
    if task.observation_keys:
        raise UserError(f"{path}: task '{task.name}' has goals beside its observations: such files cannot be imported")
    return task, facts


def _own(
    path: Path, dataset_id: str, arrays: Arrays, stated: TaskDefinition, env_id: str, notes: list[str]
) -> tuple[Task, dict[str, str]]:
    """A task that no registry holds, from what the user states, the environment, and the sizes of the arrays.

    Raises:
        UserError: they contradict one another, or nobody says between which bounds actions lie.
    """
    from gymnasium.spaces import Box

    where, observations = str(path), arrays["observations"]
    if stated.observation_parts is not None:
        raise UserError(f"{where}: a file of steps holds flat observations: drop observation_parts, state their size")
    size = observations.shape[1] if observations.ndim == 2 else 0
    if not size:
        raise UserError(f"{where}: observations has shape {observations.shape}, expected one row of numbers a step")
    registered = find(stated.env_id or ("" if stated.environment else env_id))
    if stated.environment is None and registered is not None:
        stated = replace(stated, environment=registered.id)
    pretended = SimpleNamespace(
        observation_space=Box(-np.inf, np.inf, (size,), np.float64),
        action_space=_action_space(where, stated, registered),
        env_spec=registered,
        storage=SimpleNamespace(metadata={}),
    )
    found = draft(dataset_id, pretended, stated, where)
    if found.unscored:
        notes.append(f"policies of these data cannot be scored here: {found.unscored}")
    return found.unsettled, {TASK_METADATA: json.dumps(found.definition.to_json())}


def _action_space(where: str, stated: TaskDefinition, registered: Any) -> Any:
    """The space of a file's actions: what is stated, or the environment's."""
    import gymnasium
    from gymnasium.spaces import Box, Discrete

    if stated.choices is not None:
        return Discrete(stated.choices, start=stated.first_choice or 0)
    if stated.discrete is False:
        low, high = (np.array(bound, np.float32) for bound in stated.bounds)
        size = max(low.size, high.size)
        return Box(np.broadcast_to(low, size), np.broadcast_to(high, size), (size,), np.float32)
    if registered is None:
        raise UserError(
            f"{where}: nobody says what its actions are: state action_low and action_high, or choices, in a task file "
            "(--task FILE.yaml)"
        )
    try:
        env = gymnasium.make(registered.id)
    except Exception as error:  # anything in the environment's own code
        raise UserError(
            f"{where}: environment {registered.id} cannot be made here ({told(error)}): state action_low and "
            "action_high, or choices, in a task file (--task FILE.yaml)"
        ) from None
    env.close()
    return env.action_space


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
            known = np.arange(task.first_choice, task.first_choice + task.action_size)
            usable, problem = np.isin(values, known), f"not {known[0]} to {known[-1]}"
        if not usable.all():
            raise UserError(f"{path}: {name} is {problem} at step {np.argwhere(~usable)[0][0]}: clean the file first")


def _rescaled(path: Path, task: Task, actions: npt.NDArray[Any], clip: bool, notes: list[str]) -> npt.NDArray[Any]:
    """Actions in [-1, 1] as the task's machine gets them.

    Raises:
        UserError: one lies outside, and nobody has asked to clip it.
    """
    outside = np.abs(actions) > 1.0
    if outside.any() and not clip:
        raise UserError(
            f"{path}: {outside.sum()} of {actions.size} action values leave [-1, 1], the largest is "
            f"{np.abs(actions).max():.4g}: --rescale-actions stretches [-1, 1], so add --clip-actions, or drop it"
        )
    clipped = f", {outside.sum()} of them clipped" if outside.any() else ""
    notes.append(
        f"{actions.size} action values were stretched from [-1, 1] to the bounds of task '{task.name}'{clipped}"
    )
    return stretched(actions, task.action_low, task.action_high)


def _report_range(task: Task, actions: npt.NDArray[Any], clip: bool, notes: list[str]) -> npt.NDArray[Any]:
    """Say which actions leave their bounds; clipping them is the user's decision."""
    low, high = (task.action_low, task.action_high) if task.action_low else (-1.0, 1.0)
    outside = (actions < np.array(low)) | (actions > np.array(high))
    if not outside.any():
        return actions
    share = f"{outside.sum()} of {actions.size} action values ({100 * outside.mean():.1f} %)"
    bounds = "their bounds" if task.action_low else "[-1, 1]"
    finding = f"{share} leave {bounds}, the largest is {np.abs(actions).max():.4g}"
    if not clip:
        notes.append(f"{finding}: kept as they are; pass --clip-actions to clip them")
        return actions
    notes.append(f"{finding}: clipped")
    return np.clip(actions, low, high)


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
    kinds: tuple[Any, Any] = (np.float64, np.int64 if task.discrete else np.float32)
    if task.definition is None:
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

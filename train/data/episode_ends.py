"""Where episodes end, and whether that can be right: by the flags, by the observations that follow, by the horizon.

Files of steps lose their time-outs easily (a converter that writes terminals alone, flags that are all False). Whole
episodes then run into one another: returns add up to many times what the task can give, and windows lead from one
episode into the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dsf.shell.errors import UserError
from dsf.tasks import Task
from dsf.train.data.step_files import TERMINATIONS, Arrays

JOINT_TOLERANCE = 1e-5
"""How far an observation may be from itself, as the one that follows a step: in the largest value of its feature."""
MOST_HORIZONS = 4
"""Horizons that an episode may last whose end is marked: D4RL's longest, people with a hammer, last about three."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EpisodeEnds:
    """Where episodes end in an array of steps.

    Attributes:
        last: (episodes,) index of each episode's last step.
        marked: (episodes,) whether the file says so itself.
    """

    last: npt.NDArray[np.int64]
    marked: BoolArray


def find_ends(
    path: Path, task: Task, arrays: Arrays, ends: tuple[str, str], max_steps: int | None, notes: list[str]
) -> EpisodeEnds:
    """Where the episodes of a file end; a flag is added in ``arrays`` wherever it is not the file that says so.

    Args:
        path: for messages.
        task: that the steps belong to.
        arrays: of the file, checked; the flags become arrays of truth values.
        ends: names of the two flags.
        max_steps: where the user says that no episode is longer: longer ones are cut.
        notes: what was changed is added to it.

    Raises:
        UserError: the flags, the observations that follow and the horizon contradict one another.
    """
    terminated, truncated = (arrays[name].astype(bool) for name in ends)
    marked = terminated | truncated
    if marked.sum() > 1 and 2 * marked.sum() > len(marked):
        raise UserError(
            f"{path}: {marked.sum():,} of {len(marked):,} steps are marked as an episode's last: "
            f"{ends[0]} or {ends[1]} say the opposite, or the steps are not in the order of time; correct them first"
        )
    if "next_observations" in arrays:
        truncated |= _joints(path, arrays, ends[0], terminated, marked, notes)
    _mark_the_end(path, ends, marked, terminated | truncated, truncated, max_steps, notes)
    if max_steps is not None:
        truncated |= _cuts(terminated | truncated, max_steps, notes)
    arrays[ends[0]], arrays[ends[1]] = terminated, truncated
    last = np.flatnonzero(terminated | truncated)
    lengths = np.diff(last, prepend=-1)
    horizon = max(task.max_steps, max_steps or 0)
    if (wrong := unbelievable(task, lengths, terminated[last], truncated[last], horizon)) is not None:
        possible = lengths.max() <= MOST_HORIZONS * horizon
        raise UserError(
            f"{path}: episode {wrong} has {lengths[wrong]:,} steps, and one of task '{task.name}' ends after "
            f"{task.max_steps:,}: time-outs are not marked; pass --max-steps {task.max_steps} to cut every "
            f"{task.max_steps:,} steps"
            + (f", or --max-steps {lengths.max()} if episodes really were so long" if possible else "")
        )
    if (lengths > task.max_steps).any():
        notes.append(
            f"{(lengths > task.max_steps).sum():,} of {len(lengths):,} episodes have more than the "
            f"{task.max_steps:,} steps of task '{task.name}', the longest {lengths.max():,}: they are kept as they "
            f"are; --max-steps {task.max_steps} cuts them"
        )
    return EpisodeEnds(last, marked[last])


def unbelievable(
    task: Task, lengths: npt.NDArray[Any], terminated: BoolArray, truncated: BoolArray, horizon: int
) -> int | None:
    """The first episode that is too long to be one, if there is such an episode.

    Longer than the horizon may be right (people who show a task have none), but only as a habit: several such episodes,
    of a few horizons each, and every one ends with the mark of a time-out. A termination is no such mark, since any
    number of unmarked time-outs may come before it; it is one where the task never terminates by itself.

    Args:
        task: that the episodes belong to.
        lengths: (episodes,) steps of each.
        terminated: (episodes,) the flag of each one's last step.
        truncated: (episodes,) the same.
        horizon: steps after which an episode is cut.
    """
    longer = lengths > horizon
    if not longer.any():
        return None
    stated = truncated | terminated if task.never_terminates else truncated
    believed = longer & stated & (lengths <= MOST_HORIZONS * horizon)
    wrong = longer if believed.sum() < 2 else longer & ~believed
    return int(np.argmax(wrong)) if wrong.any() else None


def require_possible(
    dataset_id: str, task: Task, lengths: Sequence[int], flags: Sequence[tuple[bool, bool]], horizon: int
) -> None:
    """Refuse a Minari dataset whose episodes are longer than one can be.

    Args:
        dataset_id: for the message.
        task: that it belongs to.
        lengths: of the episodes (steps).
        flags: of each one's last step: termination and truncation.
        horizon: steps after which one is cut.

    Raises:
        UserError: names the first such episode.
    """
    ends = np.array(flags, bool).reshape(-1, 2)
    wrong = unbelievable(task, np.array(lengths), ends[:, 0], ends[:, 1], horizon)
    if wrong is not None:
        raise UserError(
            f"dataset '{dataset_id}', episode {wrong} has {lengths[wrong]:,} steps, and one of task '{task.name}' ends "
            f"after {horizon:,}: its time-outs are not marked; write the dataset again with an episode for each "
            "(dsf-data import FILE --max-steps N cuts a file of steps), or state max_episode_steps in its env_spec"
        )


def _joints(
    path: Path, arrays: Arrays, termination: str, terminated: BoolArray, marked: BoolArray, notes: list[str]
) -> BoolArray:
    """Steps after which another episode begins, by the observations alone, (steps,); the last step is none."""
    joints = np.append(_differ(arrays["next_observations"][:-1], arrays["observations"][1:]), False)
    within = np.append(~marked[:-1], False)
    goes_on = terminated & np.append(~joints[:-1], False)
    if goes_on.any():
        raise UserError(
            f"{path}: {termination} is set at {goes_on.sum():,} steps after which next_observations goes on with the "
            f"next row (first at step {np.argmax(goes_on)}): clear these flags, or drop next_observations if it is "
            "nothing but the observations moved up by a row"
        )
    unmarked = joints & within
    if 2 * unmarked.sum() > within.sum():
        raise UserError(
            f"{path}: next_observations contradicts the next row at {unmarked.sum():,} of {within.sum():,} steps "
            f"within episodes (first at step {np.argmax(unmarked)}): the steps are not in the order of time, or it "
            "belongs to other data; sort them, or drop it"
        )
    if unmarked.any():
        notes.append(
            f"next_observations contradicts the next row at {unmarked.sum():,} steps without an end flag "
            f"(first at step {np.argmax(unmarked)}): episodes are cut there, marked as truncations"
        )
    return unmarked


def _differ(following: npt.NDArray[Any], observations: npt.NDArray[Any]) -> BoolArray:
    """Which rows are not the same observation, (rows,), whatever format each was stored in."""
    if not len(observations):
        return np.zeros(0, bool)
    largest = np.maximum(np.abs(following).max(axis=0), np.abs(observations).max(axis=0)).astype(np.float64)
    with np.errstate(over="ignore"):
        apart = np.abs(following.astype(np.float64) - observations)
    different: BoolArray = (apart > JOINT_TOLERANCE * largest).any(axis=1)
    return different


def _mark_the_end(
    path: Path,
    ends: tuple[str, str],
    marked: BoolArray,
    ended: BoolArray,
    truncated: BoolArray,
    max_steps: int | None,
    notes: list[str],
) -> None:
    """Mark the last step where nothing does: D4RL's files may stop in the middle of an episode, which counts as cut."""
    if not ended.any() and max_steps is None:
        raise UserError(
            f"{path}: no flag in {ends[0]} or {ends[1]} ends the last episode: set the flags first, or pass "
            "--max-steps N to cut every N steps"
        )
    if ended[-1]:
        return
    if ends[0] == TERMINATIONS[0] and marked.any() and max_steps is None:
        raise UserError(f"{path}: no flag in {ends[0]} or {ends[1]} ends the last episode: set the flags first")
    truncated[-1] = True
    notes.append("the file stops in the middle of an episode: its last step is marked as a truncation")


def _cuts(ended: BoolArray, max_steps: int, notes: list[str]) -> BoolArray:
    """Steps after which an episode has lasted ``max_steps`` again, (steps,)."""
    last = np.flatnonzero(ended)
    begin = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(ended)) - np.repeat(begin, last + 1 - begin)
    cuts: BoolArray = (place % max_steps == max_steps - 1) & ~ended
    if cuts.any():
        notes.append(
            f"episodes of more than {max_steps:,} steps are cut every {max_steps:,} steps, at {cuts.sum():,} places, "
            "marked as truncations"
        )
    return cuts

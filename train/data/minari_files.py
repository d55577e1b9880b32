"""A Minari dataset's files, which anybody may have made: looked at before Minari or libhdf5 make anything of them.

Minari builds what metadata name (spaces of any size, and where a space is missing the environment: any module), and
reads whatever an episode holds. Here metadata are checked first, and of an episode nothing is read but what training
takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from dsf.shell.errors import UserError
from dsf.shell.file_values import read_bytes
from dsf.shell.files import require_plain_file
from dsf.shell.hdf5_arrays import ArrayBudget, open_hdf5, own_child, read_own_array
from dsf.shell.hdf5_reading import ReadLimits
from dsf.shell.plain_text import shown
from dsf.tasks import Task
from dsf.train.data.names import FILE_NAME

METADATA_NAME = "metadata.json"
LARGEST_METADATA = 1 << 24
"""Bytes; the bounds of an image's pixels take about one million."""
DEEPEST_SPACE = 8
"""Levels of spaces in one another."""
LARGEST_SPACE = 1 << 22
"""Numbers of all spaces together."""
EPISODE_BYTES = 64
"""Any episode takes more in a file."""
LIMITS = ReadLimits(objects=1 << 62, numbers=1 << 28, expanded=1 << 42, ratio=100)
"""All arrays together may take 100 times the file, once they are unpacked, and 4 TiB; one of them 2**28 numbers. They
are read one episode at a time."""
REMEDY = "make or download it again"
HDF5 = "hdf5"
PLACE = "_index_"
"""Stands before the place of a tuple's part."""
SPACES = ("observation_space", "action_space")


@dataclass(frozen=True)
class RecordedEpisode:
    """What training takes of an episode, as Minari has it.

    Attributes:
        observations: (steps + 1, d), or such an array for each part of them.
        actions: (steps, k), or (steps,) numbers of discrete ones.
        rewards: (steps,).
        terminations: (steps,).
        truncations: (steps,).
    """

    observations: Any
    actions: npt.NDArray[Any]
    rewards: npt.NDArray[Any]
    terminations: npt.NDArray[Any]
    truncations: npt.NDArray[Any]


def read_metadata(data: Path) -> dict[str, Any]:
    """A dataset's metadata, as JSON values.

    Args:
        data: its directory of this name.

    Raises:
        UserError: they are no file, too large, or no JSON of names and values.
        OSError: they are missing, or cannot be read.
    """
    what = "metadata"
    content = read_bytes(data / METADATA_NAME, what, LARGEST_METADATA)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} {data / METADATA_NAME} cannot be read ({reason}): {REMEDY}") from None
    if not isinstance(values, dict):
        raise UserError(f"{what} {data / METADATA_NAME} are no names and values: {REMEDY}")
    return values


def require_sound(data: Path) -> None:
    """Refuse a dataset of which Minari would make more than a dataset.

    Args:
        data: its directory of this name.

    Raises:
        UserError: one of its files is none, or its metadata have another shape, or name spaces or episodes that it
            cannot hold. The caller says which dataset.
        OSError: a file is missing, or cannot be read.
    """
    values = read_metadata(data)
    for name in ("total_episodes", "total_steps"):
        if isinstance(value := values.get(name), bool) or not isinstance(value, int) or value < 0:
            raise UserError(f"{name} is {shown(value)}, expected a whole number from 0: {REMEDY}")
    size = 0
    for path in sorted(data.rglob("*")):
        if not path.is_dir():
            require_plain_file(path, "part of the dataset")
            size += path.stat().st_size
    if values["total_episodes"] > size // EPISODE_BYTES:
        raise UserError(f"it claims {values['total_episodes']:,} episodes in {size:,} bytes: {REMEDY}")
    numbers = 0
    for name in SPACES:
        if not isinstance(values.get(name), str):  # Minari would build the environment that the metadata name
            raise UserError(f"{name} is {shown(values.get(name))}, expected a space written as text: {REMEDY}")
        try:
            numbers += _space_numbers(json.loads(values[name]), 0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise UserError(f"{name} describes no space ({type(error).__name__}): {REMEDY}") from None
        if numbers > LARGEST_SPACE:
            raise UserError(f"its spaces claim {numbers:,} numbers, limit {LARGEST_SPACE:,}: {REMEDY}")
    _require_environment(values.get("env_spec"))


def _space_numbers(space: Any, depth: int) -> int:
    """Numbers that a space's bounds take once it is made."""
    if depth > DEEPEST_SPACE:
        raise ValueError("spaces in spaces")
    parts = space.get("subspaces", ())
    inner = list(parts.values()) if isinstance(parts, dict) else list(parts)
    own = 0
    for size in (space.get("shape", ()), space.get("n", ())):
        sizes = size if isinstance(size, list) else [size] if isinstance(size, int) else []
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in sizes):
            raise ValueError("a shape of something else than sizes")
        if space["type"] != "Discrete":
            own += math.prod(sizes)
    return own + sum(_space_numbers(part, depth + 1) for part in inner)


def _require_environment(spec: Any) -> None:
    """Refuse an environment whose description is not what Gymnasium writes; the caller sees whether there is one."""
    if spec is None:
        return
    try:
        values = json.loads(spec)
        wrong = next(
            (
                f"{name} is {shown(values.get(name))}"
                for name, fits in (
                    ("id", isinstance(values["id"], str)),
                    ("kwargs", isinstance(values.get("kwargs", {}), dict)),
                    ("max_episode_steps", _is_horizon(values.get("max_episode_steps"))),
                )
                if not fits
            ),
            None,
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise UserError(f"env_spec describes no environment ({type(error).__name__}): {REMEDY}") from None
    if wrong is not None:
        raise UserError(f"env_spec describes no environment ({wrong}): {REMEDY}")


def _is_horizon(value: Any) -> bool:
    """None and numbers below 1 are Gymnasium's ways to say that there is none."""
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def recorded_episodes(dataset_id: str, data: Path, task: Task, episodes: int) -> Iterator[Any]:
    """A dataset's episodes in Minari's hdf5 format, in their order; infos are not read.

    Args:
        dataset_id: for messages.
        data: the dataset's directory of this name.
        task: whose parts of the observations are read.
        episodes: how many there are.

    Raises:
        UserError: the file is locked, or an array is missing, lies elsewhere or claims more than the file can hold.
        Exception: what libhdf5 raises at a damaged file.
    """
    path = data / FILE_NAME
    try:
        with open_hdf5(path, "episodes") as file:
            budget = ArrayBudget(path.stat().st_size, LIMITS, REMEDY)
            for number in range(episodes):
                yield _episode(_group(file, f"episode_{number}"), task, budget)
    except UserError as error:
        raise UserError(f"dataset '{dataset_id}': {error}") from None


def recorded_rewards(dataset_id: str, data: Path, episodes: int) -> Iterator[npt.NDArray[Any]]:
    """The rewards of a dataset's episodes, and nothing else; arguments and errors are those of
    :func:`recorded_episodes`.
    """
    path = data / FILE_NAME
    try:
        with open_hdf5(path, "episodes") as file:
            budget = ArrayBudget(path.stat().st_size, LIMITS, REMEDY)
            for number in range(episodes):
                yield read_own_array(_group(file, f"episode_{number}"), "rewards", budget)
    except UserError as error:
        raise UserError(f"dataset '{dataset_id}': {error}") from None


def _episode(group: h5py.Group, task: Task, budget: ArrayBudget) -> RecordedEpisode:
    observations: Any
    if task.paths:
        observations = {}
        for path in task.paths:
            parts, into = _group(group, "observations"), observations
            for step in path[:-1]:
                parts, into = _group(parts, _stored_name(parts, step)), into.setdefault(step, {})
            into[path[-1]] = read_own_array(parts, _stored_name(parts, path[-1]), budget)
    else:
        observations = read_own_array(group, "observations", budget)
    names = ("actions", "rewards", "terminations", "truncations")
    return RecordedEpisode(observations, *(np.asarray(read_own_array(group, name, budget)) for name in names))


def _stored_name(group: h5py.Group, step: str) -> str:
    """The name under which Minari keeps a part: its key, or what it makes of a tuple's place."""
    place = f"{PLACE}{step}"
    return place if not group.id.links.exists(step.encode()) and group.id.links.exists(place.encode()) else step


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    found = own_child(parent, name, REMEDY)
    if not isinstance(found, h5py.Group):
        raise UserError(f"{name} is no group: {REMEDY}")
    return found

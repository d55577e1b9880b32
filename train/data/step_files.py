"""Other people's files of steps: npz, or D4RL's hdf5, in either one's names. Arrays are looked at, then read."""

from __future__ import annotations

import io
import itertools
import math
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dsf.shell.errors import UserError
from dsf.shell.hdf5_arrays import ArrayBudget, open_hdf5, read_own_array
from dsf.shell.hdf5_reading import ReadLimits
from dsf.shell.plain_text import plain, shown

Arrays = dict[str, npt.NDArray[Any]]

ZIP_MAGIC, HDF5_MAGIC = b"PK", b"\x89HDF"
STEP_ARRAYS = ("observations", "actions", "rewards")
TERMINATIONS, TRUNCATIONS = ("terminations", "terminals"), ("truncations", "timeouts")
"""What the two end flags are called: by Gymnasium, and by D4RL."""
OPTIONAL_ARRAYS = ("final_observations", "next_observations")
ENVIRONMENT = "env_id"
LIMITS = ReadLimits(objects=1000, numbers=1 << 32, expanded=1 << 34, ratio=100)
"""All arrays of a file together may take 16 GiB, and 100 times the file, once they are unpacked."""
LARGEST_HEADER = 1 << 14
"""Bytes at the start of an array's member of an npz file that tell its shape; numpy itself reads 10,000 at most."""
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What numpy writes. Others may unpack to more, or need a dictionary of gigabytes."""
SHOWN_NAMES = 20
"""Names of arrays that a message lists."""
REMEDY = "write it again with plain arrays of numbers"


def read_arrays(path: Path) -> tuple[Arrays, tuple[str, str]]:
    """The arrays that matter, and what the two end flags are called in this file.

    ``env_id`` is an array of one text.

    Raises:
        UserError: the file is missing, locked, unreadable, pickled, of another kind, claims more than it can hold,
            takes an array from elsewhere, or lacks one.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: name an npz or hdf5 file of steps")
    size = path.stat().st_size
    budget = ArrayBudget(size, LIMITS, REMEDY)
    with path.open("rb") as file:
        magic = file.read(len(HDF5_MAGIC))
        if not magic.startswith((ZIP_MAGIC, HDF5_MAGIC)):
            raise UserError(f"{path} is neither npz nor hdf5: convert it to one of them first")
        try:
            arrays, names = _npz(file, budget) if magic.startswith(ZIP_MAGIC) else _hdf5(path, budget)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Exception as error:  # zip, zlib, numpy and h5py have their own for each way in which a file is damaged
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise UserError(f"{path} cannot be read ({reason}): get an undamaged copy without pickles") from None
    missing = [name for name in STEP_ARRAYS if name not in arrays]
    style = int(any(known[1] in arrays for known in (TERMINATIONS, TRUNCATIONS)))
    missing += [known[style] for known in (TERMINATIONS, TRUNCATIONS) if not any(name in arrays for name in known)]
    if missing:
        listed = [plain(name) for name in sorted(names)]
        there = ", ".join(listed[:SHOWN_NAMES]) + (", ..." if len(listed) > SHOWN_NAMES else "")
        raise UserError(f"{path} lacks {', '.join(missing)}: it holds {there or 'nothing'}")
    return arrays, (_one_flag(path, arrays, TERMINATIONS), _one_flag(path, arrays, TRUNCATIONS))


def _one_flag(path: Path, arrays: Arrays, known: tuple[str, str]) -> str:
    """Which of its two names a flag has; it may have both, if they say the same."""
    here = [name for name in known if name in arrays]
    if len(here) == 2 and not np.array_equal(arrays[here[0]], arrays[here[1]]):
        raise UserError(f"{path}: {here[0]} and {here[1]} say different things: drop one of them")
    return here[0]


def _wanted() -> tuple[str, ...]:
    return (*STEP_ARRAYS, *TERMINATIONS, *TRUNCATIONS, *OPTIONAL_ARRAYS, ENVIRONMENT)


def _hdf5(path: Path, budget: ArrayBudget) -> tuple[Arrays, list[str]]:
    """The arrays of an HDF5 file, and names of what it holds."""
    with open_hdf5(path, "file of steps") as file:
        arrays = {}
        for name in _wanted():
            if file.id.links.exists(name.encode()):
                array = read_own_array(file, name, budget)
                arrays[name] = _text(name, array) if name == ENVIRONMENT else array
        names = itertools.islice(file, SHOWN_NAMES + 1)  # bytes, where they are no text
        return arrays, [name if isinstance(name, str) else os.fsdecode(name) for name in names]


def _npz(file: BinaryIO, budget: ArrayBudget) -> tuple[Arrays, list[str]]:
    """The arrays of an npz file, and names of what it holds."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        arrays = {name: _member(archive, members[name], name, budget) for name in _wanted() if name in members}
    if ENVIRONMENT in arrays:
        arrays[ENVIRONMENT] = _text(ENVIRONMENT, arrays[ENVIRONMENT])
    return arrays, list(members)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, budget: ArrayBudget) -> npt.NDArray[Any]:
    """One array, after a look at the shape that its header claims."""
    if info.compress_type not in PACKINGS:
        raise UserError(f"{name} is packed by method {info.compress_type}, which npz does not use: {budget.remedy}")
    with archive.open(info) as member:
        start = io.BytesIO(member.read(LARGEST_HEADER))
    version = np.lib.format.read_magic(start)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise UserError(f"{name} is of npy version {version}, which plain numbers do not need: {budget.remedy}")
    shape, _, dtype = readers[version](start)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which could run any code")
    numbers = math.prod(shape)
    claimed, held = numbers * dtype.itemsize, info.file_size - start.tell()
    try:
        budget.take(numbers, claimed)
    except UserError as error:
        raise UserError(f"{name} {error}") from None
    if min(shape, default=0) < 0 or claimed != held:
        raise ValueError(f"{name} claims {claimed:,} bytes and holds {held:,}")
    with archive.open(info) as member:
        values: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return values


def _text(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array of one text, from any that a file may hold it in."""
    if array.size != 1:
        raise UserError(f"{name} holds {array.size} values, expected one text: {REMEDY}")
    value = array.reshape(-1)[0]
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise UserError(f"{name} is {shown(value)}, expected a text: {REMEDY}")
    return np.array(text)

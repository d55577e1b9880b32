"""Single arrays of HDF5 files that anybody may have made, for readers that take some arrays and leave the rest alone.

What they leave alone is not looked at either (:mod:`dsf.shell.hdf5_reading` looks through whole files): datasets bring
much that nobody here reads, and a look at each of a million arrays takes longer than reading ten of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from dsf.shell.errors import UserError
from dsf.shell.files import require_plain_file
from dsf.shell.hdf5_reading import ReadLimits, require_honest_pieces, require_own_bytes
from dsf.shell.plain_text import plain

UNPACKED = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
"""How arrays lie that no filter has gone over."""


@dataclass
class ArrayBudget:
    """What all arrays that are read of one file may take together, for readers that take some arrays and no others.

    Attributes:
        file_bytes: size of the file.
        limits: what the reader takes; ``objects`` are not counted here.
        remedy: what to do with a file that is refused.
        claimed: bytes of the arrays so far, once they are unpacked.
    """

    file_bytes: int
    limits: ReadLimits
    remedy: str
    claimed: int = 0

    def take(self, numbers: int, size: int) -> None:
        """Count an array in, before it is read.

        Args:
            numbers: that it claims to hold.
            size: bytes that it claims to take.

        Raises:
            UserError: it is too large, by itself or for such a file; the array's name belongs in front of the message.
        """
        if numbers > self.limits.numbers:
            raise UserError(f"claims {numbers:,} numbers, limit {self.limits.numbers:,}: {self.remedy}")
        self.claimed += size
        allowed = self.limits.allowed(self.file_bytes)
        if self.claimed > allowed:
            raise UserError(
                f"brings what the arrays claim to {self.claimed:,} bytes, and a file of {self.file_bytes:,} bytes may "
                f"hold {allowed:,}: {self.remedy}"
            )


def open_hdf5(path: Path, what: str) -> h5py.File:
    """Open a file for reading.

    Args:
        path: of the file.
        what: it is, for messages.

    Raises:
        UserError: it is no file, or another program holds it open for writing.
        OSError: it is missing or damaged, or cannot be read.
    """
    require_plain_file(path, what)
    try:
        return h5py.File(path, "r")
    except BlockingIOError:
        raise UserError(
            f"cannot read {what} {path}: another program holds it open for writing: wait until it is closed"
        ) from None


def own_child(group: h5py.Group, name: str, remedy: str) -> Any:
    """What a group holds under a name, if it is the file's own.

    Raises:
        UserError: nothing is there, or a link to elsewhere.
    """
    try:  # asking the group whether it holds the name, or for it, would follow a link
        kind = group.id.links.get_info(name.encode()).type
    except KeyError:
        raise UserError(f"{_place(group, name)} is missing: {remedy}") from None
    if kind != h5py.h5l.TYPE_HARD:
        raise UserError(f"{_place(group, name)} is a link out of the file: {remedy}")
    return group[name]


def read_own_array(group: h5py.Group, name: str, budget: ArrayBudget) -> npt.NDArray[Any]:
    """One array, after a look at where its bytes are and how many it claims.

    Raises:
        UserError: naming the place: see :func:`own_child`, :func:`require_own_bytes` and :class:`ArrayBudget`; or there
            is no array.
    """
    found = own_child(group, name, budget.remedy)
    if not isinstance(found, h5py.Dataset) or found.size is None:
        raise UserError(f"{_place(group, name)} is no array: {budget.remedy}")
    if found.dtype.hasobject and found.size > 1:
        raise UserError(f"{_place(group, name)} holds texts or lists of any length, not numbers: {budget.remedy}")
    created = found.id.get_create_plist()
    plainly = created.get_layout() in UNPACKED and not created.get_external_count()  # then there is nothing to look at
    if not plainly:
        require_own_bytes(found, _place(group, name), budget.remedy)
    try:
        budget.take(int(found.size), _claimed_bytes(found, budget.file_bytes))
    except UserError as error:
        raise UserError(f"{_place(group, name)} {error}") from None
    if not plainly:
        require_honest_pieces(found, _place(group, name), budget.remedy)
    return np.asarray(found[()])


def _place(group: h5py.Group, name: str) -> str:
    return f"{plain(str(group.name)).rstrip('/')}/{plain(name)}"


def _claimed_bytes(dataset: h5py.Dataset, file_bytes: int) -> int:
    """What an array would take in memory while it is read."""
    if dataset.dtype.hasobject:  # one text is never longer than the file
        return int(dataset.size) * file_bytes
    # A piece is unpacked as a whole, and it may be larger than the array.
    count = max(int(dataset.size), math.prod(dataset.chunks or ()))
    return count * int(dataset.dtype.itemsize)

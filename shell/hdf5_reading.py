"""HDF5 files that anybody may have made: looked through, link by link, before a single number of them is read.

libhdf5 follows links into other files, takes an array's bytes from wherever the file says, and unpacks a few kilobytes
to as many gigabytes as they claim. Nothing of that is an error to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from dsf.shell.errors import UserError
from dsf.shell.files import require_plain_file
from dsf.shell.plain_text import plain

FREE_BYTES = 1 << 26
"""Arrays of a file, together, may be this large however small the file is: constant arrays pack to next to nothing."""
KNOWN_FILTERS = (
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_LZF,
)
"""What h5py brings; for any other one libhdf5 would look for a library to load."""
PACKING_FILTERS = (
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_LZF,
)
"""Those of them that make an array smaller."""
UNPACKED = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
"""How arrays lie that no filter has gone over."""


@dataclass(frozen=True)
class ReadLimits:
    """What a reader takes from one file; more is refused before any of it is read.

    Attributes:
        objects: groups and arrays.
        numbers: in one array.
        expanded: bytes of all arrays together, once they are unpacked.
        ratio: how many times as large as the file they may be then, beyond :data:`FREE_BYTES`.
    """

    objects: int
    numbers: int
    expanded: int
    ratio: int

    def allowed(self, file_bytes: int) -> int:
        """Bytes that all arrays of a file of this size may have together."""
        return min(self.expanded, max(FREE_BYTES, self.ratio * file_bytes))


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
            f"cannot read {what} {path}: another program holds it open for writing (it is locked); wait until it is done"
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
    created = found.id.get_create_plist()
    if created.get_layout() not in UNPACKED or created.get_external_count():  # else there is nothing to look at
        require_own_bytes(found, _place(group, name), budget.remedy)
    try:
        budget.take(int(found.size), _claimed_bytes(found, budget.file_bytes))
    except UserError as error:
        raise UserError(f"{_place(group, name)} {error}") from None
    return np.asarray(found[()])


def _place(group: h5py.Group, name: str) -> str:
    return f"{plain(str(group.name)).rstrip('/')}/{plain(name)}"


def require_self_contained(file: h5py.File, file_bytes: int, limits: ReadLimits, remedy: str) -> None:
    """Look through an open file: everything in it is its own, and of a size that fits it.

    Args:
        file: open for reading.
        file_bytes: its size.
        limits: what the reader takes.
        remedy: what to do with a file that is refused.

    Raises:
        UserError: naming the place: a link to elsewhere, an array whose bytes are elsewhere or need a library of
            somebody's, more or larger arrays than ``limits`` allow. The caller puts the file's name in front.
    """
    allowed, claimed, count = limits.allowed(file_bytes), 0, 0
    for place, found in _walk(file, remedy):
        count += 1
        if count > limits.objects:
            raise UserError(f"it holds more than {limits.objects:,} groups and arrays: {remedy}")
        claimed += sum(_attribute_bytes(found, file_bytes))
        if isinstance(found, h5py.Dataset):
            require_own_bytes(found, place, remedy)
            if found.size is not None and found.size > limits.numbers:
                raise UserError(f"{place} claims {found.size:,} numbers, limit {limits.numbers:,}: {remedy}")
            claimed += _claimed_bytes(found, file_bytes)
        if claimed > allowed:
            raise UserError(
                f"{place}: its arrays claim {claimed:,} bytes, and a file of {file_bytes:,} bytes may hold "
                f"{allowed:,}: {remedy}"
            )


def _walk(file: h5py.File, remedy: str) -> Iterator[tuple[str, Any]]:
    """Every object once, with its place; hard links may go round in circles."""
    waiting: list[tuple[str, Any]] = [("/", file["/"])]
    seen = {h5py.h5o.get_info(file["/"].id).addr}
    while waiting:
        place, found = waiting.pop()
        yield place, found
        if not isinstance(found, h5py.Group):
            continue
        for name in found:
            inner = f"{place.rstrip('/')}/{plain(name)}"
            if not isinstance(_link(found, name), h5py.HardLink):
                raise UserError(f"{inner} is a link out of the file: {remedy}")
            child = found[name]
            address = h5py.h5o.get_info(child.id).addr
            if address not in seen:
                seen.add(address)
                waiting.append((inner, child))


def _link(group: h5py.Group, name: str) -> Any:
    try:
        return group.get(name, getlink=True)
    except TypeError:  # of a kind that somebody has defined
        return None


def require_own_bytes(dataset: h5py.Dataset, place: str, remedy: str) -> None:
    """Refuse an array whose bytes are elsewhere, need a library of somebody's, or are packed more than once.

    Raises:
        UserError: naming the place.
    """
    if dataset.external or dataset.is_virtual:
        raise UserError(f"{place} holds no data of its own, it names another file's: {remedy}")
    created = dataset.id.get_create_plist()
    filters = [created.get_filter(index)[0] for index in range(created.get_nfilters())]
    if unknown := [number for number in filters if number not in KNOWN_FILTERS]:
        raise UserError(f"{place} is packed by the unknown filter {unknown[0]}: {remedy}")
    if sum(number in PACKING_FILTERS for number in filters) > 1:  # each unpacks to a thousand times as much
        raise UserError(f"{place} is packed several times over: {remedy}")


def _claimed_bytes(dataset: h5py.Dataset, file_bytes: int) -> int:
    """What an array would take in memory."""
    if dataset.size is None:
        return 0
    if dataset.dtype.hasobject and dataset.size == 1:
        return len(bytes(str(dataset[()]), "utf-8", "surrogateescape"))  # one text is never longer than the file
    # What is read of a piece, a piece is unpacked for, and it may be larger than the array.
    count = max(int(dataset.size), math.prod(dataset.chunks or ()))
    return count * _item_bytes(dataset.dtype, file_bytes)


def _attribute_bytes(found: Any, file_bytes: int) -> Iterator[int]:
    for name in found.attrs:
        attribute = found.attrs.get_id(name)
        count = math.prod(attribute.shape)
        if not (attribute.dtype.hasobject and count <= 1):
            yield count * _item_bytes(attribute.dtype, file_bytes)


def _item_bytes(dtype: Any, file_bytes: int) -> int:
    """Bytes of one entry; many texts of any length may all be the same one, as long as the file."""
    return file_bytes if dtype.hasobject else int(dtype.itemsize)

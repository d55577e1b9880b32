"""HDF5 files that anybody may have made: looked through, link by link, before a single number of them is read.

libhdf5 follows links into other files, takes an array's bytes from wherever the file says, and unpacks a few kilobytes
to as many gigabytes as they claim. Nothing of that is an error to it.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h5py

from dsf.shell.errors import UserError
from dsf.shell.plain_text import plain

FREE_BYTES = 1 << 26
"""Arrays of a file, together, may be this large however small the file is: constant arrays pack to next to nothing."""
MOST_TEXTS = 1 << 16
"""Texts of variable length in one file. Each has to be looked up to be measured: many may all be the same one."""
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
SMALL_ATTRIBUTE = 64
"""Bytes of an attribute that is not looked at: a number, or references to no more than four texts."""
LARGEST_PACKING, LEAST_PIECE = 2, 1 << 12
"""Packed bytes for each of a piece, and beyond those: packing hardly ever makes a piece larger."""
PACKING_FILTERS = (
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_LZF,
)
"""Those of them that make an array smaller."""


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


def open_image(content: bytes) -> h5py.File:
    """A file's content, open for reading: what is looked through is what is read, whatever becomes of the file.

    Raises:
        OSError: it is no HDF5 file.
    """
    return h5py.File(h5py.h5f.open_file_image(content))


def require_self_contained(file: h5py.File, file_bytes: int, limits: ReadLimits, remedy: str) -> None:
    """Look through an open file: everything in it is its own, and of a size that fits it.

    Args:
        file: open for reading.
        file_bytes: its size.
        limits: what the reader takes.
        remedy: what to do with a file that is refused.

    Raises:
        UserError: naming the place: a link to elsewhere, or to something that has a name already; an array whose bytes
            are elsewhere, or need a library of somebody's; more or larger arrays than ``limits`` allow. The caller puts
            the file's name in front.
    """
    allowed, claimed, texts = limits.allowed(file_bytes), 0, 0
    for count, (place, found) in enumerate(_walk(file, remedy), 1):
        if count > limits.objects:
            raise UserError(f"it holds more than {limits.objects:,} groups and arrays: {remedy}")
        claimed += sum(_attribute_bytes(found, file_bytes))
        if isinstance(found, h5py.Dataset) and found.size is not None:
            require_own_bytes(found, place, remedy)
            if found.size > limits.numbers:
                raise UserError(f"{place} claims {found.size:,} numbers, limit {limits.numbers:,}: {remedy}")
            if found.dtype.hasobject:
                texts += found.size
                if texts > MOST_TEXTS:
                    raise UserError(f"{place}: there are more than {MOST_TEXTS:,} texts: {remedy}")
                claimed += _text_bytes(found, allowed)
            else:
                # A piece is unpacked as a whole, and it may be larger than the array.
                claimed += max(found.size, math.prod(found.chunks or ())) * found.dtype.itemsize
        if claimed <= allowed and isinstance(found, h5py.Dataset):
            require_honest_pieces(found, place, remedy)
        if claimed > allowed:
            raise UserError(
                f"{place}: its arrays claim {claimed:,} bytes, and a file of {file_bytes:,} bytes may hold "
                f"{allowed:,}: {remedy}"
            )


def _walk(file: h5py.File, remedy: str) -> Iterator[tuple[str, Any]]:
    """Every object, with its place."""
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
            if address in seen:  # who reads it under every name takes its memory as often
                raise UserError(f"{inner} is another name of something in the file: {remedy}")
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


def require_honest_pieces(dataset: h5py.Dataset, place: str, remedy: str) -> None:
    """Refuse an array with a piece that unpacks to more than a piece has: libhdf5 unpacks all of it before it looks.

    Raises:
        UserError: naming the place.
    """
    created = dataset.id.get_create_plist()
    filters = [created.get_filter(index)[0] for index in range(created.get_nfilters())]
    if h5py.h5z.FILTER_DEFLATE not in filters or dataset.chunks is None:
        return
    whole = math.prod(dataset.chunks) * dataset.dtype.itemsize
    for piece in _pieces(dataset):
        if piece.filter_mask:
            raise UserError(f"{place} leaves out filters in a piece: {remedy}")
        if piece.size > LARGEST_PACKING * whole + LEAST_PIECE:
            raise UserError(f"{place} has a piece of {piece.size:,} bytes for {whole:,}: {remedy}")
        packed = dataset.id.read_direct_chunk(piece.chunk_offset)[1]
        try:
            unpacked = zlib.decompressobj().decompress(packed, whole + 1)
        except zlib.error:
            raise UserError(f"{place} is damaged: {remedy}") from None
        if len(unpacked) > whole:
            raise UserError(f"{place} unpacks to more than the {whole:,} bytes that it claims: {remedy}")


def _pieces(dataset: h5py.Dataset) -> list[Any]:
    """Where an array's pieces lie, and how large they are."""
    if not hasattr(dataset.id, "chunk_iter"):  # of a libhdf5 before 1.14
        return [dataset.id.get_chunk_info(index) for index in range(dataset.id.get_num_chunks())]
    found: list[Any] = []
    dataset.id.chunk_iter(found.append)  # asking for one after the other counts from the first each time
    return found


def _text_bytes(dataset: h5py.Dataset, allowed: int) -> int:
    """What texts would take in memory, one by one, until it is more than ``allowed``."""
    total = 0
    for index in itertools.product(*map(range, dataset.shape)):
        total += len(str(dataset[index]))
        if total > allowed:
            break
    return total


def _attribute_bytes(found: Any, file_bytes: int) -> Iterator[int]:
    for index in range(h5py.h5a.get_num_attrs(found.id)):
        if (size := h5py.h5a.get_info(found.id, index=index).data_size) <= SMALL_ATTRIBUTE:
            yield size
            continue
        attribute = h5py.h5a.open(found.id, index=index)
        count = math.prod(attribute.shape)
        if not attribute.dtype.hasobject:
            yield count * attribute.dtype.itemsize
        elif count > 1:  # all may be the same text, as long as the file; one alone never is longer
            yield count * file_bytes

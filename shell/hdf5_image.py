"""HDF5 files that are made in memory, and written by who needs them on a disk.

libhdf5 cannot let go of a file for which the disk has no room: what it holds back fails to be written again and again,
until the process ends with a segmentation fault. Bytes that are written by Python fail as they should.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import h5py

GROWTH_BYTES = 1 << 20
"""The image grows by this at a time."""

_numbers = itertools.count()


def hdf5_image(fill: Callable[[h5py.File], None], growth: int = GROWTH_BYTES, **options: Any) -> bytes:
    """The bytes of an HDF5 file from its signature on: without a user block, for which it leaves room.

    While it is made, memory holds it twice.

    Args:
        fill: puts everything into the open file; what it raises comes through.
        growth: how much memory is taken at a time (bytes).
        options: more for :class:`h5py.File`.
    """
    # There is no file of this name; libhdf5 takes two that are open under one name for the same.
    name = f"in memory {next(_numbers)}"
    with h5py.File(name, "w", driver="core", backing_store=False, block_size=growth, **options) as file:
        fill(file)
        # The first writes what libhdf5 holds back, to room that it takes for it; the second gives back the rest of the
        # room, as closing does. The image is then what would lie on a disk, byte for byte.
        file.flush()
        file.flush()
        image: bytes = file.id.get_file_image()
    return image

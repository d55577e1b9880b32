"""HDF5 files that are made in memory, and written by who needs them on a disk.

libhdf5 cannot let go of a file for which the disk has no room: what it holds back fails to be written again and again,
until the process ends with a segmentation fault. In memory there is always room, and writing bytes fails as it should.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py

GROWTH_BYTES = 1 << 20
"""The image grows by this at a time."""


def hdf5_image(fill: Callable[[h5py.File], None], growth: int = GROWTH_BYTES, **options: Any) -> bytes:
    """The bytes of an HDF5 file.

    Args:
        fill: puts everything into the open file.
        growth: how much memory is taken at a time (bytes).
        options: more for :class:`h5py.File`.
    """
    # The name is that of nothing: the file has no store behind it.
    with h5py.File("in memory", "w", driver="core", backing_store=False, block_size=growth, **options) as file:
        fill(file)
        # The first writes what libhdf5 holds back, to room that it takes for it; the second gives back the rest of the
        # room, as closing does. The image is then the file that would lie on a disk, byte for byte.
        file.flush()
        file.flush()
        image: bytes = file.id.get_file_image()
    return image

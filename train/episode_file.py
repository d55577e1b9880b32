"""Many short episodes into a Minari dataset: the file that Minari's own writer makes, several times faster and smaller.

Minari stores every array of an episode in chunks that can grow, which costs about 3 kB per array. Here arrays lie as
they are, and rewards and end flags that are equal in several episodes are stored once and linked from each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from minari.data_collector import EpisodeBuffer

FILE_NAME = "main_data.hdf5"
SHARED = ("rewards", "terminations", "truncations")
"""Arrays that many episodes have in common."""


def append_episodes(storage: Any, episodes: Iterable[EpisodeBuffer], on_episode: Callable[[int], None]) -> None:
    """Add episodes with flat observations to an empty dataset of Minari's, in its HDF5 format.

    Args:
        storage: of the dataset (:class:`minari.dataset.minari_storage.MinariStorage`).
        episodes: with arrays, without infos; options are strings.
        on_episode: called with 1 after each (progress bars).
    """
    count = steps = 0
    path = Path(storage.data_path) / FILE_NAME
    with h5py.File(path, "w") as file:
        shared: dict[tuple[str, bytes], bytes] = {}
        for episode in episodes:
            name = f"episode_{count}"
            group = h5py.h5g.create(file.id, name.encode())
            for key in ("observations", "actions"):
                _write(group, key, np.ascontiguousarray(getattr(episode, key)))
            for key in SHARED:
                array = np.ascontiguousarray(getattr(episode, key))
                same = (key, array.tobytes())
                if same in shared:
                    group.links.create_hard(key.encode(), file.id, shared[same])
                else:
                    _write(group, key, array)
                    shared[same] = f"/{name}/{key}".encode()
            length = len(episode.rewards)
            _attribute(group, "id", np.array(count))
            _attribute(group, "total_steps", np.array(length))
            for key, value in (episode.options or {}).items():
                _attribute(group, f"options/{key}", np.array(value, h5py.string_dtype()))
            count += 1
            steps += length
            on_episode(1)
    storage.update_metadata({"total_steps": steps, "total_episodes": count, "dataset_size": storage.get_size()})


def _write(group: h5py.h5g.GroupID, name: str, array: npt.NDArray[Any]) -> None:
    """Store an array in one piece."""
    space = h5py.h5s.create_simple(array.shape)
    dataset = h5py.h5d.create(group, name.encode(), _kind(array.dtype), space)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array)


def _attribute(group: h5py.h5g.GroupID, name: str, value: npt.NDArray[Any]) -> None:
    """Store a number or a string; h5py's own way to do so looks for an older attribute first."""
    h5py.h5a.create(group, name.encode(), _kind(value.dtype), _scalar()).write(value)


@functools.cache
def _kind(dtype: np.dtype[Any]) -> h5py.h5t.TypeID:
    """HDF5's name of a type; made once, for there are several to each of thousands of episodes.

    numpy tells types apart without their metadata, so the only object that may come here is h5py's string.
    """
    return h5py.h5t.py_create(dtype, logical=True)


@functools.cache
def _scalar() -> h5py.h5s.SpaceID:
    """The shape of one value."""
    return h5py.h5s.create(h5py.h5s.SCALAR)

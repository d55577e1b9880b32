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
SHARED = {name: name.encode() for name in ("rewards", "terminations", "truncations")}
"""Arrays that many episodes have in common, and HDF5's names of them."""
FORMAT = ("v108", "v108")
"""HDF5 1.8's (2008), read by everything since: groups without tables of their own, 1 kB less per episode."""
STRING = h5py.string_dtype()


def append_episodes(storage: Any, episodes: Iterable[EpisodeBuffer], on_episode: Callable[[int], None]) -> None:
    """Add episodes with flat observations to an empty dataset of Minari's, in its HDF5 format.

    Args:
        storage: of the dataset (:class:`minari.dataset.minari_storage.MinariStorage`).
        episodes: with arrays, without infos; options are strings.
        on_episode: called with 1 after each (progress bars).
    """
    count = steps = 0
    path = Path(storage.data_path) / FILE_NAME
    with h5py.File(path, "w", libver=FORMAT) as file:
        holders: dict[tuple[bytes, str, tuple[int, ...], bytes], h5py.h5g.GroupID] = {}
        for episode in episodes:
            group = h5py.h5g.create(file.id, f"episode_{count}".encode())
            _write(group, b"observations", episode.observations)
            _write(group, b"actions", episode.actions)
            links = group.links
            for key, name in SHARED.items():
                array = np.asarray(getattr(episode, key))
                same = (name, array.dtype.str, array.shape, array.tobytes())
                if same in holders:
                    links.create_hard(name, holders[same], name)
                else:
                    _write(group, name, array)
                    holders[same] = group
            length = len(episode.rewards)
            _attribute(group, b"id", np.array(count))
            _attribute(group, b"total_steps", np.array(length))
            for key, value in (episode.options or {}).items():
                _attribute(group, f"options/{key}".encode(), np.array(value, STRING))
            count += 1
            steps += length
            on_episode(1)
    storage.update_metadata({"total_steps": steps, "total_episodes": count, "dataset_size": storage.get_size()})


def _write(group: h5py.h5g.GroupID, name: bytes, values: npt.NDArray[Any]) -> None:
    """Store an array in one piece."""
    array = np.ascontiguousarray(values)
    stored = h5py.h5d.create(group, name, _type_in_file(array.dtype), _shape(array.shape))
    stored.write(h5py.h5s.ALL, h5py.h5s.ALL, array, _type_in_memory(array.dtype))


def _attribute(group: h5py.h5g.GroupID, name: bytes, value: npt.NDArray[Any]) -> None:
    """Store a number or a string; h5py's own way to do so looks for an older attribute first."""
    stored = h5py.h5a.create(group, name, _type_in_file(value.dtype), _shape(()))
    stored.write(value, _type_in_memory(value.dtype))


# HDF5's names of types and shapes are made once: every episode has several of each, and making them takes as long as
# storing them. numpy tells types apart without their metadata, so the only object that may come here is h5py's string.
@functools.cache
def _type_in_file(dtype: np.dtype[Any]) -> h5py.h5t.TypeID:
    return h5py.h5t.py_create(dtype, logical=True)


@functools.cache
def _type_in_memory(dtype: np.dtype[Any]) -> h5py.h5t.TypeID:
    return h5py.h5t.py_create(dtype)


@functools.cache
def _shape(shape: tuple[int, ...]) -> h5py.h5s.SpaceID:
    return h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)

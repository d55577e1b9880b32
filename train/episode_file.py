"""Many short episodes into a Minari dataset: the file that Minari's own writer makes, several times faster and smaller.

Minari stores every array of an episode in chunks that can grow, which costs about 3 kB per array. Here arrays lie as
they are, and rewards and end flags that are equal in several episodes are stored once and linked from each.
"""

from __future__ import annotations

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
        episodes: with arrays, without infos.
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
            attributes = h5py.AttributeManager(h5py.Group(group))
            attributes["id"], attributes["total_steps"] = count, length
            for key, value in (episode.options or {}).items():
                attributes[f"options/{key}"] = value
            count += 1
            steps += length
            on_episode(1)
    storage.update_metadata({"total_steps": steps, "total_episodes": count, "dataset_size": storage.get_size()})


def _write(group: h5py.h5g.GroupID, name: str, array: npt.NDArray[Any]) -> None:
    """Store an array in one piece."""
    space = h5py.h5s.create_simple(array.shape)
    dataset = h5py.h5d.create(group, name.encode(), h5py.h5t.py_create(array.dtype, logical=True), space)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array)

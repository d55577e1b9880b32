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
from h5py._objects import phil
from minari.data_collector import EpisodeBuffer

from dsf.shell.hdf5_image import hdf5_image
from dsf.train.data.hdf5_calls import GroupWriter
from dsf.train.data.names import FILE_NAME

FORMAT = ("v108", "v108")
"""HDF5 1.8's (2008), read by everything since: groups without tables of their own, 1 kB less per episode."""
GROWTH_BYTES = 1 << 24
"""The file is made in memory, which it takes this much of at a time."""
TOLD_EVERY = 100
"""Episodes from one call of ``on_episode`` to the next."""


def append_episodes(storage: Any, episodes: Iterable[EpisodeBuffer], on_episode: Callable[[int], None]) -> None:
    """Add episodes with flat observations to an empty dataset of Minari's, in its HDF5 format.

    Args:
        storage: of the dataset (``minari.dataset.minari_storage.MinariStorage``).
        episodes: with arrays, without infos; options are strings.
        on_episode: called with the number of those written since the last call (progress bars).

    Raises:
        OSError: the disk is full.
    """
    count = steps = told = 0

    def fill(file: h5py.File) -> None:
        nonlocal count, steps, told
        writer = GroupWriter(file)
        for episode in episodes:
            length = len(episode.rewards)
            with phil:  # not around on_episode, which has a lock of its own
                group = writer.group(b"episode_%d" % count)
                writer.number(group, b"id", count)
                writer.number(group, b"total_steps", length)
                for option, text in (episode.options or {}).items():
                    writer.string(group, f"options/{option}".encode(), text)
                writer.array(group, b"observations", episode.observations)
                writer.array(group, b"actions", episode.actions)
                writer.shared(group, b"rewards", np.asarray(episode.rewards))
                writer.shared(group, b"terminations", np.asarray(episode.terminations))
                writer.shared(group, b"truncations", np.asarray(episode.truncations))
                writer.close(group)
            count += 1
            steps += length
            if count - told == TOLD_EVERY:
                on_episode(TOLD_EVERY)
                told = count
        with phil:
            writer.close_shared()

    image = hdf5_image(fill, growth=GROWTH_BYTES, libver=FORMAT)
    (Path(storage.data_path) / FILE_NAME).write_bytes(image)
    if count > told:
        on_episode(count - told)
    storage.update_metadata({"total_steps": steps, "total_episodes": count, "dataset_size": storage.get_size()})

"""The quick writer of short episodes against Minari's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest

from dsf.train.data.collect import write_dataset
from dsf.train.data.hdf5_calls import GroupWriter
from dsf.train.data.maze_sets import MazeSet
from dsf.train.data.maze_walks import collect_mazes
from dsf.train.data.names import FILE_NAME

MAZE_SET = MazeSet()
INTERRUPTED = """
import os
from dsf.train.data.collect import write_dataset
from dsf.train.data.maze_sets import MazeSet
from dsf.train.data.maze_walks import collect_mazes

def interrupt(done):
    raise KeyboardInterrupt

try:
    write_dataset(MazeSet(), collect_mazes(MazeSet(), 300, 0, lambda done: None), "x", False, {}, interrupt)
except KeyboardInterrupt:
    print("interrupted", os.listdir(os.environ["MINARI_DATASETS_PATH"] + "/dsf/maze"))
"""


def content(group: h5py.Group) -> dict[str, Any]:
    """Everything in an episode's group: arrays, attributes, their types."""
    arrays = {name: (dataset.dtype, dataset[()].tolist()) for name, dataset in group.items()}
    return {**arrays, "attributes": {name: (type(value), value) for name, value in group.attrs.items()}}


def write(quickly: bool) -> tuple[Path, list[dict[str, Any]]]:
    """A dataset's file, and what it holds."""
    told: list[int] = []
    episodes = collect_mazes(MAZE_SET, 130, 0, lambda done: None)
    place = write_dataset(MAZE_SET, episodes, "test", True, on_episode=told.append if quickly else None)
    assert sum(told) == (130 if quickly else 0)
    path = place / "data" / FILE_NAME
    with h5py.File(path) as file:
        return path, [content(file[f"episode_{number}"]) for number in range(len(file))]


@pytest.mark.slow
def test_it_holds_what_minaris_own_holds(minari_store: Path) -> None:
    path, own = write(quickly=False)
    size = path.stat().st_size
    path, quick = write(quickly=True)
    assert quick == own and len(own) == 130
    assert path.stat().st_size < size / 3


def test_equal_arrays_are_stored_once(minari_store: Path) -> None:
    path, _ = write(quickly=True)
    with h5py.File(path) as file:
        groups = [file[f"episode_{number}"] for number in range(len(file))]
        for name, kinds in (("rewards", "length"), ("truncations", "length"), ("actions", "episode")):
            places = {group[name].id.get_offset() for group in groups}
            lengths = {len(group["rewards"]) for group in groups}
            assert len(places) == (len(lengths) if kinds == "length" else len(groups))


def test_minari_adds_to_it(minari_store: Path) -> None:
    write(quickly=True)
    dataset = minari.load_dataset(MAZE_SET.dataset_id)
    more = collect_mazes(MAZE_SET, 3, 1, lambda done: None)
    dataset.storage.update_episodes(more)
    assert dataset.storage.total_episodes == 133
    last = next(iter(dataset.storage.get_episodes([132])))
    assert np.array_equal(last["observations"], more[2].observations)
    dataset.storage.update_episode_metadata([{"note": "seen"}], [0])
    described = list(dataset.storage.get_episode_metadata([0, 132]))
    assert described[0]["note"] == "seen" and described[1]["options"] == more[2].options


def test_an_interruption_leaves_nothing_and_does_not_crash(minari_store: Path) -> None:
    result = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "interrupted []\n")
    assert not [path for path in minari_store.iterdir() if path.name.startswith(".")]


def test_what_libhdf5_refuses_or_would_cut_is_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "file.h5", "w") as file, h5py._objects.phil:
        writer = GroupWriter(file)
        group = writer.group(b"twice")
        with pytest.raises(RuntimeError, match="libhdf5 could not write b'twice'"):
            writer.group(b"twice")
        with pytest.raises(ValueError, match="NUL"):
            writer.string(group, b"text", "ab\0cd")
        writer.close(group)

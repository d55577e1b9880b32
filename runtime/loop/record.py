"""The recording of a closed-loop run: every decision and every step, one HDF5 file sealed like a network file.

Layout: ``/header`` says what ran (:class:`RunFacts`); ``/episodes`` has one row per episode, ``/decisions`` one per
decision, ``/steps`` one per step of the environment, and ``/observations`` one per step and reset, episode after
episode. The same run gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Mode
from dsf.export.network.sealed import Seal
from dsf.runtime.loop.closed_loop import LoopSettings
from dsf.runtime.loop.env_task import EnvTask
from dsf.runtime.loop.tape import DIGEST_BYTES, TapedEpisode
from dsf.shell.errors import UserError
from dsf.shell.hdf5_reading import ReadLimits
from dsf.shell.typed_values import read_record
from dsf.tasks import Episode

FORMAT_VERSION = 1
SEAL = Seal(
    magic=b"dsf recording\n",
    noun="recording",
    version=FORMAT_VERSION,
    readable=(FORMAT_VERSION,),
    make="make one with dsf-sim-run --record",
    remake="record the run again",
    limits=ReadLimits(objects=100, numbers=1 << 28, expanded=1 << 31, ratio=100),
    error=UserError,
)
PACKAGES = ("numpy", "gymnasium", "mujoco")
"""Their versions decide about the last bit of observations and actions."""

_TABLE: dict[str, type[np.generic]] = {
    "seeds": np.int64,
    "returns": np.float64,
    "decisions": np.int64,
    "steps": np.int64,
}
_ROWS: dict[str, type[np.generic]] = {
    "decisions/graded": np.int32,
    "decisions/accumulators": np.int64,
    "decisions/spikes": np.uint8,
    "decisions/seen": np.int32,
    "steps/actions": np.float64,
    "steps/rewards": np.float64,
    "observations": np.float64,
}
"""Where the arrays of :class:`~dsf.runtime.loop.tape.TapedEpisode` lie, by their names."""
_FLAT = ("seen", "rewards")
"""One number per row; the others have several."""


@dataclass(frozen=True)
class RunFacts:
    """What ran.

    Attributes:
        network_sha256: of the network file.
        task: registered task; None of an environment that is none.
        env_id: Gymnasium id, and how the environment differs where data were recorded in another than the task's.
        backend, mode: of the engine.
        target_return: asked for at the first step of every episode.
        control_period_s, on_deadline_miss: of a run in real time; None otherwise.
        versions: of Python and of what computes observations and actions.
    """

    network_sha256: str
    task: str | None
    env_id: str
    backend: str
    mode: Mode
    target_return: float
    control_period_s: float | None
    on_deadline_miss: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Recording:
    """A run: its facts, and its episodes in the order of their seeds."""

    facts: RunFacts
    episodes: tuple[TapedEpisode, ...]


def recorded_versions() -> dict[str, str]:
    """Versions of Python and the packages that matter, here."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def facts_of(settings: LoopSettings, network_sha256: str, backend: str, mode: Mode) -> RunFacts:
    """The facts of a run from here."""
    task, clock = settings.task, settings.clock
    return RunFacts(
        network_sha256=network_sha256,
        task=None if isinstance(task, EnvTask) else task.name,
        env_id=task.world,
        backend=backend,
        mode=mode,
        target_return=settings.target_return,
        control_period_s=None if clock is None else clock.period_s,
        on_deadline_miss=None if clock is None else clock.on_miss,
        versions=recorded_versions(),
    )


def write_recording(recording: Recording, path: Path) -> None:
    """Write a recording whole or not at all.

    Raises:
        OSError: the directory cannot be written.
    """
    SEAL.write(path, dataclasses.asdict(recording.facts), lambda file: _write(recording.episodes, file))


def _write(episodes: Sequence[TapedEpisode], file: h5py.File) -> None:
    columns = {
        "seeds": [taped.episode.seed for taped in episodes],
        "returns": [taped.episode.episode_return for taped in episodes],
        "decisions": [len(taped.graded) for taped in episodes],
        "steps": [len(taped.rewards) for taped in episodes],
    }
    for name, dtype in _TABLE.items():
        file.create_dataset(f"episodes/{name}", data=np.array(columns[name], dtype))
    for place in _ROWS:
        rows = np.concatenate([getattr(taped, _name(place)) for taped in episodes])
        file.create_dataset(place, data=rows, compression="gzip", shuffle=True)


def read_recording(path: Path) -> Recording:
    """Read and check a recording.

    Raises:
        UserError: the file is missing, altered, cut short, of another version, or its parts do not fit together.
    """
    return SEAL.read(path, _read)


def _read(file: h5py.File, header: dict[str, Any]) -> Recording:
    facts = read_record(RunFacts, header, "header describes no run", SEAL.remake)
    table = {name: SEAL.read_array(file["episodes"], name, dtype) for name, dtype in _TABLE.items()}
    counts = {"decisions": table["decisions"], "steps": table["steps"], "": table["steps"] + 1}
    rows = {_name(place): _split(file, place, counts[place.rpartition("/")[0]]) for place in _ROWS}
    episodes = tuple(
        TapedEpisode(Episode(int(seed), float(total), int(steps)), **{name: rows[name][index] for name in rows})
        for index, (seed, total, steps) in enumerate(zip(table["seeds"], table["returns"], table["steps"]))
    )
    if not all(np.isfinite(taped.actions).all() for taped in episodes) or (table["seeds"] < 0).any():
        raise SEAL.error(f"/steps/actions or /episodes/seeds hold what no run has: {SEAL.remake}")
    return Recording(facts, episodes)


def _split(file: h5py.File, place: str, counts: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """One array, episode by episode."""
    rows = SEAL.read_array(file, place, _ROWS[place])
    fits = counts.ndim == 1 and counts.size > 0 and counts.min() >= 0 and counts.sum() == len(rows)
    fits &= rows.ndim == (1 if _name(place) in _FLAT else 2)
    if not fits or (_name(place) == "spikes" and rows.shape[1] != DIGEST_BYTES):
        raise SEAL.error(f"/{place} of shape {rows.shape} does not fit the table of episodes: {SEAL.remake}")
    return np.split(rows, np.cumsum(counts)[:-1])


def _name(place: str) -> str:
    """Name of an array."""
    return place.rpartition("/")[2]

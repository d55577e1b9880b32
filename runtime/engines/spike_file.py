"""Records the spikes that an engine reports, decision by decision, in one NumPy archive."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dsf.hardware_models import SpikeCounter
from dsf.runtime.engines.interface import Decision, Engine
from dsf.runtime.engines.parity import Spikes
from dsf.shell.arrays import Int64Array
from dsf.shell.files import replacing

EPISODE_STARTS = "episode_starts"


class SpikeRecorder:
    """An engine around another one: it answers the same, and keeps the spikes of some populations, eight to a byte."""

    def __init__(self, engine: Engine, populations: tuple[str, ...]) -> None:
        """Args: ``populations`` to keep are among those that the engine reports."""
        self.engine, self.network, self.mode, self.reported = engine, engine.network, engine.mode, engine.reported
        self.packed: dict[str, list[npt.NDArray[np.uint8]]] = {name: [] for name in populations}
        self.episode_starts: list[int] = []
        self.decisions = 0

    @property
    def ticks_per_token(self) -> int:
        """The engine's."""
        return self.engine.ticks_per_token

    @property
    def counter(self) -> SpikeCounter:
        """The engine's."""
        return self.engine.counter

    def restart_counter(self) -> None:
        """The engine's; what was recorded stays."""
        self.engine.restart_counter()

    def reset(self, lane: int) -> None:
        """Start a new episode."""
        self.engine.reset(lane)
        self.episode_starts.append(self.decisions)

    def step_graded(self, graded: npt.NDArray[np.integer]) -> tuple[Int64Array, Spikes]:
        """Let the engine decide and record its spikes."""
        accumulators, spikes = self.engine.step_graded(graded)
        self._record(spikes)
        return accumulators, spikes

    def step(self, vector: npt.NDArray[np.floating]) -> Decision:
        """The same from a token's vector."""
        decision = self.engine.step(vector)
        self._record(decision.spikes)
        return decision

    def _record(self, spikes: Spikes) -> None:
        for name, packed in self.packed.items():
            packed.append(np.packbits(spikes[name] != 0, axis=1))
        self.decisions += 1

    def raster(self, name: str) -> npt.NDArray[np.bool_]:
        """The spikes of one population, (decisions, ticks, neurons)."""
        neurons = self.network[name].size
        rows = np.array(self.packed[name], np.uint8).reshape(self.decisions, self.network.ticks, -1)
        return np.unpackbits(rows, axis=2, count=neurons).astype(bool)

    def save(self, path: Path) -> None:
        """Write an .npz archive, whole or not at all, one population in memory at a time.

        It holds the raster of every kept population under its name, and ``episode_starts``: the number of the first
        decision of every episode.
        """
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            _write(archive, EPISODE_STARTS, np.array(self.episode_starts, np.int64))
            for name in self.packed:
                _write(archive, name, self.raster(name))


def _write(archive: zipfile.ZipFile, name: str, array: npt.NDArray[np.generic]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)

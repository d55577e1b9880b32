"""How often a feature lies beyond the encoder's range, so that the network sees its end instead of the value."""

from __future__ import annotations

import numpy as np

from dsf.export.network.nodes import HostNode
from dsf.export.network.reference import saturated
from dsf.shell.arrays import FloatArray, Int64Array

VECTORS_HELD = 1024
"""Tokens that are looked at together: enough that numpy's calls cost little."""


class SaturationCounter:
    """Counts, per feature, the decisions of an episode whose token lies beyond the encoder's range."""

    def __init__(self, encoder: HostNode) -> None:
        self.encoder = encoder
        self.restart()

    def restart(self) -> None:
        """A new episode starts."""
        self._counts = np.zeros(self.encoder.features, np.int64)
        self._held: list[FloatArray] = []

    def see(self, vector: FloatArray) -> None:
        """A token (1, features) is decided on; its array is kept and must not change."""
        self._held.append(vector)
        if len(self._held) == VECTORS_HELD:
            self._look()

    def taken(self) -> Int64Array:
        """Decisions of the episode so far in which each feature was out of range, (features,)."""
        self._look()
        return self._counts.copy()

    def _look(self) -> None:
        if self._held:
            self._counts += saturated(self.encoder, np.concatenate(self._held)).sum(axis=0)
            self._held = []

"""Integer arithmetic shared by the fused processes; per tick, where the reference engine works per token."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dsf.export.network import DECAY_BITS, LIF, MEMBRANE_FRACTION_BITS, Synapses, Window

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MEMBRANE_LIMIT = (1 << 23) - 1


class Neurons:
    """A LIF population's membranes; :meth:`step` advances them one tick."""

    def __init__(self, node: LIF) -> None:
        self.bias = node.bias
        self.threshold = node.threshold.astype(np.int64) << MEMBRANE_FRACTION_BITS
        self.keep = (1 << DECAY_BITS) - node.decay
        self.membrane = np.zeros(node.size, np.int64)

    def reset(self) -> None:
        """A new token starts."""
        self.membrane[:] = 0

    def step(self, current: Int64Array) -> BoolArray:
        """Spikes of this tick, as :class:`~dsf.export.network.LIF` defines them."""
        membrane = self.membrane
        # Truncation towards zero: shifting a negative product floors, so add what rounds it back up.
        leaked = (membrane * self.keep + ((1 << DECAY_BITS) - 1) * (membrane < 0)) >> DECAY_BITS
        membrane = leaked + (current << MEMBRANE_FRACTION_BITS) + self.bias
        np.clip(membrane, -MEMBRANE_LIMIT, MEMBRANE_LIMIT, out=membrane)
        spikes = membrane > self.threshold
        membrane[spikes] = 0
        self.membrane = membrane
        return spikes


class Weights:
    """Synapses through float32 BLAS: exact, because export proves every sum below 2**23."""

    def __init__(self, node: Synapses) -> None:
        self.transposed = np.ascontiguousarray(node.weights.T.astype(np.float32))
        self.exponent = node.exponent

    def __call__(self, inputs: npt.NDArray[np.generic]) -> Int64Array:
        """(inputs,) spikes or graded values -> (neurons,) currents."""
        total = (inputs.astype(np.float32) @ self.transposed).astype(np.int64)
        return total << self.exponent if self.exponent >= 0 else total >> -self.exponent


class BitHistory:
    """PSSA's memory: per tick and channel one register whose bit k says whether key and value met k tokens ago."""

    def __init__(self, node: Window, ticks: int) -> None:
        self.weights = node.weights.astype(np.int64)
        self.lags = np.arange(len(self.weights))
        self.mask = (1 << len(self.weights)) - 1
        self.registers = np.zeros((ticks, node.size), np.int64)

    def reset(self) -> None:
        """A new episode starts."""
        self.registers[:] = 0

    def attend(self, tick: int, query: BoolArray, coincidence: BoolArray) -> Int64Array:
        """Shift one token's coincidences of this tick in and return the gated window sum."""
        register = ((self.registers[tick] << 1) | coincidence) & self.mask
        self.registers[tick] = register
        bits = (register[:, None] >> self.lags) & 1
        return query * (bits @ self.weights)

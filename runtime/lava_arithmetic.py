"""Integer arithmetic of the fused processes; per tick, where the reference engine works per token.

All values are integers held in floating point, because BLAS and a short chain of ufuncs are what is fast here. Nothing
is rounded: export proves every quantity below 2**23, far inside what float32 sums (2**24) and float64 (2**53) hold
exactly, and decays and exponents are dyadic fractions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dsf.export.nodes import LIF, Synapses, Window
from dsf.train.integers import DECAY_BITS, MEMBRANE_FRACTION_BITS

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

MEMBRANE_LIMIT = (1 << 23) - 1
MEMBRANE_SCALE = float(1 << MEMBRANE_FRACTION_BITS)


class Neurons:
    """A LIF population's membranes; :meth:`step` advances them one tick."""

    def __init__(self, node: LIF) -> None:
        self.bias = node.bias.astype(np.float64)
        self.threshold = node.threshold * MEMBRANE_SCALE
        self.kept = ((1 << DECAY_BITS) - node.decay) / (1 << DECAY_BITS)
        self.membrane = np.zeros(node.size)

    def reset(self) -> None:
        """A new token starts."""
        self.membrane[:] = 0.0

    def step(self, current: FloatArray) -> BoolArray:
        """Spikes of this tick, as :class:`~dsf.export.network.LIF` defines them."""
        membrane = self.membrane
        membrane *= self.kept
        np.trunc(membrane, out=membrane)
        membrane += current * MEMBRANE_SCALE
        membrane += self.bias
        np.minimum(membrane, MEMBRANE_LIMIT, out=membrane)
        np.maximum(membrane, -MEMBRANE_LIMIT, out=membrane)
        spikes: BoolArray = membrane > self.threshold
        membrane[spikes] = 0.0
        return spikes


class Weights:
    """A layer's synapses."""

    def __init__(self, node: Synapses) -> None:
        self.transposed = np.ascontiguousarray(node.weights.T.astype(np.float32))
        self.exponent = node.exponent

    def __call__(self, inputs: npt.NDArray[np.generic]) -> FloatArray:
        """(inputs,) spikes or graded values -> (neurons,) currents."""
        total: FloatArray = (inputs.astype(np.float32) @ self.transposed).astype(np.float64)
        if self.exponent != 0:
            total *= 2.0**self.exponent
        return np.floor(total) if self.exponent < 0 else total


class BitHistory:
    """PSSA's memory: per tick, lag and channel, one bit that says whether key and value met that many tokens ago."""

    def __init__(self, node: Window, ticks: int) -> None:
        self.weights = node.weights.astype(np.float32)
        self.bits = np.zeros((ticks, len(self.weights), node.size), np.float32)

    def reset(self) -> None:
        """A new episode starts."""
        self.bits[:] = 0.0

    def attend(self, tick: int, query: BoolArray, coincidence: BoolArray) -> FloatArray:
        """Shift one token's coincidences of this tick in and return the gated window sum."""
        bits = self.bits[tick]
        bits[1:] = bits[:-1].copy()
        bits[0] = coincidence
        return (self.weights @ bits * query).astype(np.float64)

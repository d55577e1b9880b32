"""Integer arithmetic of Lava's own processes; per tick, where the reference engine works per token.

All values are integers held in floating point, because BLAS and a short chain of ufuncs are what is fast here. Nothing
is rounded: export proves every quantity below 2**23, far inside what float32 sums (2**24) and float64 (2**53) hold
exactly, and decays and exponents are dyadic fractions.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dsf.export.network.nodes import LIF, Count, Gate, Outer, PlacedWindow, Synapses, Window
from dsf.runtime.lava_backend.stages.blocks import AttentionNodes
from dsf.runtime.lava_backend.stages.layout import CONTINUES
from dsf.shell.arrays import BoolArray, FloatArray
from dsf.train.quantization.integers import DECAY_BITS, MEMBRANE_FRACTION_BITS, MEMBRANE_LIMIT

MEMBRANE_SCALE = float(1 << MEMBRANE_FRACTION_BITS)


class Neurons:
    """A LIF population's membranes; :meth:`step` advances them one tick.

    Attributes:
        active: (neurons,) updates of the present token with a current, a bias or a membrane that is not zero.
    """

    def __init__(self, node: LIF) -> None:
        # All constants are arrays: converting a number on every call takes a ufunc longer than these few neurons do.
        self.kept = ((1 << DECAY_BITS) - node.decays) / (1 << DECAY_BITS)
        self.scale, self.highest = np.full(node.size, MEMBRANE_SCALE), np.full(node.size, float(MEMBRANE_LIMIT))
        self.bias, self.threshold = node.bias.astype(np.float64), node.threshold * self.scale
        self.lowest, self.membrane = -self.highest, np.zeros(node.size)
        self.active, self.biased = np.zeros(node.size, np.uint8), node.bias != 0
        self.always_active, self.sometimes_biased = bool(self.biased.all()), bool(self.biased.any())
        self.worked = np.ones(node.size, np.bool_)

    def reset(self) -> None:
        """A new token starts."""
        self.membrane[:] = 0.0
        self.active[:] = 0

    def step(self, current: FloatArray) -> BoolArray:
        """Spikes of this tick, as :class:`~dsf.export.network.nodes.LIF` defines them."""
        membrane = self.membrane
        self._note_activity(current)
        membrane *= self.kept
        np.trunc(membrane, out=membrane)
        membrane += current * self.scale
        membrane += self.bias
        np.minimum(membrane, self.highest, out=membrane)
        np.maximum(membrane, self.lowest, out=membrane)
        spikes: BoolArray = membrane > self.threshold
        membrane[spikes] = 0.0
        return spikes

    def _note_activity(self, current: FloatArray) -> None:
        """Before the membrane changes; ``worked`` stays true where a bias is always there."""
        if not self.always_active:
            np.logical_or(current, self.membrane, out=self.worked)
            if self.sometimes_biased:
                np.logical_or(self.worked, self.biased, out=self.worked)
        self.active += self.worked.view(np.uint8)


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


class DelayLine:
    """Gives back what it took ``delay`` ticks earlier, zeros before that."""

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self.pending: deque[npt.NDArray[Any]] = deque()

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One tick."""
        self.pending.append(values)
        return self.pending.popleft() if len(self.pending) > self.delay else np.zeros_like(values)


class History(Protocol):
    """What a node with history remembers of earlier tokens, and the currents it makes of it."""

    def start_token(self, start: int) -> None:
        """A new token arrives; for its start flag see :data:`~dsf.runtime.lava_backend.stages.layout.CONTINUES`."""
        ...

    def remember(self, tick: int, spikes: BoolArray) -> BoolArray:
        """Take query, key and value of one tick; return the spikes of the gate that is remembered, if there is one."""
        ...

    def current(self, tick: int) -> FloatArray:
        """The node's (neurons,) currents of a tick that was remembered."""
        ...


class CoincidenceHistory:
    """Where key and value met, per tick, lag and channel, and its weighted sums: PSSA's windows and SDSA-1's count."""

    def __init__(self, gate: Gate, node: Window | PlacedWindow | Count, query: slice | None, ticks: int) -> None:
        self.key, self.value = (slice(first, first + gate.size) for first in (gate.first, gate.second))
        self.query_part = query
        weights = np.full(node.reach, node.gain) if isinstance(node, Count) else node.weights
        self.weights = np.atleast_2d(weights).astype(np.float32)  # (places, reach); one row where places are alike
        self.place = self.last_place = len(self.weights) - 1
        self.bits = np.zeros((ticks, node.reach, node.size), np.float32)

    def start_token(self, start: int) -> None:
        """A new token arrives, at the next place of the window."""
        if start == CONTINUES:
            self.place = min(self.place + 1, self.last_place)
        else:
            self.bits[:] = 0.0
            self.place = min(start - 1, self.last_place)

    def remember(self, tick: int, spikes: BoolArray) -> BoolArray:
        """Shift one token's coincidences of this tick in, and return them."""
        bits, coincidence = self.bits[tick], spikes[self.key] & spikes[self.value]
        bits[1:] = bits[:-1].copy()
        bits[0] = coincidence
        if self.query_part is not None:
            self.query = spikes[self.query_part]
        return coincidence

    def current(self, tick: int) -> FloatArray:
        """The sum over the window, where there is a query gated by it."""
        total = self.weights[self.place] @ self.bits[tick]
        return (total if self.query_part is None else total * self.query).astype(np.float64)


class KeyValueHistory:
    """Keys and values per tick, head and token, and the values' sums weighted by scores: TSSA, SSSA and SDSA-3."""

    def __init__(self, node: Outer, ticks: int) -> None:
        self.node, self.channels = node, (node.heads, node.size // node.heads)
        heads, width = self.channels
        self.queries = np.zeros((ticks, heads, width, 1), np.float32)
        self.keys, self.values = (np.zeros((ticks, heads, node.reach, width), np.float32) for _ in range(2))
        self.slot = 0

    def start_token(self, start: int) -> None:
        """A new token arrives and takes the oldest one's slot: all tokens count alike, so order does not matter."""
        if start != CONTINUES:
            self.keys[:] = self.values[:] = 0.0
        self.slot = (self.slot + 1) % self.node.reach

    def remember(self, tick: int, spikes: BoolArray) -> BoolArray:
        """Keep query, key and value of this tick; no gate fires."""
        self.queries[tick, :, :, 0] = self._part(spikes, self.node.query)
        self.keys[tick, :, self.slot] = self._part(spikes, self.node.key)
        self.values[tick, :, self.slot] = self._part(spikes, self.node.value)
        return spikes[:0]

    def current(self, tick: int) -> FloatArray:
        """The sum of the values, each token's weighted by its scores; those over all ticks hold for the whole token."""
        if not self.node.all_ticks:
            self.scores = self.keys[tick] @ self.queries[tick]  # (heads, reach, 1)
        elif tick == 0:
            self.scores = (self.keys @ self.queries).sum(axis=0)
        total = (self.scores * self.values[tick]).sum(axis=1)
        return (self.node.gain * total.reshape(-1)).astype(np.float64)

    def _part(self, spikes: BoolArray, first: int) -> BoolArray:
        return spikes[first : first + self.node.size].reshape(self.channels)


def history_of(nodes: AttentionNodes, ticks: int) -> History:
    """An empty history for an attention branch."""
    if isinstance(nodes.history, Outer):
        return KeyValueHistory(nodes.history, ticks)
    assert nodes.gate is not None  # split_network knows no other branch
    return CoincidenceHistory(nodes.gate, nodes.history, nodes.query, ticks)

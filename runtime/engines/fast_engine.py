"""The fast engine: the reference's integers, event by event, in C; one environment or many, stream or window mode."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dsf.export.network.bounds import saturating_populations
from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import (
    HOST_KINDS,
    LIF,
    SPIKING_KINDS,
    And,
    Count,
    Encoder,
    Gate,
    HistoryNode,
    HostEmbedding,
    NetworkError,
    Node,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    Window,
)
from dsf.export.network.reference import encode
from dsf.export.network.sparse import is_sparse
from dsf.hardware_models import SpikeCounter
from dsf.runtime.engines.errors import BackendUnavailable
from dsf.shell.arrays import Int64Array
from dsf.tasks.policy import NOT_FINITE
from dsf.train.kernels.build import KernelSource, KernelsUnavailable, NoPlaceForKernels, load_kernels
from dsf.train.quantization.integers import DECAY_BITS, MEMBRANE_FRACTION_BITS

SOURCE = KernelSource(
    "dsf.runtime.kernels",
    (
        "spike_engine.c",
        "spike_network.h",
        "spike_sums.h",
        "spike_sparse.h",
        "spike_neurons.h",
        "spike_attention.h",
    ),
)
PAD = 16
"""Rows of neurons are multiples of this, as in spike_engine.c."""
TILES = (128, 32, PAD)
"""Neurons of a tile of weights: the widest that still fits into what remains of a row, as in spike_sums.h."""
ALIGNMENT = 64
"""Bytes; of a vector register."""
CHUNK_ELEMENTS = 64
"""Tokens that are computed layer by layer together: their currents fill half of a second-level cache."""
PIECE_INPUTS, CHUNK_SLOTS = 128, 4
"""Inputs that a chunk of sparse weights reads from, and weights of each neuron in it, as in spike_sparse.h."""
LARGEST_SLOT_SHARE = 0.4
"""Slots, for each place of the matrix, beyond which chunks hardly ever take less time than tiles."""
SparseForm = Literal["quicker", "tiles", "chunks"]
"""Of weights that are sparse: dense tiles, chunks without the zeros, or for each token what should take less time.
Where a processor lacks the instructions for chunks, tiles are all there is."""
NEVER = np.iinfo(np.int32).max
"""Threshold of padding."""

_KINDS: tuple[tuple[type[Any], ...], ...] = (
    HOST_KINDS,
    (Synapses,),
    (Residual,),
    (LIF,),
    (Gate,),
    (Window, PlacedWindow),
    (Count,),
    (Outer,),
    (And,),
    (Readout,),
)
"""In the order of the enum in spike_engine.c."""


class _Node(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "size", "first_source", "second_source")),
        *((name, ctypes.c_int32) for name in ("first", "second", "third", "inputs", "exponent", "kept")),
        *((name, ctypes.c_int32) for name in ("reach", "places", "heads", "all_ticks", "gain", "behind_spikes")),
        ("saturates", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("weights", "bias", "threshold", "kepts")),
        *((name, ctypes.c_void_p) for name in ("chunks", "slots")),
        ("chunk_count", ctypes.c_int64),
        ("only_chunks", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("values", "past", "spikes_out")),
        *((name, ctypes.c_void_p) for name in ("fired", "recent")),
    ]


class _Engine(ctypes.Structure):
    _fields_ = [
        ("nodes", ctypes.POINTER(_Node)),
        *((name, ctypes.c_int32) for name in ("count", "ticks", "context", "lanes")),
        *((name, ctypes.c_int32) for name in ("features", "actions", "window_mode", "chunk")),
        *((name, ctypes.c_void_p) for name in ("offset", "step", "shift")),
        ("limit", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("tokens", "age", "graded", "lane_of", "before", "left")),
        *((name, ctypes.c_void_p) for name in ("sums", "pasts")),
        *((name, ctypes.c_int64) for name in ("tokens_seen", "unsettled")),
    ]


class FastEngine:
    """Runs ``lanes`` episodes side by side. One engine per thread; nothing is allocated per decision.

    Attributes:
        network: what runs.
        lanes: episodes.
        mode: stream or window.
        sparse: how it computes with sparse matrices; the integers are the same.
        decisions: made so far, over all lanes.
        graded: (lanes, features) int32, the encoder's integers of the last decision; (lanes, channels) of a host
            embedding.
        accumulators: (lanes, actions) int64, overwritten by every decision.
        spikes: of every spiking population, (lanes, ticks, neurons) uint8 of the last decision's present token,
            overwritten by the next one; empty unless ``record``.

    Raises:
        BackendUnavailable: there is no C compiler to build it with.
        NetworkError: something but a membrane could overflow, or a residual adds up more than two sources.
    """

    def __init__(
        self,
        network: Network,
        lanes: int = 1,
        mode: Mode = "stream",
        record: bool = False,
        sparse: SparseForm = "quicker",
    ) -> None:
        self.network, self.lanes, self.mode, self.decisions = network, lanes, mode, 0
        self.sparse = sparse
        self._counts: dict[str, Int64Array] = {}
        self._kept: list[npt.NDArray[Any]] = []  # C holds pointers into these
        self._saturating = saturating_populations(network)  # C clips nothing else, and has no need to
        library = _library()
        encoder, readout, windowed = network.encoder, network.readout, mode == "window"
        self.vectors = self._zeros((lanes, encoder.features), np.float64)
        self.graded = self._zeros((lanes, encoder.size), np.int32)
        self.accumulators = self._zeros((lanes, readout.size), np.int64)
        self.age = self._zeros((lanes,), np.int64)
        self.spikes = {
            node.name: self._zeros((lanes, network.ticks, node.size), np.uint8)
            for node in network.nodes
            if record and isinstance(node, SPIKING_KINDS)
        }
        tokens = lanes * (network.context if windowed else 1)
        self._chunk = max(network.context, min(tokens, CHUNK_ELEMENTS)) if windowed else min(tokens, CHUNK_ELEMENTS)
        last = {name: node.name for node in network.nodes for name in node.sources}
        self._read_last = {reader: [name for name in last if last[name] == reader] for reader in last.values()}
        self._room: dict[str, npt.NDArray[np.uint8]] = {}
        self._free: list[npt.NDArray[np.uint8]] = []
        self._nodes = (_Node * len(network.nodes))(*map(self._node, network.nodes))
        self._engine = self._describe(windowed)
        engine = ctypes.byref(self._engine)
        vectors, graded, answers = (_pointer(array) for array in (self.vectors, self.graded, self.accumulators))
        self._settle = functools.partial(library.dsf_settle, engine)
        self._decide = functools.partial(library.dsf_decide, engine, graded, answers)
        self._encode_and_decide = functools.partial(library.dsf_encode_and_decide, engine, vectors, graded, answers)

    def reset(self, lane: int) -> None:
        """Start a new episode in one lane."""
        self.age[lane] = 0

    def step(self, vectors: npt.NDArray[np.floating]) -> Int64Array:
        """Consume one token vector per lane (lanes, features); return accumulators (lanes, actions).

        Raises:
            NetworkError: a value is not finite.
        """
        if isinstance(encoder := self.network.encoder, HostEmbedding):  # numpy's order of operations is its definition
            return self.step_graded(encode(encoder, vectors))
        self.vectors[...] = vectors
        if self._encode_and_decide():
            raise NetworkError(NOT_FINITE)
        self.decisions += self.lanes
        return self.accumulators

    def step_graded(self, graded: npt.NDArray[np.integer]) -> Int64Array:
        """As :meth:`step`, from the encoder's integers (lanes, features)."""
        self.graded[...] = graded
        self._decide()
        self.decisions += self.lanes
        return self.accumulators

    @property
    def counter(self) -> SpikeCounter:
        """All spikes since the last :meth:`restart_counter`, for :func:`dsf.hardware_models.measure_activity`."""
        counter = SpikeCounter(self.network)
        counter.decisions, counter.tokens = self.decisions, self.tokens
        self._settle()
        for name, fired in counter.fired.items():
            fired[...] = self._counts[name][0, : fired.size]
        for name, active in counter.active.items():
            active[...] = self._counts[name][1, : active.size]
        return counter

    def restart_counter(self) -> None:
        """Forget what was counted; episodes go on."""
        self.decisions = self._engine.tokens_seen = 0
        self._settle()
        for counts in self._counts.values():
            counts[...] = 0

    @property
    def tokens(self) -> int:
        """Tokens computed so far: one per lane and decision, in window mode one per token of the window."""
        return int(self._engine.tokens_seen)

    def _node(self, node: Node) -> _Node:
        """One node as C sees it; its arrays stay alive with the engine."""
        sources = [self._index(name) for name in node.sources]
        if len(sources) > 2:
            raise NetworkError(f"network node '{node.name}': the fast engine adds up two sources, not {len(sources)}")
        kind = next(number for number, kinds in enumerate(_KINDS) if isinstance(node, kinds))
        found = _Node(kind=kind, size=node.size, first_source=-1, second_source=-1, places=1)
        if sources:
            found.first_source = sources[0]
        if len(sources) == 2:
            found.second_source = sources[1]
        if isinstance(node, (LIF, Gate, And)):
            found.values = self._values(node, np.uint8)
        elif not isinstance(node, (Encoder, Readout)):  # a host embedding's values are what a residual reads
            found.values = self._values(node, np.int32)
        if isinstance(node, SPIKING_KINDS):
            shape = (1 + isinstance(node, LIF), _row(node.size))  # spikes, and active updates
            self._counts[node.name] = self._zeros(shape, np.int64)
            found.fired, found.recent = _pointer(self._counts[node.name]), _pointer(self._zeros(shape, np.int32))
        if node.name in self.spikes:
            found.spikes_out = _pointer(self.spikes[node.name])
        _FILL[type(node)](self, node, found)
        for name in self._read_last.get(node.name, ()):
            if name in self._room and name not in self.spikes:  # what is recorded is read when all is computed
                self._free.append(self._room.pop(name))
        return found

    def _synapses(self, node: Synapses, found: _Node) -> None:
        found.inputs, found.exponent = node.weights.shape[1], node.exponent
        found.behind_spikes = not isinstance(self.network[node.source], Encoder)
        found.weights = (self._tiled if found.behind_spikes else self._padded)(node.weights.T, np.int8)
        fits = found.behind_spikes and is_sparse(node.weights) and _library().dsf_takes_chunks()
        if fits and self.sparse != "tiles":
            self._chunks(node.weights, found)
            found.only_chunks = self.sparse == "chunks"

    def _residual(self, node: Residual, found: _Node) -> None:
        found.bias = self._padded(node.bias, np.int32)

    def _lif(self, node: LIF, found: _Node) -> None:
        if isinstance(node.decay, np.ndarray):
            found.kepts = self._padded((1 << DECAY_BITS) - node.decay.astype(np.int32), np.int32)
        else:
            found.kept = (1 << DECAY_BITS) - node.decay
        found.saturates = node.name in self._saturating
        found.bias = self._padded(node.bias, np.int32)
        found.threshold = self._padded(node.threshold.astype(np.int64) << MEMBRANE_FRACTION_BITS, np.int32, NEVER)

    def _gate(self, node: Gate, found: _Node) -> None:
        found.first, found.second = node.first, node.second

    def _and(self, node: And, found: _Node) -> None:
        found.first = node.first

    def _window(self, node: Window | PlacedWindow, found: _Node) -> None:
        found.first = node.first
        weights = self._keep(np.atleast_2d(node.weights).astype(np.int8))
        found.weights, found.places = _pointer(weights), len(weights)
        self._history(node, found)

    def _count(self, node: Count, found: _Node) -> None:
        found.weights = _pointer(self._keep(np.full(node.reach, node.gain, np.int8)))
        self._history(node, found)

    def _outer(self, node: Outer, found: _Node) -> None:
        found.first, found.second, found.third = node.query, node.key, node.value
        found.heads, found.all_ticks, found.gain = node.heads, node.all_ticks, node.gain
        self._history(node, found)

    def _readout(self, node: Readout, found: _Node) -> None:
        found.inputs, found.exponent = node.weights.shape[1], node.shift
        found.weights = self._padded(node.weights, np.int8)
        found.bias = self._padded(node.bias, np.int32)

    def _history(self, node: HistoryNode, found: _Node) -> None:
        found.reach = node.reach
        if self.mode == "stream":
            row = _row(self.network[node.remembered].size)
            found.past = _pointer(self._zeros((self.lanes, node.reach, self.network.ticks, row), np.uint8))

    def _describe(self, windowed: bool) -> _Engine:
        """The engine as C sees it."""
        network, encoder, chunk = self.network, self.network.encoder, self._chunk
        widest = _row(max(max(node.size for node in network.nodes), encoder.size))
        room = lambda shape, dtype: _pointer(self._zeros(shape, dtype))  # noqa: E731
        return _Engine(
            nodes=self._nodes,
            count=len(network.nodes),
            ticks=network.ticks,
            context=network.context,
            lanes=self.lanes,
            features=encoder.size,
            actions=network.readout.size,
            window_mode=windowed,
            chunk=chunk,
            offset=_pointer(self._keep(encoder.offset.astype(np.float64))),
            step=_pointer(self._keep(encoder.step.astype(np.float64))),
            shift=_pointer(self._keep(encoder.shift.astype(np.int32))),
            limit=encoder.limit,
            tokens=room((self.lanes, network.context, encoder.size), np.int32),
            age=_pointer(self.age),
            graded=room((chunk, encoder.size), np.int32),
            lane_of=room((chunk,), np.int32),
            before=room((chunk,), np.int32),
            left=room((chunk,), np.int32),
            sums=room((widest,), np.int32),
            pasts=room((max((node.reach for node in network.with_history), default=1),), np.uint64),
        )

    def _index(self, name: str) -> int:
        return next(index for index, node in enumerate(self.network.nodes) if node.name == name)

    def _values(self, node: Node, dtype: type[np.generic]) -> int:
        """Pointer to what a node computes, where nothing lies that is still read: all of it should fit in a cache."""
        size = self._chunk * self.network.ticks * _row(node.size) * np.dtype(dtype).itemsize
        fitting = [index for index, room in enumerate(self._free) if room.size >= size]
        room = (
            self._free.pop(min(fitting, key=lambda index: self._free[index].size))
            if fitting
            else self._zeros((size,), np.uint8)
        )
        self._room[node.name] = room
        return _pointer(room)

    def _padded(self, array: npt.NDArray[np.integer], dtype: type[np.integer], fill: int = 0) -> int:
        """Pointer to a copy whose last axis is a whole number of rows."""
        copy = self._zeros((*array.shape[:-1], _row(array.shape[-1])), dtype)
        copy[...] = fill
        copy[..., : array.shape[-1]] = array
        return _pointer(copy)

    def _tiled(self, array: npt.NDArray[np.integer], dtype: type[np.integer]) -> int:
        """Pointer to a copy of (inputs, neurons) as (tiles, inputs, neurons of the tile)."""
        inputs, neurons = array.shape
        row, start = _row(neurons), 0
        padded, copy = np.zeros((inputs, row), dtype), self._zeros((inputs * row,), dtype)
        padded[:, :neurons] = array
        while start < row:
            width = next(width for width in TILES if width <= row - start)
            copy[inputs * start : inputs * (start + width)] = padded[:, start : start + width].ravel()
            start += width
        return _pointer(copy)

    def _chunks(self, weights: npt.NDArray[np.integer], found: _Node) -> None:
        """The same weights (neurons, inputs) in slots, without zeros, where that may take less time than tiles."""
        neurons, inputs = np.nonzero(weights)
        pieces = -(-weights.shape[1] // PIECE_INPUTS)
        run = neurons * pieces + inputs // PIECE_INPUTS  # weights of one neuron in one piece; runs ascend
        sizes = np.bincount(run, minlength=_row(len(weights)) * pieces)
        rank = np.arange(len(run)) - (np.cumsum(sizes) - sizes)[run]
        counts = -(-sizes.reshape(-1, PAD, pieces).max(axis=1) // CHUNK_SLOTS)
        first = (np.cumsum(counts) - counts.ravel()).reshape(counts.shape)
        if self.sparse == "quicker" and PAD * CHUNK_SLOTS * int(counts.sum()) > LARGEST_SLOT_SHARE * weights.size:
            return
        chunk = first[neurons // PAD, inputs // PIECE_INPUTS] + rank // CHUNK_SLOTS
        slots = self._zeros((int(counts.sum()), 2, PAD, CHUNK_SLOTS), np.int8)
        slots[chunk, 0, neurons % PAD, rank % CHUNK_SLOTS] = inputs % PIECE_INPUTS
        slots[chunk, 1, neurons % PAD, rank % CHUNK_SLOTS] = weights[neurons, inputs]
        found.chunks, found.slots = _pointer(self._keep(counts.astype(np.int32))), _pointer(slots)
        found.chunk_count = len(slots)

    def _zeros(self, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
        """Zeros that start on a vector register's boundary."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.zeros(size + 2 * ALIGNMENT, np.uint8)  # C may read a vector that starts at any of its elements
        start = -raw.ctypes.data % ALIGNMENT
        return self._keep(raw[start : start + size].view(dtype).reshape(shape))

    def _keep(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self._kept.append(np.ascontiguousarray(array))
        return self._kept[-1]


_FILL: dict[type[Any], Callable[..., None]] = {
    Encoder: lambda *_: None,
    HostEmbedding: lambda *_: None,
    Synapses: FastEngine._synapses,
    Residual: FastEngine._residual,
    LIF: FastEngine._lif,
    Gate: FastEngine._gate,
    And: FastEngine._and,
    Window: FastEngine._window,
    PlacedWindow: FastEngine._window,
    Count: FastEngine._count,
    Outer: FastEngine._outer,
    Readout: FastEngine._readout,
}
"""What differs between the kinds."""


def _row(size: int) -> int:
    """Neurons of a padded row."""
    return -(-size // PAD) * PAD


def _pointer(array: npt.NDArray[Any]) -> int:
    return int(array.ctypes.data)


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled engine.

    Raises:
        BackendUnavailable: it cannot be built here.
    """
    try:
        library = load_kernels(SOURCE)
    except KernelsUnavailable as error:
        needed = "a place for its code" if isinstance(error, NoPlaceForKernels) else "a C compiler"
        raise BackendUnavailable(f"backend 'fast' needs {needed}: {error}; or use --backend reference") from None
    library.dsf_decide.argtypes = [ctypes.POINTER(_Engine), ctypes.c_void_p, ctypes.c_void_p]
    library.dsf_decide.restype = None
    library.dsf_settle.argtypes, library.dsf_settle.restype = [ctypes.POINTER(_Engine)], None
    library.dsf_encode_and_decide.argtypes = [ctypes.POINTER(_Engine), *[ctypes.c_void_p] * 3]
    return library

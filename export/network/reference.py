"""The numpy reference engine: the definition of truth. Every other engine must equal it, spike by spike.

It lives beside the network file and not in ``dsf.runtime`` because export has to run it to prove a network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dsf.export.network.attention import Lagged, counted, lags_of, scored, windowed
from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    HISTORY_KINDS,
    HOST_KINDS,
    LIF,
    And,
    Count,
    Gate,
    HistoryNode,
    HostEmbedding,
    HostNode,
    NetworkError,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
)
from dsf.shell.arrays import FloatArray, Int64Array, IntArray
from dsf.tasks import Token
from dsf.tasks.policy import NOT_FINITE
from dsf.tasks.spaces import stretched
from dsf.train.quantization.codec import CodedArray, single_precision
from dsf.train.quantization.integers import DECAY_BITS, MEMBRANE_FRACTION_BITS, MEMBRANE_LIMIT

Observer = Callable[[str, Int64Array], None]
"""Called with a node's name and its values over the token, (ticks, lanes, neurons); the readout's have no ticks."""

FLOAT32_INTEGERS = 1 << 24
"""Integers up to this magnitude are exact in float32."""
TANH_TOLERANCE = 1e-12
"""Largest difference, absolute or relative, that another library's float64 tanh may make to an action."""
PRESENT = -1
"""The place of the present token in a window."""


def integer_product(values: IntArray, weights: IntArray) -> Int64Array:
    """Values @ weights.T in exact integers, through the fastest floats that hold every partial sum.

    float32 where no sum can leave its 24 bits, as none of spikes does; else float64, whose 53 bits are never near.
    """
    rows = values.reshape(-1, values.shape[-1])  # one large product, not a stack of small ones
    largest, range_ = max(int(rows.max(initial=0)), -int(rows.min(initial=0))), np.iinfo(weights.dtype)
    reach = largest * max(int(range_.max), -int(range_.min)) * rows.shape[1]
    floats = np.float32 if reach < FLOAT32_INTEGERS else np.float64
    product = rows.astype(floats) @ weights.T.astype(floats)
    return product.astype(np.int64).reshape(*values.shape[:-1], len(weights))


def shift(values: Int64Array, exponent: int) -> Int64Array:
    """Values * 2**exponent, rounded towards minus infinity."""
    if exponent == 0:
        return values
    return values << exponent if exponent > 0 else values >> -exponent


def encode(node: HostNode, vector: npt.NDArray[np.floating]) -> Int64Array:
    """Turn token vectors (..., features) into the integers q that enter the network (..., size).

    Raises:
        NetworkError: a value is not finite, or a host embedding makes none of it that is.
    """
    if not np.isfinite(vector).all():
        raise NetworkError(NOT_FINITE)
    coded = _unclipped(node, vector)
    if isinstance(node, HostEmbedding):
        return embedded(node, np.clip(coded, -node.input_limit, node.input_limit))
    return np.clip(coded, -node.limit, node.limit).astype(np.int64)


def entering(node: HostNode, coded: CodedArray) -> Int64Array:
    """The integers q (..., size) that enter the network for what training's codec makes of tokens (..., features).

    Raises:
        NetworkError: a host embedding makes no finite value of them.
    """
    return embedded(node, coded) if isinstance(node, HostEmbedding) else coded.astype(np.int64)


def embedded(node: HostEmbedding, z: CodedArray) -> Int64Array:
    """A host embedding's integers q (..., channels) from z (..., features).

    Raises:
        NetworkError: they are not finite: a feature lies beyond what float32 holds.
    """
    scaled = node.embedding(z.astype(np.float64)) / node.unit
    if not np.isfinite(scaled).all():
        raise NetworkError(NOT_FINITE)
    return np.clip(np.rint(scaled), -node.limit, node.limit).astype(np.int64)


def saturated(node: HostNode, vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Which features of token vectors (..., features) lie beyond the encoder's range, so that they are clipped."""
    limit = node.input_limit if isinstance(node, HostEmbedding) else node.limit
    return np.abs(_unclipped(node, vectors)) > limit


def _unclipped(node: HostNode, vectors: npt.NDArray[np.floating]) -> FloatArray:
    """The encoder's integers (..., features) if it had no range, in float64; a host embedding may not round."""
    scaled: FloatArray = (single_precision(vectors) - node.offset) / node.step
    return scaled if isinstance(node, HostEmbedding) and not node.input_bits else np.rint(scaled)


def fire(node: LIF, currents: Int64Array, before: Int64Array | None = None) -> Int64Array:
    """Spikes (ticks, lanes, neurons) of a LIF population over one token; ``before`` takes the membranes of each tick's
    start, of the same shape.
    """
    membrane = np.zeros(currents.shape[1:], np.int64)
    spikes = np.empty_like(currents)
    keep = (1 << DECAY_BITS) - np.asarray(node.decay, np.int64)
    threshold, bias = node.threshold.astype(np.int64) << MEMBRANE_FRACTION_BITS, node.bias
    for tick, current in enumerate(currents):
        if before is not None:
            before[tick] = membrane
        leaked = np.abs(membrane)  # in place from here on: arrays are large, and this loop is most of every proof
        leaked *= keep
        leaked >>= DECAY_BITS
        leaked *= np.sign(membrane)  # so it was rounded towards zero
        membrane = np.left_shift(current, MEMBRANE_FRACTION_BITS, dtype=np.int64)
        membrane += leaked
        membrane += bias
        np.clip(membrane, -MEMBRANE_LIMIT, MEMBRANE_LIMIT, out=membrane)
        spikes[tick] = membrane > threshold
        membrane *= 1 - spikes[tick]
    return spikes


def active_updates(node: LIF, currents: Int64Array) -> Int64Array:
    """How many updates of each LIF neuron have work to do: a current, a bias or a membrane that is not zero.

    Currents are (ticks, tokens, neurons). Loihi prices the other updates lower.
    """
    before = np.empty_like(currents)
    fire(node, currents, before)
    busy = (currents != 0) | (before != 0) | (node.bias != 0)
    return busy.sum(axis=(0, 1), dtype=np.int64)


def accumulate(node: Readout, residual: Int64Array) -> Int64Array:
    """The accumulators y (..., lanes, actions) from the residual (ticks, ..., lanes, channels)."""
    graded = (residual.sum(axis=0) + (1 << node.shift >> 1)) >> node.shift
    return integer_product(graded, node.weights) + node.bias


def decode(node: Readout, accumulators: IntArray) -> npt.NDArray[np.float64]:
    """Actions from accumulators (lanes, actions): the only floating-point step, on the host. Choices stay scores."""
    scaled: npt.NDArray[np.float64] = node.scale * accumulators
    return scaled if node.head == "choice" else np.tanh(scaled)


def commands(node: Readout, actions: FloatArray) -> npt.NDArray[np.float64] | Int64Array:
    """What the machine gets for actions or scores (..., actions): numbers between its bounds, or a choice (...,)."""
    if node.head == "choice":
        return np.argmax(actions, axis=-1) + node.first_choice
    return stretched(actions, node.low, node.high) if node.low else np.clip(actions, -1.0, 1.0)


class ReferenceEngine:
    """Stream-mode engine: one token in, one decision out, per lane. Memory: the histories of nodes that look back."""

    def __init__(self, network: Network, lanes: int = 1) -> None:
        self.network, self.lanes = network, lanes
        self.history = {
            node.name: np.zeros((node.reach, network.ticks, lanes, network[node.remembered].size), np.int64)
            for node in network.with_history
        }

    def reset(self, lane: int) -> None:
        """Start a new episode in one lane: no history."""
        for past in self.history.values():
            past[:, :, lane] = 0

    def step(self, vector: npt.NDArray[np.floating], observe: Observer | None = None) -> Int64Array:
        """Consume one token vector per lane (lanes, features); return accumulators (lanes, actions)."""
        return self.step_graded(encode(self.network.encoder, vector), observe)

    def step_graded(self, graded: IntArray, observe: Observer | None = None) -> Int64Array:
        """As :meth:`step`, from the encoder's integers q (lanes, features)."""
        return evaluate_nodes(self.network, graded, self._lags, PRESENT, observe)

    def _lags(self, node: HistoryNode, present: Int64Array) -> Lagged:
        """Move the present spikes into the history and read from there."""
        past = self.history[node.name]
        past[1:] = past[:-1].copy()
        past[0] = present
        return lambda lag: past[lag]


class LaneEngine(Protocol):
    """An integer engine that decides for ``lanes`` episodes side by side."""

    network: Network
    lanes: int

    def reset(self, lane: int) -> None:
        """Start a new episode in one lane."""
        ...

    def step(self, vector: npt.NDArray[np.floating]) -> Int64Array:
        """Consume one token vector per lane (lanes, features); return accumulators (lanes, actions)."""
        ...


class IntegerPolicy:
    """Any integer engine as a closed-loop policy."""

    def __init__(self, engine: LaneEngine) -> None:
        self.engine, self.lanes = engine, engine.lanes

    def reset(self, lane: int) -> None:
        """Start a new episode in one lane."""
        self.engine.reset(lane)

    def act(self, token: Token) -> npt.NDArray[np.float64]:
        """Decide for every lane."""
        return decode(self.engine.network.readout, self.engine.step(token.vector()))


class WindowReference:
    """Window-mode engine: replays the last K tokens of each lane from an empty history for every decision."""

    def __init__(self, network: Network, lanes: int = 1) -> None:
        self.network, self.lanes = network, lanes
        self.window = np.zeros((network.context, lanes, network.encoder.size), np.int64)
        self.exists = np.zeros((network.context, lanes), np.int64)

    def reset(self, lane: int) -> None:
        """Start a new episode in one lane."""
        self.exists[:, lane] = 0

    def step(self, vector: npt.NDArray[np.floating], observe: Observer | None = None) -> Int64Array:
        """Consume one token vector per lane (lanes, features); return accumulators (lanes, actions)."""
        return self.step_graded(encode(self.network.encoder, vector), observe)

    def step_graded(self, graded: IntArray, observe: Observer | None = None, whole: bool = False) -> Int64Array:
        """As :meth:`step`, from the encoder's integers (lanes, features).

        Observers see the present token's values, with ``whole`` those of all tokens, (ticks, tokens, lanes, neurons).
        """
        for rows, newest in ((self.window, graded), (self.exists, 1)):
            rows[:-1] = rows[1:].copy()
            rows[-1] = newest
        filled = int(self.exists.any(axis=1).sum())  # leading places that no lane has reached cost nothing
        seen = observe if observe is None or whole else (lambda name, values: observe(name, _present(values)))
        return replay_window(self.network, self.window[-filled:], self.exists[-filled:], seen)[-1]


def replay_window(
    network: Network, graded: IntArray, exists: IntArray | None = None, observe: Observer | None = None
) -> Int64Array:
    """Evaluate whole windows, all tokens at once; the last one is the present.

    Args:
        network: to run.
        graded: the encoder's integers (tokens, lanes, features), at most K tokens.
        exists: (tokens, lanes), 0 where a lane has no token yet; None means all exist.
        observe: sees (ticks, tokens, lanes, neurons).

    Returns:
        accumulators (tokens, lanes, actions); those of absent tokens mean nothing.

    Raises:
        NetworkError: more than K tokens.
    """
    tokens = len(graded)
    if tokens > network.context:
        raise NetworkError(f"a window has {tokens} tokens, the network's context is {network.context}: shorten it")
    lags = lambda _node, spikes: lags_of(spikes if exists is None else spikes * exists[..., None])  # noqa: E731
    return evaluate_nodes(network, graded, lags, slice(network.context - tokens, None), observe)


def _present(values: Int64Array) -> Int64Array:
    """The last token of (ticks, tokens, lanes, neurons); a readout's values have no ticks."""
    return values[:, -1] if values.ndim == 4 else values[-1]


def evaluate_nodes(
    network: Network,
    graded: IntArray,
    lags: Callable[[HistoryNode, Int64Array], Lagged],
    places: int | slice,
    observe: Observer | None,
) -> Int64Array:
    """All nodes in order: accumulators (..., lanes, actions) from the encoder's integers (..., lanes, features).

    Args:
        network: to run.
        graded: with a tokens axis in front of the lanes, or without one.
        lags: gives a node with history the past of the population it remembers, from that population's present.
        places: of the tokens in the window, for :class:`~dsf.export.network.nodes.PlacedWindow`.
        observe: called after every node.
    """
    values: dict[str, Int64Array] = {}
    for node in network.nodes:
        if isinstance(node, HOST_KINDS):
            out = np.broadcast_to(graded.astype(np.int64) << node.shift, (network.ticks, *graded.shape))
        elif isinstance(node, Synapses):
            out = shift(integer_product(values[node.source], node.weights), node.exponent)
        elif isinstance(node, Residual):
            out = sum((values[source] for source in node.sources), start=node.bias.astype(np.int64))
        elif isinstance(node, LIF):
            out = fire(node, values[node.source])
        elif isinstance(node, Gate):
            both = values[node.source]
            out = part(both, node.first, node.size) & part(both, node.second, node.size)
        elif isinstance(node, And):
            out = part(values[node.query], node.first, node.size) & values[node.source]
        elif isinstance(node, HISTORY_KINDS):
            out = current(node, values, lags(node, values[node.remembered]), places)
        else:
            out = accumulate(node, values[node.source])
        values[node.name] = out
        if observe is not None:
            observe(node.name, out)
    return values[network.readout.name]


def current(node: HistoryNode, values: dict[str, Int64Array], lagged: Lagged, places: int | slice) -> Int64Array:
    """The integer current of a node with history."""
    if isinstance(node, Count):
        return node.gain * counted(lagged, node.reach)
    if isinstance(node, Outer):
        query = part(values[node.source], node.query, node.size)
        key, value = (lambda lag, first=first: part(lagged(lag), first, node.size) for first in (node.key, node.value))
        return node.gain * scored(query, key, value, node.reach, node.heads, bool(node.all_ticks))
    weights = node.weights.astype(np.int64)
    if isinstance(node, PlacedWindow):
        weights = weights[places] if isinstance(places, int) else weights[places, None]
    return windowed(part(values[node.query], node.first, node.size), lagged, weights)


def part(values: Int64Array, first: int, size: int) -> Int64Array:
    """Neurons first .. first + size - 1 of a population."""
    return values[..., first : first + size]


def check_token_size(network: Network, observation_size: int, action_size: int) -> None:
    """Refuse a network whose input or output does not fit an environment.

    Raises:
        NetworkError: sizes differ.
    """
    features = observation_size + action_size + 1
    if (network.encoder.features, network.readout.size) != (features, action_size):
        raise NetworkError(
            f"network reads {network.encoder.features} features and gives {network.readout.size} actions, the task "
            f"needs {features} and {action_size}: run it with the task it was exported for ('{network.task}')"
        )

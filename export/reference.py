"""The numpy reference engine: the definition of truth. Every other engine must equal it, spike by spike.

It lives beside the network file and not in ``dsf.runtime`` because export has to run it to prove a network.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dsf.export.network import (
    DECAY_BITS,
    LIF,
    MEMBRANE_FRACTION_BITS,
    Encoder,
    Gate,
    IntArray,
    Network,
    NetworkError,
    Readout,
    Residual,
    Synapses,
    Window,
)
from dsf.tasks import Token

Int64Array = npt.NDArray[np.int64]
Observer = Callable[[str, Int64Array], None]
"""Called with a node's name and its values over the token, (ticks, lanes, neurons)."""

MEMBRANE_LIMIT = (1 << 23) - 1


def integer_product(values: IntArray, weights: IntArray) -> Int64Array:
    """Values @ weights.T in exact integers, through float64: every partial sum stays far below 2**53."""
    return (values.astype(np.float64) @ weights.T.astype(np.float64)).astype(np.int64)


def shift(values: Int64Array, exponent: int) -> Int64Array:
    """Values * 2**exponent, rounded towards minus infinity."""
    return values << exponent if exponent >= 0 else values >> -exponent


def encode(node: Encoder, vector: npt.NDArray[np.floating]) -> Int64Array:
    """Quantize token vectors (lanes, features) to the encoder's integers q.

    Raises:
        NetworkError: a value is not finite.
    """
    if not np.isfinite(vector).all():
        raise NetworkError("an observation, action or return-to-go is not finite: check the environment and the target")
    scaled = np.rint((vector.astype(np.float64) - node.offset) / node.step)
    return np.clip(scaled, -node.limit, node.limit).astype(np.int64)


def fire(node: LIF, currents: Int64Array) -> Int64Array:
    """Spikes (ticks, lanes, neurons) of a LIF population over one token."""
    membrane = np.zeros_like(currents[0])
    spikes = np.empty_like(currents)
    keep = (1 << DECAY_BITS) - node.decay
    for tick, current in enumerate(currents):
        leaked = np.sign(membrane) * (np.abs(membrane) * keep >> DECAY_BITS)
        membrane = leaked + (current << MEMBRANE_FRACTION_BITS) + node.bias
        membrane = np.clip(membrane, -MEMBRANE_LIMIT, MEMBRANE_LIMIT)
        spikes[tick] = membrane > (node.threshold.astype(np.int64) << MEMBRANE_FRACTION_BITS)
        membrane[spikes[tick] == 1] = 0
    return spikes


def accumulate(node: Readout, residual: Int64Array) -> Int64Array:
    """The action accumulators y (lanes, actions) from the residual (ticks, lanes, channels)."""
    graded = (residual.sum(axis=0) + (1 << node.shift >> 1)) >> node.shift
    return integer_product(graded, node.weights) + node.bias


def decode(node: Readout, accumulators: IntArray) -> npt.NDArray[np.float64]:
    """Actions (lanes, actions) from accumulators: the only floating-point step, on the host."""
    return np.tanh(node.scale * accumulators)


class ReferenceEngine:
    """Stream-mode engine: one token in, one decision out, per lane. Memory: the PSSA windows' bit histories."""

    def __init__(self, network: Network, lanes: int = 1) -> None:
        self.network, self.lanes = network, lanes
        self.history = {
            node.name: np.zeros((len(node.weights), network.ticks, lanes, node.size), np.int64)
            for node in network.of_kind(Window)
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
        values: dict[str, Int64Array] = {}
        for node in self.network.nodes:
            if isinstance(node, Encoder):
                out = np.broadcast_to(graded.astype(np.int64) << node.shift, (self.network.ticks, *graded.shape))
            elif isinstance(node, Synapses):
                out = shift(integer_product(values[node.source], node.weights), node.exponent)
            elif isinstance(node, Residual):
                out = sum((values[source] for source in node.sources), start=node.bias.astype(np.int64))
            elif isinstance(node, LIF):
                out = fire(node, values[node.source])
            elif isinstance(node, Gate):
                both = values[node.source]
                out = both[..., node.first :][..., : node.size] & both[..., node.second :][..., : node.size]
            elif isinstance(node, Window):
                out = self._attend(node, values[node.query], values[node.gate])
            else:
                out = accumulate(node, values[node.source])
            values[node.name] = out
            if observe is not None:
                observe(node.name, out)
        return values[self.network.readout.name]

    def _attend(self, node: Window, query: Int64Array, coincidences: Int64Array) -> Int64Array:
        """Shift the present coincidences into the history and apply the gated window sum."""
        past = self.history[node.name]
        past[1:] = past[:-1].copy()
        past[0] = coincidences
        window = np.tensordot(node.weights.astype(np.int64), past, axes=1)
        return query[..., node.first :][..., : node.size] * window


class IntegerPolicy:
    """Any integer engine as a closed-loop policy."""

    def __init__(self, engine: ReferenceEngine | WindowReference) -> None:
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
        self.tokens: list[list[IntArray]] = [[] for _ in range(lanes)]

    def reset(self, lane: int) -> None:
        """Start a new episode in one lane."""
        self.tokens[lane] = []

    def step(self, vector: npt.NDArray[np.floating], observe: Observer | None = None) -> Int64Array:
        """Consume one token vector per lane (lanes, features); return accumulators (lanes, actions)."""
        return self.step_graded(encode(self.network.encoder, vector), observe)

    def step_graded(self, graded: IntArray, observe: Observer | None = None) -> Int64Array:
        """As :meth:`step`, from the encoder's integers (lanes, features)."""
        answers = []
        for lane, tokens in enumerate(self.tokens):
            tokens.append(graded[lane : lane + 1])
            del tokens[: -self.network.context]
            engine = ReferenceEngine(self.network)
            for token in tokens[:-1]:
                engine.step_graded(token)
            answers.append(engine.step_graded(tokens[-1], observe))
        return np.concatenate(answers)


def check_token_size(network: Network, observation_size: int, action_size: int) -> None:
    """Refuse a network whose input or output does not fit an environment.

    Raises:
        NetworkError: sizes differ.
    """
    features = observation_size + action_size + 1
    if (network.encoder.size, network.readout.size) != (features, action_size):
        raise NetworkError(
            f"network reads {network.encoder.size} features and gives {network.readout.size} actions, the task needs "
            f"{features} and {action_size}: run it with the task it was exported for ('{network.task}')"
        )

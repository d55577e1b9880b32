"""ONNX Runtime as an integer engine: level L4 of the verification ladder."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from dsf.export.network.network import Network
from dsf.export.network.nodes import HostEmbedding, NetworkError
from dsf.export.network.reference import Observer, encode
from dsf.export.targets.onnx_graph import build_stream, build_window
from dsf.export.targets.onnx_rules import COMMANDS, SPIKES
from dsf.shell.arrays import Int64Array, IntArray
from dsf.tasks.policy import NOT_FINITE

Feeds = dict[str, npt.NDArray[Any]]


def open_session(model: onnx.ModelProto | bytes) -> onnxruntime.InferenceSession:
    """ONNX Runtime on one thread of the processor, for a graph or a file's content."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class _Graphs:
    """The sessions of one network in one mode, opened when they are first needed."""

    def __init__(self, network: Network, window: bool) -> None:
        self.network, self._build = network, build_window if window else build_stream
        self._sessions: dict[tuple[bool, bool], onnxruntime.InferenceSession] = {}

    def run(self, feeds: Feeds, encoder: bool, spikes: bool) -> Feeds:
        """All outputs by name."""
        if (encoder, spikes) not in self._sessions:
            model = self._build(self.network, encoder=encoder, spikes=spikes)
            self._sessions[encoder, spikes] = open_session(model)
        session = self._sessions[encoder, spikes]
        names = [output.name for output in session.get_outputs() if output.name not in ("actions", COMMANDS)]
        return dict(zip(names, session.run(names, feeds)))

    def states(self, lanes: int) -> Feeds:
        """Empty histories for every ``state.*``."""
        ticks = self.network.ticks
        return {
            f"state.{node.name}": np.zeros((node.reach - 1, ticks, lanes, self.network[node.remembered].size), np.uint8)
            for node in self.network.with_history
            if node.reach > 1
        }


def _answer(network: Network, outputs: Feeds, observe: Observer | None) -> Int64Array:
    """The accumulators, after the observer has seen spikes and accumulators in the network's order."""
    accumulators = outputs["accumulators"].astype(np.int64)
    if observe is not None:
        for node in network.nodes:
            if (name := SPIKES + node.name) in outputs:
                observe(node.name, outputs[name].astype(np.int64))
        observe(network.readout.name, accumulators)
    return accumulators


def _require_finite(vector: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    if not np.isfinite(vector).all():
        raise NetworkError(NOT_FINITE)
    return vector.astype(np.float64)


class OnnxEngine:
    """Stream mode, as :class:`~dsf.export.network.reference.ReferenceEngine`.

    Observers see spikes and accumulators only.
    """

    def __init__(self, network: Network, lanes: int = 1) -> None:
        self.network, self.lanes = network, lanes
        self._graphs = _Graphs(network, window=False)
        self.states = self._graphs.states(lanes)

    def reset(self, lane: int) -> None:
        """Start a new episode in one lane: no history."""
        for past in self.states.values():
            past[:, :, lane] = 0

    def step(self, vector: npt.NDArray[np.floating], observe: Observer | None = None) -> Int64Array:
        """Consume one token vector per lane (lanes, features), encoded by the graph; return accumulators.

        Raises:
            NetworkError: a value is not finite.
        """
        if isinstance(encoder := self.network.encoder, HostEmbedding):
            return self.step_graded(encode(encoder, vector), observe)
        return self._decide({"token": _require_finite(vector)}, True, observe)

    def step_graded(self, graded: IntArray, observe: Observer | None = None) -> Int64Array:
        """As :meth:`step`, from the encoder's integers q (lanes, features)."""
        return self._decide({"graded": graded.astype(np.int32)}, False, observe)

    def _decide(self, token: Feeds, encoder: bool, observe: Observer | None) -> Int64Array:
        outputs = self._graphs.run({**token, **self.states}, encoder, observe is not None)
        self.states = {name: outputs[name.replace("state.", "next.", 1)] for name in self.states}
        return _answer(self.network, outputs, observe)


class OnnxWindowEngine:
    """Window mode, as :class:`~dsf.export.network.reference.WindowReference`.

    Observers see the present token's spikes.
    """

    def __init__(self, network: Network, lanes: int = 1) -> None:
        self.network, self.lanes = network, lanes
        self._graphs = _Graphs(network, window=True)
        self._rows: Feeds = {}
        self.exists = np.zeros((network.context, lanes), np.uint8)

    def reset(self, lane: int) -> None:
        """Start a new episode in one lane."""
        self.exists[:, lane] = 0

    def step(self, vector: npt.NDArray[np.floating], observe: Observer | None = None) -> Int64Array:
        """Consume one token vector per lane (lanes, features), encoded by the graph; return accumulators.

        Raises:
            NetworkError: a value is not finite, or earlier tokens came through :meth:`step_graded`.
        """
        if isinstance(encoder := self.network.encoder, HostEmbedding):
            return self.step_graded(encode(encoder, vector), observe)
        return self._decide("tokens", _require_finite(vector), observe)

    def step_graded(self, graded: IntArray, observe: Observer | None = None) -> Int64Array:
        """As :meth:`step`, from the encoder's integers q (lanes, features).

        Raises:
            NetworkError: earlier tokens came through :meth:`step`.
        """
        return self._decide("graded", graded.astype(np.int32), observe)

    def _decide(self, name: str, newest: npt.NDArray[Any], observe: Observer | None) -> Int64Array:
        if not self._rows:
            self._rows[name] = np.zeros((self.network.context, *newest.shape), newest.dtype)
        if name not in self._rows:
            raise NetworkError("a window of ONNX Runtime cannot mix step and step_graded: use one of them throughout")
        for rows, row in ((self._rows[name], newest), (self.exists, 1)):
            rows[:-1] = rows[1:].copy()
            rows[-1] = row
        outputs = self._graphs.run({**self._rows, "exists": self.exists}, name == "tokens", observe is not None)
        present = {key: out[:, -1] if key.startswith(SPIKES) else out for key, out in outputs.items()}
        return _answer(self.network, present, observe)

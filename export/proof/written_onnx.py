"""ONNX files as they lie on the disk, run in ONNX Runtime from float tokens to actions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from dsf.export.conversion.folded import FoldedEngine, FoldedModel
from dsf.export.network.network import Network
from dsf.export.network.nodes import HostEmbedding, NetworkError
from dsf.export.network.reference import TANH_TOLERANCE, ReferenceEngine, WindowReference, decode, encode
from dsf.export.proof.rungs import Rung
from dsf.export.targets.onnx_engine import Feeds, open_session
from dsf.export.targets.onnx_rules import FLOAT_WINDOW, LANES, STREAM, WINDOW
from dsf.shell.arrays import FloatArray

FLOAT32_TOLERANCE = 1e-5
"""Largest difference, absolute or relative, between actions in float32 and float64 where no spike differs."""
LARGEST_FLIPPED_SHARE = 0.05
"""Share of the decisions in which rounding to float32 may flip a spike, and so move the action."""

NUMPY_TYPES: dict[str, type[np.generic]] = {
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
}
"""Types of the graphs' inputs."""


class Player:
    """A session fed with one token vector (or one host embedding's integers) per lane and step, in its file's mode."""

    def __init__(self, session: onnxruntime.InferenceSession, mode: str, lanes: int) -> None:
        self.session, self.mode = session, mode
        self.names = [output.name for output in session.get_outputs()]
        self.feeds: Feeds = {}
        for value in session.get_inputs():
            kind = NUMPY_TYPES[value.type]
            self.feeds[value.name] = np.zeros([lanes if axis == LANES else axis for axis in value.shape], kind)

    def step(self, vector: npt.NDArray[np.number]) -> Feeds:
        """All outputs for the next token vectors (lanes, features), or integers (lanes, channels)."""
        token = next(name for name in ("token", "tokens", "graded") if name in self.feeds)
        if self.mode == STREAM:
            self.feeds[token] = vector.astype(self.feeds[token].dtype)
        else:
            for name, newest in ((token, vector), ("exists", 1)):
                self.feeds[name][:-1] = self.feeds[name][1:].copy()
                self.feeds[name][-1] = newest
        outputs: Feeds = dict(zip(self.names, self.session.run(self.names, self.feeds)))
        for name in self.feeds:
            if name.startswith("state."):
                self.feeds[name] = outputs[name.replace("state.", "next.", 1)]
        return outputs


def compare_onnx(path: Path, network: Network, folded: FoldedModel | None, vectors: FloatArray) -> Rung:
    """An ONNX file against the reference, or a float one against level L1.

    Args:
        path: of the file.
        network: that it should be.
        folded: its level L1.
        vectors: (steps, lanes, features) float tokens, one unbroken sequence per lane.

    Raises:
        NetworkError: the file is no graph of dsf-export, or one of another network.
    """
    session = open_file(path)
    mode = session.get_modelmeta().custom_metadata_map.get("mode", "")
    _require_same_inputs(path, session, mode, network)
    player = Player(session, mode, vectors.shape[1])
    if mode == FLOAT_WINDOW:
        return _compare_float(player, folded, vectors)
    return _compare_integers(player, network, vectors)


def open_file(path: Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime on a file's bytes.

    Raises:
        NetworkError: it is missing, or no ONNX graph.
    """
    try:
        return open_session(path.read_bytes())
    except OSError as error:
        raise NetworkError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # ONNX Runtime's own exceptions have no base class but this
        reason = " ".join(str(error).split())
        raise NetworkError(f"{path} is no ONNX graph, or is damaged ({reason}): export it again") from None


def _require_same_inputs(path: Path, session: onnxruntime.InferenceSession, mode: str, network: Network) -> None:
    """Refuse a graph that cannot even be fed with the network's tokens.

    Raises:
        NetworkError: naming mode or input.
    """
    if mode not in (STREAM, WINDOW, FLOAT_WINDOW):
        raise NetworkError(f"{path} is no ONNX graph of dsf-export: its metadata name the mode '{mode}'")
    size, context, stream = network.encoder.size, network.context, mode == STREAM
    token = _token_input(network, mode)
    wanted: dict[str, list[int | str]] = {token: [LANES, size] if stream else [context, LANES, size]}
    if mode == FLOAT_WINDOW:
        wanted = {token: [context, LANES, network.encoder.features]}
    if not stream:
        wanted["exists"] = [context, LANES]
    if stream:
        for node in network.with_history:
            if node.reach > 1:
                wanted[f"state.{node.name}"] = [node.reach - 1, network.ticks, LANES, network[node.remembered].size]
    found = {value.name: list(value.shape) for value in session.get_inputs()}
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            raise NetworkError(
                f"{path} is another network's: its input '{name}' is {found.get(name, 'absent')}, this network's is "
                f"{wanted.get(name, 'absent')}"
            )


def _token_input(network: Network, mode: str) -> str:
    """Name of the input that takes tokens; behind a host embedding, an integer graph's takes its integers."""
    if isinstance(network.encoder, HostEmbedding) and mode != FLOAT_WINDOW:
        return "graded"
    return "token" if mode == STREAM else "tokens"


def _compare_integers(player: Player, network: Network, vectors: FloatArray) -> Rung:
    lanes, wrong, wrong_actions = vectors.shape[1], 0, 0
    stream = player.mode == STREAM
    reference = ReferenceEngine(network, lanes) if stream else WindowReference(network, lanes)
    for vector in vectors:
        token = encode(network.encoder, vector) if isinstance(network.encoder, HostEmbedding) else vector
        outputs, truth = player.step(token), reference.step(vector)
        wrong += int(np.count_nonzero(outputs["accumulators"] != truth))
        wanted = decode(network.readout, truth)
        close = np.isclose(outputs["actions"], wanted, TANH_TOLERANCE, TANH_TOLERANCE)
        wrong_actions += int(np.count_nonzero(~close))
    decisions = vectors.shape[0] * lanes
    summary = f"{decisions:,} decisions from float tokens, {wrong} accumulators and {wrong_actions} actions differ"
    details = {"decisions": decisions, "accumulator_mismatches": wrong, "action_mismatches": wrong_actions}
    return Rung(f"L2 reference = ONNX file, {player.mode}", wrong == wrong_actions == 0, summary, details)


def _compare_float(player: Player, folded: FoldedModel | None, vectors: FloatArray) -> Rung:
    """Actions at every step: they may leave the tolerance only where rounding has flipped a spike, which is rare."""
    name = "L1 folded float = ONNX file, float32"
    if folded is None:
        return Rung(name, None, "not tried: give the trained run, a network file has no float network", {})
    engine, graded, errors = FoldedEngine(folded), folded.codec.encode(vectors), []
    for step, vector in enumerate(vectors):
        wanted = engine.decide(graded[max(step + 1 - folded.context, 0) : step + 1])[-1]
        error = np.abs(player.step(vector)["actions"] - wanted) / np.maximum(np.abs(wanted), 1.0)
        errors.append(error.max(axis=-1))
    decisions, beyond = np.size(errors), int(np.count_nonzero(~(np.array(errors) <= FLOAT32_TOLERANCE)))
    summary = (
        f"{decisions:,} decisions from float tokens, {beyond} differ by more than {FLOAT32_TOLERANCE:g} (a spike that "
        f"rounding has flipped; limit {LARGEST_FLIPPED_SHARE:.0%}), median {np.median(errors):.1e}"
    )
    details = {"decisions": decisions, "beyond_tolerance": beyond, "action_error_median": float(np.median(errors))}
    return Rung(name, beyond <= LARGEST_FLIPPED_SHARE * decisions, summary, details)

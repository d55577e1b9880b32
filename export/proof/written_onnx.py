"""ONNX files as they lie on the disk, run in ONNX Runtime from float tokens to actions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from dsf.export.conversion.folded import FoldedEngine, FoldedModel
from dsf.export.network.network import Network
from dsf.export.network.nodes import HostEmbedding, NetworkError, Readout, Synapses
from dsf.export.network.reference import TANH_TOLERANCE, ReferenceEngine, WindowReference, commands, decode, encode
from dsf.export.proof.rungs import Rung
from dsf.export.targets.onnx_engine import Feeds, open_session
from dsf.export.targets.onnx_rules import COMMANDS, FLOAT_WINDOW, LANES, STREAM, WINDOW
from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.shell.file_values import read_bytes
from dsf.shell.plain_text import plain, shown

FLOAT32_TOLERANCE = 1e-5
"""Largest difference, absolute or relative, between actions in float32 and float64 where no spike differs."""
REMEDY = "export it again"
LONGEST_REASON = 300
"""Characters of what ONNX Runtime says."""
LARGEST_FILE = 1 << 30
"""Bytes: a graph holds its network's weights."""
MOST_OPERATORS = 1 << 18
LEAST_LIMIT, SHARE_OF_WINDOW = 1 << 22, 64
"""Numbers that a tensor of one lane may have: so many, or so many times a window of the largest population."""
OPERATORS = frozenset(
    {
        *(
            "Add",
            "ArgMax",
            "Cast",
            "Clip",
            "Concat",
            "ConstantOfShape",
            "CumSum",
            "Div",
            "Greater",
            "Identity",
            "MatMul",
        ),
        *(
            "MatMulInteger",
            "Max",
            "Min",
            "Mod",
            "Mul",
            "Pad",
            "ReduceMean",
            "ReduceSum",
            "Reshape",
            "Round",
            "ScatterElements",
        ),
        *("Slice", "Split", "Sqrt", "Sub", "Tanh", "Unsqueeze", "Where"),
    }
)
"""What dsf-export writes; none repeats itself, and none reads a file."""
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
    session = open_file(path, network)
    mode = session.get_modelmeta().custom_metadata_map.get("mode", "")
    _require_same_inputs(path, session, mode, network)
    player = Player(session, mode, vectors.shape[1])
    try:
        if mode == FLOAT_WINDOW:
            return _compare_float(player, folded, vectors, network.readout)
        return _compare_integers(player, network, vectors)
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's own, or an output that is missing or has another shape
        reason = plain(" ".join(f"{type(error).__name__}: {error}".split()))[:LONGEST_REASON]
        raise NetworkError(f"{path} does not run as a graph of dsf-export ({reason}): {REMEDY}") from None


def open_file(path: Path, network: Network) -> onnxruntime.InferenceSession:
    """ONNX Runtime on a file's bytes, if it could be a graph of this network.

    Raises:
        NetworkError: it is missing, or no ONNX graph.
    """
    try:
        content = read_bytes(path, "ONNX graph", LARGEST_FILE)
        _require_bounded(onnx.load_model_from_string(content), network)  # a copy, which it changes
        return open_session(content)
    except OSError as error:
        raise NetworkError(f"cannot read {path}: {error.strerror}") from None
    except UserError as error:
        raise NetworkError(f"{path}: {error}") from None
    except Exception as error:  # ONNX Runtime's own exceptions have no base class but this
        reason = plain(" ".join(str(error).split()))[:LONGEST_REASON]
        raise NetworkError(f"{path} is no ONNX graph, or is damaged ({reason}): export it again") from None


def _require_bounded(model: onnx.ModelProto, network: Network) -> None:
    """Refuse a graph that would read other files, run for ever, or ask for more memory than any network's.

    Raises:
        UserError: naming the operator or tensor.
    """
    graph = model.graph
    if model.functions or graph.sparse_initializer or len(graph.node) > MOST_OPERATORS:
        raise UserError(f"it has functions, sparse tensors or more than {MOST_OPERATORS:,} operators: {REMEDY}")
    values_of_nodes = (attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t"))
    for tensor in (*graph.initializer, *values_of_nodes):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise UserError(f"tensor {shown(tensor.name)} holds no data of its own, it names another file: {REMEDY}")
    for node in graph.node:
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise UserError(f"operator {shown(node.op_type)} is none that dsf-export writes: {REMEDY}")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise UserError(f"operator {shown(node.op_type)} holds a graph of its own: {REMEDY}")
    window = network.ticks * network.context * max(node.size for node in network.nodes)
    matrices = [node.weights.size for node in network.nodes if isinstance(node, (Synapses, Readout))]
    limit = max(LEAST_LIMIT, SHARE_OF_WINDOW * window, *matrices)
    for value in graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:  # the lanes: shapes are inferred for one
                axis.dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = {value.name: value.type.tensor_type.shape.dim for value in (*inferred.value_info, *inferred.output)}
    for name in (name for node in graph.node for name in node.output if name):
        sizes = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in values.get(name, ())]
        if name not in values or min(sizes, default=0) < 0:
            raise UserError(f"nobody can tell the size of tensor {shown(name)} before it is there: {REMEDY}")
        if (count := math.prod(sizes)) > limit:
            raise UserError(f"tensor {shown(name)} has {count:,} numbers, limit {limit:,}: {REMEDY}")


def _require_same_inputs(path: Path, session: onnxruntime.InferenceSession, mode: str, network: Network) -> None:
    """Refuse a graph that cannot even be fed with the network's tokens.

    Raises:
        NetworkError: naming mode or input.
    """
    if mode not in (STREAM, WINDOW, FLOAT_WINDOW):
        raise NetworkError(f"{path} is no ONNX graph of dsf-export: its metadata name the mode {shown(mode)}")
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
        if network.readout.has_commands:
            wrong_actions += wrong_commands(network.readout, outputs)
    decisions = vectors.shape[0] * lanes
    summary = f"{decisions:,} decisions from float tokens, {wrong} accumulators and {wrong_actions} actions differ"
    details = {"decisions": decisions, "accumulator_mismatches": wrong, "action_mismatches": wrong_actions}
    return Rung(f"L2 reference = ONNX file, {player.mode}", wrong == wrong_actions == 0, summary, details)


def wrong_commands(readout: Readout, outputs: Feeds) -> int:
    """How many of a graph's commands are not what the reference makes of its actions, or lie beyond the bounds."""
    wanted, found = commands(readout, outputs["actions"].astype(np.float64)), outputs[COMMANDS]
    if readout.head == "choice":
        return int(np.count_nonzero(found != wanted))
    tolerance = TANH_TOLERANCE if found.dtype == np.float64 else FLOAT32_TOLERANCE
    span = np.array(readout.high) - np.array(readout.low)
    beyond = (found < np.array(readout.low)) | (found > np.array(readout.high))
    return int(np.count_nonzero(~(np.abs(found - wanted) <= tolerance * span) | beyond))


def _compare_float(player: Player, folded: FoldedModel | None, vectors: FloatArray, readout: Readout) -> Rung:
    """Actions at every step: they may leave the tolerance only where rounding has flipped a spike, which is rare."""
    name = "L1 folded float = ONNX file, float32"
    if folded is None:
        return Rung(name, None, "not tried: give the trained run, a network file has no float network", {})
    engine, graded, errors, wrong = FoldedEngine(folded), folded.codec.encode(vectors), [], 0
    for step, vector in enumerate(vectors):
        wanted = engine.decide(graded[max(step + 1 - folded.context, 0) : step + 1])[-1]
        outputs = player.step(vector)
        error = np.abs(outputs["actions"] - wanted) / np.maximum(np.abs(wanted), 1.0)
        wrong += wrong_commands(readout, outputs) if readout.has_commands else 0
        errors.append(error.max(axis=-1))
    decisions, beyond = np.size(errors), int(np.count_nonzero(~(np.array(errors) <= FLOAT32_TOLERANCE)))
    summary = (
        f"{decisions:,} decisions from float tokens, {beyond} differ by more than {FLOAT32_TOLERANCE:g} (a spike that "
        f"rounding has flipped; limit {LARGEST_FLIPPED_SHARE:.0%}), median {np.median(errors):.1e}"
    )
    details = {"decisions": decisions, "beyond_tolerance": beyond, "action_error_median": float(np.median(errors))}
    if wrong:
        summary += f"; {wrong} commands are not its actions between the bounds"
    return Rung(name, beyond <= LARGEST_FLIPPED_SHARE * decisions and not wrong, summary, details)

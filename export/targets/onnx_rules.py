"""What all ONNX graphs of a spiking transformer are made of: a writer of nodes, the modes' pasts, attention's sums.

Opset 17 and IR 8, which every ONNX Runtime since 1.12 reads. Spikes are 0 or 1 in an element type of their own, sums
are in the writer's number type; tensors are (ticks, ..., lanes, neurons), with a tokens axis in window mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from dsf.export.network.attention import Array
from dsf.export.network.nodes import Readout

OPSET, IR_VERSION = 17, 8
LANES = "lanes"
"""Name of the symbolic batch dimension."""
STREAM, WINDOW, FLOAT_WINDOW = "stream", "window", "float window"
"""What the metadata's ``mode`` may say of a graph."""
COMMANDS = "commands"
"""Output of what the machine gets, where that is something else than actions in [-1, 1], or choices from 0."""
SPIKES = "spikes."
"""In front of the name of a spiking population: the tensor of its spikes."""
Shape = tuple[int | str, ...]


class GraphWriter:
    """Collects the nodes of one graph. Tensors are known by their names: most methods add a tensor and return its name.

    Attributes:
        number: element type of currents and sums (a TensorProto type).
        spike: element type of spikes.
        scope: in front of the names to come; the network's node that is being written.
    """

    def __init__(self, number: int, spike: int) -> None:
        self.number, self.spike, self.scope = number, spike, ""
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add an operator with one output, called ``name`` or after its scope and kind."""
        name = name or self._fresh(kind)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}:{name}", **attributes))
        return name

    def constant(self, values: Array, name: str = "constant") -> str:
        """An initializer; equal values are stored once."""
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            tensor = numpy_helper.from_array(values, f"{self.scope}.{name}.{len(self._constants)}")
            self._constants[key] = tensor
        return self._constants[key].name

    def numbers(self, values: npt.ArrayLike, name: str = "constant") -> str:
        """A constant of the number type."""
        return self.constant(np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(self.number)), name)

    def matrix(self, weights: Array, name: str) -> str:
        """A matrix of int8; one most of whose entries are 0 is put together, in the graph, from those that are not.

        They lie one after the other, with the distance of each from the one before: ONNX's own sparse initializers take
        eight bytes for a place.
        """
        flat = weights.reshape(-1)
        places = np.flatnonzero(flat)
        gaps = np.diff(places, prepend=0)
        kind = np.uint8 if gaps.max(initial=0) <= np.iinfo(np.uint8).max else np.uint16
        smaller = places.size * (1 + np.dtype(kind).itemsize) < flat.size
        if not smaller or not places.size or gaps.max() > np.iinfo(np.uint16).max:
            return self.constant(np.ascontiguousarray(weights), name)
        distances = self.cast(self.constant(gaps.astype(kind), f"{name}.distances"), TensorProto.INT64)
        found = self.op("CumSum", distances, self.constant(np.array(0, np.int64), "axis"))
        zero = numpy_helper.from_array(np.zeros(1, np.int8))
        empty = self.op("ConstantOfShape", self.positions(flat.size), value=zero)
        filled = self.op("ScatterElements", empty, found, self.constant(flat[places], f"{name}.values"), axis=0)
        return self.op("Reshape", filled, self.positions(*weights.shape))

    def positions(self, *values: int) -> str:
        """A constant of axes, shapes or bounds."""
        return self.constant(np.array(values, np.int64))

    def input(self, name: str, element: int, shape: Shape, meaning: str) -> str:
        """Declare a graph input."""
        self.inputs.append(helper.make_tensor_value_info(name, element, shape, meaning))
        return name

    def output(self, name: str, element: int, shape: Shape, meaning: str) -> None:
        """Declare a tensor of the graph as one of its outputs."""
        self.outputs.append(helper.make_tensor_value_info(name, element, shape, meaning))

    def cast(self, x: str, element: int, name: str = "") -> str:
        """Convert to an element type."""
        return self.op("Cast", x, name=name, to=element)

    def numbers_of(self, spikes: str) -> str:
        """Spikes, or products of spikes, in the number type."""
        return spikes if self.spike == self.number else self.cast(spikes, self.number)

    def slice(self, x: str, axis: int, start: int, stop: int, name: str = "") -> str:
        """Entries start .. stop - 1 along an axis."""
        bounds = (self.positions(value) for value in (start, stop, axis))
        return self.op("Slice", x, *bounds, name=name)

    def part(self, population: str, first: int, size: int) -> str:
        """Neurons first .. first + size - 1 of a population."""
        return self.slice(population, -1, first, first + size)

    def split(self, x: str, axis: int, parts: int) -> list[str]:
        """All entries along an axis, which stays with length 1."""
        if parts == 1:
            return [x]
        names = [self._fresh(f"Split{part}") for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [x, self.positions(*[1] * parts)], names, names[0], axis=axis))
        return names

    def sum_over(self, x: str, *axes: int, keep: bool = False) -> str:
        """Sum over axes, which disappear unless ``keep``."""
        return self.op("ReduceSum", x, self.positions(*axes), keepdims=int(keep))

    def model(self, name: str, meaning: str) -> onnx.ModelProto:
        """The finished graph, not checked yet."""
        constants = list(self._constants.values())
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, constants, meaning)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="dsf",
            producer_version=version("dsf"),
        )

    def _fresh(self, kind: str) -> str:
        return f"{self.scope}/{kind.lower()}.{len(self.nodes)}"


def check(model: onnx.ModelProto) -> onnx.ModelProto:
    """Everything onnx can check: structure, types and shapes, strictly. Returns the model with all shapes filled in.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: the graph is not valid.
    """
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


@dataclass(frozen=True)
class StreamPast:
    """One token per call: the past comes in as ``state.<node>`` and leaves as ``next.<node>``.

    Both are (reach - 1, ticks, lanes, neurons), the last token first; a node that reads only the present has none.
    """

    writer: GraphWriter
    ticks: int
    exists: str = ""  # every token of a stream does

    def shape(self, neurons: int) -> Shape:
        """Shape of a population's values."""
        return (self.ticks, LANES, neurons)

    def stack(self, node: str, spikes: str, neurons: int, reach: int) -> str:
        """What a population fired k = 0 .. reach-1 tokens ago, (reach, ticks, lanes, neurons)."""
        writer, kept = self.writer, (reach - 1, self.ticks, LANES, neurons)
        present = writer.op("Unsqueeze", spikes, writer.positions(0))
        if reach == 1:
            return present
        past = writer.input(
            f"state.{node}", writer.spike, kept, f"spikes that '{node}' remembers, last token first; zeros at the start"
        )
        joined = writer.op("Concat", present, past, axis=0)
        following = writer.slice(joined, 0, 0, reach - 1, name=f"next.{node}")
        writer.output(following, writer.spike, kept, f"the next call's state.{node}")
        return joined

    def weights(self, weights: Array) -> Array:
        """A bias on lags, (reach,) or (places, reach), shaped to fit a stack. A stream's tokens take the last place."""
        return (weights if weights.ndim == 1 else weights[-1])[:, None, None, None]

    def sum_of_present(self, residual: str) -> str:
        """The present token's residual summed over ticks, (lanes, channels)."""
        return self.writer.sum_over(residual, 0)


@dataclass(frozen=True)
class WindowPast:
    """A whole window of K tokens per call, the last one the present; ``exists`` says which tokens there are."""

    writer: GraphWriter
    ticks: int
    context: int
    exists: str  # (K, lanes), of the spike type

    def shape(self, neurons: int) -> Shape:
        """Shape of a population's values."""
        return (self.ticks, self.context, LANES, neurons)

    def stack(self, node: str, spikes: str, neurons: int, reach: int) -> str:
        """What a population fired k = 0 .. reach-1 tokens before each token, (reach, ticks, K, lanes, neurons)."""
        writer = self.writer
        mask = writer.op("Unsqueeze", self.exists, writer.positions(0, 3))
        lags = writer.op("Unsqueeze", writer.op("Mul", spikes, mask), writer.positions(0))
        if reach == 1:
            return lags
        padded = writer.op("Pad", lags, writer.positions(0, 0, reach - 1, *[0] * 7))
        starts = range(reach - 1, -1, -1)
        shifted = [writer.slice(padded, 2, start, start + self.context) for start in starts]
        return writer.op("Concat", *shifted, axis=0)

    def weights(self, weights: Array) -> Array:
        """A bias on lags, (reach,) or (K, reach), shaped to fit a stack."""
        return weights[:, None, None, None, None] if weights.ndim == 1 else weights.T[:, None, :, None, None]

    def sum_of_present(self, residual: str) -> str:
        """The present token's residual summed over ticks, (lanes, channels)."""
        return self.writer.sum_over(self.writer.slice(residual, 1, self.context - 1, self.context), 0, 1)


Past = StreamPast | WindowPast


def encode(writer: GraphWriter, token: str, offset: Array, step: Array, limit: int | None) -> str:
    """clip(round_half_even((float32(x) - offset) / step), -limit, limit) as int32, from finite float64; without a
    limit, (float32(x) - offset) / step as float64.
    """
    token = writer.cast(writer.cast(token, TensorProto.FLOAT), TensorProto.DOUBLE)
    centred = writer.op("Sub", token, writer.constant(offset.astype(np.float64), "offset"))
    scaled = writer.op("Div", centred, writer.constant(step.astype(np.float64), "step"))
    if limit is None:
        return scaled
    rounded = writer.op("Round", scaled)
    low, high = (writer.constant(np.array(bound, np.float64), "limit") for bound in (-limit, limit))
    return writer.cast(writer.op("Clip", rounded, low, high), TensorProto.INT32)


def nan_unless_finite(writer: GraphWriter, token: str, exists: str = "") -> str:
    """0 per lane, or NaN where a feature is NaN or infinite: (lanes, 1) float64, to be added to the actions.

    The integers between cannot say it: what a cast makes of NaN is up to the runtime.

    Args:
        writer: of the graph.
        token: float64 (lanes, features), or (K, lanes, features).
        exists: (K, lanes), what of such a window counts.
    """
    writer.scope = "finite"
    found = writer.sum_over(writer.op("Sub", token, token), -1, keep=True)
    if not exists:
        return found
    there = writer.op("Unsqueeze", writer.cast(exists, TensorProto.BOOL), writer.positions(-1))
    return writer.sum_over(writer.op("Where", there, found, writer.constant(np.array(0.0), "zero")), 0)


def write_commands(
    writer: GraphWriter, readout: Readout, actions: str, number: type[np.floating[Any]], unless_finite: str
) -> None:
    """The output ``commands``: what the machine gets for actions, between its bounds, or the number of the choice.

    Args:
        writer: of the graph.
        readout: whose bounds, or whose first choice, these are.
        actions: (lanes, actions), in [-1, 1], or scores.
        number: type of the actions.
        unless_finite: what makes them NaN for tokens that are not finite; empty where nothing does.
    """
    writer.scope = "commands"
    if readout.head == "choice":
        best = writer.op("ArgMax", actions, axis=-1, keepdims=0)
        writer.op("Add", best, writer.positions(readout.first_choice), name=COMMANDS)
        meaning = f"the choice, counted from {readout.first_choice}; it means nothing where a token is not finite"
        writer.output(COMMANDS, TensorProto.INT64, (LANES,), meaning)
        return
    low, high = (np.array(bound, number) for bound in (readout.low, readout.high))
    ends = writer.constant(low, "low"), writer.constant(high, "high")
    half = (np.array(readout.high) - np.array(readout.low)) / 2.0
    one = writer.op("Add", actions, writer.constant(np.array(1.0, number), "one"))
    reached = writer.op("Add", writer.op("Mul", one, writer.constant(half.astype(number), "half")), ends[0])
    between = writer.op("Min", writer.op("Max", reached, ends[0]), ends[1])
    before_end = writer.op("Greater", writer.constant(np.array(1.0, number), "end"), actions)
    bounded = ("Where", before_end, between, ends[1])
    if unless_finite:
        writer.op("Add", writer.op(*bounded), unless_finite, name=COMMANDS)
    else:
        writer.op(*bounded, name=COMMANDS)
    meaning = "what the machine gets for the actions, between its bounds; tokens hold the actions"
    element = helper.np_dtype_to_tensor_dtype(np.dtype(number))
    writer.output(COMMANDS, element, (LANES, readout.size), meaning)


def windowed(writer: GraphWriter, query: str, stack: str, weights: Array) -> str:
    """Query * sum_k weights[k] * stack[k]: PSSA."""
    weighted = writer.op("Mul", writer.numbers_of(stack), writer.numbers(weights, "weights"))
    return writer.op("Mul", writer.numbers_of(query), writer.sum_over(weighted, 0))


def counted(writer: GraphWriter, stack: str) -> str:
    """sum_k stack[k]: the sum of SDSA-1."""
    return writer.sum_over(writer.numbers_of(stack), 0)


def scored(writer: GraphWriter, query: str, key: str, value: str, shape: Shape, heads: int, all_ticks: bool) -> str:
    """sum_k (query . key[k]) value[k] per head: SSSA and SDSA-3, or with scores over all ticks TSSA.

    Args:
        writer: of the graph.
        query: present spikes (ticks, ..., size).
        key: stack (reach, ticks, ..., size).
        value: stack of the same shape.
        shape: of ``query``.
        heads: that divide the channels.
        all_ticks: whether a score is summed over the token's ticks.
    """
    size = int(shape[-1])
    by_head = writer.positions(*[0] * len(shape), heads, size // heads)  # 0: as it is
    pairs = writer.op("Reshape", writer.op("Mul", query, key), by_head)
    scores = writer.sum_over(writer.numbers_of(pairs), -1, *([1] if all_ticks else []), keep=True)
    values = writer.numbers_of(writer.op("Reshape", value, by_head))
    total = writer.sum_over(writer.op("Mul", scores, values), 0)
    return writer.op("Reshape", total, writer.positions(*[0] * (len(shape) - 1), size))

"""The folded float network (level L1) as an ONNX graph: the same policy for machines that run floats.

Window mode over K tokens, in standard operators: ``tokens`` and ``exists`` in, ``actions`` of the last token out: NaN
where a token is not finite.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from dsf.export.conversion.folded import FoldedAttention, FoldedModel
from dsf.export.network.attention import lag_rows
from dsf.export.network.network import Network
from dsf.export.network.nodes import Readout
from dsf.export.targets.onnx_graph import metadata_of, save
from dsf.export.targets.onnx_rules import (
    FLOAT_WINDOW,
    LANES,
    SPIKES,
    GraphWriter,
    WindowPast,
    counted,
    encode,
    nan_unless_finite,
    scored,
    windowed,
    write_commands,
)
from dsf.shell.arrays import FloatArray
from dsf.train.quantization.integers import Affine


def build_float(
    folded: FoldedModel,
    *,
    dtype: npt.DTypeLike = np.float32,
    encoder: bool = True,
    spikes: bool = False,
    readout: Readout | None = None,
) -> onnx.ModelProto:
    """The folded network for K tokens at once, the last one the present.

    Args:
        folded: to write.
        dtype: of weights, membranes and actions: float32, or float64 to compare with the folded engine.
        encoder: whether the graph reads float64 ``tokens`` (K, lanes, features), or the codec's int32 ``graded``.
        spikes: whether every LIF population is an output ``spikes.<population>`` (ticks, K, lanes, neurons).
        readout: of the integer network, whose bounds of actions are written; None leaves them at -1 and 1.
    """
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    writer = GraphWriter(number=number, spike=number)
    shape = (folded.context, LANES, len(folded.codec.offset))
    meaning = "1 where a lane has a token, 0 before its episode's start; the last row is the present token"
    exists = writer.cast(writer.input("exists", TensorProto.UINT8, shape[:2], meaning), number, name="exists.number")
    if encoder:
        tokens = writer.input("tokens", TensorProto.DOUBLE, shape, "as for the integer network")
        finite = writer.cast(nan_unless_finite(writer, tokens, "exists"), number)
        codec = folded.codec
        source = encode(writer, tokens, codec.offset, codec.step, codec.limit if codec.bits else None)
    else:
        kind = TensorProto.INT32 if folded.codec.bits else TensorProto.DOUBLE
        source = writer.input("graded", kind, shape, "what the codec makes of tokens")
    past = WindowPast(writer, folded.ticks, folded.context, exists)
    layers = FloatLayers(folded, writer, past, spikes)
    decided = layers.decide(writer.cast(source, number))
    last = ("Add", decided, finite) if encoder else ("Identity", decided)
    actions = writer.op(*last, name="actions")
    writer.output(
        actions, number, (LANES, len(folded.head.bias)), "scores of choices" if folded.discrete else "actions"
    )
    if readout is not None and readout.has_commands:
        single = np.dtype(dtype) == np.float32
        write_commands(writer, readout, actions, np.float32 if single else np.float64, finite if encoder else "")
    return writer.model("dsf_float_window", __doc__ or "")


def write_onnx_float(folded: FoldedModel, network: Network, path: Path) -> None:
    """Check the float32 graph and write it whole or not at all, with the metadata of the integer network's file.

    Raises:
        OSError: the directory cannot be written.
    """
    save(build_float(folded, readout=network.readout), path, metadata_of(network, FLOAT_WINDOW))


class FloatLayers:
    """Writes what :class:`~dsf.export.conversion.folded.FoldedEngine` computes, method by method."""

    def __init__(self, folded: FoldedModel, writer: GraphWriter, past: WindowPast, spikes: bool) -> None:
        self.folded, self.writer, self.past, self.spikes = folded, writer, past, spikes

    def decide(self, graded: str) -> str:
        """Actions, or scores of choices, at the last token, from the codec's integers."""
        writer, folded = self.writer, self.folded
        residual = writer.op("Unsqueeze", self.embedding(graded), writer.positions(0))
        for index, block in enumerate(folded.blocks):
            if block.attention is not None:
                added = self.attend(f"blocks.{index}.attention", block.attention, residual, steady=index == 0)
                residual = writer.op("Add", residual, added)
            steady = index == 0 and block.attention is None
            mlp = f"blocks.{index}.mlp"
            drive = self.scaled(f"{mlp}.input_lif", residual, block.log_thresholds)
            fired = self.fire(f"{mlp}.input_lif", drive, len(block.expand.weight[0]), steady)
            hidden = self.affine(f"{mlp}.expand", block.expand, fired)
            fired = self.fire(f"{mlp}.hidden_lif", hidden, len(block.expand.bias))
            residual = writer.op("Add", residual, self.affine(f"{mlp}.contract", block.contract, fired))
        writer.scope = "head"
        present = writer.slice(residual, 1, folded.context - 1, folded.context)
        mean = writer.op("ReduceMean", present, axes=[0, 1], keepdims=0)
        scores = self.affine("head", folded.head, mean)
        return scores if folded.discrete else writer.op("Tanh", scores)

    def embedding(self, coded: str) -> str:
        """The first residual, of every token; a LayerNorm's sums are in the runtime's order here, which floats may."""
        writer, embed = self.writer, self.folded.embed
        if isinstance(embed, Affine):
            return self.affine("embed", embed, coded)
        channels = len(embed.matrix)
        sums = self.affine("embed", Affine(embed.matrix, embed.linear_bias), coded)
        share, epsilon = writer.numbers(1.0 / channels, "share"), writer.numbers(embed.epsilon, "epsilon")
        mean = writer.op("Mul", writer.sum_over(sums, -1, keep=True), share)
        centred = writer.op("Sub", sums, mean)
        squares = writer.sum_over(writer.op("Mul", centred, centred), -1, keep=True)
        variance = writer.op("Add", writer.op("Mul", squares, share), epsilon)
        normed = writer.op("Div", centred, writer.op("Sqrt", variance))
        scaled = writer.op("Mul", normed, writer.numbers(embed.gain, "gain"))
        return writer.op("Add", scaled, writer.numbers(embed.bias, "bias"))

    def affine(self, name: str, affine: Affine, x: str) -> str:
        """X @ weight.T + bias."""
        writer = self.writer
        writer.scope = name
        product = writer.op("MatMul", x, writer.numbers(np.ascontiguousarray(affine.weight.T), "weights"))
        return writer.op("Add", product, writer.numbers(affine.bias, "bias"))

    def attend(self, name: str, attention: FoldedAttention, residual: str, steady: bool) -> str:
        """The attention branch's contribution to the residual."""
        writer, past, context = self.writer, self.past, self.folded.context
        width, neuron = len(attention.project.weight[0]), f"{name}.attention_lif"
        drive = self.scaled(f"{name}.input_lif", residual, attention.log_thresholds)
        spikes = self.fire(f"{name}.input_lif", drive, len(attention.qkv.weight[0]), steady)
        fired = self.fire(f"{name}.qkv_lif", self.affine(f"{name}.qkv", attention.qkv, spikes), 3 * width)
        writer.scope = name
        query, key, value = (writer.part(fired, first, width) for first in (0, width, 2 * width))
        if attention.kind == "pssa":
            assert attention.positional_bias is not None
            bias, reach = attention.positional_bias, attention.window
            stack = past.stack(name, writer.op("Mul", key, value), width, reach)
            weights = past.weights(bias if bias.ndim == 1 else lag_rows(bias, reach))
            return self.affine(
                f"{name}.project", attention.project, self.fire(neuron, windowed(writer, query, stack, weights), width)
            )
        scale = writer.numbers(attention.scale, "scale")
        if attention.kind == "sdsa1":
            count = counted(writer, past.stack(name, writer.op("Mul", key, value), width, context))
            gate = self.fire(neuron, writer.op("Mul", count, scale), width)
            return self.affine(f"{name}.project", attention.project, writer.op("Mul", query, gate))
        keys, values = (past.stack(name, operand, width, context) for operand in (key, value))
        total = scored(writer, query, keys, values, past.shape(width), attention.heads, attention.kind == "tssa")
        total = writer.op("Mul", total, scale)
        return self.affine(f"{name}.project", attention.project, self.fire(neuron, total, width))

    def scaled(self, name: str, residual: str, log_thresholds: FloatArray | None) -> str:
        """What neurons with the common threshold read to fire as those with these factors on it."""
        if log_thresholds is None:
            return residual
        self.writer.scope = name
        return self.writer.op("Mul", residual, self.writer.numbers(np.exp(-log_thresholds), "gain"))

    def fire(self, name: str, currents: str, neurons: int, steady: bool = False) -> str:
        """V = decay * v * (1 - s) + x; s = v > threshold; v starts at 0.

        Args:
            name: of the population.
            currents: (ticks, K, lanes, neurons).
            neurons: in the population.
            steady: whether ``currents`` has one tick that stands for all.
        """
        writer, folded, membrane = self.writer, self.folded, ""
        writer.scope, decay = name, folded.decays.get(name, folded.decay)
        drives = [currents] * folded.ticks if steady else writer.split(currents, 0, folded.ticks)
        fired: list[str] = []
        for current in drives:
            membrane_before, membrane = membrane, current
            if fired:
                rest = writer.op("Where", fired[-1], writer.numbers(0.0, "zero"), membrane_before)
                membrane = writer.op("Add", writer.op("Mul", rest, writer.numbers(decay, "decay")), current)
            fired.append(writer.op("Greater", membrane, writer.numbers(folded.threshold, "threshold")))
        together = fired[0] if folded.ticks == 1 else writer.op("Concat", *fired, axis=0)
        spikes = writer.cast(together, writer.number, name=SPIKES + name)
        if self.spikes:
            writer.output(spikes, writer.number, self.past.shape(neurons), f"spikes of '{name}'")
        return spikes

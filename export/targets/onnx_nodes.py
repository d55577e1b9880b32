"""Every node of an integer network in standard ONNX operators, bit-identical to the reference engine.

Between the encoder and ``accumulators`` every tensor is an integer: spikes are uint8 (0 or 1), weights int8, sums
int32. Nothing can overflow there, because only networks that pass :mod:`dsf.export.network.bounds` are written.
"""

from __future__ import annotations

from math import gcd

import numpy as np
from onnx import TensorProto

from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    HISTORY_KINDS,
    HOST_KINDS,
    LIF,
    And,
    Count,
    Decay,
    Encoder,
    Gate,
    HistoryNode,
    HostNode,
    Node,
    Outer,
    Readout,
    Residual,
    Synapses,
)
from dsf.export.targets.onnx_rules import (
    LANES,
    SPIKES,
    GraphWriter,
    Past,
    counted,
    encode,
    nan_unless_finite,
    scored,
    windowed,
    write_commands,
)
from dsf.train.quantization.integers import ACCUMULATOR_LIMIT, DECAY_BITS, MEMBRANE_FRACTION_BITS

INT32, INT64, UINT8, DOUBLE = TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.DOUBLE


class IntegerNodes:
    """Writes the network's nodes one by one.

    Attributes:
        values: tensor of every node written so far, (ticks, ..., lanes, neurons).
        steady: nodes whose tensor has one tick that stands for all, because only the encoder feeds them.
        unless_finite: what makes actions NaN for tokens that are not finite; empty without an encoder.
    """

    def __init__(self, network: Network, writer: GraphWriter, past: Past, encoder: bool) -> None:
        self.network, self.writer, self.past, self.encoder = network, writer, past, encoder
        self.values: dict[str, str] = {}
        self.steady: set[str] = set()
        self.unless_finite = ""

    def write(self, node: Node, source: str) -> None:
        """Write one node; the encoder reads the graph's input ``source``."""
        writer, values = self.writer, self.values
        writer.scope = node.name
        if isinstance(node, HOST_KINDS):
            out = self._encoder(node, source)
        elif isinstance(node, Synapses):
            out = self._synapses(node)
        elif isinstance(node, Residual):
            out = self._residual(node)
        elif isinstance(node, LIF):
            out = self._lif(node)
        elif isinstance(node, Gate):
            operands = (writer.part(values[node.source], first, node.size) for first in (node.first, node.second))
            out = writer.op("Mul", *operands, name=SPIKES + node.name)
        elif isinstance(node, And):
            query = writer.part(values[node.query], node.first, node.size)
            out = writer.op("Mul", query, values[node.source], name=SPIKES + node.name)
        elif isinstance(node, HISTORY_KINDS):
            out = self._history(node)
        else:
            out = self._readout(node)
        values[node.name] = out

    def _encoder(self, node: HostNode, source: str) -> str:
        writer = self.writer
        graded = source
        if self.encoder:
            assert isinstance(node, Encoder)  # a host embedding is in no graph
            graded = encode(writer, source, node.offset, node.step, node.limit)
            self.unless_finite = nan_unless_finite(writer, source, self.past.exists)
            writer.scope = node.name
        shifted = writer.op("Mul", graded, writer.numbers(1 << node.shift.astype(np.int64), "shift"))
        self.steady.add(node.name)
        return writer.op("Unsqueeze", shifted, writer.positions(0))

    def _synapses(self, node: Synapses) -> str:
        """Spikes meet int8 weights in MatMulInteger; the encoder's values need up to 16 bits, so int32 there.

        Some kernels of MatMulInteger add pairs of products in 16 bits: with two spikes at most 2 * 127, far from full.
        """
        writer, source = self.writer, self.values[node.source]
        weights = writer.matrix(node.weights.T.astype(np.int8), "weights")
        if node.source in self.steady:
            self.steady.add(node.name)
            total = writer.op("MatMul", source, writer.cast(weights, INT32))
        else:
            total = writer.op("MatMulInteger", source, weights)
        return self._shift(total, node.exponent)

    def _shift(self, x: str, exponent: int) -> str:
        """X << exponent, or the floor of x / 2**-exponent: BitShift takes no signed integers, and Div truncates."""
        if exponent == 0:
            return x
        writer, power = self.writer, self.writer.numbers(1 << abs(exponent), "power")
        if exponent > 0:
            return writer.op("Mul", x, power)
        multiple = writer.op("Sub", x, writer.op("Mod", x, power))  # Mod has the sign of the power, so it is >= 0
        return writer.op("Div", multiple, power)

    def _residual(self, node: Residual) -> str:
        total = self.writer.numbers(node.bias, "bias")
        for source in node.sources:
            total = self.writer.op("Add", total, self.values[source])
        if self.steady.issuperset(node.sources):
            self.steady.add(node.name)
        return total

    def _lif(self, node: LIF) -> str:
        """Tick by tick. The docstring's clip of the membrane is left out: the overflow proof says it never acts."""
        writer, ticks, membrane = self.writer, self.network.ticks, ""
        unit = 1 << MEMBRANE_FRACTION_BITS
        drive = writer.op("Mul", self.values[node.source], writer.numbers(unit, "unit"))
        drive = writer.op("Add", drive, writer.numbers(node.bias, "bias"))
        drives = [drive] * ticks if node.source in self.steady else writer.split(drive, 0, ticks)
        threshold = writer.numbers(node.threshold.astype(np.int64) * unit, "threshold")
        fired: list[str] = []
        for current in drives:
            if fired and np.min(node.decay) < 1 << DECAY_BITS:
                rest = writer.op("Where", fired[-1], writer.numbers(0, "zero"), membrane)
                membrane = writer.op("Add", self._leak(rest, node.decay), current)
            else:
                membrane = current
            fired.append(writer.op("Greater", membrane, threshold))
        together = fired[0] if ticks == 1 else writer.op("Concat", *fired, axis=0)
        return writer.cast(together, UINT8, name=SPIKES + node.name)

    def _leak(self, membrane: str, decay: Decay) -> str:
        """trunc_to_zero(v * (4096 - decay) / 4096), the fraction reduced so that int32 mostly holds the product."""
        writer, whole = self.writer, 1 << DECAY_BITS
        if isinstance(decay, np.ndarray):  # no common fraction of many: int64 holds any product
            shares = writer.constant(whole - decay.astype(np.int64), "kept")
            product = writer.op("Mul", writer.cast(membrane, INT64), shares)
            return writer.cast(writer.op("Div", product, writer.constant(np.array(whole, np.int64), "parts")), INT32)
        common = gcd(whole - decay, whole)
        kept, parts = (whole - decay) // common, whole // common
        wide = kept * ACCUMULATOR_LIMIT >= 1 << 31
        number, array = (INT64, np.int64) if wide else (INT32, np.int32)
        value = writer.cast(membrane, number) if wide else membrane
        if kept > 1:
            value = writer.op("Mul", value, writer.constant(np.array(kept, array), "kept"))
        if parts > 1:
            value = writer.op("Div", value, writer.constant(np.array(parts, array), "parts"))
        return writer.cast(value, INT32) if wide else value

    def _history(self, node: HistoryNode) -> str:
        writer, values, past = self.writer, self.values, self.past
        neurons = self.network[node.remembered].size
        stack = past.stack(node.name, values[node.remembered], neurons, node.reach)
        if isinstance(node, Count):
            return writer.op("Mul", counted(writer, stack), writer.numbers(node.gain, "gain"))
        if isinstance(node, Outer):
            query = writer.part(values[node.source], node.query, node.size)
            key, value = (writer.part(stack, first, node.size) for first in (node.key, node.value))
            total = scored(writer, query, key, value, past.shape(node.size), node.heads, bool(node.all_ticks))
            return writer.op("Mul", total, writer.numbers(node.gain, "gain"))
        query = writer.part(values[node.query], node.first, node.size)
        return windowed(writer, query, stack, past.weights(node.weights))

    def _readout(self, node: Readout) -> str:
        writer, shape = self.writer, (LANES, node.size)
        summed = self.past.sum_of_present(self.values[node.source])
        if node.source in self.steady:
            summed = writer.op("Mul", summed, writer.numbers(self.network.ticks, "ticks"))
        rounded = writer.op("Add", summed, writer.numbers(1 << node.shift >> 1, "half"))
        weights = writer.matrix(node.weights.T.astype(np.int8), "weights")
        products = writer.op("MatMul", self._shift(rounded, -node.shift), writer.cast(weights, INT32))
        accumulators = writer.op("Add", products, writer.numbers(node.bias, "bias"), name="accumulators")
        scale = writer.constant(node.scale.astype(np.float64), "scale")
        chooses, last = node.head == "choice", "" if self.unless_finite else "actions"
        actions = writer.op("Mul", writer.cast(accumulators, DOUBLE), scale, name=last if chooses else "")
        if not chooses:
            actions = writer.op("Tanh", actions, name=last)
        if self.unless_finite:
            writer.op("Add", actions, self.unless_finite, name="actions")
        writer.output(accumulators, INT32, shape, "the network's exact answer; actions are computed from it")
        meaning = "scores, of which the first largest is the choice" if chooses else "actions, -1 to 1"
        meaning += "; NaN where a token is not finite" if self.unless_finite else ""
        writer.output("actions", DOUBLE, shape, meaning)
        if node.has_commands:
            write_commands(writer, node, "actions", np.float64, self.unless_finite)
        return accumulators

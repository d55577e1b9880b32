"""One transformer block as a hierarchical Lava process with two interchangeable, bit-identical models."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.model.sub.model import AbstractSubProcessModel
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from dsf.export.network.nodes import Readout, Synapses
from dsf.runtime.lava_backend.processes.attention import AttentionHistory, QueryGate
from dsf.runtime.lava_backend.processes.ends import START_FLAG, ResidualSum, TokenSink, TokenSource
from dsf.runtime.lava_backend.processes.parts import EmbeddingRelay, Raster, Relay
from dsf.runtime.lava_backend.processes.stock import stock_neurons, stock_synapses
from dsf.runtime.lava_backend.stages.blocks import AttentionNodes, EmbeddingNodes, MlpNodes
from dsf.runtime.lava_backend.stages.fused import FusedBlock, FusedEmbedding, FusedReadout
from dsf.runtime.lava_backend.stages.layout import DENSE_TICKS
from dsf.runtime.lava_backend.stages.stage import Stage
from dsf.train.quantization.integers import MAX_INPUT_BITS

GRADED_BITS = 24


class DsfBlock(AbstractProcess):
    """x += attention(x); x += MLP(x) on integers; the network's first block also embeds, its last one also reads out.

    Ports: residual, start flag and report, in and out each, and the host's pipes. What a block has no use for stays
    unconnected: the first one takes tokens instead of residual and start flag, the last one answers the host instead
    of sending on, and a block without attention ignores the start flag.
    """

    def __init__(self, *, stage: Stage) -> None:
        super().__init__(stage=stage)
        channels, message = (stage.block.mlp.output.size,), (stage.message_words,)
        self.r_in, self.r_out = InPort(channels), OutPort(channels)
        self.start_in, self.start_out = InPort((START_FLAG,)), OutPort((START_FLAG,))
        self.report_in, self.report_out = InPort(message), OutPort(message)
        features = 0 if stage.embedding is None else stage.embedding.encoder.size
        actions = 0 if stage.readout is None else stage.readout.size
        self.tokens, self.answers = InPort((features + START_FLAG,)), OutPort((actions + stage.message_words,))
        if stage.embedding is not None:
            self.tokens.flag_external_pipe(stage.pipe_messages)
        if stage.readout is not None:
            self.answers.flag_external_pipe(stage.pipe_messages)


@implements(proc=DsfBlock, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyFusedBlock(PyLoihiProcessModel):
    """The whole block in one process; its latency is the block's ``delay``."""

    r_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    r_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    start_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=16)
    start_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=16)
    report_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=32)
    report_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)
    tokens: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    answers: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.stage: Stage = proc_params["stage"]
        embedding, readout, ticks = self.stage.embedding, self.stage.readout, self.stage.clock.ticks
        self.block = FusedBlock(self.stage.block, ticks)
        self.embedding = None if embedding is None else FusedEmbedding(embedding)
        self.readout = None if readout is None else FusedReadout(readout, ticks)

    def run_spk(self) -> None:
        """One tick."""
        clock = self.stage.clock
        phase = clock.phase(self.time_step)
        if phase == 0:
            self._start_token()
        tick = phase - clock.depth
        residual = self.r_in.recv().astype(np.float64) if self.embedding is None else self.embedded
        residual = self.block(tick, residual)
        if self.readout is None:
            self.r_out.send(residual.astype(np.int32))
        else:
            self.readout.add(tick - self.block.delay, residual)
        if clock.period_ends(self.time_step):
            self._end_token()

    def _start_token(self) -> None:
        """Take the start flag, from the host with the token."""
        if self.embedding is None:
            start = self.start_in.recv()
        else:
            token, start = np.split(self.tokens.csp_ports[0].recv(), [-START_FLAG])
            self.embedded = self.embedding(token)
            self.start_out.send(start)
        self.block.start_token(int(start[0]))

    def _end_token(self) -> None:
        """Report the token's spikes to the last block, which adds its own and answers the host."""
        message = self.report_in.recv()  # zeros where nothing is connected
        self.stage.report.write(self.block.raster, self.block.active, message)
        self.report_out.send(message)
        if self.readout is not None:
            self.answers.csp_ports[0].send(np.concatenate([self.readout.accumulators, message]).astype(np.int32))


@implements(proc=DsfBlock, protocol=LoihiProtocol)
@tag("fixed_pt")
class ExpandedBlock(AbstractSubProcessModel):
    """The block from stock LIFReset and Dense and the processes of ``attention``, ``ends`` and ``parts``."""

    def __init__(self, proc: DsfBlock) -> None:
        self.stage: Stage = proc.proc_params["stage"]
        block, clock = self.stage.block, self.stage.clock
        self.clocks = {p.role: clock.at(clock.depth + p.depth) for p in block.populations}
        self.raster = Raster(stage=self.stage)
        residual, start = proc.in_ports.r_in, proc.in_ports.start_in
        if self.stage.embedding is not None:
            self._build_embedding(self.stage.embedding)
            residual, start = self.entering.r_out, self.source.start_out
            start.connect(proc.out_ports.start_out)
        if block.attention is not None:
            self._build_attention(block.attention)
            self._connect_attention(residual, start)
            residual = self.middle.r_out
        self._build_mlp(block.mlp)
        self._connect_mlp(residual)
        if self.stage.readout is not None:
            self._build_readout(self.stage.readout)
            proc.in_ports.report_in.connect(self.sink.report_in)
        else:
            self.output.r_out.connect(proc.out_ports.r_out)
            self.raster.report_out.connect(proc.out_ports.report_out)

    def _build_embedding(self, nodes: EmbeddingNodes) -> None:
        self.source, self.entering = TokenSource(stage=self.stage), EmbeddingRelay(bias=nodes.residual.bias)
        self.embed, self.embed_fine = (
            None if synapses is None else stock_synapses(synapses, message_bits=MAX_INPUT_BITS)
            for synapses in (nodes.synapses, nodes.fine)
        )
        if self.embed is None:
            self.source.g_out.connect(self.entering.a_in)
        for embed in (self.embed, self.embed_fine):  # ports add up what several others send
            if embed is not None:
                self.source.g_out.connect(embed.s_in)
                embed.a_out.connect(self.entering.a_in)

    def _build_readout(self, readout: Readout) -> None:
        weights = Synapses(readout.name, readout.source, readout.weights, exponent=0)
        self.total, self.sink = ResidualSum(stage=self.stage), TokenSink(stage=self.stage)
        self.head = stock_synapses(weights, message_bits=GRADED_BITS)
        self.output.r_out.connect(self.total.r_in)
        self.total.g_out.connect(self.head.s_in)
        self.head.a_out.connect(self.sink.y_in)
        self.raster.report_out.connect(self.sink.report_in)

    def _build_attention(self, nodes: AttentionNodes) -> None:
        clocks = self.clocks
        self.input_lif, self.qkv = stock_neurons(nodes.input_lif, clocks["input"]), stock_synapses(nodes.qkv)
        self.qkv_lif = stock_neurons(nodes.qkv_lif, clocks["qkv"])
        self.history = AttentionHistory(nodes=nodes, clock=clocks["qkv"])
        self.attention_lif = stock_neurons(nodes.attention_lif, clocks["attention"])
        self.project = stock_synapses(nodes.project)
        self.middle = Relay(bias=nodes.output.bias, delay=2 * DENSE_TICKS + nodes.delay)
        if nodes.gate is not None:
            self.history.gate_out.connect(self.raster.gate_in)
        mixed = self.attention_lif.s_out
        if nodes.gated is not None:
            self.gated = QueryGate(neurons=nodes.qkv_lif.size, node=nodes.gated)
            self.qkv_lif.s_out.connect(self.gated.query_in)
            mixed.connect(self.gated.s_in)
            mixed = self.gated.s_out
            mixed.connect(self.raster.gated_in)
        mixed.connect(self.project.s_in)

    def _connect_attention(self, residual: Any, start: Any) -> None:
        residual.connect(self.input_lif.a_in)
        residual.connect(self.middle.x_in)
        start.connect(self.history.start_in)
        self.input_lif.s_out.connect([self.qkv.s_in, self.raster.input_in])
        self.qkv.a_out.connect(self.qkv_lif.a_in)
        self.qkv_lif.s_out.connect([self.history.s_in, self.raster.qkv_in])
        self.history.a_out.connect(self.attention_lif.a_in)
        self.attention_lif.s_out.connect(self.raster.attention_in)
        self.project.a_out.connect(self.middle.a_in)

    def _build_mlp(self, nodes: MlpNodes) -> None:
        self.mlp_lif, self.expand = stock_neurons(nodes.input_lif, self.clocks["mlp"]), stock_synapses(nodes.expand)
        self.hidden_lif = stock_neurons(nodes.hidden_lif, self.clocks["hidden"])
        self.contract = stock_synapses(nodes.contract)
        self.output = Relay(bias=nodes.output.bias, delay=2 * DENSE_TICKS)

    def _connect_mlp(self, residual: Any) -> None:
        residual.connect(self.mlp_lif.a_in)
        residual.connect(self.output.x_in)
        self.mlp_lif.s_out.connect([self.expand.s_in, self.raster.mlp_in])
        self.expand.a_out.connect(self.hidden_lif.a_in)
        self.hidden_lif.s_out.connect([self.contract.s_in, self.raster.hidden_in])
        self.contract.a_out.connect(self.output.a_in)

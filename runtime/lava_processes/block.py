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

from dsf.runtime.lava_blocks import AttentionNodes, BlockNodes, MlpNodes
from dsf.runtime.lava_fused import FusedBlock
from dsf.runtime.lava_layout import DENSE_TICKS, Clock, pack_raster, raster_words
from dsf.runtime.lava_processes.attention import AttentionHistory, QueryGate
from dsf.runtime.lava_processes.ends import START_FLAG
from dsf.runtime.lava_processes.parts import Raster, Relay
from dsf.runtime.lava_processes.stock import stock_neurons, stock_synapses


class DsfBlock(AbstractProcess):
    """x += attention(x); x += MLP(x) on integers. Ports: residual in and out, start flag, packed raster.

    A block without attention has no use for the start flag: leave ``start_in`` unconnected.
    """

    def __init__(self, *, block: BlockNodes, first_word: int, words: int, clock: Clock) -> None:
        super().__init__(block=block, first_word=first_word, words=words, clock=clock)
        self.r_in, self.r_out = InPort((block.mlp.output.size,)), OutPort((block.mlp.output.size,))
        self.start_in, self.raster_out = InPort((START_FLAG,)), OutPort((words,))


@implements(proc=DsfBlock, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyFusedBlock(PyLoihiProcessModel):
    """The whole block in one process; its latency is the block's ``delay``."""

    r_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    r_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    start_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=16)
    raster_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.clock: Clock = proc_params["clock"]
        self.words, self.first_word = proc_params["words"], proc_params["first_word"]
        self.block = FusedBlock(proc_params["block"], self.clock.ticks)

    def run_spk(self) -> None:
        """One tick."""
        phase = self.clock.phase(self.time_step)
        residual = self.r_in.recv().astype(np.float64)
        if phase == 0:
            self.block.start_token(int(self.start_in.recv()[0]))
        self.r_out.send(self.block(phase - self.clock.depth, residual).astype(np.int32))
        if self.clock.period_ends(self.time_step):
            message, raster = np.zeros(self.words, np.int32), self.block.raster
            message[self.first_word :][: raster_words(*raster.shape)] = pack_raster(raster)
            self.raster_out.send(message)


@implements(proc=DsfBlock, protocol=LoihiProtocol)
@tag("fixed_pt")
class ExpandedBlock(AbstractSubProcessModel):
    """The block from stock LIFReset and Dense and the processes of ``attention`` and ``parts``."""

    def __init__(self, proc: DsfBlock) -> None:
        parameters = proc.proc_params
        block, clock = parameters["block"], parameters["clock"]
        self.clocks = {p.role: clock.at(clock.depth + p.depth) for p in block.populations}
        self.raster = Raster(block=block, first_word=parameters["first_word"], words=parameters["words"], clock=clock)
        residual = proc.in_ports.r_in
        if block.attention is not None:
            self._build_attention(block.attention)
            self._connect_attention(residual, proc.in_ports.start_in)
            residual = self.middle.r_out
        self._build_mlp(block.mlp)
        self._connect_mlp(residual)
        self.output.r_out.connect(proc.out_ports.r_out)
        self.raster.raster_out.connect(proc.out_ports.raster_out)

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

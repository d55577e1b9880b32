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
from lava.proc.dense.process import Dense
from lava.proc.lif.process import LIFReset
from lava.utils.weightutils import SignMode

from dsf.export.nodes import LIF, Synapses
from dsf.runtime.lava_arithmetic import BitHistory, Neurons, Weights
from dsf.runtime.lava_layout import BlockNodes, Clock, pack_raster, raster_words
from dsf.runtime.lava_processes.ends import RESET_FLAG
from dsf.runtime.lava_processes.parts import PssaWindow, Raster, Relay
from dsf.train.integers import WEIGHT_BITS

NO_CURRENT_MEMORY = 4095
"""LIF's du (offset by one in Lava) that makes the current last exactly one tick."""


def stock_synapses(node: Synapses, message_bits: int = 0) -> Dense:
    """A stock Dense that computes :class:`~dsf.export.network.Synapses` exactly.

    A matrix of mixed signs loses its lowest bit in Lava, so the weights go in doubled and the exponent takes it back.
    ``message_bits`` 0 means binary spikes.
    """
    return Dense(
        weights=2 * node.weights.astype(np.int32),
        weight_exp=node.exponent - 1,
        num_weight_bits=WEIGHT_BITS,
        sign_mode=SignMode.MIXED,
        num_message_bits=message_bits,
    )


def stock_neurons(node: LIF, clock: Clock) -> LIFReset:
    """A stock LIFReset that computes :class:`~dsf.export.network.LIF` exactly (a threshold array works in Lava)."""
    return LIFReset(
        shape=(node.size,),
        du=NO_CURRENT_MEMORY,
        dv=node.decay,
        bias_mant=node.bias_mantissa.astype(np.int32),
        bias_exp=node.bias_exponent,
        vth=node.threshold,
        reset_interval=clock.period,
        reset_offset=clock.reset_offset,
    )


class DsfBlock(AbstractProcess):
    """x += PSSA(x); x += MLP(x) on integers. Ports: residual in and out, episode reset, packed raster."""

    def __init__(self, *, block: BlockNodes, first_word: int, words: int, clock: Clock) -> None:
        super().__init__(block=block, first_word=first_word, words=words, clock=clock)
        self.r_in, self.r_out = InPort((block.middle.size,)), OutPort((block.output.size,))
        self.reset_in, self.raster_out = InPort((RESET_FLAG,)), OutPort((words,))


@implements(proc=DsfBlock, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyFusedBlock(PyLoihiProcessModel):
    """The whole block in one process, without latency."""

    r_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    r_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    reset_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    raster_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.clock: Clock = proc_params["clock"]
        self.words, self.first_word = proc_params["words"], proc_params["first_word"]
        block: BlockNodes = proc_params["block"]
        self.block = block
        self.history = BitHistory(block.window, self.clock.ticks)
        self.qkv, self.project = Weights(block.qkv), Weights(block.project)
        self.expand, self.contract = Weights(block.expand), Weights(block.contract)
        self.input_lif, self.qkv_lif = Neurons(block.input_lif), Neurons(block.qkv_lif)
        self.attention_lif, self.mlp_lif = Neurons(block.attention_lif), Neurons(block.mlp_lif)
        self.hidden_lif = Neurons(block.hidden_lif)
        self.spikes = np.zeros((self.clock.ticks, sum(node.size for node in block.populations)), bool)

    def run_spk(self) -> None:
        """One tick."""
        tick = self.clock.phase(self.time_step)
        residual = self.r_in.recv().astype(np.float64)
        if tick == 0:
            self._start_token(self.reset_in.recv()[0] != 0)
        self.r_out.send(self._compute(tick, residual).astype(np.int32))
        if self.clock.period_ends(self.time_step):
            message = np.zeros(self.words, np.int32)
            message[self.first_word :][: raster_words(*self.spikes.shape)] = pack_raster(self.spikes)
            self.raster_out.send(message)

    def _start_token(self, episode_starts: bool) -> None:
        if episode_starts:
            self.history.reset()
        for neurons in (self.input_lif, self.qkv_lif, self.attention_lif, self.mlp_lif, self.hidden_lif):
            neurons.reset()

    def _compute(self, tick: int, residual: np.ndarray) -> np.ndarray:
        block = self.block
        entering = self.input_lif.step(residual)
        qkv = self.qkv_lif.step(self.qkv(entering))
        coincidence = qkv[block.gate.first :][: block.gate.size] & qkv[block.gate.second :][: block.gate.size]
        query = qkv[block.window.first :][: block.window.size]
        attended = self.attention_lif.step(self.history.attend(tick, query, coincidence))
        residual = residual + self.project(attended) + block.middle.bias
        entering_mlp = self.mlp_lif.step(residual)
        hidden = self.hidden_lif.step(self.expand(entering_mlp))
        np.concatenate([entering, qkv, coincidence, attended, entering_mlp, hidden], out=self.spikes[tick])
        return residual + self.contract(hidden) + block.output.bias


@implements(proc=DsfBlock, protocol=LoihiProtocol)
@tag("fixed_pt")
class ExpandedBlock(AbstractSubProcessModel):
    """The block from stock LIFReset and Dense, plus PssaWindow, Relay and Raster; each Dense costs one tick."""

    def __init__(self, proc: DsfBlock) -> None:
        block: BlockNodes = proc.proc_params["block"]
        clock: Clock = proc.proc_params["clock"]
        first, second, third = (clock.at(clock.depth + stages) for stages in (1, 2, 3))
        self.input_lif, self.qkv = stock_neurons(block.input_lif, clock), stock_synapses(block.qkv)
        self.qkv_lif = stock_neurons(block.qkv_lif, first)
        self.window = PssaWindow(neurons=block.qkv_lif.size, gate=block.gate, window=block.window, clock=first)
        self.attention_lif, self.project = stock_neurons(block.attention_lif, first), stock_synapses(block.project)
        self.middle = Relay(bias=block.middle.bias, delay=2)
        self.mlp_lif, self.expand = stock_neurons(block.mlp_lif, second), stock_synapses(block.expand)
        self.hidden_lif, self.contract = stock_neurons(block.hidden_lif, third), stock_synapses(block.contract)
        self.output = Relay(bias=block.output.bias, delay=2)
        self.raster = Raster(
            block=block, first_word=proc.proc_params["first_word"], words=proc.proc_params["words"], clock=clock
        )
        self._connect_attention(proc)
        self._connect_mlp(proc)
        self._connect_raster(proc)

    def _connect_attention(self, proc: DsfBlock) -> None:
        proc.in_ports.r_in.connect(self.input_lif.a_in)
        proc.in_ports.r_in.connect(self.middle.x_in)
        proc.in_ports.reset_in.connect(self.window.reset_in)
        self.input_lif.s_out.connect(self.qkv.s_in)
        self.qkv.a_out.connect(self.qkv_lif.a_in)
        self.qkv_lif.s_out.connect(self.window.s_in)
        self.window.a_out.connect(self.attention_lif.a_in)
        self.attention_lif.s_out.connect(self.project.s_in)
        self.project.a_out.connect(self.middle.a_in)

    def _connect_mlp(self, proc: DsfBlock) -> None:
        self.middle.r_out.connect(self.mlp_lif.a_in)
        self.middle.r_out.connect(self.output.x_in)
        self.mlp_lif.s_out.connect(self.expand.s_in)
        self.expand.a_out.connect(self.hidden_lif.a_in)
        self.hidden_lif.s_out.connect(self.contract.s_in)
        self.contract.a_out.connect(self.output.a_in)
        self.output.r_out.connect(proc.out_ports.r_out)

    def _connect_raster(self, proc: DsfBlock) -> None:
        self.input_lif.s_out.connect(self.raster.input_in)
        self.qkv_lif.s_out.connect(self.raster.qkv_in)
        self.window.gate_out.connect(self.raster.gate_in)
        self.attention_lif.s_out.connect(self.raster.attention_in)
        self.mlp_lif.s_out.connect(self.raster.mlp_in)
        self.hidden_lif.s_out.connect(self.raster.hidden_in)
        self.raster.raster_out.connect(proc.out_ports.raster_out)

"""The expanded network's own small processes; everything else in it is stock Dense and LIFReset."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from dsf.export.nodes import Gate, Window
from dsf.runtime.lava_arithmetic import BitHistory
from dsf.runtime.lava_layout import BlockNodes, Clock, pack_raster, raster_words
from dsf.runtime.lava_processes.ends import RESET_FLAG


class Relay(AbstractProcess):
    """The residual: r[t] = x[t - delay] + a[t] + bias, relayed as graded spikes.

    ``delay`` re-times the shortcut against the Dense stages of the branch. ``a_in`` may have several sources.
    """

    def __init__(self, *, bias: np.ndarray, delay: int) -> None:
        super().__init__(delay=delay)
        shape = bias.shape
        self.x_in, self.a_in, self.r_out = InPort(shape), InPort(shape), OutPort(shape)
        self.bias = Var(shape=shape, init=bias)


@implements(proc=Relay, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyRelay(PyLoihiProcessModel):
    """A ring buffer of ``delay`` ticks in front of an adder."""

    x_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    r_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    bias: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.delay: int = proc_params["delay"]
        self.pending: list[np.ndarray] = []

    def run_spk(self) -> None:
        """One tick."""
        self.pending.append(self.x_in.recv())
        branch = self.a_in.recv() + self.bias
        arrived = self.pending.pop(0) if len(self.pending) > self.delay else 0
        self.r_out.send((branch + arrived).astype(np.int32))


class EmbeddingRelay(AbstractProcess):
    """The first residual: r[t] = a[t] + bias."""

    def __init__(self, *, bias: np.ndarray) -> None:
        super().__init__()
        self.a_in, self.r_out = InPort(bias.shape), OutPort(bias.shape)
        self.bias = Var(shape=bias.shape, init=bias)


@implements(proc=EmbeddingRelay, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyEmbeddingRelay(PyLoihiProcessModel):
    """An adder."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    r_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    bias: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)

    def run_spk(self) -> None:
        """One tick."""
        self.r_out.send((self.a_in.recv() + self.bias).astype(np.int32))


class PssaWindow(AbstractProcess):
    """Gate and window of PSSA: key AND value, the bit history, and the query-gated window sum."""

    def __init__(self, *, neurons: int, gate: Gate, window: Window, clock: Clock) -> None:
        super().__init__(gate=gate, window=window, clock=clock)
        self.s_in, self.reset_in = InPort((neurons,)), InPort((RESET_FLAG,))
        self.a_out, self.gate_out = OutPort((window.size,)), OutPort((gate.size,))


@implements(proc=PssaWindow, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyPssaWindow(PyLoihiProcessModel):
    """Keeps its state through the ticks in which its population is idle."""

    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    reset_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    gate_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=1)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.clock: Clock = proc_params["clock"]
        self.gate: Gate = proc_params["gate"]
        self.window: Window = proc_params["window"]
        self.history = BitHistory(self.window, self.clock.ticks)
        self.silence = np.zeros(self.window.size, np.int32)

    def run_spk(self) -> None:
        """One tick."""
        # One token is in flight at a time, so clearing at the period's start cannot hit the previous one.
        if self.clock.phase(self.time_step) == 0 and self.reset_in.recv()[0]:
            self.history.reset()
        spikes, tick = self.s_in.recv() != 0, self.clock.token_tick(self.time_step)
        if tick is None:
            self.a_out.send(self.silence)
            self.gate_out.send(self.silence)
            return
        gate, window = self.gate, self.window
        coincidence = spikes[gate.first :][: gate.size] & spikes[gate.second :][: gate.size]
        query = spikes[window.first :][: window.size]
        self.a_out.send(self.history.attend(tick, query, coincidence).astype(np.int32))
        self.gate_out.send(coincidence.astype(np.int32))


class Raster(AbstractProcess):
    """Collects the spikes of one block's populations and sends them, packed, at the period's last tick.

    The message spans all blocks' words with zeros outside this block's, so that the sink's fan-in adder concatenates.
    """

    def __init__(self, *, block: BlockNodes, first_word: int, words: int, clock: Clock) -> None:
        super().__init__(block=block, first_word=first_word, words=words, clock=clock)
        self.input_in, self.qkv_in = InPort((block.input_lif.size,)), InPort((block.qkv_lif.size,))
        self.gate_in, self.attention_in = InPort((block.gate.size,)), InPort((block.attention_lif.size,))
        self.mlp_in, self.hidden_in = InPort((block.mlp_lif.size,)), InPort((block.hidden_lif.size,))
        self.raster_out = OutPort((words,))


@implements(proc=Raster, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyRaster(PyLoihiProcessModel):
    """Reads every population at its own pipeline depth."""

    input_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    qkv_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    gate_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    attention_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    mlp_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    hidden_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    raster_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)

    DEPTHS = (0, 1, 1, 1, 2, 3)
    """Pipeline depth of each population behind the block's input: the number of Dense stages passed."""

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.clock: Clock = proc_params["clock"]
        self.words: int = proc_params["words"]
        self.first_word: int = proc_params["first_word"]
        sizes = [population.size for population in proc_params["block"].populations]
        self.columns = np.cumsum([0, *sizes])
        self.spikes = np.zeros((self.clock.ticks, self.columns[-1]), bool)

    def run_spk(self) -> None:
        """One tick."""
        ports = (self.input_in, self.qkv_in, self.gate_in, self.attention_in, self.mlp_in, self.hidden_in)
        for index, (port, depth) in enumerate(zip(ports, self.DEPTHS)):
            spikes = port.recv()
            tick = self.clock.at(self.clock.depth + depth).token_tick(self.time_step)
            if tick is not None:
                self.spikes[tick, self.columns[index] : self.columns[index + 1]] = spikes
        if self.clock.period_ends(self.time_step):
            message = np.zeros(self.words, np.int32)
            own = raster_words(*self.spikes.shape)
            message[self.first_word : self.first_word + own] = pack_raster(self.spikes)
            self.raster_out.send(message)

"""Both ends of the network: typed int32 pipes between the host and Lava, with embedding and readout.

The expanded network uses TokenSource, TokenSink and a stock Dense; the fused network one process per end.
Stock Injector and Extractor carry float64 and cannot feed fixed-point neurons.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from dsf.export.nodes import Encoder, Readout, Residual, Synapses
from dsf.runtime.lava_arithmetic import Weights
from dsf.runtime.lava_layout import Clock

PIPE_MESSAGES = 4
"""Messages a host pipe can hold; the host exchanges one each way per decision."""
START_FLAG = 1
"""Extra element of a token message; its values are at :data:`~dsf.runtime.lava_layout.CONTINUES`."""


class TokenSource(AbstractProcess):
    """Repeats the host's token on ``g_out`` at every tick of the token; sends the start flag once per period."""

    def __init__(self, *, encoder: Encoder, clock: Clock) -> None:
        super().__init__(features=encoder.size, clock=clock)
        self.pipe = InPort((encoder.size + START_FLAG,))
        self.pipe.flag_external_pipe(PIPE_MESSAGES)
        self.g_out = OutPort((encoder.size,))
        self.start_out = OutPort((START_FLAG,))


@implements(proc=TokenSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyTokenSource(PyLoihiProcessModel):
    """g[t] = token while it lasts, else 0."""

    pipe: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    g_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    start_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=16)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.clock: Clock = proc_params["clock"]
        self.silence = np.zeros(proc_params["features"], np.int32)

    def run_spk(self) -> None:
        """One tick."""
        if self.clock.phase(self.time_step) == 0:
            message = self.pipe.csp_ports[0].recv()
            self.token = message[:-START_FLAG]
            self.start_out.send(message[-START_FLAG:])
        self.g_out.send(self.silence if self.clock.token_tick(self.time_step) is None else self.token)


class FusedEmbedding(AbstractProcess):
    """TokenSource, embedding synapses and first residual in one process."""

    def __init__(self, *, encoder: Encoder, embed: Synapses, residual: Residual, clock: Clock) -> None:
        super().__init__(embed=embed, residual=residual, clock=clock)
        self.pipe = InPort((encoder.size + START_FLAG,))
        self.pipe.flag_external_pipe(PIPE_MESSAGES)
        self.r_out = OutPort((residual.size,))
        self.start_out = OutPort((START_FLAG,))


@implements(proc=FusedEmbedding, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyFusedEmbedding(PyLoihiProcessModel):
    """r[t] = (W token) << exponent + bias; the same value at every tick, so computed once."""

    pipe: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    r_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    start_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=16)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.clock: Clock = proc_params["clock"]
        self.embed, self.bias = Weights(proc_params["embed"]), proc_params["residual"].bias

    def run_spk(self) -> None:
        """One tick."""
        if self.clock.phase(self.time_step) == 0:
            message = self.pipe.csp_ports[0].recv()
            self.start_out.send(message[-START_FLAG:])
            self.residual = (self.embed(message[:-START_FLAG]) + self.bias).astype(np.int32)
        self.r_out.send(self.residual)


class ResidualSum(AbstractProcess):
    """Sums the residual over a token's ticks and sends it, shifted, at the last one: the readout's graded spikes."""

    def __init__(self, *, readout: Readout, clock: Clock) -> None:
        channels = readout.weights.shape[1]
        super().__init__(channels=channels, shift=readout.shift, clock=clock)
        self.r_in = InPort((channels,))
        self.g_out = OutPort((channels,))


@implements(proc=ResidualSum, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyResidualSum(PyLoihiProcessModel):
    """g = (sum_t r[t] + (1 << shift >> 1)) >> shift at the token's last tick, else 0."""

    r_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    g_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.clock: Clock = proc_params["clock"]
        self.shift: int = proc_params["shift"]
        self.total = np.zeros(proc_params["channels"], np.int64)
        self.silence = np.zeros(proc_params["channels"], np.int32)

    def run_spk(self) -> None:
        """One tick."""
        residual, tick = self.r_in.recv(), self.clock.token_tick(self.time_step)
        if tick is not None:
            self.total = residual + (self.total if tick > 0 else 0)
        if tick == self.clock.ticks - 1:
            self.g_out.send(((self.total + (1 << self.shift >> 1)) >> self.shift).astype(np.int32))
        else:
            self.g_out.send(self.silence)


class TokenSink(AbstractProcess):
    """Hands accumulators and the packed raster to the host, once per period."""

    def __init__(self, *, readout: Readout, words: int, clock: Clock) -> None:
        super().__init__(bias=readout.bias, clock=clock)
        self.y_in = InPort((readout.size,))
        self.raster_in = InPort((words,))
        self.pipe = OutPort((readout.size + words,))
        self.pipe.flag_external_pipe(PIPE_MESSAGES)


@implements(proc=TokenSink, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyTokenSink(PyLoihiProcessModel):
    """At the period's last tick: y + bias, then the raster words."""

    y_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    raster_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=32)
    pipe: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.clock: Clock = proc_params["clock"]
        self.bias = proc_params["bias"]

    def run_spk(self) -> None:
        """One tick."""
        accumulators = self.y_in.recv()
        if self.clock.period_ends(self.time_step):
            answer = np.concatenate([accumulators + self.bias, self.raster_in.recv()])
            self.pipe.csp_ports[0].send(answer.astype(np.int32))


class FusedReadout(AbstractProcess):
    """ResidualSum, head and TokenSink in one process."""

    def __init__(self, *, readout: Readout, words: int, clock: Clock) -> None:
        super().__init__(readout=readout, clock=clock)
        self.r_in = InPort((readout.weights.shape[1],))
        self.raster_in = InPort((words,))
        self.pipe = OutPort((readout.size + words,))
        self.pipe.flag_external_pipe(PIPE_MESSAGES)


@implements(proc=FusedReadout, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyFusedReadout(PyLoihiProcessModel):
    """The equation of :class:`~dsf.export.network.Readout`."""

    r_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    raster_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=32)
    pipe: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.clock: Clock = proc_params["clock"]
        self.readout: Readout = proc_params["readout"]
        self.weights = self.readout.weights.astype(np.int64)
        self.total = np.zeros(self.weights.shape[1], np.int64)

    def run_spk(self) -> None:
        """One tick."""
        residual, tick = self.r_in.recv().astype(np.int64), self.clock.token_tick(self.time_step)
        self.total = residual if tick == 0 else self.total + residual
        if self.clock.period_ends(self.time_step):
            shift = self.readout.shift
            accumulators = self.weights @ ((self.total + (1 << shift >> 1)) >> shift) + self.readout.bias
            answer = np.concatenate([accumulators, self.raster_in.recv()])
            self.pipe.csp_ports[0].send(answer.astype(np.int32))

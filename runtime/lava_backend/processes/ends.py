"""Both ends of the expanded network: typed int32 pipes between the host and Lava, and the readout's sum over ticks.

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

from dsf.runtime.lava_backend.stages.layout import DENSE_TICKS, TokenClock
from dsf.runtime.lava_backend.stages.stage import Stage

START_FLAG = 1
"""Extra element of a token message; its values are at :data:`~dsf.runtime.lava_backend.stages.layout.CONTINUES`."""


class TokenSource(AbstractProcess):
    """Repeats the host's token on ``g_out`` at every tick of the token; sends the start flag once per period.

    A host embedding's has no Dense behind it, so it starts a Dense's latency later: the residual is then valid in the
    same ticks.
    """

    def __init__(self, *, stage: Stage) -> None:
        assert stage.embedding is not None
        features = stage.embedding.encoder.size
        latency = 0 if stage.embedding.all_synapses else DENSE_TICKS
        super().__init__(features=features, clock=stage.clock.at(latency))
        self.tokens = InPort((features + START_FLAG,))
        self.tokens.flag_external_pipe(stage.pipe_messages)
        self.g_out = OutPort((features,))
        self.start_out = OutPort((START_FLAG,))


@implements(proc=TokenSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyTokenSource(PyLoihiProcessModel):
    """g[t] = token while it lasts, else 0."""

    tokens: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    g_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    start_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=16)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.clock: TokenClock = proc_params["clock"]
        self.silence = np.zeros(proc_params["features"], np.int32)

    def run_spk(self) -> None:
        """One tick."""
        if self.clock.phase(self.time_step) == 0:
            message = self.tokens.csp_ports[0].recv()
            self.token = message[:-START_FLAG]
            self.start_out.send(message[-START_FLAG:])
        self.g_out.send(self.silence if self.clock.token_tick(self.time_step) is None else self.token)


class ResidualSum(AbstractProcess):
    """Sums the residual over a token's ticks and sends it, shifted, at the last one: the readout's graded spikes."""

    def __init__(self, *, stage: Stage) -> None:
        assert stage.readout is not None
        channels, clock = stage.readout.weights.shape[1], stage.clock.at(stage.clock.depth + stage.block.depth)
        super().__init__(channels=channels, shift=stage.readout.shift, clock=clock)
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
        self.clock: TokenClock = proc_params["clock"]
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
    """Hands accumulators and all blocks' reports to the host, once per period."""

    def __init__(self, *, stage: Stage) -> None:
        assert stage.readout is not None
        super().__init__(bias=stage.readout.bias, clock=stage.clock)
        self.y_in, self.report_in = InPort((stage.readout.size,)), InPort((stage.message_words,))
        self.answers = OutPort((stage.readout.size + stage.message_words,))
        self.answers.flag_external_pipe(stage.pipe_messages)


@implements(proc=TokenSink, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyTokenSink(PyLoihiProcessModel):
    """At the period's last tick: y + bias, then the reports."""

    y_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    report_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=32)
    answers: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.clock: TokenClock = proc_params["clock"]
        self.bias = proc_params["bias"]

    def run_spk(self) -> None:
        """One tick."""
        accumulators = self.y_in.recv()
        if self.clock.period_ends(self.time_step):
            answer = np.concatenate([accumulators + self.bias, self.report_in.recv()])
            self.answers.csp_ports[0].send(answer.astype(np.int32))

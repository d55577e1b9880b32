"""The expanded network's adders and its raster; attention's own processes are in a module of their own."""

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

from dsf.runtime.lava_backend.stages.arithmetic import DelayLine
from dsf.runtime.lava_backend.stages.stage import Stage

ROLES = ("input", "qkv", "gate", "attention", "gated", "mlp", "hidden")
"""Roles of a block's populations (:class:`~dsf.runtime.lava_backend.stages.blocks.Population`); no block has all."""


class Relay(AbstractProcess):
    """The residual: r[t] = x[t - delay] + a[t] + bias, relayed as graded spikes.

    ``delay`` re-times the shortcut against the latency of the branch. ``a_in`` may have several sources.
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
    """A delay line in front of an adder."""

    x_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    r_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    bias: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.shortcut = DelayLine(proc_params["delay"])

    def run_spk(self) -> None:
        """One tick."""
        arrived = self.shortcut(self.x_in.recv())
        self.r_out.send((self.a_in.recv() + self.bias + arrived).astype(np.int32))


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


class Raster(AbstractProcess):
    """Collects the spikes of one block's populations and reports them at the period's last tick.

    Populations that this block does not have keep a port that nothing is connected to.
    """

    def __init__(self, *, stage: Stage) -> None:
        super().__init__(stage=stage)
        sizes = {population.role: population.node.size for population in stage.block.populations}
        self.input_in, self.qkv_in, self.gate_in, self.attention_in, self.gated_in, self.mlp_in, self.hidden_in = (
            InPort((sizes.get(role, 1),)) for role in ROLES
        )
        self.report_out = OutPort((stage.message_words,))


@implements(proc=Raster, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyRaster(PyLoihiProcessModel):
    """Reads every population at its own pipeline depth."""

    input_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    qkv_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    gate_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    attention_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    gated_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    mlp_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    hidden_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    report_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.stage: Stage = proc_params["stage"]
        block, clock = self.stage.block, self.stage.clock
        self.sources = [
            (f"{population.role}_in", clock.at(clock.depth + population.depth), columns)
            for population, columns in zip(block.populations, self.stage.report.columns)
        ]
        self.raster = np.zeros((clock.ticks, sum(block.sizes)), bool)

    def run_spk(self) -> None:
        """One tick."""
        for port, clock, columns in self.sources:
            spikes, tick = getattr(self, port).recv(), clock.token_tick(self.time_step)
            if tick is not None:
                self.raster[tick, columns] = spikes
        if self.stage.clock.period_ends(self.time_step):
            message = np.zeros(self.stage.message_words, np.int32)
            self.stage.report.write(self.raster, None, message)  # stock LIFReset shows no membranes
            self.report_out.send(message)

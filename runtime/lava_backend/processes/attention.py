"""Attention's own processes in the expanded network: the history with its currents, and SDSA-1's query gate."""

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

from dsf.export.network.nodes import And
from dsf.runtime.lava_backend.processes.ends import START_FLAG
from dsf.runtime.lava_backend.stages.arithmetic import history_of
from dsf.runtime.lava_backend.stages.blocks import AttentionNodes
from dsf.runtime.lava_backend.stages.layout import TokenClock


class AttentionHistory(AbstractProcess):
    """From query, key and value to the currents of attention's neuron: the gate, where there is one, and the history.

    ``gate_out`` carries the gate's spikes; without a gate nothing is connected to it.
    """

    def __init__(self, *, nodes: AttentionNodes, clock: TokenClock) -> None:
        super().__init__(nodes=nodes, clock=clock)
        self.s_in, self.start_in = InPort((nodes.qkv_lif.size,)), InPort((START_FLAG,))
        self.a_out = OutPort((nodes.history.size,))
        self.gate_out = OutPort((1 if nodes.gate is None else nodes.gate.size,))


@implements(proc=AttentionHistory, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyAttentionHistory(PyLoihiProcessModel):
    """Keeps its state through the ticks in which its population is idle."""

    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    start_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=16)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    gate_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=1)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        nodes: AttentionNodes = proc_params["nodes"]
        self.clock: TokenClock = proc_params["clock"]
        self.answers = self.clock.at(self.clock.depth + nodes.delay)
        self.history = history_of(nodes, self.clock.ticks)
        self.no_current = np.zeros(nodes.history.size, np.int32)
        self.no_spikes = np.zeros(1 if nodes.gate is None else nodes.gate.size, np.int32)

    def run_spk(self) -> None:
        """One tick."""
        # One token is in flight at a time, so clearing at the period's start cannot hit the previous one.
        if self.clock.phase(self.time_step) == 0:
            self.history.start_token(int(self.start_in.recv()[0]))
        spikes, tick = self.s_in.recv() != 0, self.clock.token_tick(self.time_step)
        fired = self.no_spikes if tick is None else self.history.remember(tick, spikes).astype(np.int32)
        answered = self.answers.token_tick(self.time_step)
        current = self.no_current if answered is None else self.history.current(answered).astype(np.int32)
        self.a_out.send(current)
        self.gate_out.send(fired)


class QueryGate(AbstractProcess):
    """s = query AND attention's neuron (SDSA-1)."""

    def __init__(self, *, neurons: int, node: And) -> None:
        super().__init__(node=node)
        self.query_in, self.s_in, self.s_out = InPort((neurons,)), InPort((node.size,)), OutPort((node.size,))


@implements(proc=QueryGate, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyQueryGate(PyLoihiProcessModel):
    """Without state and latency."""

    query_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=1)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.node: And = proc_params["node"]

    def run_spk(self) -> None:
        """One tick."""
        query = self.query_in.recv()[self.node.first :][: self.node.size]
        self.s_out.send(query & self.s_in.recv())

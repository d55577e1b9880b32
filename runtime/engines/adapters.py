"""The reference and the fast engine behind the interface of :mod:`dsf.runtime.engines.interface`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import LIF
from dsf.export.network.reference import WindowReference, active_updates
from dsf.hardware_models import SpikeCounter
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.runtime.engines.interface import Decision, HostEncoder
from dsf.runtime.engines.parity import Spikes, reference_engine
from dsf.runtime.engines.probes import spiking_populations
from dsf.shell.arrays import Int64Array


class ReferenceLoopEngine(HostEncoder):
    """The numpy reference engine behind the :class:`Engine` interface."""

    def __init__(self, network: Network, mode: Mode = "stream") -> None:
        self.network, self.mode, self.engine = network, mode, reference_engine(network, mode)
        self.reported = spiking_populations(network)
        self.restart_counter()

    @property
    def ticks_per_token(self) -> int:
        """T: the reference has no pipeline."""
        return self.network.ticks

    def restart_counter(self) -> None:
        """Forget what was counted."""
        self.counter = SpikeCounter(self.network)

    def reset(self, lane: int) -> None:
        """Start a new episode."""
        self.engine.reset(lane)

    def step_graded(self, graded: npt.NDArray[np.integer]) -> tuple[Int64Array, Spikes]:
        """Consume one token."""
        computed: dict[str, Int64Array] = {}  # (ticks, tokens, neurons), of every node but the readout
        active: dict[str, Int64Array] = {}

        def observe(name: str, values: Int64Array) -> None:
            node = self.network[name]
            computed[name] = values.reshape(len(values), -1, values.shape[-1])
            if isinstance(node, LIF):
                active[name] = active_updates(node, computed[node.source])

        if isinstance(self.engine, WindowReference):
            answers = self.engine.step_graded(graded, observe, whole=True)
        else:
            answers = self.engine.step_graded(graded, observe)
        self.counter.add(computed, tokens=computed[self.network.encoder.name].shape[1], active=active)
        return answers, {name: computed[name][:, -1] for name in self.reported}


class FastLoopEngine:
    """One lane of the fast engine behind the :class:`Engine` interface. Its answers are overwritten by the next."""

    def __init__(self, network: Network, mode: Mode = "stream") -> None:
        self.network, self.mode, self.engine = network, mode, FastEngine(network, mode=mode, record=True)
        self.present: Spikes = {name: spikes[0] for name, spikes in self.engine.spikes.items()}
        self.reported = tuple(self.present)

    @property
    def ticks_per_token(self) -> int:
        """T: there is no pipeline."""
        return self.network.ticks

    @property
    def counter(self) -> SpikeCounter:
        """As C has counted."""
        return self.engine.counter

    def restart_counter(self) -> None:
        """Forget what was counted."""
        self.engine.restart_counter()

    def reset(self, lane: int) -> None:
        """Start a new episode."""
        self.engine.reset(lane)

    def step_graded(self, graded: npt.NDArray[np.integer]) -> tuple[Int64Array, Spikes]:
        """Consume one token."""
        return self.engine.step_graded(graded), self.present

    def step(self, vector: npt.NDArray[np.floating]) -> Decision:
        """Consume one token's vector; C encodes it."""
        accumulators = self.engine.step(vector)
        return Decision(self.engine.graded, accumulators, self.present)

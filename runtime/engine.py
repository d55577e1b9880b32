"""What the closed loop needs of a backend, and the choice between them."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from dsf.export.network import Network
from dsf.export.nodes import SPIKING_KINDS
from dsf.export.reference import Int64Array
from dsf.runtime.errors import BackendUnavailable
from dsf.runtime.fast_engine import Mode
from dsf.runtime.parity import Spikes, reference_engine

BackendName = Literal["lava", "reference"]
LavaModel = Literal["fused", "expanded"]


FIRST_PYTHON_WITHOUT_LAVA = (3, 11)


class Engine(Protocol):
    """One lane of an integer network, in stream or window mode."""

    network: Network
    mode: Mode

    @property
    def ticks_per_decision(self) -> int:
        """Simulated time steps per decision; in window mode of a full window."""
        ...

    def reset(self, lane: int) -> None:
        """Start a new episode."""
        ...

    def step_graded(self, graded: npt.NDArray[np.integer]) -> tuple[Int64Array, Spikes]:
        """The encoder's integers (1, features) in; accumulators (1, actions) and every population's spikes out.

        The spikes are the present token's, in window mode too.
        """
        ...


class ReferenceBackend:
    """The numpy reference engine behind the :class:`Engine` interface."""

    def __init__(self, network: Network, mode: Mode = "stream") -> None:
        self.network, self.mode, self.engine = network, mode, reference_engine(network, mode)
        self.spiking = {node.name for node in network.nodes if isinstance(node, SPIKING_KINDS)}

    @property
    def ticks_per_decision(self) -> int:
        """T per token: the reference has no pipeline."""
        return self.network.ticks * (self.network.context if self.mode == "window" else 1)

    def reset(self, lane: int) -> None:
        """Start a new episode."""
        self.engine.reset(lane)

    def step_graded(self, graded: npt.NDArray[np.integer]) -> tuple[Int64Array, Spikes]:
        """Consume one token."""
        spikes: Spikes = {}

        def observe(name: str, values: Int64Array) -> None:
            if name in self.spiking:
                spikes[name] = values[:, 0]

        return self.engine.step_graded(graded, observe), spikes


@contextlib.contextmanager
def open_engine(
    network: Network, backend: BackendName, lava_model: LavaModel = "fused", mode: Mode = "stream"
) -> Iterator[Engine]:
    """Start a backend and stop everything that belongs to it at the end, whatever happens.

    Args:
        network: to run.
        backend: where.
        lava_model: of every block, in Lava.
        mode: one token per decision, or the last K tokens replayed for each.

    Raises:
        BackendUnavailable: Lava was asked for where it cannot run.
        EngineDied: Lava failed.
        NetworkError: Lava cannot hold the network.
    """
    if backend == "reference":
        yield ReferenceBackend(network, mode)
        return
    require_lava()
    from dsf.runtime.lava_engine import LavaEngine

    with LavaEngine(network, lava_model, mode) as engine:
        yield engine


def require_lava(python: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Check that the Lava backend can run here.

    Raises:
        BackendUnavailable: wrong Python, or Lava is not installed.
    """
    if python >= FIRST_PYTHON_WITHOUT_LAVA:
        raise BackendUnavailable(
            f"backend 'lava' needs Python 3.10 (Lava is frozen there) and this is {python[0]}.{python[1]}: "
            "use a Python 3.10 environment, or --backend reference, which gives the same spikes"
        )
    if importlib.util.find_spec("lava") is None:
        raise BackendUnavailable("backend 'lava' needs lava-nc: pip install 'dsf[lava]', or use --backend reference")

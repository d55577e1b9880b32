"""What the closed loop needs of a backend, and the choice between them."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import LIF
from dsf.export.network.reference import WindowReference, active_updates, encode
from dsf.hardware_models import SpikeCounter
from dsf.runtime.errors import BackendUnavailable
from dsf.runtime.fast_engine import FastEngine
from dsf.runtime.lava_import import FIRST_PYTHON_WITHOUT_LAVA, OPT_IN, make_lava_importable, newer_python_allowed
from dsf.runtime.parity import Spikes, reference_engine
from dsf.runtime.probes import ALL_POPULATIONS, spiking_populations
from dsf.shell.arrays import Int64Array, IntArray

BackendName = Literal["lava", "fast", "reference"]
LavaModel = Literal["fused", "expanded"]


@dataclass(frozen=True)
class LavaOptions:
    """How Lava runs; nothing of it changes a spike.

    Attributes:
        fast_channels: channels without helper threads, see :mod:`dsf.runtime.lava_channels`.
        probes: patterns of the populations whose spikes are reported; all others are only counted.
    """

    fast_channels: bool = False
    probes: tuple[str, ...] = ALL_POPULATIONS


STOCK_LAVA = LavaOptions()


class Decision(NamedTuple):
    """An engine's answer to one token; the next one may overwrite it.

    Attributes:
        graded: the encoder's integers (1, features).
        accumulators: (1, actions).
        spikes: of the present token.
    """

    graded: IntArray
    accumulators: Int64Array
    spikes: Spikes


class Engine(Protocol):
    """One lane of an integer network, in stream or window mode."""

    network: Network
    mode: Mode
    reported: tuple[str, ...]
    """Populations whose spikes :meth:`step_graded` returns."""

    @property
    def ticks_per_token(self) -> int:
        """Simulated time steps per token."""
        ...

    @property
    def counter(self) -> SpikeCounter:
        """All spikes since the last :meth:`restart_counter`; in window mode those of every token of every window."""
        ...

    def restart_counter(self) -> None:
        """Forget what was counted."""
        ...

    def reset(self, lane: int) -> None:
        """Start a new episode."""
        ...

    def step_graded(self, graded: npt.NDArray[np.integer]) -> tuple[Int64Array, Spikes]:
        """The encoder's integers (1, features) in; accumulators (1, actions) and the reported populations' spikes out.

        The spikes are the present token's, in window mode too.
        """
        ...

    def step(self, vector: npt.NDArray[np.floating]) -> Decision:
        """As :meth:`step_graded`, from a token's vector (1, features).

        Raises:
            NetworkError: a value is not finite.
        """
        ...


class HostEncoder:
    """For engines that start with the encoder's integers: numpy encodes."""

    network: Network

    def step(self: Engine, vector: npt.NDArray[np.floating]) -> Decision:
        """Consume one token's vector."""
        graded = encode(self.network.encoder, vector)
        return Decision(graded, *self.step_graded(graded))


class ReferenceBackend(HostEncoder):
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


class FastBackend:
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


@contextlib.contextmanager
def open_engine(
    network: Network,
    backend: BackendName,
    lava_model: LavaModel = "fused",
    mode: Mode = "stream",
    lava_options: LavaOptions = STOCK_LAVA,
) -> Iterator[Engine]:
    """Start a backend and stop everything that belongs to it at the end, whatever happens.

    Args:
        network: to run.
        backend: where.
        lava_model: of every block, in Lava.
        mode: one token per decision, or the last K tokens replayed for each.
        lava_options: read by Lava only; the other engines report all populations.

    Raises:
        BackendUnavailable: Lava was asked for where it cannot run, or the fast engine where no C compiler is.
        EngineDied: Lava failed.
        NetworkError: Lava cannot hold the network.
    """
    if backend != "lava":
        yield (FastBackend if backend == "fast" else ReferenceBackend)(network, mode)
        return
    require_lava()
    from dsf.runtime.lava_engine import LavaEngine

    with LavaEngine(network, lava_model, mode, lava_options) as engine:
        yield engine


def require_lava(python: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Check that the Lava backend can run here, and make it importable where the user wants it on a newer Python.

    Raises:
        BackendUnavailable: wrong Python, or Lava is not installed.
    """
    if python >= FIRST_PYTHON_WITHOUT_LAVA and not newer_python_allowed():
        raise BackendUnavailable(
            f"backend 'lava' needs Python 3.10 (Lava is frozen there) and this is {python[0]}.{python[1]}: "
            f"use a Python 3.10 environment, {OPT_IN}=1 to try it here, or --backend fast, which gives the same spikes"
        )
    if importlib.util.find_spec("lava") is None:
        raise BackendUnavailable("backend 'lava' needs lava-nc: pip install 'dsf[lava]', or use --backend fast")
    make_lava_importable()

"""What every engine of an integer network is to the closed loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Mode, Network
from dsf.export.network.reference import encode
from dsf.hardware_models import SpikeCounter
from dsf.runtime.engines.parity import Spikes
from dsf.runtime.engines.probes import ALL_POPULATIONS
from dsf.shell.arrays import Int64Array, IntArray

BackendName = Literal["lava", "fast", "reference"]
LavaModel = Literal["fused", "expanded"]


@dataclass(frozen=True)
class LavaOptions:
    """How Lava runs; nothing of it changes a spike.

    Attributes:
        fast_channels: channels without helper threads, see :mod:`dsf.runtime.lava_backend.channels`.
        probes: patterns of the populations whose spikes are reported; all others are only counted.
    """

    fast_channels: bool = False
    probes: tuple[str, ...] = ALL_POPULATIONS


STOCK_LAVA = LavaOptions()


class Decision(NamedTuple):
    """An engine's answer to one token; the next one may overwrite it.

    Attributes:
        graded: the encoder's integers (1, size).
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

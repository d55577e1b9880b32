"""Everything that happens in an episode, noted down while it runs: what a recording holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Network
from dsf.export.network.nodes import SPIKING_KINDS
from dsf.runtime.engines.interface import Decision
from dsf.runtime.engines.parity import Spikes
from dsf.shell.arrays import FloatArray
from dsf.tasks import Episode, Lane, Task, Token

DIGEST_BYTES = 16
"""Bytes in the digest of a decision's spikes: two that differ look alike once in 2**128."""


@dataclass(frozen=True)
class TapedEpisode:
    """One episode of n decisions and m steps of the environment; they differ only in real time.

    Attributes:
        episode: seed, return, and m.
        graded: (n, features) int32, the encoder's integers.
        accumulators: (n, actions) int64.
        spikes: (n, DIGEST_BYTES) uint8, see :func:`spike_digest`.
        seen: (n,) int32, steps of the environment before the observation that was decided on.
        actions: (m, actions) float64, the policy's answer that was executed: tanh, or scores of choices.
        rewards: (m,) float64.
        observations: (m + 1, observation_size) float64, the first one of the reset.
    """

    episode: Episode
    graded: npt.NDArray[np.int32]
    accumulators: npt.NDArray[np.int64]
    spikes: npt.NDArray[np.uint8]
    seen: npt.NDArray[np.int32]
    actions: FloatArray
    rewards: FloatArray
    observations: FloatArray


def spike_digest(network: Network, spikes: Spikes) -> npt.NDArray[np.uint8]:
    """BLAKE2b of one token's spikes: (ticks, neurons) of every spiking population in node order, packed to bits."""
    populations = [spikes[node.name].ravel() for node in network.nodes if isinstance(node, SPIKING_KINDS)]
    bits = np.packbits(np.concatenate(populations))
    return np.frombuffer(hashlib.blake2b(bits.data, digest_size=DIGEST_BYTES).digest(), np.uint8)


class Tape:
    """Takes notes during one episode after another."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.restart()

    def restart(self) -> None:
        """A new episode starts."""
        self.graded: list[npt.NDArray[np.integer]] = []
        self.accumulators: list[npt.NDArray[np.int64]] = []
        self.spikes: list[npt.NDArray[np.uint8]] = []
        self.seen: list[int] = []
        self.actions: list[FloatArray] = []
        self.rewards: list[float] = []
        self.observations: list[FloatArray] = []

    def decided(self, decision: Decision) -> None:
        """The engine has answered."""
        self.graded.append(decision.graded[0].copy())
        self.accumulators.append(decision.accumulators[0].copy())
        self.spikes.append(spike_digest(self.network, decision.spikes))

    def taken(self, episode: Episode) -> TapedEpisode:
        """The episode that has just ended."""
        readout, encoder, decisions = self.network.readout, self.network.encoder, len(self.graded)
        return TapedEpisode(
            episode,
            np.array(self.graded, np.int32).reshape(decisions, encoder.size),
            np.array(self.accumulators, np.int64).reshape(decisions, readout.size),
            np.array(self.spikes, np.uint8).reshape(decisions, DIGEST_BYTES),
            np.array(self.seen, np.int32),
            np.array(self.actions, np.float64).reshape(len(self.actions), readout.size),
            np.array(self.rewards, np.float64),
            np.array(self.observations, np.float64),
        )


class TapedLane(Lane):
    """A lane that notes what its environment gets and gives."""

    def __init__(self, task: Task, tape: Tape) -> None:
        super().__init__(task)
        self.tape = tape

    def start(self, seed: int, target_return: float) -> None:
        """Reset the environment and the tape."""
        super().start(seed, target_return)
        self.tape.restart()
        self.tape.observations.append(self.observation.copy())

    def token(self) -> Token:
        """What the policy decides on next."""
        self.tape.seen.append(self.decisions)
        return super().token()

    def step(self, action: FloatArray) -> Episode | None:
        """Execute a policy's answer."""
        ended = super().step(action)
        self.tape.actions.append(action.copy())
        self.tape.rewards.append(self.reward)
        self.tape.observations.append(self.observation.copy())
        return ended

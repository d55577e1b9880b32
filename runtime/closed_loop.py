"""A backend in closed loop with a task: decides, counts every spike, and is checked against the reference."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dsf.export.network import Network
from dsf.export.nodes import IntArray
from dsf.export.reference import Int64Array, check_token_size, decode, encode
from dsf.hardware_models import Activity, measure_activity
from dsf.runtime.engine import Engine
from dsf.runtime.parity import Parity, ParityCheck, Spikes
from dsf.tasks import Episode, Task, Token, rollout
from dsf.tasks.policy import FloatArray


class EnginePolicy:
    """An engine as a :class:`dsf.tasks.Policy`, with spike counts and a parity check over the first decisions."""

    lanes = 1

    def __init__(self, engine: Engine, parity_decisions: int) -> None:
        self.engine, self.network = engine, engine.network
        engine.restart_counter()
        self.check = ParityCheck(engine.network, engine.mode, engine.reported)
        self.unchecked_decisions = parity_decisions
        self.unchecked: list[tuple[IntArray, Int64Array, Spikes]] = []
        self.episode_spikes: list[int] = []
        self.checking_seconds = 0.0

    def reset(self, lane: int) -> None:
        """A new episode starts."""
        self.settle()
        self.engine.reset(lane)
        self.episode_spikes.append(0)

    def settle(self) -> None:
        """Check the episode that just ended. Not during it: the reference would evict the engine from the caches."""
        started = time.perf_counter()
        self.check.reset()
        for graded, accumulators, spikes in self.unchecked:
            self.check.check(graded, accumulators, spikes)
        self.unchecked = []
        if self.episode_spikes:
            self.episode_spikes[-1] = sum(self.engine.counter.spikes.values()) - sum(self.episode_spikes[:-1])
        self.checking_seconds += time.perf_counter() - started

    def act(self, token: Token) -> FloatArray:
        """One decision."""
        graded = encode(self.network.encoder, token.vector())
        accumulators, spikes = self.engine.step_graded(graded)
        if self.unchecked_decisions > 0:
            self.unchecked_decisions -= 1
            kept = {name: values.copy() for name, values in spikes.items()}  # engines may overwrite their answers
            self.unchecked.append((graded, accumulators.copy(), kept))
        return decode(self.network.readout, accumulators)


@dataclass(frozen=True)
class ClosedLoopResult:
    """What a closed-loop run produced.

    Attributes:
        episodes: in the order of the seeds.
        episode_spikes: spikes fired in each (LIF and gate populations).
        activity: counts over all episodes.
        parity: comparison with the reference engine.
        seconds: wall time of the loop, environment included, without the parity check.
        ticks: simulated time steps.
    """

    episodes: list[Episode]
    episode_spikes: list[int]
    activity: Activity
    parity: Parity
    seconds: float
    ticks: int

    @property
    def decisions(self) -> int:
        """Decisions in all episodes."""
        return sum(episode.decisions for episode in self.episodes)

    @property
    def decisions_per_second(self) -> float:
        """Environment included."""
        return self.decisions / self.seconds


def run_closed_loop(
    task: Task,
    engine: Engine,
    seeds: range,
    target_return: float,
    parity_decisions: int,
    on_step: Callable[[int], None] | None = None,
) -> ClosedLoopResult:
    """Run one episode per seed.

    Raises:
        NetworkError: the network does not fit the task's environment.
        EngineDied: the backend failed.
    """
    check_fits(engine.network, task)
    policy = EnginePolicy(engine, parity_decisions)
    started = time.perf_counter()
    episodes = rollout(task, policy, seeds, target_return, on_step)
    policy.settle()
    seconds = time.perf_counter() - started - policy.checking_seconds
    ticks = engine.counter.tokens * engine.ticks_per_token
    activity = measure_activity(engine.counter)
    return ClosedLoopResult(episodes, policy.episode_spikes, activity, policy.check.result, seconds, ticks)


def check_fits(network: Network, task: Task) -> None:
    """Refuse a network whose inputs and outputs are another task's.

    Raises:
        NetworkError: sizes differ.
    """
    check_token_size(network, task.observation_size, task.action_size)

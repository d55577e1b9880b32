"""A backend in closed loop with a task: decides, counts every spike, and is checked against the reference."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dsf.export.network.network import Network
from dsf.export.network.nodes import NetworkError
from dsf.export.network.reference import check_token_size, decode, encode
from dsf.runtime.engines.interface import Decision, Engine
from dsf.runtime.engines.parity import Parity, ParityCheck
from dsf.runtime.loop.real_time import WallClock, run_in_real_time
from dsf.runtime.loop.results import ClosedLoopResult, EngineTotals, EpisodeResult, gather
from dsf.runtime.loop.saturation import SaturationCounter
from dsf.runtime.loop.tape import Tape, TapedLane
from dsf.shell.arrays import FloatArray, IntArray
from dsf.tasks import Episode, Lane, Task, Token

OnStep = Callable[[int], None]
"""Called with a number of steps that were made (progress bars)."""


@dataclass(frozen=True)
class LoopSettings:
    """What all episodes of a run share.

    Attributes:
        task: environment and return scale.
        target_return: asked for at the first step (reward units).
        checked: decisions at the start of every episode that the reference repeats, spike by spike.
        sampled: decisions at the start of every episode whose tokens are kept.
        taped: whether everything that happens is kept, for a recording.
        clock: of real time; None is as fast as it goes.
    """

    task: Task
    target_return: float
    checked: int = 0
    sampled: int = 0
    taped: bool = False
    clock: WallClock | None = None


class EnginePolicy:
    """An engine as a :class:`dsf.tasks.Policy`, with a parity check over the first decisions of every episode."""

    lanes = 1

    def __init__(self, engine: Engine, checked: int = 0, tape: Tape | None = None, sampled: int = 0) -> None:
        self.engine, self.network = engine, engine.network
        self.checked, self.tape, self.sampled = checked, tape, sampled
        self.readout = engine.network.readout  # which the network would look for at every decision
        self.saturation = SaturationCounter(engine.network.encoder)
        self.unchecked: list[tuple[FloatArray, Decision]] = []
        self.tokens: list[IntArray] = []

    def reset(self, lane: int) -> None:
        """A new episode starts."""
        self.engine.reset(lane)
        self.saturation.restart()
        self.unchecked, self.tokens = [], []

    def act(self, token: Token) -> FloatArray:
        """One decision."""
        return self.decide(token.vector())

    def decide(self, vector: FloatArray) -> FloatArray:
        """One decision from a token's vector (1, features): actions (1, actions)."""
        decision = self.engine.step(vector)
        self.saturation.see(vector)
        if len(self.unchecked) < self.checked:
            self.unchecked.append((vector, _kept(decision)))
        if len(self.tokens) < self.sampled:
            self.tokens.append(decision.graded[0].copy())
        if self.tape is not None:
            self.tape.decided(decision)
        return decode(self.readout, decision.accumulators)

    def parity(self) -> Parity:
        """Check the episode that has just ended; during it, the reference would evict the engine from the caches."""
        check = ParityCheck(self.network, self.engine.mode, self.engine.reported)
        for vector, decision in self.unchecked:
            check.check(encode(self.network.encoder, vector), decision.accumulators, decision.spikes)
        return check.result


def _kept(decision: Decision) -> Decision:
    """A copy: engines may overwrite their answers."""
    spikes = {name: values.copy() for name, values in decision.spikes.items()}
    return Decision(decision.graded.copy(), decision.accumulators.copy(), spikes)


def run_freely(lane: Lane, policy: EnginePolicy, on_step: OnStep | None = None) -> Episode:
    """Go on with a started episode to its end, as fast as it goes."""
    episode = None
    while episode is None:
        episode = lane.step(policy.act(lane.token())[0])
        if on_step is not None:
            on_step(1)
    return episode


def run_episodes(
    engine: Engine, settings: LoopSettings, seeds: Iterable[int], on_step: OnStep | None = None
) -> Iterator[EpisodeResult]:
    """Run one episode after another in one environment; a seed is asked for when the last episode has ended.

    An episode's result depends on its seed alone, as far as the environment forgets the last episode when it is reset.

    Raises:
        NetworkError: the network does not fit the task's environment, or a value is not finite.
        EngineDied: the backend failed.
    """
    check_fits(engine.network, settings.task)
    tape = Tape(engine.network) if settings.taped else None
    lane = Lane(settings.task) if tape is None else TapedLane(settings.task, tape)
    policy = EnginePolicy(engine, settings.checked, tape, settings.sampled)
    try:
        for seed in seeds:
            yield _run_episode(lane, policy, settings, seed, on_step)
    finally:
        lane.close()


def _run_episode(
    lane: Lane, policy: EnginePolicy, settings: LoopSettings, seed: int, on_step: OnStep | None
) -> EpisodeResult:
    fired, started = _spikes(policy.engine), time.perf_counter()
    lane.start(seed, settings.target_return)
    policy.reset(0)
    if settings.clock is None:
        episode, timing = run_freely(lane, policy, on_step), None
    else:
        episode, timing = run_in_real_time(lane, policy.decide, settings.clock, on_step)
    seconds = time.perf_counter() - started
    return EpisodeResult(
        episode,
        _spikes(policy.engine) - fired,
        policy.parity(),
        policy.saturation.taken(),
        seconds,
        np.array(policy.tokens, np.int64).reshape(len(policy.tokens), policy.network.encoder.size),
        None if policy.tape is None else policy.tape.taken(episode),
        timing,
    )


def _spikes(engine: Engine) -> int:
    """Fired since the engine began to count."""
    return sum(engine.counter.spikes.values())


def totals_of(engine: Engine) -> EngineTotals:
    """What an engine has counted so far."""
    counter = engine.counter
    return EngineTotals(counter, counter.tokens * engine.ticks_per_token)


def run_closed_loop(
    task: Task,
    engine: Engine,
    seeds: Sequence[int],
    target_return: float,
    parity_decisions: int,
    on_step: OnStep | None = None,
) -> ClosedLoopResult:
    """Run one episode per seed, one after another.

    Args:
        task: environment and return scale.
        engine: of the network.
        seeds: environment reset seeds.
        target_return: asked for at the first step (reward units).
        parity_decisions: that are compared with the reference, see :func:`checked_per_episode`.
        on_step: called after every step.

    Raises:
        NetworkError: the network does not fit the task's environment, or a value is not finite.
        EngineDied: the backend failed.
    """
    settings = LoopSettings(task, target_return, checked_per_episode(parity_decisions, len(seeds)))
    return run_serially(engine, settings, seeds, on_step)


def run_serially(
    engine: Engine, settings: LoopSettings, seeds: Sequence[int], on_step: OnStep | None = None
) -> ClosedLoopResult:
    """Run one episode per seed, one after another; errors are those of :func:`run_episodes`."""
    engine.restart_counter()
    results = list(run_episodes(engine, settings, seeds, on_step))
    seconds = sum(result.seconds for result in results)
    return gather(engine.network, seeds, results, [totals_of(engine)], seconds)


def checked_per_episode(decisions: int, episodes: int) -> int:
    """A budget of checked decisions, spread evenly: the same for every episode, whoever runs it; rounded up."""
    return math.ceil(decisions / episodes)


def check_fits(network: Network, task: Task) -> None:
    """Refuse a network whose inputs and outputs are another task's.

    Raises:
        NetworkError: sizes differ, or bounds of a task that the network itself carries.
    """
    check_token_size(network, task.observation_size, task.action_size)
    readout = network.readout
    ends = (readout.low, readout.high), readout.first_choice
    if task.definition is not None and ends != (task.command_bounds, task.first_choice):
        raise NetworkError(f"network: its readout ends at other actions than task {task.name}: export it again")

"""What a closed-loop run produced: per episode, per engine, and as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dsf.export.network.network import Network
from dsf.hardware_models import Activity, SpikeCounter, measure_activity
from dsf.runtime.engines.parity import Parity
from dsf.runtime.loop.real_time import Timing
from dsf.runtime.loop.tape import TapedEpisode
from dsf.shell.arrays import Int64Array, IntArray
from dsf.tasks import Episode


@dataclass(frozen=True)
class EpisodeResult:
    """What one episode produced.

    Attributes:
        episode: seed, return, steps.
        spikes: fired in it (LIF, gate and And populations).
        parity: comparison with the reference engine.
        saturated: (features,), decisions whose token lay beyond the encoder's range in each.
        seconds: wall time, environment included, without that comparison.
        tokens: (decisions, features) the encoder's integers of its first decisions, as many as were asked for.
        tape: everything that happened, if it was taped.
        timing: against the clock, in real time.
    """

    episode: Episode
    spikes: int
    parity: Parity
    saturated: Int64Array
    seconds: float
    tokens: IntArray
    tape: TapedEpisode | None
    timing: Timing | None


@dataclass(frozen=True)
class EngineTotals:
    """What one engine counted over all its episodes: spikes, and simulated time steps."""

    counter: SpikeCounter
    ticks: int


@dataclass(frozen=True)
class ClosedLoopResult:
    """What a closed-loop run produced.

    Attributes:
        results: of the episodes, in the order of the seeds.
        counter: all spikes.
        activity: the same as counts of what costs energy.
        seconds: wall time of the loop, environment included. One after another, the parity checks are not counted; of
            several workers it is the time until the last one has ended, starts and checks included.
        ticks: simulated time steps.
    """

    results: tuple[EpisodeResult, ...]
    counter: SpikeCounter
    activity: Activity
    seconds: float
    ticks: int

    @property
    def episodes(self) -> list[Episode]:
        """In the order of the seeds."""
        return [result.episode for result in self.results]

    @property
    def episode_spikes(self) -> list[int]:
        """Spikes fired in each."""
        return [result.spikes for result in self.results]

    @property
    def tapes(self) -> tuple[TapedEpisode, ...]:
        """Everything that happened in each, if it was taped."""
        return tuple(result.tape for result in self.results if result.tape is not None)

    @property
    def timings(self) -> list[Timing]:
        """Each episode against the clock, in real time."""
        return [result.timing for result in self.results if result.timing is not None]

    @property
    def parity(self) -> Parity:
        """Comparison with the reference engine, over all episodes."""
        total = Parity()
        for result in self.results:
            found = result.parity
            where = f"seed {result.episode.seed}, {found.first_mismatch}" if found.first_mismatch else ""
            total += dataclasses.replace(found, first_mismatch=where)
        return total

    @property
    def saturated(self) -> Int64Array:
        """Decisions whose token lay beyond the encoder's range in each feature, (features,)."""
        return np.sum([result.saturated for result in self.results], axis=0, dtype=np.int64)

    @property
    def decisions(self) -> int:
        """Decisions in all episodes."""
        return self.counter.decisions

    @property
    def decisions_per_second(self) -> float:
        """Environment included."""
        return self.decisions / self.seconds


def gather(
    network: Network,
    seeds: Sequence[int],
    results: Iterable[EpisodeResult],
    totals: Iterable[EngineTotals],
    seconds: float,
) -> ClosedLoopResult:
    """One result from those of all episodes and engines, in whatever order they come."""
    counter, ticks = SpikeCounter(network), 0
    for engine in totals:
        counter.merge(engine.counter)
        ticks += engine.ticks
    ordered = tuple(sorted(results, key=lambda result: seeds.index(result.episode.seed)))
    return ClosedLoopResult(ordered, counter, measure_activity(counter), seconds, ticks)

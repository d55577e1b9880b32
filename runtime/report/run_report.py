"""What a run has to tell: the one record behind terminal, page and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsf.export.network.network import Mode
from dsf.runtime.loop.closed_loop import LoopSettings
from dsf.runtime.loop.real_time import RealTimeFigures
from dsf.runtime.loop.results import ClosedLoopResult
from dsf.runtime.report.core_traffic import CoreTraffic
from dsf.runtime.report.hardware import HardwareFigures
from dsf.shell.errors import UserError
from dsf.tasks import ConfidenceInterval, Episode, Task, mean_confidence_interval
from dsf.tasks.data_returns import SHOWN_DIGITS

FEWEST_EPISODES = 6
"""An interval that is drawn from n returns lies between the smallest and the largest, where a median lies with a chance
of 1 - 2**(1 - n) only: below this number that is less than 95 %, whatever is drawn.
"""
COMPARISON_NOTE = (
    "float and integer returns of one seed are no measure of what the integers lose: a closed loop amplifies the last "
    "bits of a rounding until the episodes part; only means over many seeds compare (--episodes)"
)
"""What has to be said beside returns of float and integer policies."""


@dataclass(frozen=True)
class WallTimes:
    """Seconds of wall time around the loop, whose own are in its result.

    Attributes:
        comparison: of the other levels on the same seeds; None where none ran.
        whole: from reading the network to these figures: start of the engine, comparison, loop, checks, prices. What is
            drawn and written comes on top.
    """

    comparison: float | None
    whole: float


@dataclass(frozen=True)
class SuccessRate:
    """How many episodes reached the goal.

    Attributes:
        reached: of them.
        told: episodes of which the environment says whether.
    """

    reached: int
    told: int

    def __str__(self) -> str:
        return f"{self.reached / self.told:.1%} ({self.reached} of {self.told} episodes)"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"rate": self.reached / self.told, "reached": self.reached, "episodes": self.told}


@dataclass(frozen=True)
class SaturatedFeature:
    """A feature that lay beyond the encoder's range, so that the network saw the range's end.

    Attributes:
        name: such as observation[3], counted from 0.
        decisions: in which it did.
        share: of all decisions.
    """

    name: str
    decisions: int
    share: float


@dataclass(frozen=True)
class RunReport:
    """A closed-loop run, with everything that is shown of it.

    Attributes:
        settings: what all episodes shared: task, target return, clock.
        backend: engine that ran, such as "lava-fused".
        mode: stream or window.
        result: episodes, spikes and activity.
        hardware: energy, cores and latency, one per preset.
        comparison: episodes of the same seeds under other levels, such as "integer reference".
        compared: populations whose spikes were compared with the reference.
        spiking_populations: how many there are.
        times: of what is around the loop.
        notes: what a reader of the figures has to know, a line each.
        core_traffic: messages between cores, where it was asked for.
    """

    settings: LoopSettings
    backend: str
    mode: Mode
    result: ClosedLoopResult
    hardware: Sequence[HardwareFigures]
    comparison: Mapping[str, Sequence[Episode]]
    compared: tuple[str, ...]
    spiking_populations: int
    times: WallTimes
    notes: tuple[str, ...] = ()
    core_traffic: CoreTraffic | None = None

    @property
    def task(self) -> Task:
        """The environment that ran."""
        return self.settings.task

    @property
    def target_return(self) -> float:
        """Asked for at the first step (reward units)."""
        return self.settings.target_return

    @property
    def episodes(self) -> list[Episode]:
        """In the order of the seeds."""
        return self.result.episodes

    @property
    def returns(self) -> list[float]:
        """Returns of the episodes (reward units)."""
        return [episode.episode_return for episode in self.episodes]

    @property
    def interval(self) -> ConfidenceInterval:
        """Confidence interval of the mean return over episodes."""
        return mean_confidence_interval(self.returns)

    @property
    def success(self) -> SuccessRate | None:
        """How many episodes reached the goal; None where the environment does not say."""
        told = [episode.success for episode in self.episodes if episode.success is not None]
        return SuccessRate(sum(told), len(told)) if told else None

    @property
    def interval_note(self) -> str:
        """What has to be said of the interval, in a few words; empty where nothing has."""
        count = len(self.episodes)
        return (
            "" if count >= FEWEST_EPISODES else "one episode" if count == 1 else f"{count} episodes: too few for 95 %"
        )

    @property
    def shown_target(self) -> str:
        """The target return in words: whole, but for a task of one's own, whose returns may be small."""
        own = self.task.definition is not None
        return f"{self.target_return:.{SHOWN_DIGITS}g}" if own else f"{self.target_return:.0f}"

    @property
    def score_label(self) -> str | None:
        """What the score is normalised by; None where the environment has no reference returns."""
        return self.task.score_label if self.task.reference else None

    def score(self, episode_return: float) -> float | None:
        """A normalised score; None where the environment has no reference returns."""
        return self.task.shown_score(episode_return)

    @property
    def ticks_per_second(self) -> float:
        """Simulated time steps per second of the loop's wall time."""
        return self.result.ticks / self.result.seconds

    @property
    def spikes_per_decision(self) -> float:
        """Fired by LIF, gate and And populations."""
        return sum(self.result.episode_spikes) / self.result.decisions

    @property
    def synaptic_events_per_decision(self) -> float:
        """Spikes times the synapses that they meet."""
        return self.result.activity.per_decision("synaptic_events")

    @property
    def comparison_note(self) -> str | None:
        """What has to be said of returns side by side; None where all of them are integers', which are equal."""
        return COMPARISON_NOTE if any(name.startswith("float") for name in self.comparison) else None

    @property
    def saturation(self) -> tuple[SaturatedFeature, ...]:
        """The features that ever lay beyond the encoder's range, the most often one first."""
        counts, decisions = self.result.saturated, self.result.decisions
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        return tuple(
            SaturatedFeature(self.task.feature(index), int(counts[index]), int(counts[index]) / decisions)
            for index in order.tolist()
        )

    @property
    def real_time(self) -> RealTimeFigures | None:
        """The run against the clock, in real time."""
        clock = self.settings.clock
        return None if clock is None else RealTimeFigures.of(clock, self.result.timings)

    def figures(self, preset: str) -> HardwareFigures:
        """The run under one preset.

        Raises:
            UserError: the run was not priced with it.
        """
        found = {figures.preset.name: figures for figures in self.hardware}
        if preset not in found:
            raise UserError(f"this run was not priced with {preset}: use one of {', '.join(found)}")
        return found[preset]

    def to_json(self) -> dict[str, Any]:
        """JSON values with stable keys; scores are null where the environment has no reference."""
        interval, parity, result, real_time = self.interval, self.result.parity, self.result, self.real_time
        values = {
            "task": self.task.name,
            "env_id": self.task.env_id,
            "environment": self.task.world,
            "notes": list(self.notes),
            "backend": self.backend,
            "mode": self.mode,
            "target_return": self.target_return,
            "decisions": result.decisions,
            "episodes": [
                self._episode_json(episode, spikes) for episode, spikes in zip(self.episodes, result.episode_spikes)
            ],
            "return_mean": interval.mean,
            "return_interval_95": [interval.low, interval.high],
            "return_interval_note": self.interval_note,
            "score_mean": self.score(interval.mean),
            "score_label": self.score_label,
            "decisions_per_second": result.decisions_per_second,
            "ticks_per_second": self.ticks_per_second,
            "seconds": result.seconds,
            "wall_seconds": {
                "loop": result.seconds,
                "comparison": self.times.comparison,
                "whole": self.times.whole,
            },
            "spikes_per_decision": self.spikes_per_decision,
            "synaptic_events_per_decision": self.synaptic_events_per_decision,
            "firing_rate": result.activity.firing_rate,
            "saturation": [dataclasses.asdict(feature) for feature in self.saturation],
            "energy": {figures.preset.name: figures.to_json(self.task) for figures in self.hardware},
            "parity": {
                "compared_spikes": parity.compared_spikes,
                "compared_accumulators": parity.compared_accumulators,
                "mismatches": parity.mismatches,
                "accumulator_mismatches": parity.accumulator_mismatches,
                "first_mismatch": parity.first_mismatch,
                "populations": self.compared,
                "spiking_populations": self.spiking_populations,
            },
            "real_time": None if real_time is None else real_time.to_json(),
            "comparison": {
                name: [{"seed": episode.seed, "return": episode.episode_return} for episode in episodes]
                for name, episodes in self.comparison.items()
            },
            "comparison_note": self.comparison_note,
        }
        if self.success is not None:
            values["success"] = self.success.to_json()
        if self.core_traffic is not None:
            values["core_traffic"] = self.core_traffic.to_json()
        return values

    def _episode_json(self, episode: Episode, spikes: int) -> dict[str, Any]:
        values = {
            "seed": episode.seed,
            "return": episode.episode_return,
            "score": self.score(episode.episode_return),
            "decisions": episode.decisions,
            "spikes": spikes,
        }
        if episode.success is not None:
            values |= {"success": episode.success, "shortest": episode.shortest}
        return values

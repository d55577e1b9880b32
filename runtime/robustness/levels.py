"""Returns under growing disturbances and faults: closed loops on the fast engine, many episodes side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dsf.export.network.bounds import OverflowPossible
from dsf.export.network.network import Mode, Network
from dsf.export.network.reference import IntegerPolicy
from dsf.export.placement.chips import Chip
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.runtime.robustness.network_faults import dead_cores, flipped_weight_bits, stuck_neurons
from dsf.shell.errors import UserError
from dsf.tasks import ConfidenceInterval, Disturbances, Task, mean_confidence_interval, rollout
from dsf.tasks.disturbances import UNDISTURBED
from dsf.train.quantization.codec import RANGE_SIGMAS

KindName = Literal[
    "observation-noise",
    "observation-dropout",
    "sensor-dropout",
    "action-latency",
    "stuck-at-0",
    "stuck-at-1",
    "weight-bit-flips",
    "dead-cores",
]
ALL_KINDS: tuple[KindName, ...] = get_args(KindName)
MOST_LANES = 64
"""Environments that are open at once."""


@dataclass(frozen=True)
class Sweep:
    """What stays the same at every level.

    Attributes:
        task: environment and scores.
        network: without a fault.
        target_return: asked for (reward units).
        seeds: environment reset seeds, one episode each.
        fault_seeds: of disturbances and faults; every episode runs with each.
        chip: that cores die on.
    """

    task: Task
    network: Network
    target_return: float
    seeds: range
    fault_seeds: range
    chip: Chip

    @property
    def mode(self) -> Mode:
        """Stream where it equals window, else window."""
        return "stream" if self.network.stream_is_exact else "window"

    @property
    def observation_scale(self) -> tuple[float, ...]:
        """The unit of noise, (observation_size,): what the encoder can tell apart, over the sigmas it is made for.

        That is a feature's standard deviation over the training data, where they reach that far, and less elsewhere. A
        host embedding without a range is made for units of that deviation.
        """
        encoder = self.network.encoder
        units = np.where(np.isfinite(encoder.reach), encoder.reach / RANGE_SIGMAS, encoder.step)
        return tuple(units[: self.task.observation_size].tolist())


@dataclass(frozen=True)
class Condition:
    """One level with one seed: the network that runs, and what lies between it and the environment."""

    network: Network
    disturbances: Disturbances = UNDISTURBED


@dataclass(frozen=True)
class Kind:
    """One way in which a deployed policy suffers.

    Attributes:
        unit: of its levels.
        levels: by default.
        condition: of a sweep's level and fault seed.
        whole: levels are whole numbers.
        faulty: the network differs by seed, so that a seed is one sample; else an episode is.
        random: seeds matter.
    """

    unit: str
    levels: tuple[float, ...]
    condition: Callable[[Sweep, float, int], Condition]
    whole: bool = False
    faulty: bool = False
    random: bool = True


def _noise(sweep: Sweep, level: float, seed: int) -> Condition:
    scale = sweep.observation_scale
    return Condition(sweep.network, Disturbances(observation_noise=level, observation_scale=scale, seed=seed))


def _lost_observations(sweep: Sweep, level: float, seed: int) -> Condition:
    return Condition(sweep.network, Disturbances(observation_dropout=level, seed=seed))


def _lost_elements(sweep: Sweep, level: float, seed: int) -> Condition:
    return Condition(sweep.network, Disturbances(sensor_dropout=level, seed=seed))


def _latency(sweep: Sweep, level: float, _seed: int) -> Condition:
    return Condition(sweep.network, Disturbances(action_latency=int(level)))


def _stuck_at_0(sweep: Sweep, level: float, seed: int) -> Condition:
    return Condition(stuck_neurons(sweep.network, 0, level, seed))


def _stuck_at_1(sweep: Sweep, level: float, seed: int) -> Condition:
    return Condition(stuck_neurons(sweep.network, 1, level, seed))


def _flipped_bits(sweep: Sweep, level: float, seed: int) -> Condition:
    return Condition(flipped_weight_bits(sweep.network, level, seed))


def _dead_cores(sweep: Sweep, level: float, seed: int) -> Condition:
    return Condition(dead_cores(sweep.network, int(level), seed, sweep.chip))


_LOSSES = (0.05, 0.1, 0.2, 0.4, 0.6)
_STUCK = (0.001, 0.003, 0.01, 0.03, 0.1)
_FLIPS = (0.0001, 0.0003, 0.001, 0.003, 0.01)
KINDS: dict[KindName, Kind] = {
    "observation-noise": Kind("fifths of the encoder's range", (0.01, 0.03, 0.1, 0.3, 1.0), _noise),
    "observation-dropout": Kind("share of observations", _LOSSES, _lost_observations),
    "sensor-dropout": Kind("share of observed elements", _LOSSES, _lost_elements),
    "action-latency": Kind("control periods", (1, 2, 3, 4), _latency, whole=True, random=False),
    "stuck-at-0": Kind("share of LIF neurons", _STUCK, _stuck_at_0, faulty=True),
    "stuck-at-1": Kind("share of LIF neurons", _STUCK, _stuck_at_1, faulty=True),
    "weight-bit-flips": Kind("share of weight bits", _FLIPS, _flipped_bits, faulty=True),
    "dead-cores": Kind("cores", (1, 2, 4, 8), _dead_cores, whole=True, faulty=True),
}


@dataclass(frozen=True)
class Point:
    """The returns at one level.

    Attributes:
        kind: None where nothing is disturbed.
        level: in the kind's unit.
        returns: of every episode (reward units), in the order of the reset seeds, per fault seed.
    """

    kind: KindName | None
    level: float
    returns: dict[int, list[float]]

    @property
    def unit(self) -> str:
        """The unit of the level; empty where nothing is disturbed."""
        return "" if self.kind is None else KINDS[self.kind].unit

    @property
    def interval_over(self) -> Literal["fault seeds", "episodes"]:
        """What counts as independent samples.

        Episodes on one faulty network share its fault, so that an interval over all of them would be too narrow.
        """
        faulty = self.kind is not None and KINDS[self.kind].faulty
        return "fault seeds" if faulty and len(self.returns) > 1 else "episodes"

    @property
    def interval(self) -> ConfidenceInterval:
        """Mean return with its 95 % bootstrap interval."""
        if self.interval_over == "fault seeds":
            return mean_confidence_interval([float(np.mean(returns)) for returns in self.returns.values()])
        return mean_confidence_interval([value for returns in self.returns.values() for value in returns])


@dataclass(frozen=True)
class PreparedLevel:
    """One level of one kind, ready to run: a condition per fault seed."""

    kind: KindName | None
    level: float
    conditions: dict[int, Condition]


def undisturbed(sweep: Sweep) -> PreparedLevel:
    """The level to compare with."""
    return PreparedLevel(None, 0.0, {sweep.fault_seeds[0]: Condition(sweep.network)})


def prepare_level(sweep: Sweep, kind: KindName, level: float) -> PreparedLevel:
    """Inject one level of a kind with every fault seed. Nothing that can be refused is refused later.

    Raises:
        UserError: the level is impossible, or the network could overflow with it; in one line.
    """
    rules = KINDS[kind]
    if rules.whole and not (math.isfinite(level) and level == int(level)):
        raise UserError(f"--levels: {level:g} of {kind}: it must be a whole number")
    seeds = sweep.fault_seeds if rules.random else sweep.fault_seeds[:1]
    conditions: dict[int, Condition] = {}
    for seed in seeds:
        try:
            conditions[seed] = rules.condition(sweep, level, seed)
        except UserError as error:
            reason = f"{error.finding}; choose less" if isinstance(error, OverflowPossible) else str(error)
            raise UserError(f"--levels: {level:g} of {kind}, fault seed {seed}: {reason}") from None
    return PreparedLevel(kind, level, conditions)


def measure_level(sweep: Sweep, prepared: PreparedLevel, on_step: Callable[[int], None] | None = None) -> Point:
    """Run every episode under every condition of a level.

    Args:
        sweep: what stays the same.
        prepared: the level to run.
        on_step: as of :func:`dsf.tasks.rollout`.
    """
    returns: dict[int, list[float]] = {}
    for seed, condition in prepared.conditions.items():
        policy = IntegerPolicy(FastEngine(condition.network, min(len(sweep.seeds), MOST_LANES), sweep.mode))
        episodes = rollout(sweep.task, policy, sweep.seeds, sweep.target_return, on_step, condition.disturbances)
        returns[seed] = [episode.episode_return for episode in episodes]
    return Point(prepared.kind, prepared.level, returns)

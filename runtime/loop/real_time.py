"""The closed loop against the wall clock: the environment does not wait for a decision that is late."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np

from dsf.shell.arrays import FloatArray
from dsf.shell.processes.background import Background
from dsf.shell.units import MILLISECOND
from dsf.tasks import Episode, Lane

OnMiss = Literal["hold", "stop"]
Decide = Callable[[FloatArray], FloatArray]
"""Actions (1, actions) from a token's vector (1, features)."""
SWITCH_INTERVAL_S = 2e-4
"""So long may a Python thread that decides keep the clock's from waking up; by default it is 5 ms, most of a period."""
QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class WallClock:
    """When the environment moves on, and what happens where no decision is ready by then.

    Attributes:
        period_s: seconds of wall time between two steps of the environment.
        on_miss: hold the last executed action until the late one is there, or stop the episode.
    """

    period_s: float
    on_miss: OnMiss = "hold"


@dataclass(frozen=True)
class Timing:
    """One episode against the clock.

    Attributes:
        misses: deadlines at which no decision was ready.
        stopped: whether a miss ended the episode.
        latencies_s: of every decision, from the observation to the action.
        lateness_s: of every period, from its deadline to the moment at which the loop woke up.
    """

    misses: int
    stopped: bool
    latencies_s: FloatArray
    lateness_s: FloatArray


def run_in_real_time(
    lane: Lane, decide: Decide, clock: WallClock, on_step: Callable[[int], None] | None = None
) -> tuple[Episode, Timing]:
    """Go on with a started episode to its end, one step of the environment per period.

    Deadlines are whole periods after the start, so that no lateness adds up. An observation is taken at the start of a
    period, decided on in a thread of its own, and the action is executed at the period's end. A decision that is not
    ready then has missed its deadline: the environment moves on with the last executed action (zeros, if there is
    none), and the late one is executed at the first deadline by which it is ready.

    Raises:
        EngineDied: the backend failed.
    """
    misses, stopped, held = 0, False, np.zeros(lane.task.action_size)
    lateness: list[float] = []
    episode: Episode | None = None
    with _responsive_threads(), _Decider(decide) as decider:
        start = time.monotonic()
        decider.begin(lane.token().vector())
        while episode is None:
            deadline = start + (len(lateness) + 1) * clock.period_s
            time.sleep(max(0.0, deadline - time.monotonic()))
            lateness.append(time.monotonic() - deadline)
            action = decider.ready_by(deadline)
            misses += action is None
            stopped = action is None and clock.on_miss == "stop"
            held = held if action is None else action
            episode = lane.cut() if stopped else lane.step(held)
            if episode is None and action is not None:
                decider.begin(lane.token().vector())
            if on_step is not None:
                on_step(1)
    return episode, Timing(misses, stopped, np.array(decider.latencies_s), np.array(lateness))


class _Decider:
    """Makes one decision at a time in a thread of its own."""

    def __init__(self, decide: Decide) -> None:
        self.decide, self.thread = decide, Background[tuple[FloatArray, float]]("decision")
        self.latencies_s: list[float] = []
        self.deciding = False
        self.late: tuple[FloatArray, float] | None = None

    def __enter__(self) -> _Decider:
        self.thread.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.thread.__exit__(kind, error, tb)
        if kind is None and self.deciding:
            self.thread.answer()  # nobody has asked for the last one, and it may have failed

    def begin(self, vector: FloatArray) -> None:
        """Start a decision."""
        self.deciding = True
        self.thread.begin(functools.partial(self._decide, vector, time.monotonic()))

    def _decide(self, vector: FloatArray, observed: float) -> tuple[FloatArray, float]:
        action, now = self.decide(vector)[0], time.monotonic()
        self.latencies_s.append(now - observed)
        return action, now

    def ready_by(self, deadline: float) -> FloatArray | None:
        """The action, if it was there at the deadline; a late one at the first deadline that it meets."""
        if self.late is None:
            if not self.thread.is_ready():
                return None
            self.late, self.deciding = self.thread.answer(), False
        action, ready = self.late
        if ready > deadline:
            return None
        self.late = None
        return action


@contextlib.contextmanager
def _responsive_threads() -> Iterator[None]:
    """Let the clock's thread wake up soon while another one runs Python."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@dataclass(frozen=True)
class RealTimeFigures:
    """A run against the clock.

    Attributes:
        clock: that it ran against.
        periods: steps of the environment.
        deadline_misses: periods whose decision was late.
        safe_stops: episodes that a miss ended.
        decision_latency_ms, jitter_ms: by :data:`QUANTILES`, see :class:`Timing`.
    """

    clock: WallClock
    periods: int
    deadline_misses: int
    safe_stops: int
    decision_latency_ms: dict[str, float]
    jitter_ms: dict[str, float]

    @classmethod
    def of(cls, clock: WallClock, timings: Sequence[Timing]) -> RealTimeFigures:
        """All episodes together."""
        return cls(
            clock,
            sum(len(timing.lateness_s) for timing in timings),
            sum(timing.misses for timing in timings),
            sum(timing.stopped for timing in timings),
            _quantiles([timing.latencies_s for timing in timings]),
            _quantiles([timing.lateness_s for timing in timings]),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "control_period_s": self.clock.period_s,
            "on_deadline_miss": self.clock.on_miss,
            "periods": self.periods,
            "deadline_misses": self.deadline_misses,
            "safe_stops": self.safe_stops,
            "decision_latency_ms": self.decision_latency_ms,
            "jitter_ms": self.jitter_ms,
        }


def _quantiles(samples: Sequence[FloatArray]) -> dict[str, float]:
    """By :data:`QUANTILES`, of all samples together, seconds to milliseconds."""
    milliseconds = np.concatenate(samples) / MILLISECOND
    return {name: float(np.quantile(milliseconds, share)) for name, share in QUANTILES.items()}

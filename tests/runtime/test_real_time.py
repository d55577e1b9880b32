"""The closed loop against the wall clock: late decisions, held and stopped; no drift."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsf.export.network.file import write_network
from dsf.export.network.network import Network
from dsf.runtime import cli
from dsf.runtime.engines.adapters import FastLoopEngine
from dsf.runtime.engines.errors import EngineDied
from dsf.runtime.loop.closed_loop import LoopSettings, run_serially
from dsf.runtime.loop.env_task import env_task
from dsf.runtime.loop.real_time import OnMiss, RealTimeFigures, Timing, WallClock, run_in_real_time
from dsf.runtime.loop.tape import Tape, TapedLane
from dsf.runtime.open_engine import open_engine
from dsf.testing.command_line import assert_refused
from dsf.testing.gym_worlds import ACTION, OBSERVATION
from dsf.testing.random_networks import random_network
from dsf.testing.training_runs import run_here

FEATURES = OBSERVATION + ACTION + 1
WORLD = "dsf.testing.gym_worlds:Point-v0"
RELAXED_S = 0.5
"""A period that no decision misses, on however busy a machine."""


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network(4, features=FEATURES)


def run_slow(network: Network, period: float, decision: float, on_miss: OnMiss) -> tuple[TapedLane, Timing, list]:
    """One episode under a policy that takes its time and answers 0.1, 0.2, and so on."""
    lane = TapedLane(env_task(WORLD, network), Tape(network))
    answers: list[np.ndarray] = []

    def decide(vector: np.ndarray) -> np.ndarray:
        assert vector.shape == (1, FEATURES)
        time.sleep(decision)
        answers.append(np.full(ACTION, 0.1 * (len(answers) + 1)))
        return answers[-1][None]

    lane.start(0, 1.0)
    episode, timing = run_in_real_time(lane, decide, WallClock(period, on_miss))
    assert (episode.decisions, episode.episode_return) == (lane.decisions, lane.total) and not lane.running
    lane.close()
    return lane, timing, answers


@pytest.mark.slow
def test_without_a_miss_the_clock_changes_nothing(network: Network) -> None:
    task, results = env_task(WORLD, network), []
    for clock in (None, WallClock(RELAXED_S, "stop")):
        with open_engine(network, "fast") as engine:
            results.append(run_serially(engine, LoopSettings(task, 3.0, 10, clock=clock), range(1)))
    free, timed = results
    assert timed.episodes == free.episodes and timed.activity == free.activity and timed.parity == free.parity
    timing = timed.timings[0]
    assert (timing.misses, timing.stopped) == (0, False)
    assert len(timing.lateness_s) == len(timing.latencies_s) == timed.decisions
    assert timed.seconds >= RELAXED_S * timed.decisions


def test_a_late_decision_is_executed_when_it_is_there_and_the_last_one_held_until_then(network: Network) -> None:
    """Two periods and a half per decision: at least two misses each, first with nothing to hold but zeros."""
    lane, timing, answers = run_slow(network, 0.04, 0.1, "hold")
    seen, actions = lane.tape.seen, lane.tape.actions
    assert seen[0] == 0 and len(seen) == len(answers) and len(actions) == len(timing.lateness_s)
    held, applied = np.zeros(ACTION), 0
    for first, last, answer in zip(seen, [*seen[1:], len(actions)], answers):
        late = actions[first : last - 1] if last in seen[1:] else [a for a in actions[first:] if a is not answer]
        assert len(late) >= 2 or last == len(actions)
        assert all(np.array_equal(action, held) for action in late[:2])
        if last in seen[1:]:
            assert np.array_equal(actions[last - 1], answer)
            held, applied = answer, applied + 1
    ended_on_time = bool(np.array_equal(actions[-1], answers[-1]))
    assert timing.misses == len(actions) - applied - ended_on_time and timing.misses >= 2 and not timing.stopped
    assert (timing.latencies_s >= 0.1).all()


def test_a_miss_stops_the_episode(network: Network) -> None:
    lane, timing, answers = run_slow(network, 0.02, 0.1, "stop")
    assert (timing.misses, timing.stopped, lane.decisions, len(answers)) == (1, True, 0, 1)
    figures = RealTimeFigures.of(WallClock(0.02, "stop"), [timing, timing])
    assert (figures.periods, figures.deadline_misses, figures.safe_stops) == (2, 2, 2)
    assert figures.decision_latency_ms["max"] >= figures.decision_latency_ms["p50"] >= 100.0


def test_a_backend_that_fails_ends_the_run(network: Network) -> None:
    lane = TapedLane(env_task(WORLD, network), Tape(network))

    def decide(vector: np.ndarray) -> np.ndarray:
        raise EngineDied("gone")

    lane.start(0, 1.0)
    with pytest.raises(EngineDied, match="gone"):
        run_in_real_time(lane, decide, WallClock(0.01))
    lane.start(0, 1.0)

    def decide_late(vector: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return decide(vector)

    with pytest.raises(EngineDied, match="gone"):  # also where nobody waits for the answer
        run_in_real_time(lane, decide_late, WallClock(0.01, "stop"))
    lane.close()


@pytest.mark.slow
def test_lateness_does_not_add_up(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the environment takes three quarters of a period; periods counted from its end would last 1.75."""
    lane = TapedLane(env_task(WORLD, network), Tape(network))
    original = lane.env.step

    def step(action: np.ndarray) -> Any:
        time.sleep(0.3)
        return original(action)

    monkeypatch.setattr(lane.env, "step", step)
    lane.start(0, 1.0)
    _, timing = run_in_real_time(lane, lambda vector: np.zeros((1, ACTION)), WallClock(0.4))
    lane.close()
    assert len(timing.lateness_s) >= 4 and timing.lateness_s[-3:].min() < 0.3


def test_taped_and_checked_in_real_time(network: Network) -> None:
    settings = LoopSettings(env_task(WORLD, network), 3.0, 10, taped=True, clock=WallClock(0.02))
    result = run_serially(FastLoopEngine(network), settings, range(2))
    assert result.parity.exact and result.parity.compared_spikes > 0
    for tape in result.tapes:
        assert len(tape.actions) == len(tape.rewards) == len(tape.observations) - 1 == tape.episode.decisions
        assert 0 < len(tape.graded) == len(tape.seen) <= len(tape.actions)
    assert result.decisions == sum(len(tape.graded) for tape in result.tapes)


@pytest.mark.slow
def test_command_line(network: Network, tmp_path: Path) -> None:
    path, out = tmp_path / "net.dsf.h5", tmp_path / "out.json"
    write_network(network, path)
    quick = (str(path), "--backend", "fast", "--no-compare", "--parity-decisions", "10")
    arguments = (*quick, "--env", WORLD, "--real-time", "--json", str(out))
    result = run_here(cli.main, "dsf-sim-run", *arguments)
    assert result.returncode == 0, result.stderr
    figures = json.loads(out.read_text())["real_time"]
    assert figures["control_period_s"] == 0.02 and figures["on_deadline_miss"] == "hold"  # the environment's own dt
    assert figures["periods"] == json.loads(out.read_text())["episodes"][0]["decisions"]
    assert set(figures["decision_latency_ms"]) == set(figures["jitter_ms"]) == {"p50", "p99", "max"}
    for words in ("control period", "20 ms, on a miss hold", "periods, deadline misses", "decision latency"):
        assert words in result.stdout
    unknown = run_here(cli.main, "dsf-sim-run", *quick, "--env", "dsf.testing.gym_worlds:Throttle-v0", "--real-time")
    assert_refused(unknown, "Throttle-v0 does not state its control period", "--control-period")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--control-period", "0.01"), "--control-period requires --real-time"),
        (("--on-deadline-miss", "stop"), "--on-deadline-miss requires --real-time"),
        (("--real-time", "--control-period", "0"), "--control-period is 0.0"),
        (("--real-time", "--control-period", "nan"), "--control-period is nan"),
        (("--real-time", "--workers", "2"), "one episode at a time"),
    ],
)
def test_options_that_cannot_work(arguments: tuple[str, ...], words: str) -> None:
    assert_refused(run_here(cli.main, "dsf-sim-run", "--backend", "fast", *arguments), words)

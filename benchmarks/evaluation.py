"""Seconds per evaluation: a float policy in stream mode and in window mode, beside MuJoCo's own stepping, in one run.

The shipped Hopper checkpoint (D = 128, 3 blocks, K = 20), all episodes side by side on one thread, as a training scores
its weights. The stepping alone is what no policy can be faster than: the same environments, driven by the same actions
again. Ratios are seconds over those of the stepping; the three take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dsf.runtime.artifacts import checkpoint_path
from dsf.shell.arrays import FloatArray
from dsf.tasks import Lane, Policy, Task, Token, get_task, rollout
from dsf.train.checkpoint import load_checkpoint
from dsf.train.evaluation.stream_policy import StreamPolicy
from dsf.train.evaluation.torch_policy import TorchPolicy
from dsf.train.models.dsformer import DSFormer

EPISODES, ROUNDS = 20, 3
QUICK_EPISODES, QUICK_DECISIONS, QUICK_ROUNDS = 4, 100, 1
SEED = 5_000
"""Reset seed of the first episode."""


class Remembered:
    """A policy that keeps what it answered, lane by lane."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.lanes = policy, policy.lanes
        self.answers: list[FloatArray] = []

    def reset(self, lane: int) -> None:
        """See :class:`dsf.tasks.Policy`."""
        self.policy.reset(lane)

    def act(self, token: Token) -> FloatArray:
        """See :class:`dsf.tasks.Policy`."""
        self.answers.append(self.policy.act(token))
        return self.answers[-1]


def seconds_of(play: Callable[[], Any]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    play()
    return time.perf_counter() - started


def step_alone(task: Task, seeds: Sequence[int], answers: Sequence[FloatArray], target: float) -> None:
    """The environments once more, with known actions."""
    lanes = [Lane(task) for _ in seeds]
    try:
        for lane, seed in zip(lanes, seeds):
            lane.start(seed, target)
        for actions in answers:
            for lane, action in zip(lanes, actions):
                if lane.running:
                    lane.step(action)
    finally:
        for lane in lanes:
            lane.close()


def measure(task: Task, model: DSFormer, episodes: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds, seconds."""
    seeds, target = range(SEED, SEED + episodes), task.target_returns[0]
    found: dict[str, list[float]] = {"stepping": [], "stream": [], "window": []}
    decisions = 0
    for _ in range(rounds):
        remembered = Remembered(StreamPolicy(model, episodes))
        found["stream"].append(seconds_of(lambda policy=remembered: rollout(task, policy, seeds, target)))  # type: ignore[misc]
        found["stepping"].append(seconds_of(lambda kept=remembered: step_alone(task, seeds, kept.answers, target)))  # type: ignore[misc]
        window = TorchPolicy(model, episodes)
        found["window"].append(seconds_of(lambda policy=window: rollout(task, policy, seeds, target)))  # type: ignore[misc]
        decisions = len(remembered.answers)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {
        "episodes": episodes,
        "lockstep_decisions": decisions,
        "seconds": medians,
        "over_stepping": {name: medians[name] / medians["stepping"] for name in ("stream", "window")},
        "window_over_stream": medians["window"] / medians["stream"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 45 s: 4 episodes of at most 100 decisions")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = get_task("hopper")
    path = checkpoint_path()
    assert path is not None
    model = load_checkpoint(path).build_model()
    assert isinstance(model, DSFormer)
    if options.quick:
        result = measure(replace(task, max_steps=QUICK_DECISIONS), model, QUICK_EPISODES, QUICK_ROUNDS)
    else:
        result = measure(task, model, EPISODES, ROUNDS)
    seconds, ratio = result["seconds"], result["over_stepping"]
    print(f"{result['episodes']} episodes, {result['lockstep_decisions']} decisions each at most, one thread")
    print(f"MuJoCo stepping alone {seconds['stepping']:.2f} s")
    for name in ("stream", "window"):
        print(f"{name} mode {seconds[name]:.2f} s, {ratio[name]:.2f} times the stepping")
    print(f"window mode takes {result['window_over_stream']:.1f} times as long as stream mode")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What the protocol of benchmarks/strl_protocol.py asks of a trained policy, of its integers, and of look-up tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsf.export.file import read_network
from dsf.export.reference import IntegerPolicy
from dsf.runtime.fast_engine import FastEngine
from dsf.tasks import Task, get_task, rollout
from dsf.tasks.policy import Policy
from dsf.train.activity import record_activity
from dsf.train.checkpoint import load_checkpoint
from dsf.train.data import load_dataset
from dsf.train.evaluation import goals_reached
from dsf.train.lookup_table import best_table
from dsf.train.policy import TorchPolicy
from dsf.train.token_accuracy import opening_windows, policy_accuracy, token_accuracy

LANES = 32
ACTIVITY_WINDOWS = 32
COARSE_PARTS: dict[str, list[list[int]]] = {
    "position": [[0, 1]],
    "walls": [[0, 1], list(range(8))],
    "view": [[6, 7, 8, 11, 12, 13, 16, 17, 18], list(range(25))],
}
"""Columns of each observation, coarse to fine: the place before its walls, the inner 3 x 3 cells before all 5 x 5."""


def scores_of(run: Path, test: str, expert: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything about the last checkpoint of a run."""
    checkpoint = load_checkpoint(run)
    model, task = checkpoint.build_model(), get_task(checkpoint.header["task"])
    data = load_dataset(test)
    accuracy = token_accuracy(model, data)
    opening = next(opening_windows(data, model.config.context, ACTIVITY_WINDOWS))
    integers = model.codec.encode(opening.tokens).astype(np.float32)
    integers[~opening.mask] = 0.0
    started = time.perf_counter()
    with torch.inference_mode(), record_activity(model) as activity:
        model(*(torch.from_numpy(array) for array in (integers, opening.mask, opening.ends)))
    seconds = time.perf_counter() - started
    rates = [float(rate) for rate in activity.rates.values()]
    return {
        "parameters": model.parameter_count(),
        "accuracy": accuracy.share,
        "tokens": accuracy.tokens,
        "firing_rate": float(np.mean(rates)) if rates else None,
        "ms_per_window": 1000.0 * seconds / len(integers),
        "revision": checkpoint.header["revision"],
        "dataset_sha256": checkpoint.header["dataset"]["sha256"],
        **closed_loop(task, TorchPolicy(model, min(LANES, len(seeds))), expert, seeds),
    }


def scores_of_integers(
    network_file: Path, test: str, expert: str, seeds: Sequence[int], context: int
) -> dict[str, Any]:
    """Accuracy and closed loop of an exported network, in stream mode on the fast engine, arg-max on accumulators."""
    network = read_network(network_file)
    lanes = min(LANES, len(seeds))
    policies = [IntegerPolicy(FastEngine(network, lanes, "stream")) for _ in range(2)]
    accuracy = policy_accuracy(policies[0], load_dataset(test), context)
    return {"accuracy": accuracy.share, **closed_loop(get_task(network.task), policies[1], expert, seeds)}


def closed_loop(task: Task, policy: Policy, expert: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Unseen mazes walked through: how many reach the goal, and how long the way was there (moves over shortest).

    The policy is asked for the mean return of the expert that it has learnt from.
    """
    wall_follower, shortest = task.target_returns
    episodes = rollout(task, policy, list(seeds), shortest if expert == "shortest" else wall_follower)
    found = goals_reached(episodes)
    return {
        "success": found["success_rate"],
        "moves_over_shortest": found["steps_over_shortest"],
        "episodes": len(episodes),
    }


def lookup(names: list[str], context: int, observation: str) -> dict[str, Any]:
    """The best causal table and the best that may see the next observation, of (train, validation, test)."""
    train, validation, test = (load_dataset(name) for name in names)
    found = {}
    for label, see_next in (("causal", False), ("next", True)):
        score = best_table(train, validation, test, context, see_next, COARSE_PARTS[observation])
        found[label] = {"accuracy": score.test.share, "finest": score.finest, "alpha": score.alpha}
    return {**found, "tokens": score.test.tokens}

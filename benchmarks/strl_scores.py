"""What the protocol of benchmarks/strl_protocol.py asks of a trained policy, of its integers, and of look-up tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsf.export.file import read_network
from dsf.export.network import Network
from dsf.export.reference import IntegerPolicy
from dsf.hardware_models import Activity, measure_activity
from dsf.hardware_models.dense import WINDOW, DecisionTransformer, decision_transformer
from dsf.runtime.fast_engine import FastEngine
from dsf.runtime.sweep_energy import layer_counts
from dsf.tasks import Task, get_task, rollout
from dsf.tasks.policy import Policy
from dsf.train.activity import record_activity
from dsf.train.checkpoint import load_checkpoint
from dsf.train.data import OfflineDataset, load_dataset
from dsf.train.decision_model import DecisionModel
from dsf.train.evaluation import goals_reached
from dsf.train.lookup_table import best_table
from dsf.train.model import DSFormer
from dsf.train.policy import TorchPolicy
from dsf.train.token_accuracy import opening_windows, policy_accuracy, token_accuracy

LANES = 64
"""Mazes walked through at once."""
ACTIVITY_WINDOWS = 32
TIMED_DECISIONS = 50
COARSE_PARTS: dict[str, list[list[int]]] = {
    "position": [[0, 1]],
    "walls": [[0, 1], list(range(8))],
    "view": [[6, 7, 8, 11, 12, 13, 16, 17, 18], list(range(25))],
}
"""Columns of each observation, coarse to fine: the place before its walls, the inner 3 x 3 cells before all 5 x 5."""


def scores_of(run: Path, test: str, expert: str, seeds: Sequence[int], whole: bool) -> dict[str, Any]:
    """Everything about the last checkpoint of a run."""
    checkpoint = load_checkpoint(run)
    model, task = checkpoint.build_model(), get_task(checkpoint.header["task"])
    data = load_dataset(test)
    accuracy = token_accuracy(model, data, whole=whole)
    policy = TorchPolicy(model, min(LANES, len(seeds)))
    started = time.perf_counter()
    walked = closed_loop(task, policy, expert, seeds)
    return {
        "parameters": model.parameter_count(),
        "accuracy": accuracy.share,
        "tokens": accuracy.tokens,
        **activity_of(model, data),
        "revision": checkpoint.header["revision"],
        "dataset_sha256": checkpoint.header["dataset"]["sha256"],
        **walked,
        "loop_seconds": round(time.perf_counter() - started, 1),
    }


def activity_of(model: DecisionModel, data: OfflineDataset) -> dict[str, Any]:
    """Firing rate, operations of one decision, and milliseconds of one, of a float model in window mode.

    A decision is a window with a full context, alone in its batch, as a robot's would be. Spikes meet weights
    (``additions``) as often as in the recorded windows; pairs of tokens are counted as dense.
    """
    model.eval()
    opening = next(opening_windows(data, model.config.context, ACTIVITY_WINDOWS))
    integers = model.codec.encode(opening.tokens).astype(np.float32)
    integers[~opening.mask] = 0.0
    arrays = [torch.from_numpy(array) for array in (integers, opening.mask, opening.ends)]
    with torch.inference_mode(), record_activity(model) as activity:
        model(*arrays)
    rates = [float(rate) for rate in activity.rates.values()]
    found: dict[str, Any] = {"firing_rate": float(np.mean(rates)) if rates else None}
    if not isinstance(model, DSFormer):  # whose integers are counted, in scores_of_integers
        events = float(activity.events_per_token) if activity.events else 0.0
        found["operations"] = operations(window_activity(model, data.task, events))
    full = opening.mask.all(axis=1).argmax()
    one, seconds = [array[full : full + 1] for array in arrays], []
    with torch.inference_mode():
        for _ in range(TIMED_DECISIONS):
            started = time.perf_counter()
            model(*one)
            seconds.append(time.perf_counter() - started)
    return {**found, "ms_per_decision": 1000.0 * float(np.median(seconds))}


def window_activity(model: DecisionModel, task: Task, events_per_token: float) -> Activity:
    """Operations of one decision of STRL, or of the Decision Transformer, which computes its whole window anew."""
    assert model.rival is not None
    if model.kind == "strl":
        return layer_counts(model, events_per_token, "fp32")
    config, (width, hidden) = model.config, model.rival.sizes
    sizes = DecisionTransformer(task.observation_size, task.action_size, width, config.blocks, config.context, hidden)
    return decision_transformer(sizes, "fp32", WINDOW).activity


def operations(activity: Activity) -> dict[str, float]:
    """Of one decision: multiply-accumulates, and additions where spikes meet weights or spikes."""
    quantities = {"macs": ("macs", "macs_fp32"), "additions": ("synaptic_events", "dynamic_operations")}
    return {name: sum(activity.per_decision(part) for part in parts) for name, parts in quantities.items()}


def scores_of_integers(
    network_file: Path, test: str, expert: str, seeds: Sequence[int], scored: int | None
) -> dict[str, Any]:
    """Accuracy and closed loop of an exported network, in stream mode on the fast engine, arg-max on accumulators."""
    network = read_network(network_file)
    lanes = min(LANES, len(seeds))
    recorded, walking = (FastEngine(network, lanes, "stream") for _ in range(2))
    data = load_dataset(test)
    accuracy = policy_accuracy(IntegerPolicy(recorded), data, scored)
    activity = measure_activity(recorded.counter)
    return {
        "accuracy": accuracy.share,
        **closed_loop(get_task(network.task), IntegerPolicy(walking), expert, seeds),
        "firing_rate": activity.firing_rate,
        "operations": operations(activity),
        "ms_per_decision": milliseconds(network, data),
    }


def milliseconds(network: Network, data: OfflineDataset) -> float:
    """Median time of a recorded token's decision on the fast engine, one lane."""
    engine, seconds = FastEngine(network, 1, "stream"), []
    for vector in data.tokens[:TIMED_DECISIONS].astype(np.float64):
        started = time.perf_counter()
        engine.step(vector[None])
        seconds.append(time.perf_counter() - started)
    return 1000.0 * float(np.median(seconds))


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


def lookup(names: list[str], scored: int | None, observation: str) -> dict[str, Any]:
    """The best causal table and the best that may see the next observation, of (train, validation, test)."""
    train, validation, test = (load_dataset(name) for name in names)
    found = {}
    for label, see_next in (("causal", False), ("next", True)):
        score = best_table(train, validation, test, scored, see_next, COARSE_PARTS[observation])
        found[label] = {"accuracy": score.test.share, "finest": score.finest, "alpha": score.alpha}
    return {**found, "tokens": score.test.tokens}

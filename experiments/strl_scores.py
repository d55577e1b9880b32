"""What experiments/strl_protocol.py asks of a trained policy, of its integers, and of look-up tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from strl_cells import Budget

from dsf.export.network.file import read_network
from dsf.export.network.reference import IntegerPolicy
from dsf.hardware_models import Activity, measure_activity
from dsf.hardware_models.dense import WINDOW, TransformerSizes, decision_transformer
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.runtime.sweeps.energy import layer_counts
from dsf.tasks import Task, get_task, rollout
from dsf.tasks.policy import Policy
from dsf.train.checkpoint import load_checkpoint
from dsf.train.data.dataset import OfflineDataset, Windows, load_dataset
from dsf.train.evaluation.lookup_table import LookupScore, Part, best_tables
from dsf.train.evaluation.score import goals_reached
from dsf.train.evaluation.token_accuracy import (
    TokenAccuracy,
    opening_windows,
    policy_accuracy,
    token_accuracy,
    whole_windows,
)
from dsf.train.evaluation.torch_policy import TorchPolicy
from dsf.train.models.activity import record_activity
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.dsformer import DSFormer

BoolArray = npt.NDArray[np.bool_]
LANES = 64
"""Mazes walked through at once."""
ACTIVITY_WINDOWS = 128
COUNTED_WALKS = 10
TIMED_DECISIONS = 200
PARTS: dict[str, list[Part]] = {
    "position": [([0, 1], 0)],
    "walls": [([2, 3, 4, 5], 1), ([0, 1], 0)],
    "view": [([7, 11, 13, 17], 1), ([6, 7, 8, 11, 12, 13, 16, 17, 18], 0)],
}
"""What tables look at before the whole observation: the four walls beside with the last move, which is all that the
wall follower looks at; then the place, or the inner 3 x 3 of a view's 5 x 5 cells."""


def scores_of(run: Path, test: str, expert: str, seeds: Sequence[int], whole_walks: int) -> dict[str, Any]:
    """Everything about the last checkpoint of a run."""
    checkpoint = load_checkpoint(run)
    model, task = checkpoint.build_model(), get_task(checkpoint.header["task"])
    data = load_dataset(test)
    accuracy = accuracy_of(model, data, whole_walks)
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


def accuracy_of(model: DecisionModel, data: OfflineDataset, whole_walks: int) -> TokenAccuracy:
    """Accuracy on the first window of every walk, or on the first ``whole_walks`` whole ones.

    There a causal model answers each token with the last K tokens before it, as it does when it acts. The bidirectional
    form has no such answer that sees what it wants to see: it gets whole walks window by window.
    """
    if not whole_walks:
        return token_accuracy(model, data)
    some = first_walks(data, whole_walks)
    return (
        policy_accuracy(TorchPolicy(model, LANES), some, None)
        if model.causal
        else token_accuracy(model, some, whole=True)
    )


def shorter_windows(run: Path, test: str) -> dict[str, float]:
    """Token accuracy on first windows that are one token shorter, and of the last token with and without that token.

    What a window's last token is told differs from what the others are told where a model sees the future.
    """
    model, data = load_checkpoint(run).build_model(), load_dataset(test)
    context = model.config.context
    long = replace(data, kept=data.kept[data.lengths >= context])
    last = {length: float(last_tokens(model, long, length).mean()) for length in (context, context - 1)}
    shorter = token_accuracy(model, data, context=context - 1).share
    return {"shorter": shorter, "last": last[context], "shorter_last": last[context - 1]}


def last_tokens(model: DecisionModel, data: OfflineDataset, context: int) -> BoolArray:
    """Whether the last token of each walk's first window is answered as recorded, (walks,)."""
    found = []
    for some in opening_windows(data, context, ACTIVITY_WINDOWS):
        with torch.inference_mode():
            answers = model.eval()(*integers_of(model, some))[:, -1].argmax(dim=-1).numpy()
        found.append(answers == some.actions[:, -1].argmax(axis=-1))
    return np.concatenate(found)


def first_walks(data: OfflineDataset, count: int) -> OfflineDataset:
    """The first episodes of a dataset alone."""
    return replace(data, kept=data.kept[:count])


def activity_of(model: DecisionModel, data: OfflineDataset) -> dict[str, Any]:
    """Firing rate, and operations of one decision, of a float model in window mode.

    A decision is a window with a full context. Spikes meet weights (``additions``) as often as in recorded windows;
    pairs of tokens are counted as dense.
    """
    model.eval()
    arrays = recorded_windows(model, data)
    with torch.inference_mode(), record_activity(model) as activity:
        model(*arrays)
    rates = [float(rate) for rate in activity.rates.values()]
    found: dict[str, Any] = {"firing_rate": float(np.mean(rates)) if rates else None}
    if not isinstance(model, DSFormer):  # whose integers are counted, in scores_of_integers
        events = float(activity.events_per_token) if activity.events else 0.0
        found["operations"] = operations(window_activity(model, data.task, events))
    return found


def recorded_windows(model: DecisionModel, data: OfflineDataset) -> list[torch.Tensor]:
    """Integers, mask and ends of windows out of whole walks."""
    return integers_of(model, next(whole_windows(data, model.config.context, ACTIVITY_WINDOWS)))


def integers_of(model: DecisionModel, some: Windows) -> list[torch.Tensor]:
    """Integers, mask and ends of windows."""
    integers = model.codec.encode(some.tokens).astype(np.float32)
    integers[~some.mask] = 0.0
    return [torch.from_numpy(array) for array in (integers, some.mask, some.ends)]


def window_activity(model: DecisionModel, task: Task, events_per_token: float) -> Activity:
    """Operations of one decision of STRL, or of the Decision Transformer, which computes its whole window anew."""
    assert model.rival is not None
    if model.kind == "strl":
        return layer_counts(model, events_per_token, "fp32")
    config, (width, hidden) = model.config, model.rival.sizes
    sizes = TransformerSizes(task.observation_size, task.action_size, width, config.blocks, config.context, hidden)
    return decision_transformer(sizes, "fp32", WINDOW).activity


def operations(activity: Activity) -> dict[str, float]:
    """Operations per decision: multiply-accumulates, and additions where spikes meet weights or spikes."""
    quantities = {"macs": ("macs", "macs_fp32"), "additions": ("synaptic_events", "dynamic_operations")}
    return {name: sum(activity.per_decision(part) for part in parts) for name, parts in quantities.items()}


def scores_of_integers(
    network_file: Path, test: str, expert: str, seeds: Sequence[int], budget: Budget
) -> dict[str, Any]:
    """Accuracy and closed loop of an exported network, in stream mode on the fast engine, arg-max on accumulators."""
    network, data = read_network(network_file), load_dataset(test)
    some = first_walks(data, budget.whole_walks) if budget.whole_walks else data
    recorded, counted = FastEngine(network, LANES, "stream"), FastEngine(network, 1, "stream")
    accuracy = policy_accuracy(IntegerPolicy(recorded), some, budget.scored)
    # One lane, for among several those that have finished go on.
    policy_accuracy(IntegerPolicy(counted), first_walks(data, COUNTED_WALKS), None)
    activity = measure_activity(counted.counter)
    walking = IntegerPolicy(FastEngine(network, min(LANES, len(seeds)), "stream"))
    return {
        "accuracy": accuracy.share,
        **closed_loop(get_task(network.task), walking, expert, seeds),
        "firing_rate": activity.firing_rate,
        "operations": operations(activity),
    }


def milliseconds(run: Path, test: str, network_file: Path | None) -> float:
    """Median time of one decision: of a full window alone in its batch, or of a recorded token on the fast engine."""
    data, seconds = load_dataset(test), []
    if network_file is None:
        model = load_checkpoint(run).build_model().eval()
        arrays = recorded_windows(model, data)
        full = int(arrays[1].all(dim=1).int().argmax())
        one = [array[full : full + 1] for array in arrays]
        with torch.inference_mode():
            for _ in range(TIMED_DECISIONS):
                started = time.perf_counter()
                model(*one)
                seconds.append(time.perf_counter() - started)
    else:
        engine = FastEngine(read_network(network_file), 1, "stream")
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
    assert found is not None  # a maze has a goal
    return {
        "success": found.success_rate,
        "moves_over_shortest": found.steps_over_shortest,
        "episodes": len(episodes),
    }


def lookup(names: list[str], scored: int | None, observation: str) -> dict[str, Any]:
    """The best causal table and the best that may see the next observation, of (train, validation, test)."""
    train, validation, test = map(load_dataset, names)
    found = best_tables(train, validation, test, scored, PARTS[observation])
    lines = {"causal": found.causal, "next": found.with_next}
    return {**{label: table_line(score) for label, score in lines.items()}, "tokens": found.causal.test.tokens}


def table_line(score: LookupScore) -> dict[str, Any]:
    """A table's share and what it looks at, as a line of results holds it."""
    return {"accuracy": score.test.share, "finest": score.finest, "alpha": score.alpha}

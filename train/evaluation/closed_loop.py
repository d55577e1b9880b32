"""Closed-loop scores of a float model, with all that a reader needs to judge them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dsf.tasks import Episode, Task, mean_confidence_interval, rollout
from dsf.train.evaluation.torch_policy import TorchPolicy
from dsf.train.models.decision_model import DecisionModel

MAX_LANES = 32
"""Environments that decide in lockstep; more would only wait for one another."""


def evaluate(
    model: DecisionModel,
    task: Task,
    checkpoint: str,
    step: int,
    targets: Sequence[float],
    seeds: Sequence[int],
    on_step: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Score ``model`` at each target return, all environments side by side.

    Args:
        model: put into evaluation mode and back.
        task: what to solve.
        checkpoint: "last" or "best": which rule chose these weights.
        step: optimizer step of the weights.
        targets: returns to ask for (reward units).
        seeds: reset seeds, one episode each.
        on_step: see :func:`dsf.tasks.rollout`.
    """
    training = model.training
    records = []
    for target in targets:
        policy = TorchPolicy(model, lanes=min(len(seeds), MAX_LANES))
        episodes = rollout(task, policy, seeds, target, on_step)
        records.append({**score_record("torch", checkpoint, target, task, episodes), "step": step})
    model.train(training)
    return records


def score_record(engine: str, checkpoint: str, target: float, task: Task, episodes: list[Episode]) -> dict[str, Any]:
    """One score as it is stored in headers and files."""
    returns = [episode.episode_return for episode in episodes]
    interval = mean_confidence_interval(returns)
    return {
        "engine": engine,
        "checkpoint": checkpoint,
        "target_return": target,
        "seeds": [episode.seed for episode in episodes],
        "returns": returns,
        "return_mean": interval.mean,
        "return_interval_95": [interval.low, interval.high],
        "score_mean": task.score(interval.mean),
        **goals_reached(episodes),
    }


def goals_reached(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Share of episodes that reached the goal, and mean of steps / shortest over those; empty without goals.

    The ratio is None where no episode reached it.
    """
    told = [episode for episode in episodes if episode.success is not None and episode.shortest is not None]
    if not told:
        return {}
    ratios = [episode.decisions / episode.shortest for episode in told if episode.success and episode.shortest]
    return {
        "success_rate": sum(bool(episode.success) for episode in told) / len(told),
        "steps_over_shortest": sum(ratios) / len(ratios) if ratios else None,
    }


def describe_score(score: dict[str, Any], task: Task) -> str:
    """One line: rule, target, episodes, seeds, mean and interval, normalised score."""
    seeds, (low, high) = score["seeds"], score["return_interval_95"]
    rule = "last checkpoint"
    if score["checkpoint"] == "best":
        rule = f"best checkpoint by these episodes (step {score['step']})"
    episodes, interval = f"{len(seeds)} episodes (seeds {min(seeds)}..{max(seeds)})", f" [95 % {low:.1f}, {high:.1f}]"
    if len(seeds) == 1:
        episodes, interval = f"one episode (seed {seeds[0]})", ""
    goals = ""
    if "success_rate" in score:
        goals = f", {100 * score['success_rate']:.1f} % at the goal"
        if score["steps_over_shortest"] is not None:
            goals += f" in {score['steps_over_shortest']:.2f} times the shortest path"
    return (
        f"{rule}, target return {score['target_return']:g}, {episodes}: return {score['return_mean']:.1f}{interval}, "
        f"{task.score_label} {score['score_mean']:.1f}{goals}"
    )

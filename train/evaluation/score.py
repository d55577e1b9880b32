"""What a policy has reached in closed loop, as a checkpoint's header and the files of other commands keep it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsf.tasks import Episode, Task, mean_confidence_interval


@dataclass(frozen=True)
class Goals:
    """How episodes with a goal ended.

    Attributes:
        success_rate: share of the episodes that reached it.
        steps_over_shortest: mean of steps / shortest way over those; None where no episode reached it.
    """

    success_rate: float
    steps_over_shortest: float | None


@dataclass(frozen=True)
class Score:
    """Closed-loop episodes of one policy at one target return.

    Attributes:
        engine: what decided: "torch", "torch int8" (of weights with fewer bits: "torch int4", ...) or "d3rlpy".
        checkpoint: "last" or "best": which rule chose the weights.
        target_return: that was asked for (reward units).
        seeds: reset seeds, one episode each.
        returns: of these episodes (reward units).
        return_mean: of them.
        return_interval_95: of their mean, low and high end.
        score_mean: the mean, normalised; None where the task has no reference returns.
        goals: None where the task has no goal to reach.
        step: optimizer step of the weights.
    """

    engine: str
    checkpoint: str
    target_return: float
    seeds: tuple[int, ...]
    returns: tuple[float, ...]
    return_mean: float
    return_interval_95: tuple[float, float]
    score_mean: float | None
    goals: Goals | None
    step: int

    @property
    def precision(self) -> str:
        """What decided with: fp32, int8, int4, ..."""
        return self.engine.partition(" ")[2] or "fp32"

    @classmethod
    def of(cls, engine: str, checkpoint: str, step: int, target: float, task: Task, episodes: list[Episode]) -> Score:
        """The score of played episodes; see the attributes."""
        returns = [episode.episode_return for episode in episodes]
        interval = mean_confidence_interval(returns)
        return cls(
            engine=engine,
            checkpoint=checkpoint,
            target_return=target,
            seeds=tuple(episode.seed for episode in episodes),
            returns=tuple(returns),
            return_mean=interval.mean,
            return_interval_95=(interval.low, interval.high),
            score_mean=task.shown_score(interval.mean),
            goals=goals_reached(episodes),
            step=step,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        goals = {} if self.goals is None else vars(self.goals)
        return {
            "engine": self.engine,
            "checkpoint": self.checkpoint,
            "target_return": self.target_return,
            "seeds": list(self.seeds),
            "returns": list(self.returns),
            "return_mean": self.return_mean,
            "return_interval_95": list(self.return_interval_95),
            "score_mean": self.score_mean,
            **goals,
            "step": self.step,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Score:
        """Inverse of :meth:`to_json`."""
        low, high = values["return_interval_95"]
        goals = None
        if "success_rate" in values:
            goals = Goals(values["success_rate"], values["steps_over_shortest"])
        return cls(
            engine=values["engine"],
            checkpoint=values["checkpoint"],
            target_return=values["target_return"],
            seeds=tuple(values["seeds"]),
            returns=tuple(values["returns"]),
            return_mean=values["return_mean"],
            return_interval_95=(low, high),
            score_mean=values["score_mean"],
            goals=goals,
            step=values["step"],
        )

    def describe(self, task: Task) -> str:
        """One line: rule, target, episodes, seeds, mean and interval, normalised score."""
        seeds, (low, high) = self.seeds, self.return_interval_95
        rule = "last checkpoint"
        if self.checkpoint == "best":
            rule = f"best checkpoint by these episodes (step {self.step})"
        episodes = f"{len(seeds)} episodes (seeds {min(seeds)}..{max(seeds)})"
        interval = f" [95 % {low:.1f}, {high:.1f}]"
        if len(seeds) == 1:
            episodes, interval = f"one episode (seed {seeds[0]})", ""
        goals = ""
        if self.goals is not None:
            goals = f", {100 * self.goals.success_rate:.1f} % at the goal"
            if self.goals.steps_over_shortest is not None:
                goals += f" in {self.goals.steps_over_shortest:.2f} times the shortest path"
        score = "" if self.score_mean is None else f", {task.score_label} {self.score_mean:.1f}"
        return (
            f"{rule}, target return {self.target_return:g}, {episodes}: return {self.return_mean:.1f}{interval}"
            f"{score}{goals}"
        )


def goals_reached(episodes: Sequence[Episode]) -> Goals | None:
    """How often the goal was reached, and how directly where the shortest way is known; None without goals."""
    told = [episode for episode in episodes if episode.success is not None]
    if not told:
        return None
    ratios = [episode.decisions / episode.shortest for episode in told if episode.success and episode.shortest]
    return Goals(
        success_rate=sum(bool(episode.success) for episode in told) / len(told),
        steps_over_shortest=sum(ratios) / len(ratios) if ratios else None,
    )

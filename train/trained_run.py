"""What a training leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsf.train.evaluation.score import Score


@dataclass(frozen=True)
class UsedDataset:
    """What a run was trained on.

    Attributes:
        dataset_id: Minari id.
        content_hash: SHA-256 over all episodes' arrays.
        steps: that the run has kept.
    """

    dataset_id: str
    content_hash: str
    steps: int


@dataclass(frozen=True)
class TrainedRun:
    """A finished training. Where several processes share a run, rank 0's alone holds the scores.

    Attributes:
        checkpoint: file of the last weights.
        best_checkpoint: file of the best weights; None unless the run was scored on its way.
        task: name of the task.
        step: optimizer steps of the last weights.
        parameters: of the model; of CQL, of its actor.
        dataset: what it was trained on.
        scores: of the last weights, one for each target return.
        best: of the best weights, by the very episodes that chose them.
        unusual_populations: spiking populations that are silent or saturated, each with its rate.
        seconds: that this call took; of a resumed run, since it was resumed.
        header: everything that the checkpoint says of the run, JSON values.
    """

    checkpoint: Path
    best_checkpoint: Path | None
    task: str
    step: int
    parameters: int
    dataset: UsedDataset
    scores: tuple[Score, ...]
    best: Score | None
    unusual_populations: tuple[str, ...]
    seconds: float
    header: dict[str, Any]

    @property
    def best_score(self) -> Score | None:
        """The last weights' score at the target that did best; None where fewer than two targets were scored."""
        last = [score for score in self.scores if score.checkpoint == "last" and score.step == self.step]
        if len({score.target_return for score in last}) < 2:
            return None
        return max(last, key=lambda score: score.return_mean)

    @classmethod
    def of_header(
        cls,
        header: dict[str, Any],
        checkpoint: Path,
        best_checkpoint: Path,
        parameters: int,
        seconds: float,
        unusual_populations: tuple[str, ...] = (),
    ) -> TrainedRun:
        """The run behind a checkpoint's header; ``best_checkpoint`` is where its best weights are, if it has any."""
        kept: dict[str, Any] = json.loads(json.dumps(header))  # as the file holds it
        dataset, best = kept["dataset"], kept.get("best")
        scores = [Score.from_json({"step": kept["step"], **score}) for score in kept["scores"]]  # old ones have no step
        return cls(
            checkpoint=checkpoint,
            best_checkpoint=best_checkpoint if best else None,
            task=kept["task"],
            step=kept["step"],
            parameters=parameters,
            dataset=UsedDataset(dataset["id"], dataset["sha256"], dataset["steps"]),
            scores=tuple(scores),
            best=Score.from_json(best) if best else None,
            unusual_populations=unusual_populations,
            seconds=seconds,
            header=kept,
        )

"""What can be heard of a training while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsf.train.config.training import TrainConfig
from dsf.train.trained_run import TrainedRun, UsedDataset

if TYPE_CHECKING:
    from dsf.train.data.dataset import OfflineDataset


@dataclass(frozen=True)
class TrainingStart:
    """A run that is about to train.

    Attributes:
        config: that it follows.
        model: one phrase on it: kind, sizes, parameters.
        dataset: what it is trained on.
        step: where it begins; 0 unless it is resumed.
        largest_return: the largest return-to-go that its inputs can tell from larger ones (reward units).
        device: "cpu" or "cuda".
        precision: of the matrix products, "fp32" or "bf16".
        processes: that share it.
    """

    config: TrainConfig
    model: str
    dataset: UsedDataset
    step: int
    largest_return: float
    device: str
    precision: str
    processes: int


class TrainingObserver:
    """Hears how a training goes on, in the order of the methods. This one does nothing: override what is of interest.

    Where several processes share a run, rank 0's observer alone hears of it.
    """

    def loaded(self, config: TrainConfig, data: OfflineDataset) -> None:
        """The dataset is there."""

    def begun(self, start: TrainingStart) -> None:
        """The model is there, too."""

    def training(self, step: int, steps: int) -> contextlib.AbstractContextManager[None]:
        """Stands around all steps, from the one after ``step`` to ``steps``, and all evaluations."""
        return contextlib.nullcontext()

    def stepped(self, step: int, steps: int, loss: float) -> None:
        """One of them is done."""

    def evaluating(self, steps: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """Stands around an evaluation.

        Args:
            steps: most environment steps of its episodes.

        Returns:
            a context whose value is called with the number of running environments at every step.
        """
        return contextlib.nullcontext(lambda _running: None)

    def finished(self, run: TrainedRun) -> None:
        """All is written."""


SILENT = TrainingObserver()

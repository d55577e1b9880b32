"""A fold against the model that it came from."""

from __future__ import annotations

from dsf.export.proof.levels import FoldComparison, Recording
from dsf.export.proof.rungs import Rung
from dsf.shell.arrays import FloatArray


def compare_fold(truth: tuple[FloatArray, Recording], folded: tuple[FloatArray, Recording, Recording]) -> Rung:
    """The rung of one batch, from what ``run_torch`` and ``run_folded`` give."""
    actions, spikes, near = folded
    return FoldComparison().add(*truth, actions, spikes, near).rung()

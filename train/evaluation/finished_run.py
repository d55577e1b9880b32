"""Scores of a finished run: its checkpoint once more in closed loop, a dense float rival also at int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from dsf.shell.errors import UserError
from dsf.train.config.rivals import EvaluationPrecision
from dsf.train.evaluation.score import Score


def score_run(
    run: Path,
    precision: EvaluationPrecision | None = None,
    targets: Sequence[float] = (),
    episodes: int = 10,
    seed: int = 1_000,
    on_step: Callable[[int], None] | None = None,
) -> list[Score]:
    """Score a run's checkpoint, of DSFormer or of a rival.

    Args:
        run: run directory (its last checkpoint), or a checkpoint file.
        precision: "fp32", or "int8" for the dense rivals that have it. None: what the run was trained for, which is
            fp32 but after a rival's quantization-aware training: then the integers that it was trained through, and
            nothing else is scored.
        targets: returns to ask for (reward units); none means the run's own, see
            :func:`dsf.tasks.registry.described_task`.
        episodes: per target, on reset seeds ``seed`` upwards.
        seed: of the first episode; training's own evaluations begin at ``--eval-seed``.
        on_step: see :func:`dsf.tasks.rollout`.

    Returns:
        One score per target, whose engine says what decided: "torch", "torch int8", "torch int4", ...

    Raises:
        UserError: no such run or precision, the run has no int8 form, or it was trained through other integers.
    """
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.evaluation.closed_loop import evaluate
    from dsf.train.models.rivals.int8 import int8_copy
    from dsf.train.run_directory import BEST_NAME

    if precision is not None and precision not in get_args(EvaluationPrecision):
        raise UserError(f"precision is {precision!r}: use one of {', '.join(get_args(EvaluationPrecision))}")
    checkpoint = load_checkpoint(run)
    model, task = checkpoint.build_model(), checkpoint.task()
    if precision is not None and model.weight_bits is not None and precision != f"int{model.weight_bits}":
        raise UserError(
            f"precision is {precision}, and {checkpoint.path} was trained through weights of {model.weight_bits} bits, "
            "which alone are scored: leave the precision out, or name the float run that it started from"
        )
    if precision == "int8":
        model = int8_copy(model)
    which = "best" if checkpoint.path.name == BEST_NAME else "last"
    seeds = range(seed, seed + episodes)
    asked = tuple(targets) or task.target_returns
    return evaluate(model, task, which, checkpoint.header["step"], asked, seeds, on_step)

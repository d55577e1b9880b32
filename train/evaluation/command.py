"""``dsf-train evaluate``: score a finished run again, at other targets or seeds, or a dense rival at int8."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress

from dsf.shell.errors import UserError
from dsf.shell.files import require_writable_parent, write_json
from dsf.shell.installed import require_installed
from dsf.tasks.registry import notes_on
from dsf.train.config.rivals import EvaluationPrecision
from dsf.train.evaluation.finished_run import score_run


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a finished run's checkpoint in closed loop. The run stays as it is."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory, or one of its checkpoints."""
    precision: EvaluationPrecision | None = None
    """fp32, or int8: a rival of Linears (dt, bc, twin) with 8-bit weights and activations, multiplied as integers.
    None: what the run was trained for: fp32, or of a rival after quantization-aware training its integers."""
    targets: tuple[float, ...] = ()
    """Returns to ask for (reward units); none means those of its training's default."""
    episodes: int = 10
    """Closed-loop episodes per target return."""
    seed: int = 1_000
    """Reset seed of the first episode."""
    threads: int = 2
    """CPU threads for torch."""
    json: Path | None = None
    """Also write the scores here."""

    def __post_init__(self) -> None:
        for target in self.targets:
            if not math.isfinite(target):
                raise UserError(f"--targets is {target}: a return to ask for must be a finite number")
        for name, least in (("episodes", 1), ("seed", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}: it must be at least {least}")


def require_possible(config: EvaluateConfig) -> None:
    """Refuse what cannot work on this machine.

    Raises:
        UserError: packages are missing, or the scores cannot be written.
    """
    require_installed("train", "torch", "snntorch", "safetensors")
    from dsf.train.checkpoint import CHECKPOINT_NAME

    if config.json is not None:
        require_writable_parent(config.json, config.run / CHECKPOINT_NAME if config.run.is_dir() else config.run)


def run(config: EvaluateConfig) -> None:
    """Score and print."""
    require_possible(config)
    import torch

    from dsf.train.checkpoint import load_checkpoint

    torch.set_num_threads(config.threads)
    console = Console(soft_wrap=True, markup=False, emoji=False)
    checkpoint = load_checkpoint(config.run)
    task = checkpoint.task()
    asked = config.targets or task.target_returns
    for note in notes_on(task, asked, checkpoint.header):
        console.print(f"note: {note}")
    total = len(asked) * config.episodes * task.max_steps
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("evaluating", total=total)
        steps = lambda running: progress.advance(bar, running)  # noqa: E731
        scores = score_run(config.run, config.precision, config.targets, config.episodes, config.seed, steps)
    for score in scores:
        console.print(f"{score.precision}: {score.describe(task)}")
    if config.json is not None:
        write_json(config.json, [score.to_json() for score in scores])

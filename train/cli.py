"""``dsf-train``: train a spiking policy on an offline dataset."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console

from dsf.tasks import UserError, run_command
from dsf.tasks.console import require_installed
from dsf.train.config import TrainConfig


def export_obstacles(config: TrainConfig) -> list[str]:
    """Config fields that keep the trained network from becoming spikes, each with the way out."""
    return [
        f"model.{field} is layernorm, which needs a division per token: use --model.{field.replace('_', '-')} ptbn"
        for field in ("norm", "embed_norm")
        if getattr(config.model, field) == "layernorm"
    ]


def run(config: TrainConfig) -> None:
    """Train, evaluate, and say where the checkpoint is."""
    require_installed("train", "torch", "snntorch", "minari", "safetensors", "tensorboard")
    from dsf.train.checkpoint import CHECKPOINT_NAME
    from dsf.train.data import load_dataset
    from dsf.train.trainer import Trainer

    console = Console()
    if any(place.exists() and not place.is_dir() for place in (config.out, *config.out.parents)):
        raise UserError(f"--out {config.out} is, or lies below, a file: name a directory")
    existing = (config.out / CHECKPOINT_NAME).exists()
    if existing and not config.resume:
        raise UserError(f"{config.out} already holds a checkpoint: pass --resume to continue it, or another --out")
    if config.resume and not existing:
        raise UserError(f"--resume: {config.out} holds no {CHECKPOINT_NAME}: drop --resume to start a new run")
    data = load_dataset(config.dataset)
    for obstacle in export_obstacles(config):
        console.print(f"warning: this run cannot be exported: {obstacle}", soft_wrap=True)
    trainer = Trainer(config, data)
    if config.resume:
        trainer.restore()
    console.print(
        f"DSFormer-PSSA, {trainer.model.parameter_count():,} parameters, on {data.dataset_id} "
        f"({len(data.tokens)} steps, sha256 {data.content_hash[:12]}), step {trainer.step} of {config.steps}",
        soft_wrap=True,
    )
    header = trainer.run(console)
    for score in header["scores"]:
        low, high = score["return_interval_95"]
        console.print(
            f"last checkpoint, target return {score['target_return']:.0f}, {len(score['seeds'])} episodes "
            f"(seeds {score['seeds'][0]}..{score['seeds'][-1]}): return {score['return_mean']:.1f} "
            f"[95 % {low:.1f}, {high:.1f}], D4RL-normalised {score['score_mean']:.1f}",
            soft_wrap=True,
        )
    console.print(f"checkpoint: {config.out / CHECKPOINT_NAME}", soft_wrap=True)


def main() -> NoReturn:
    """Console script."""
    run_command(run, TrainConfig, "dsf-train", "Train a spiking policy (DSFormer) on an offline dataset.")

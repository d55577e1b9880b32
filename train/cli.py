"""``dsf-train``: train a spiking policy on an offline dataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from dsf.shell.command import run_command
from dsf.shell.errors import UserError
from dsf.shell.installed import require_installed
from dsf.train import conservative_q_learning
from dsf.train.config.rivals import cannot_become_spikes
from dsf.train.config.training import CONFIG_NAME, TrainConfig, export_obstacles
from dsf.train.evaluation import command as rescore


def run(config: TrainConfig) -> None:
    """Train, evaluate, and say where the checkpoint is."""
    require_installed("train", "torch", "snntorch", "minari", "safetensors", "tensorboard")
    from dsf.train.distributed import process_group
    from dsf.train.initial import with_model_of_checkpoint

    check_place(config)
    with process_group(config.device):
        train(with_model_of_checkpoint(config.of_phase()))


def check_place(config: TrainConfig) -> None:
    """Refuse a run directory that cannot be used.

    Raises:
        UserError: it is a file, or holds a checkpoint already, or holds none to resume.
    """
    from dsf.train.checkpoint import CHECKPOINT_NAME

    if any(place.exists() and not place.is_dir() for place in (config.out, *config.out.parents)):
        raise UserError(f"--out {config.out} is, or lies below, a file: name a directory")
    existing = (config.out / CHECKPOINT_NAME).exists()
    if existing and not config.resume:
        raise UserError(f"{config.out} already holds a checkpoint: pass --resume to continue it, or another --out")
    if not existing and not is_own_directory(config.out):
        raise UserError(f"--out {config.out} holds a {CONFIG_NAME} that is not dsf-train's: name another directory")
    if config.resume and not existing:
        raise UserError(f"--resume: {config.out} holds no {CHECKPOINT_NAME}: drop --resume to start a new run")


def is_own_directory(place: Path) -> bool:
    """Whether nothing in a directory would be overwritten that an earlier run did not write."""
    path = place / CONFIG_NAME
    if not path.exists():
        return True
    try:
        return {"dataset", "model", "steps"} <= set(json.loads(path.read_text()))
    except (ValueError, TypeError):
        return False


def train(config: TrainConfig) -> None:
    """One process's part of a run; rank 0 speaks."""
    from dsf.train.checkpoint import CHECKPOINT_NAME
    from dsf.train.data.dataset import load_dataset
    from dsf.train.data.registry import resolve
    from dsf.train.distributed import rank, world_size
    from dsf.train.evaluation.closed_loop import describe_score
    from dsf.train.models.rivals.build import describe_model
    from dsf.train.run_directory import BEST_NAME
    from dsf.train.trainer import Trainer

    console = Console(quiet=rank() != 0, soft_wrap=True)
    data = load_dataset(resolve(config.dataset), config.data)
    for obstacle in obstacles(config):
        console.print(f"warning: this run cannot be exported: {obstacle}")
    if data.out_of_range_actions:
        console.print(
            f"note: in {data.out_of_range_actions} steps of {data.dataset_id} an action leaves [-1, 1], which tanh "
            f"cannot reach: dsf-data import --clip-actions would clip them"
        )
    trainer = Trainer(config, data)
    if config.resume:
        trainer.restore()
    console.print(
        f"{describe_model(trainer.model, data.task)}, on {data.dataset_id} ({data.steps} steps, "
        f"sha256 {data.content_hash[:12]}), step {trainer.step} of {config.steps}"
    )
    console.print(describe_computation(trainer.device.type, trainer.precision, config, world_size()))
    for target in config.eval_targets:
        if target > (reach := trainer.codec.largest(-1) * data.task.return_scale):
            console.print(
                f"note: return-to-go ends at {reach:.0f}: {target:g} looks the same until the difference is earned"
            )
    header = trainer.run(console)
    if unusual := trainer.activity.unusual():
        console.print(f"warning: {len(unusual)} populations hardly compute: {'; '.join(unusual)}")
    for score in [*header["scores"], *([header["best"]] if header["best"] else [])]:
        console.print(describe_score(score, data.task))
    console.print(f"checkpoint: {config.out / CHECKPOINT_NAME}")
    if header["best"]:
        console.print(f"best checkpoint, chosen on the seeds above: {config.out / BEST_NAME}")


def obstacles(config: TrainConfig) -> list[str]:
    """What will keep the run from being exported; quantization-aware training refuses it by itself."""
    if config.policy != "dsformer":
        return [cannot_become_spikes(config.policy)]
    return [] if config.qat_steps else export_obstacles(config.model)


def describe_computation(device: str, precision: str, config: TrainConfig, processes: int) -> str:
    """One line: device, precision, and how neurons are computed (nothing falls back in silence)."""
    from dsf.train.kernels.build import KernelsUnavailable, load_kernels, use_torch_threads

    said = f"{device}, {precision} matrix products, {config.threads} threads, {processes} process(es)"
    if config.policy != "dsformer":
        return said
    neuron = "snnTorch's Leaky, tick by tick"
    if config.neuron == "fused" and device == "cpu":
        try:
            load_kernels()
            neuron = "fused, C kernels" + (
                "" if use_torch_threads() else " on one thread (torch has no GNU OpenMP here)"
            )
            neuron += " (--compile has nothing to do)" if config.compile else ""
        except KernelsUnavailable as reason:
            compiled = " under torch.compile" if config.compile else ""
            neuron = f"fused, torch operations{compiled}, slower ({reason}): install a C compiler"
    elif config.neuron == "fused":
        neuron = "fused, torch operations" + (" under torch.compile" if config.compile else "")
    return f"{said}; neurons: {neuron}"


COMMANDS: dict[str, tuple[Callable[[Any], None], type[Any], str]] = {
    "cql": (
        conservative_q_learning.run,
        conservative_q_learning.CQLConfig,
        "Train CQL, the value-based rival, through d3rlpy.",
    ),
    "evaluate": (
        rescore.run,
        rescore.EvaluateConfig,
        "Score a finished run again, a dense rival also at int8.",
    ),
}


def main() -> NoReturn:
    """Console script."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        action, config, description = COMMANDS[name := sys.argv.pop(1)]
        run_command(action, config, f"dsf-train {name}", description)
    description = "Train a spiking policy (DSFormer), or a rival of it, on an offline dataset."
    others = "; ".join(f"dsf-train {name}: {what}" for name, (_, _, what) in COMMANDS.items())
    run_command(run, TrainConfig, "dsf-train", f"{description} {others}")

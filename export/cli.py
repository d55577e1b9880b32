"""``dsf-export``: fold, quantize, prove, and write one network file."""

from __future__ import annotations

import dataclasses
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dsf.export.bounds import require_no_overflow
from dsf.export.file import SUFFIX, file_digest, write_network
from dsf.export.network import LIF, WEIGHT_BITS, Network
from dsf.export.quantize import quantize
from dsf.tasks import UserError, get_task, run_command
from dsf.tasks.console import CommandFailed, require_installed
from dsf.tasks.files import require_writable_parent

if TYPE_CHECKING:
    from dsf.export.verify import Rung
    from dsf.train.checkpoint import Checkpoint


@dataclass(frozen=True)
class ExportConfig:
    """Turn a trained run into a network of integer spikes, with proof."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of dsf-train, or a checkpoint file."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path(f"network{SUFFIX}")
    """File to write."""
    target: Literal["loihi"] = "loihi"
    """What to export for."""
    bits: int | None = None
    """Signed width of the weights, 2 to 8; without it 8, or what quantization-aware training has trained."""
    episodes: int = 10
    """Closed-loop episodes per network in the ladder."""
    seed: int = 2_000
    """Reset seed of the first of these episodes."""
    target_return: float | None = None
    """Return to ask for in these episodes, kept in the file as its default; without it, the task's first target."""
    max_score_drop: float = 10.0
    """D4RL-normalised points that the integers may lose; more, and nothing is written."""


def provenance(checkpoint: Checkpoint, bits: int) -> dict[str, Any]:
    """Where the network comes from: everything needed to make it again."""
    import torch

    from dsf.train.checkpoint import git_revision

    header = checkpoint.header
    return {
        "dataset": header["dataset"],
        "model": header["model"],
        "train": header["train"],
        "train_steps": header["step"],
        "train_revision": header.get("revision", header.get("git_revision")),  # older checkpoints have the latter
        "train_scores": header["scores"],
        "export_revision": git_revision(),
        "bits": bits,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }


def quantization_of(checkpoint: Checkpoint, bits: int | None) -> tuple[int, int | None]:
    """Bits, and the threshold in residual units where quantization-aware training has fixed it (else None).

    Raises:
        UserError: other bits are asked for than were trained.
    """
    trained = checkpoint.header.get("quantization")
    if trained is None:
        return WEIGHT_BITS if bits is None else bits, None
    if bits not in (None, trained["bits"]):
        raise UserError(f"--bits is {bits}, but {checkpoint.path} was trained for {trained['bits']}: drop --bits")
    return trained["bits"], trained["threshold_units"]


def print_ladder(rungs: list[Rung], console: Console) -> None:
    """The ladder as a table."""
    table = Table(title="verification ladder", title_justify="left")
    for column in ("rung", "holds", "figures"):
        table.add_column(column, overflow="fold")
    for rung in rungs:
        table.add_row(rung.name, {True: "yes", False: "NO", None: "-"}[rung.passed], rung.summary)
    console.print(table)


def describe(network: Network, path: Path, console: Console) -> None:
    """One paragraph about the written file."""
    neurons = sum(node.size for node in network.of_kind(LIF))
    bound = require_no_overflow(network)
    mode = "equals" if network.stream_is_exact else "differs from"
    console.print(
        f"{path}: {path.stat().st_size / 1e6:.2f} MB, {neurons} neurons, stream mode {mode} window mode "
        f"(receptive field {network.receptive_field}, K {network.context})\n"
        f"overflow impossible; tightest: {bound.quantity} of {bound.node}, {bound.margin:.2f}x below its limit\n"
        f"sha256 {file_digest(path)}",
        soft_wrap=True,
    )


def run(config: ExportConfig) -> None:
    """Export one run."""
    require_installed("train", "torch", "snntorch", "safetensors")
    from dsf.export.fold import fold
    from dsf.export.verify import verify
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.qat import deployed

    console = Console()
    if config.episodes < 1:
        raise UserError(f"--episodes is {config.episodes}: it must be at least 1")
    if config.seed < 0:
        raise UserError(f"--seed is {config.seed}: it must be 0 or more")
    for name, value in (("--target-return", config.target_return), ("--max-score-drop", config.max_score_drop)):
        if value is not None and not math.isfinite(value):
            raise UserError(f"{name} is {value}: it must be a finite number")
    require_writable_parent(config.out)
    checkpoint = load_checkpoint(config.run)
    bits, threshold_units = quantization_of(checkpoint, config.bits)
    trained = checkpoint.build_trained()
    task = get_task(checkpoint.header["task"])
    network = quantize(fold(trained), task.name, bits, provenance(checkpoint, bits), threshold_units)
    model = deployed(trained)  # after quantization-aware training, the float levels have the integers' values
    folded = fold(model)
    target = task.target_returns[0] if config.target_return is None else config.target_return
    network = dataclasses.replace(network, target_return=target)
    seeds = range(config.seed, config.seed + config.episodes)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("verifying L0 to L2", total=2 * config.episodes * task.max_steps)
        steps = lambda running: progress.advance(bar, running)  # noqa: E731
        rungs = verify(model, folded, network, task, seeds, target, config.max_score_drop, steps)
    print_ladder(rungs, console)
    failed = [rung.name for rung in rungs if rung.passed is False]
    if failed:
        raise CommandFailed(f"nothing written: the ladder fails at {', '.join(failed)}")
    network = network.with_verification({"rungs": [dataclasses.asdict(rung) for rung in rungs]})
    write_network(network, config.out)
    describe(network, config.out, console)


def main() -> NoReturn:
    """Console script."""
    run_command(run, ExportConfig, "dsf-export", "Fold, quantize and verify a trained policy.")

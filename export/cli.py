"""``dsf-export``: fold, quantize, prove, and write one file for a target; and the commands on written files."""

from __future__ import annotations

import dataclasses
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from rich.console import Console
from rich.progress import Progress

from dsf.export.conversion.quantize import quantize
from dsf.export.network.file import file_digest, read_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF
from dsf.export.options import ExportConfig, check_config, is_network_file, output_path, quantization_of
from dsf.export.placement.chips import DEFAULT_CHIP, get_chip, verdict, violations
from dsf.export.placement.placement import place
from dsf.export.proof.episodes import dataset_episodes, proof_tokens, source_name
from dsf.export.proof.rungs import Rung, prove_network, versions
from dsf.export.proof.tables import print_ladder, table_console
from dsf.export.targets.options import TargetOptions, require_writable
from dsf.export.write import write_target
from dsf.shell.allocator import keep_freed_memory
from dsf.shell.arrays import IntArray
from dsf.shell.command import run_command
from dsf.shell.errors import CommandFailed
from dsf.shell.installed import require_installed
from dsf.tasks import get_task
from dsf.train.quantization.rounding import QuantizationConfig

if TYPE_CHECKING:
    from dsf.export.conversion.calibrate import Calibration
    from dsf.export.conversion.folded import FoldedModel
    from dsf.train.checkpoint import Checkpoint
    from dsf.train.models.dsformer import DSFormer

PROOF_DECISIONS = 200
"""Decisions on which a network file is proven again before it is written for another target."""
CLOSED_LOOP = "closed loop"
OTHER_SOURCES = {"L0 -> L2 closed loop": CLOSED_LOOP, "L2 overflow": "any"}
"""Rungs that do not decide on the tokens of the others, and on what they do."""
OF_FLOATS = ("L0 torch -> L1 folded float",)
"""Rungs about the folded float network; the others are about integers."""


@dataclass(frozen=True)
class Exported:
    """What is ready to be written.

    Attributes:
        network: with its ladder.
        folded: its float form; None where it came from a network file.
        rungs: what was proven just now.
    """

    network: Network
    folded: FoldedModel | None
    rungs: list[Rung]


def provenance(checkpoint: Checkpoint, config: QuantizationConfig) -> dict[str, Any]:
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
        "bits": config.bits,
        "quantization": dataclasses.asdict(config),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }


def export_run(config: ExportConfig, options: TargetOptions, console: Console) -> Exported:
    """Fold, quantize and verify a trained run."""
    require_installed("train", "torch", "snntorch", "safetensors")
    from dsf.export.conversion.fold import fold
    from dsf.export.conversion.layer_report import layer_report, print_layers
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.models.qat import deployed

    checkpoint = load_checkpoint(config.run)
    trained = checkpoint.build_trained()
    network = quantized(checkpoint, fold(trained), config)
    placement = check_chip(network, config.chip, console)
    require_writable(network, options)
    model = deployed(trained)  # after quantization-aware training, the float levels have the integers' values
    folded = fold(model)
    rungs, tokens = climb(model, folded, network, config, console)
    layers = layer_report(folded, network, tokens.swapaxes(0, 1))
    print_layers(layers, table_console())
    verification = {
        "rungs": stamped(rungs, config.dataset or CLOSED_LOOP, config.seed),
        "layers": [dataclasses.asdict(figures) for figures in layers],
        "placement": placement,
    }
    return Exported(network.with_verification(verification), folded, rungs)


def quantized(checkpoint: Checkpoint, folded: FoldedModel, config: ExportConfig) -> Network:
    """The integers of a folded run, and the return that they ask for unless told otherwise."""
    rules, threshold_units = quantization_of(checkpoint, config)
    task = get_task(checkpoint.header["task"])
    network = quantize(
        folded,
        task.name,
        provenance=provenance(checkpoint, rules),
        threshold_units=threshold_units,
        whole_biases=config.whole_biases,
        config=rules,
        calibration=calibration_of(config, folded),
    )
    target = task.target_returns[0] if config.target_return is None else config.target_return
    return dataclasses.replace(network, target_return=target)


def climb(
    model: DSFormer, folded: FoldedModel, network: Network, config: ExportConfig, console: Console
) -> tuple[list[Rung], IntArray]:
    """A trained run's whole ladder, and tokens for the report on layers (:func:`dsf.export.proof.verify.verify`)."""
    from dsf.export.proof.verify import ClosedLoop, verify

    task, target, codec = get_task(network.task), network.target_return, folded.codec
    assert target is not None
    episodes = None if config.dataset is None else dataset_episodes(config.dataset, codec.encode, len(codec.unit))
    seeds = range(config.seed, config.seed + config.episodes)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("verifying", total=2 * config.episodes * task.max_steps or None)
        steps = lambda running: progress.advance(bar, running)  # noqa: E731
        loop = ClosedLoop(task, seeds, target, config.max_score_drop, steps) if config.episodes else None
        return verify(model, folded, network, loop, episodes)


def calibration_of(config: ExportConfig, folded: FoldedModel) -> Calibration | None:
    """Statistics of the folded model on the calibration dataset, or None."""
    if config.calibration is None:
        return None
    from dsf.export.conversion.calibrate import calibrate
    from dsf.export.proof.verify import SEQUENCES, spread_windows

    codec = folded.codec
    episodes = dataset_episodes(config.calibration, codec.encode, len(codec.unit))
    return calibrate(folded, spread_windows(episodes, folded.context, SEQUENCES).swapaxes(0, 1))


def reexport(config: ExportConfig, options: TargetOptions, console: Console) -> Exported:
    """A network file once more, with the proofs that need no checkpoint; those that do are kept from the file."""
    network = read_network(config.run)
    placement = check_chip(network, config.chip, console)
    require_writable(network, options)
    rungs = prove_network(network, proof_tokens(network, config.dataset, PROOF_DECISIONS, config.seed))
    fresh = stamped(rungs, source_name(config.dataset), config.seed)
    verification = {**merged(network.verification, fresh), "placement": placement}
    return Exported(network.with_verification(verification), None, rungs)


def stamped(rungs: list[Rung], tokens: str, seed: int) -> list[dict[str, Any]]:
    """Rungs as JSON values, each with what it was tried on: tokens, seed, versions."""
    return [
        {
            **dataclasses.asdict(rung),
            "tokens": OTHER_SOURCES.get(rung.name, tokens),
            "seed": seed,
            "versions": versions(),
        }
        for rung in rungs
    ]


def merged(earlier: dict[str, Any], fresh: list[dict[str, Any]]) -> dict[str, Any]:
    """A file's verification with some rungs proven again; everything else stays.

    Older files say once for all rungs what they were tried on; here every rung that is kept gets it.
    """
    stays = dict(earlier)
    shared = {key: stays.pop(key) for key in ("tokens", "seed", "versions") if key in stays}
    names = {rung["name"] for rung in fresh}
    kept = [{**shared, **rung} for rung in stays.pop("rungs", []) if rung["name"] not in names]
    return {**stays, "rungs": [*kept, *fresh]}


def require_passed(rungs: list[Rung], floats: bool) -> None:
    """Refuse to go on where a rung does not hold; of the float network, only its own ones are asked.

    Raises:
        CommandFailed: naming the rungs.
    """
    failed = [rung.name for rung in rungs if rung.passed is False and (rung.name in OF_FLOATS or not floats)]
    if failed:
        raise CommandFailed(f"nothing written: the ladder fails at {', '.join(failed)}")


def check_chip(network: Network, name: str | None, console: Console) -> dict[str, Any]:
    """Place the network and list what breaks the chip's limits; returns figures for the file, every core's neurons too.

    Raises:
        CommandFailed: the chip was asked for and a published limit is broken.
    """
    chip = get_chip(name or DEFAULT_CHIP)
    placement, found = place(network, chip), violations(network, chip)
    binding = [violation for violation in found if violation.binds]
    if name is not None:
        for broken in found:
            line = f"{broken.node}: {broken.rule}: {broken.found}, limit {broken.limit} ({broken.grade})"
            console.print(line, soft_wrap=True)
        if binding:
            raise CommandFailed(f"nothing written: {len(binding)} limits of {chip.name} are broken, listed above")
    cores, (limit, share) = len(placement.cores), placement.busiest.fullest
    console.print(
        f"{chip.name}: {cores} cores, the fullest uses {share:.0%} of its {limit}, {verdict(found)} "
        "(dsf-export inspect lists all)",
        soft_wrap=True,
    )
    return {
        "chip": chip.name,
        "cores": cores,
        "chips": placement.chips,
        "violations": len(binding),
        "inferred_violations": len(found) - len(binding),
        "fullest": {"limit": limit, "share": share},
        "assignment": placement.assignment(),
    }


def describe(network: Network, path: Path, what: str, console: Console) -> None:
    """A few lines about the written file."""
    neurons = sum(node.size for node in network.of_kind(LIF))
    mode = "equals" if network.stream_is_exact else "differs from"
    console.print(
        f"{path}: {what}\n{path.stat().st_size / 1e6:.2f} MB, {neurons} neurons, stream mode {mode} window mode "
        f"(receptive field {network.receptive_field}, K {network.context})",
        soft_wrap=True,
    )
    if is_network_file(path):
        console.print(f"sha256 {file_digest(path)}", soft_wrap=True)


def run(config: ExportConfig) -> None:
    """Export one run."""
    console, options, out = Console(), check_config(config), output_path(config)
    exported = (export_run if options.source is None else reexport)(config, options, console)
    print_ladder([dataclasses.asdict(rung) for rung in exported.rungs], console)
    require_passed(exported.rungs, options.float_onnx)
    what = write_target(config.target, exported.network, exported.folded, out, options)
    describe(exported.network, out, what, console)


def main() -> NoReturn:
    """Console script."""
    from dsf.export import commands

    keep_freed_memory()
    if len(sys.argv) > 1 and sys.argv[1] in commands.COMMANDS:
        commands.main(sys.argv.pop(1))
    run_command(run, ExportConfig, "dsf-export", "Fold, quantize and verify a trained policy.")

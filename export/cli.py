"""``dsf-export``: fold, quantize, prove, and write one file for a target; and the commands on written files."""

from __future__ import annotations

import dataclasses
import math
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dsf.export.chips import CHIPS, get_chip, violations
from dsf.export.episodes import dataset_episodes
from dsf.export.file import file_digest, read_network
from dsf.export.network import Network
from dsf.export.nodes import LIF
from dsf.export.placement import place
from dsf.export.quantize import quantize
from dsf.export.targets import SUFFIXES, OnnxMode, Target, TargetOptions, require_target, write_target
from dsf.tasks import UserError, get_task, run_command
from dsf.tasks.console import CommandFailed, require_installed
from dsf.tasks.files import require_writable_parent
from dsf.train.integers import WEIGHT_BITS
from dsf.train.rounding import Clipping, QuantizationConfig, Rounding

if TYPE_CHECKING:
    from dsf.export.folded import FoldedModel
    from dsf.export.proof import Rung
    from dsf.train.checkpoint import Checkpoint

PROOF_DECISIONS = 200
"""Random decisions on which a network file is proven again before it is written for another target."""


@dataclass(frozen=True)
class ExportConfig:
    """Turn a trained run into a network of integer spikes, with proof. Other commands: dsf-export verify FILE,
    dsf-export inspect FILE, dsf-export diff A B.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of dsf-train, a checkpoint, or an exported network file to write for another target."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write; without it, network with the target's suffix."""
    target: Target = "loihi"
    """loihi: the network file that dsf-sim-run runs. onnx: standard integer operators for ONNX Runtime. nir: what NIR
    can say. torch: an integer module, read back by dsf.export.torch_module."""
    bits: int | None = None
    """Signed width of the weights, 2 to 8; without it 8, or what quantization-aware training has trained."""
    per_channel: bool = True
    """One scale per neuron where thresholds can absorb it; --no-per-channel: one per layer."""
    rounding: Rounding = "nearest"
    """To the nearest integer, or stochastic (seeded by --rounding-seed)."""
    rounding_seed: int = 0
    """Of stochastic rounding."""
    clipping: Clipping = "max"
    """What a scale must hold: the largest weight, a --percentile of them, or the smallest squared error (mse)."""
    percentile: float = 99.9
    """Of the magnitudes, for --clipping percentile."""
    bias_correction: bool = False
    """Let biases make good the mean error of the synaptic sums; needs --calibration."""
    calibration: str | None = None
    """Dataset that says how often inputs fire, for --clipping mse and --bias-correction."""
    whole_biases: bool = False
    """Round the neurons' biases to whole synaptic units, the only ones that lava-dl's netx knows."""
    dataset: str | None = None
    """Dataset to compare the levels on; without it, what the float policy sees in the closed loop."""
    episodes: int = 10
    """Closed-loop episodes per network in the ladder; 0 leaves the closed loop out and needs --dataset."""
    seed: int = 2_000
    """Reset seed of the first of these episodes."""
    target_return: float | None = None
    """Return to ask for in these episodes, kept in the file as its default; without it, the task's first target."""
    max_score_drop: float = 10.0
    """D4RL-normalised points that the integers may lose; more, and nothing is written."""
    chip: str | None = None
    """Chip whose limits must hold, loihi1 or loihi2: every violation is listed and nothing is written if there is one.
    Without it, the network is placed on loihi2 and what breaks its limits is only counted."""
    onnx_mode: OnnxMode = "auto"
    """Of --target onnx: one token per call (stream), K tokens per call (window), or stream where that is exact."""
    precision: Literal["integer", "float"] = "integer"
    """Of --target onnx: the integer network, or the folded float one."""
    partial: bool = False
    """Of --target nir: leave out what NIR cannot say; the file lists it."""
    netx: Path | None = None
    """Of --target loihi: directory for lava-dl .net files of the dense stages."""


@dataclass(frozen=True)
class Exported:
    """What is ready to be written.

    Attributes:
        network: with its ladder.
        folded: its float form; None where it came from a network file.
        rungs: the ladder.
    """

    network: Network
    folded: FoldedModel | None
    rungs: list[Rung] = field(default_factory=list)


def is_network_file(path: Path) -> bool:
    """Whether a path names an exported network, not a run or a checkpoint."""
    return path.name.endswith(SUFFIXES["loihi"])


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


def quantization_of(checkpoint: Checkpoint, config: ExportConfig) -> tuple[QuantizationConfig, int | None]:
    """How weights become integers, and the threshold in residual units where quantization-aware training has fixed it.

    Raises:
        UserError: an option is out of range, or other bits or scales are asked for than were trained.
    """
    trained, bits = checkpoint.header.get("quantization"), config.bits
    if trained is None:
        return quantization_config(config, WEIGHT_BITS if bits is None else bits, config.per_channel), None
    if bits not in (None, trained["bits"]):
        raise UserError(f"--bits is {bits}, but {checkpoint.path} was trained for {trained['bits']}: drop --bits")
    per_channel = trained.get("per_channel", True)  # older checkpoints knew nothing else
    if per_channel and not config.per_channel:
        raise UserError(f"--no-per-channel: {checkpoint.path} was trained with one scale per neuron: drop it")
    return quantization_config(config, trained["bits"], per_channel), trained["threshold_units"]


def quantization_config(config: ExportConfig, bits: int, per_channel: bool) -> QuantizationConfig:
    """The options that decide how weights become integers.

    Raises:
        UserError: one of them is out of range.
    """
    return QuantizationConfig(
        bits,
        per_channel,
        rounding=config.rounding,
        seed=config.rounding_seed,
        clipping=config.clipping,
        percentile=config.percentile,
        bias_correction=config.bias_correction,
    )


def check_config(config: ExportConfig) -> TargetOptions:
    """Refuse settings that cannot work, before anything starts.

    Raises:
        UserError: naming the option.
    """
    for name, least in (("episodes", 0), ("seed", 0)):
        if getattr(config, name) < least:
            raise UserError(f"--{name} is {getattr(config, name)}: it must be {least} or more")
    if config.episodes == 0 and config.dataset is None and not is_network_file(config.run):
        raise UserError("--episodes is 0: name a --dataset to compare the levels on")
    for name, value in (("--target-return", config.target_return), ("--max-score-drop", config.max_score_drop)):
        if value is not None and not math.isfinite(value):
            raise UserError(f"{name} is {value}: it must be a finite number")
    if config.chip is not None:
        get_chip(config.chip)
    options = TargetOptions(config.onnx_mode, config.precision == "float", config.partial, config.netx)
    require_target(config.target, options)
    return options


def export_run(config: ExportConfig, console: Console) -> Exported:
    """Fold, quantize and verify a trained run."""
    require_installed("train", "torch", "snntorch", "safetensors")
    from dsf.export.fold import fold
    from dsf.export.layer_report import layer_report, print_layers
    from dsf.export.verify import ClosedLoop, verify
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.qat import deployed

    checkpoint = load_checkpoint(config.run)
    rules, threshold_units = quantization_of(checkpoint, config)
    trained = checkpoint.build_trained()
    task, folded = get_task(checkpoint.header["task"]), fold(trained)
    features = len(folded.codec.unit)
    network = quantize(
        folded,
        task.name,
        provenance=provenance(checkpoint, rules),
        threshold_units=threshold_units,
        whole_biases=config.whole_biases,
        config=rules,
        calibration=calibration_of(config, folded, features),
    )
    model = deployed(trained)  # after quantization-aware training, the float levels have the integers' values
    folded = fold(model)
    target = task.target_returns[0] if config.target_return is None else config.target_return
    network = dataclasses.replace(network, target_return=target)
    episodes = None if config.dataset is None else dataset_episodes(config.dataset, folded.codec.encode, features)
    seeds = range(config.seed, config.seed + config.episodes)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("verifying", total=2 * config.episodes * task.max_steps or None)
        steps = lambda running: progress.advance(bar, running)  # noqa: E731
        loop = ClosedLoop(task, seeds, target, config.max_score_drop, steps) if config.episodes else None
        rungs, tokens = verify(model, folded, network, loop, episodes)
    layers = layer_report(folded, network, tokens.swapaxes(0, 1))
    print_layers(layers, console)
    network = with_ladder(network, rungs, config.dataset or "closed loop", config.seed)
    network.verification["layers"] = [dataclasses.asdict(figures) for figures in layers]
    return Exported(network, folded, rungs)


def calibration_of(config: ExportConfig, folded: FoldedModel, features: int) -> Any:
    """Statistics of the folded model on the calibration dataset, or None."""
    if config.calibration is None:
        return None
    from dsf.export.calibrate import calibrate
    from dsf.export.verify import SEQUENCES, spread_windows

    episodes = dataset_episodes(config.calibration, folded.codec.encode, features)
    return calibrate(folded, spread_windows(episodes, folded.context, SEQUENCES).swapaxes(0, 1))


def reexport(config: ExportConfig) -> Exported:
    """A network file once more, with the proofs that need no checkpoint."""
    from dsf.export.proof import prove_network, random_tokens

    network = read_network(config.run)
    rungs = prove_network(network, random_tokens(network, PROOF_DECISIONS, config.seed))
    earlier = network.verification.get("rungs", [])
    names = {rung.name for rung in rungs}
    kept = [rung for rung in earlier if rung["name"] not in names]
    network = with_ladder(network, rungs, "random tokens", config.seed)
    network.verification["rungs"] = [*kept, *network.verification["rungs"]]
    return Exported(network, None, rungs)


def with_ladder(network: Network, rungs: list[Rung], source: str, seed: int) -> Network:
    """The network with its ladder's table, and what it was compared on."""
    from dsf.export.proof import versions

    table = [dataclasses.asdict(rung) for rung in rungs]
    return network.with_verification({"rungs": table, "tokens": source, "seed": seed, "versions": versions()})


def print_ladder(rungs: list[Rung], console: Console) -> None:
    """The ladder as a table."""
    table = Table(title="verification ladder", title_justify="left")
    for column in ("rung", "holds", "figures"):
        table.add_column(column, overflow="fold")
    for rung in rungs:
        table.add_row(rung.name, {True: "yes", False: "NO", None: "-"}[rung.passed], rung.summary)
    console.print(table)


def require_passed(rungs: list[Rung]) -> None:
    """Refuse to go on where a rung does not hold.

    Raises:
        CommandFailed: naming the rungs.
    """
    failed = [rung.name for rung in rungs if rung.passed is False]
    if failed:
        raise CommandFailed(f"nothing written: the ladder fails at {', '.join(failed)}")


def check_chip(network: Network, name: str | None, console: Console) -> dict[str, Any]:
    """Place the network and list what breaks the chip's limits; returns figures for the file.

    Raises:
        CommandFailed: the chip was asked for and a limit is broken.
    """
    chip = get_chip(name or next(reversed(CHIPS)))
    placement, found = place(network, chip), violations(network, chip)
    if name is not None:
        for violation in found:
            console.print(f"{violation.node}: {violation.rule}: {violation.found}, limit {violation.limit}")
        if found:
            raise CommandFailed(f"nothing written: {len(found)} limits of {chip.name} are broken, listed above")
    cores, (limit, share) = len(placement.cores), placement.busiest.fullest
    console.print(
        f"{chip.name}: {cores} cores, the fullest uses {share:.0%} of its {limit}, {len(found)} published limits "
        "broken (dsf-export inspect lists all)",
        soft_wrap=True,
    )
    figures = {"chip": chip.name, "cores": cores, "chips": placement.chips, "violations": len(found)}
    return {**figures, "fullest": {"limit": limit, "share": share}}


def describe(network: Network, path: Path, what: str, console: Console) -> None:
    """One paragraph about the written file."""
    neurons = sum(node.size for node in network.of_kind(LIF))
    mode = "equals" if network.stream_is_exact else "differs from"
    console.print(
        f"{path}: {what}, {path.stat().st_size / 1e6:.2f} MB, {neurons} neurons, stream mode {mode} window mode "
        f"(receptive field {network.receptive_field}, K {network.context})",
        soft_wrap=True,
    )
    if is_network_file(path):
        console.print(f"sha256 {file_digest(path)}", soft_wrap=True)


def run(config: ExportConfig) -> None:
    """Export one run."""
    console, options = Console(), check_config(config)
    out = config.out or Path(f"network{SUFFIXES[config.target]}")
    require_writable_parent(out)
    from_file = is_network_file(config.run)
    exported = reexport(config) if from_file else export_run(config, console)
    options = dataclasses.replace(options, source=config.run if from_file else None)
    print_ladder(exported.rungs, console)
    require_passed(exported.rungs)
    exported.network.verification["placement"] = check_chip(exported.network, config.chip, console)
    what = write_target(config.target, exported.network, exported.folded, out, options)
    describe(exported.network, out, what, console)


def main() -> NoReturn:
    """Console script."""
    from dsf.export import commands

    if len(sys.argv) > 1 and sys.argv[1] in commands.COMMANDS:
        commands.main(sys.argv.pop(1))
    run_command(run, ExportConfig, "dsf-export", "Fold, quantize and verify a trained policy.")

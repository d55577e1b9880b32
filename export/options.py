"""The options of ``dsf-export RUN``, and what is wrong with them before any work starts.

What the values alone show is refused by :class:`ExportConfig` itself, what only this machine's files and packages show
by :func:`require_possible` (see :mod:`dsf.shell.command`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dsf.export.network.file import SEAL
from dsf.export.placement.chips import get_chip
from dsf.export.proof.score_gate import default_most, planned_looks
from dsf.export.targets.options import SUFFIXES, OnnxMode, Target, TargetOptions, require_own_options, require_target
from dsf.shell.errors import UserError
from dsf.shell.files import require_writable_parent
from dsf.shell.installed import require_installed
from dsf.train.quantization.integers import WEIGHT_BITS
from dsf.train.quantization.rounding import Clipping, QuantizationConfig, ResidualScales, Rounding

if TYPE_CHECKING:
    from dsf.train.checkpoint import Checkpoint

RemoveSilent = Literal["none", "proven", "measured"]


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
    can say. torch: an integer module, read back by dsf.export.targets.torch_module."""
    bits: int | None = None
    """Signed width of the weights, 2 to 8; without it 8, or what quantization-aware training has trained."""
    per_channel: tyro.conf.FlagCreatePairsOff[bool] = False
    """One scale per neuron where thresholds can absorb it: what happens anyway, unless training had one per layer."""
    no_per_channel: tyro.conf.FlagCreatePairsOff[bool] = False
    """One scale per layer."""
    rounding: Rounding = "nearest"
    """To the nearest integer, or stochastic (seeded by --rounding-seed)."""
    rounding_seed: int = 0
    """Seed of stochastic rounding."""
    clipping: Clipping = "max"
    """What a scale must hold: the largest weight, a --percentile of them, or the smallest squared error (mse)."""
    percentile: float = 99.9
    """Percentile of the magnitudes, for --clipping percentile."""
    residual_scales: ResidualScales = "shared"
    """One unit for all channels of the residual, or one per channel, which thresholds absorb; needs --calibration."""
    embed_synapses: int = 1
    """Synapses from each input feature to each channel, 1 or 2: the second holds what rounding the first has lost."""
    bias_correction: bool = False
    """Let biases make good the mean error of the synaptic sums; needs --calibration."""
    calibration: str | None = None
    """Dataset that says how often neurons fire, for --clipping mse, --bias-correction, --residual-scales channel and
    --remove-silent measured."""
    remove_silent: RemoveSilent | None = None
    """Take silent channels out of the integers, with their weights: hidden neurons of the MLPs, and of PSSA query, key,
    value and attention together. proven: those that can say nothing, whatever the inputs, by their weights alone;
    measured: also those that never fire on --calibration DATASET; none. Without it, proven where the run was trained
    with --prune-channels, else none."""
    whole_biases: bool = False
    """Round the neurons' biases to whole synaptic units, the only ones that lava-dl's netx knows."""
    dataset: str | None = None
    """Dataset to compare the levels on; without it, what the float policy sees in the closed loop, or random tokens
    for a network file."""
    episodes: int = 10
    """Closed-loop episodes per network in the ladder; 0 leaves the closed loop out and needs --dataset."""
    most_episodes: int | None = None
    """While these do not decide about --max-score-drop they are doubled, up to this number; without it, twice.
    What is undecided then is written, and marked unproven."""
    seed: int = 2_000
    """Reset seed of the first of these episodes; of the random tokens for a network file."""
    target_return: float | None = None
    """Return to ask for in these episodes, kept in the file as its default; without it, the first of the targets that
    the run was trained for: the task's declared ones, or those that its data hold (dsf-train --help)."""
    max_score_drop: float = 10.0
    """D4RL-normalised points that the integers may lose; where they are shown to lose more, nothing is written. Where
    data come from another environment than the task's, a point is one percent of their best return; of a task without
    reference returns, one percent of the span of its data's returns, from the lowest to the highest."""
    chip: str | None = None
    """Chip whose published limits must hold, loihi1 or loihi2: every violation is listed and nothing is written if
    there is one. Without it, the network is placed on loihi2 and what breaks its limits is only counted."""
    onnx_mode: OnnxMode = "auto"
    """With --target onnx: one token per call (stream), K tokens per call (window), or stream where that is exact."""
    precision: Literal["integer", "float"] = "integer"
    """With --target onnx: the integer network, or the folded float one."""
    partial: bool = False
    """With --target nir: leave out what NIR cannot say; the file lists it."""
    netx: Path | None = None
    """With --target loihi: directory for lava-dl .net files of the dense stages; needs --whole-biases."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}: it must be {least} or more")
        if self.most_episodes is not None and self.most_episodes < self.episodes:
            raise UserError(
                f"--most-episodes is {self.most_episodes}, --episodes {self.episodes}: it must be that number or more"
            )
        for flag, value in (("--target-return", self.target_return), ("--max-score-drop", self.max_score_drop)):
            if value is not None and not math.isfinite(value):
                raise UserError(f"{flag} is {value}: it must be a finite number")
        if self.chip is not None:
            get_chip(self.chip)
        require_own_options(self.target, self.target_options(None))

    def target_options(self, source: Path | None) -> TargetOptions:
        """What only some targets read; ``source`` is the network file that the network is read from, if it is."""
        return TargetOptions(
            onnx_mode=self.onnx_mode,
            float_onnx=self.precision == "float",
            partial=self.partial,
            netx=self.netx,
            source=source,
        )

    @property
    def calibrates(self) -> bool:
        """Whether the integers depend on how often inputs fire."""
        return self.clipping == "mse" or self.bias_correction or self.residual_scales == "channel"

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of episodes at which the closed loop is judged; a float graph does not wait for a decision."""
        if self.precision == "float":
            return (self.episodes,)
        return planned_looks(self.episodes, self.most_episodes or default_most(self.episodes))

    @property
    def out_path(self) -> Path:
        """File to write."""
        return self.out or Path(f"network{SUFFIXES[self.target]}")


DEFAULTS = {item.name: item.default for item in dataclasses.fields(ExportConfig)}
NEEDS_RUN = (
    "bits",
    "per_channel",
    "no_per_channel",
    "rounding",
    "rounding_seed",
    "clipping",
    "percentile",
    "residual_scales",
    "embed_synapses",
    "bias_correction",
    "calibration",
    "remove_silent",
    "whole_biases",
    "episodes",
    "most_episodes",
    "target_return",
    "max_score_drop",
    "precision",
)
"""Options that shape or measure the integers: a network file already has its own."""


def is_network_file(path: Path) -> bool:
    """Whether a path is an exported network, by its first bytes; by its name where it does not start like one, so that
    whoever reads it says what is wrong with it.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(SEAL.magic)) == SEAL.magic:
                return True
    return path.name.endswith(SUFFIXES["loihi"]) and not path.is_dir()


def require_possible(config: ExportConfig) -> None:
    """Refuse what cannot work on this machine, or would do nothing to the file that is named, before anything starts.

    Raises:
        UserError: naming the option.
    """
    from_file = is_network_file(config.run)
    if from_file:
        _require_run_for(config)
    else:
        _require_partners(config)
    require_target(config.target, config.target_options(config.run if from_file else None))
    _require_free_name(config)
    if not from_file:
        require_installed("train", "torch", "snntorch", "safetensors")


def _require_run_for(config: ExportConfig) -> None:
    """Refuse what a network file would ignore."""
    given = [f"--{name.replace('_', '-')}" for name in NEEDS_RUN if getattr(config, name) != DEFAULTS[name]]
    if given:
        raise UserError(
            f"{config.run} is a network file, its integers are fixed: {', '.join(given)} cannot change or measure "
            "them; give the trained run instead, or drop them"
        )


def _require_partners(config: ExportConfig) -> None:
    """Refuse an option of a trained run's export whose partner is missing, so that it would do nothing."""
    if config.per_channel and config.no_per_channel:
        raise UserError("--per-channel and --no-per-channel contradict each other: drop one of them")
    if config.episodes == 0 and config.dataset is None:
        raise UserError("--episodes is 0: name a --dataset to compare the levels on")
    integers, measured = config.precision == "integer", config.remove_silent == "measured"
    if measured and config.calibration is None:
        raise UserError(
            "--remove-silent measured requires --calibration DATASET: add it, or use --remove-silent proven"
        )
    for name, partner, present in (
        ("max_score_drop", "--episodes of 1 or more", config.episodes > 0),
        ("max_score_drop", "--precision integer", integers),
        ("most_episodes", "--episodes of 1 or more", config.episodes > 0),
        ("most_episodes", "--precision integer", integers),
        ("chip", "--precision integer", integers),
        ("percentile", "--clipping percentile", config.clipping == "percentile"),
        ("rounding_seed", "--rounding stochastic", config.rounding == "stochastic"),
        (
            "calibration",
            "--clipping mse, --bias-correction, --residual-scales channel or --remove-silent measured",
            config.calibrates or measured,
        ),
        ("remove_silent", "--precision integer", integers),
        ("residual_scales", "--calibration DATASET", config.calibration is not None),
        ("bias_correction", "--calibration DATASET", config.calibration is not None),
        ("netx", "--whole-biases, because netx knows no finer ones", config.whole_biases),
    ):
        if getattr(config, name) != DEFAULTS[name] and not present:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} requires {partner}: add it, or drop {flag}")


def _require_free_name(config: ExportConfig) -> None:
    """Make clear that nothing else is lost where the file goes.

    Raises:
        UserError: the path cannot be written, is the input, or has the suffix of another target.
    """
    out = config.out_path
    for target, suffix in SUFFIXES.items():
        if target != config.target and out.name.endswith(suffix):
            raise UserError(
                f"cannot write {out}: {suffix} requires --target {target}, not {config.target}; "
                f"name a file *{SUFFIXES[config.target]}"
            )
    require_writable_parent(out, _input_file(config.run))


def _input_file(run: Path) -> Path:
    """The one file that is read: of a run directory, its checkpoint."""
    if not run.is_dir():
        return run
    require_installed("train", "torch", "snntorch", "safetensors")
    from dsf.train.checkpoint import CHECKPOINT_NAME

    return run / CHECKPOINT_NAME


def quantization_of(checkpoint: Checkpoint, config: ExportConfig) -> tuple[QuantizationConfig, int | None]:
    """How weights become integers, and the threshold in residual units where quantization-aware training has fixed it.

    Raises:
        UserError: an option is out of range, or other integers are asked for than were trained.
    """
    trained, bits = checkpoint.quantization(), config.bits
    if trained is None:
        return _rules(config, WEIGHT_BITS if bits is None else bits, not config.no_per_channel), None
    if bits not in (None, trained.bits):
        raise UserError(f"--bits is {bits}, but {checkpoint.path} was trained for {trained.bits}: drop --bits")
    if trained.per_channel and config.no_per_channel:
        raise UserError(f"--no-per-channel: {checkpoint.path} was trained with one scale per neuron: drop it")
    if config.per_channel and not trained.per_channel:
        raise UserError(f"--per-channel: {checkpoint.path} was trained with one scale per layer: drop it")
    if config.whole_biases:
        raise UserError(
            f"--whole-biases: {checkpoint.path} was trained with finer biases: drop it, and give --netx with the "
            "exported file"
        )
    return _rules(config, trained.bits, trained.per_channel), trained.threshold_units


def _rules(config: ExportConfig, bits: int, per_channel: bool) -> QuantizationConfig:
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
        residual_scales=config.residual_scales,
        embed_synapses=config.embed_synapses,
    )

"""Export as a function: fold, quantize, prove, and write one file for a target; it prints nothing."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dsf.export.conversion.quantize import quantize
from dsf.export.conversion.silent import Removal, measured_silent, proven_silent, without_channels
from dsf.export.exported import (
    CONSTANT_INPUTS,
    REMOVED_CHANNELS,
    SILENT,
    ExportedNetwork,
    ExportObserver,
    PlacementSummary,
    WrittenFile,
)
from dsf.export.network.file import file_digest, read_network
from dsf.export.network.network import Network
from dsf.export.network.reference import encode
from dsf.export.options import ExportConfig, is_network_file, quantization_of, require_possible
from dsf.export.placement.chips import DEFAULT_CHIP, get_chip, violations
from dsf.export.placement.placement import place
from dsf.export.proof.episodes import dataset_episodes, definition_of, proof_tokens, source_name
from dsf.export.proof.removal import as_windows, prove_removal
from dsf.export.proof.rungs import Rung, proof_versions, prove_network
from dsf.export.targets.options import TargetOptions, require_writable
from dsf.export.write import write_target
from dsf.shell.arrays import IntArray
from dsf.shell.errors import CommandFailed, UserError
from dsf.tasks import Task
from dsf.tasks.data_returns import RETURNS_FACT
from dsf.tasks.definition import TaskDefinition
from dsf.tasks.registry import ENVIRONMENT_FACT, TASK_FACT, described_task, notes_on
from dsf.train.quantization.codec import CodedArray
from dsf.train.quantization.integers import WEIGHT_BITS
from dsf.train.quantization.rounding import QuantizationConfig

if TYPE_CHECKING:
    from dsf.export.conversion.calibrate import Calibration
    from dsf.export.conversion.folded import FoldedModel
    from dsf.export.conversion.layer_report import LayerFigures
    from dsf.train.checkpoint import Checkpoint
    from dsf.train.models.dsformer import DSFormer

PROOF_DECISIONS = 200
"""Decisions on which a network file is proven again before it is written for another target."""
MEASURED_WINDOWS = 1_000
"""Windows of K tokens in which a channel must not fire once to be silent by measurement."""
CLOSED_LOOP = "closed loop"
OTHER_SOURCES = {"L0 -> L2 closed loop": CLOSED_LOOP, "L2 overflow": "any"}
"""Rungs that do not decide on the tokens of the others, and on what they do."""
OF_FLOATS = ("L0 torch -> L1 folded float",)
"""Rungs about the folded float network; the others are about integers."""


@dataclass(frozen=True)
class _Proven:
    """An export but for its file, see :class:`~dsf.export.exported.ExportedNetwork`."""

    network: Network
    folded: FoldedModel | None
    rungs: tuple[Rung, ...]
    layers: tuple[LayerFigures, ...]
    placement: PlacementSummary


def export(config: ExportConfig, observer: ExportObserver = SILENT) -> ExportedNetwork:
    """Turn a trained run, or a network file, into one file for a target, with proof.

    Args:
        config: what to export, and how.
        observer: hears how it goes on.

    Raises:
        UserError: the config cannot work here; NetworkError, which is one, where the network cannot be made.
        CommandFailed: a limit of the chip that was asked for is broken, a rung of the ladder does not hold, or the file
            does not compute what was proven; nothing is written then.
    """
    require_possible(config)
    options = config.target_options(config.run if is_network_file(config.run) else None)
    proven = (_prove_run if options.source is None else _prove_file)(config, options, observer)
    observer.climbed(proven.rungs)
    require_passed(proven.rungs, options.float_onnx)
    path = config.out_path
    sentence = write_target(config.target, proven.network, proven.folded, path, options)
    written = WrittenFile(path, sentence, path.stat().st_size, file_digest(path) if is_network_file(path) else None)
    return ExportedNetwork(proven.network, proven.folded, proven.rungs, proven.layers, proven.placement, written)


def _prove_run(config: ExportConfig, options: TargetOptions, observer: ExportObserver) -> _Proven:
    """Fold, quantize and verify a trained run."""
    from dsf.export.conversion.fold import fold
    from dsf.export.conversion.layer_report import layer_report
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.models.qat import deployed

    checkpoint = load_checkpoint(config.run)
    task = checkpoint.task()
    require_environment(task, config)
    asked = task.target_returns[:1] if config.target_return is None else (config.target_return,)
    observer.noted(notes_on(task, asked, checkpoint.header))
    trained = checkpoint.build_trained()
    whole = quantized(checkpoint, fold(trained), config)
    network, removal, removed = without_silent(whole, checkpoint, config)
    placement = place_on_chip(network, config.chip, observer)
    require_writable(network, options)
    model = deployed(trained)  # after quantization-aware training, the float levels have the integers' values
    folded = fold(model)
    rungs, tokens = climb(model, folded, network, config, observer, {} if removal is None else removal.kept)
    layers = layer_report(folded, whole, tokens.swapaxes(0, 1))
    observer.measured(layers)
    verification = {
        "rungs": [
            *stamped(rungs, config.dataset or CLOSED_LOOP, config.seed),
            *stamped(removed, removal_source(removal, config), config.seed),
        ],
        "layers": [dataclasses.asdict(figures) for figures in layers],
        "placement": placement.to_json(),
    }
    return _Proven(network.with_verification(verification), folded, (*rungs, *removed), tuple(layers), placement)


def require_environment(task: Task, config: ExportConfig) -> None:
    """Refuse a closed loop that no environment is there for, before anything is folded.

    Raises:
        UserError: the task's environment is not there, or does not fit it any more.
    """
    if task.definition is None or not config.episodes:
        return
    try:
        task.make_env().close()
    except UserError as error:
        raise UserError(f"{error}; or compare on data alone: --episodes 0 --dataset DATASET") from None


def _prove_file(config: ExportConfig, options: TargetOptions, observer: ExportObserver) -> _Proven:
    """A network file once more, with the proofs that need no checkpoint; those that do are kept from the file."""
    network = read_network(config.run)
    placement = place_on_chip(network, config.chip, observer)
    require_writable(network, options)
    rungs = prove_network(network, proof_tokens(network, config.dataset, PROOF_DECISIONS, config.seed))
    fresh = stamped(rungs, source_name(config.dataset), config.seed)
    verification = {**merged(network.verification, fresh), "placement": placement.to_json()}
    return _Proven(network.with_verification(verification), None, tuple(rungs), (), placement)


def provenance(checkpoint: Checkpoint, config: QuantizationConfig) -> dict[str, Any]:
    """Where the network comes from: everything needed to make it again."""
    import torch

    from dsf.train.checkpoint import git_revision

    header = checkpoint.header
    task = checkpoint.task()
    constant = [task.feature(index) for index in header["codec"].get("constant", [])]
    return {
        **({CONSTANT_INPUTS: constant} if constant else {}),
        "dataset": header["dataset"],
        "model": header["model"],
        "train": header["train"],
        "train_steps": header["step"],
        "train_revision": header.get("revision", header.get("git_revision")),  # older checkpoints have the latter
        "train_scores": header["scores"],
        "export_revision": git_revision(),
        "bits": config.bits,
        "quantization": dataclasses.asdict(config),
        **{name: header[name] for name in (ENVIRONMENT_FACT, RETURNS_FACT, TASK_FACT) if header.get(name) is not None},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }


def quantized(checkpoint: Checkpoint, folded: FoldedModel, config: ExportConfig) -> Network:
    """The integers of a folded run, and the return that they ask for unless told otherwise."""
    rules, threshold_units = quantization_of(checkpoint, config)
    task = checkpoint.task()
    network = quantize(
        folded,
        task.name,
        provenance=provenance(checkpoint, rules),
        threshold_units=threshold_units,
        whole_biases=config.whole_biases,
        config=rules,
        calibration=calibration_of(config, folded, definition_of(checkpoint.header)),
    )
    target = task.target_returns[0] if config.target_return is None else config.target_return
    return dataclasses.replace(with_bounds(network, task), target_return=target)


def with_bounds(network: Network, task: Task) -> Network:
    """The network whose readout ends at the task's actions: between its bounds, or counted as its choices are."""
    low, high = task.command_bounds
    readout = dataclasses.replace(network.readout, low=low, high=high, first_choice=task.first_choice)
    return dataclasses.replace(network, nodes=(*network.nodes[:-1], readout))


def without_silent(
    network: Network, checkpoint: Checkpoint, config: ExportConfig
) -> tuple[Network, Removal | None, list[Rung]]:
    """The network without the silent channels that the config lets go, what they were, and the rung that proves it.

    A measured silence is proven on the very tokens that it was measured on, a proven one on the ladder's, or random
    ones.
    """
    pruned = checkpoint.header["train"].get("prune_channels") is not None and config.precision == "integer"
    how = config.remove_silent or ("proven" if pruned else "none")
    if how == "none":
        return network, None, []
    if how == "measured" and config.calibration is not None:
        windows = measured_windows(network, config.calibration)
        silent = measured_silent(network, windows)
        smaller, removal = without_channels(network, silent, how, windows.shape[0] * windows.shape[1])
    else:
        windows = as_windows(proof_tokens(network, config.dataset, PROOF_DECISIONS, config.seed), network.context)
        smaller, removal = without_channels(network, proven_silent(network), "proven")
    what = {"how": removal.how, "channels": removal.channels, "of": removal.of, "tokens": removal.tokens}
    smaller = dataclasses.replace(smaller, provenance={**smaller.provenance, REMOVED_CHANNELS: what})
    return smaller, removal, [prove_removal(network, smaller, removal, windows)]


def measured_windows(network: Network, dataset_id: str) -> IntArray:
    """Encoder integers (K, windows, features) of windows that are evenly spread over a dataset."""
    from dsf.export.proof.verify import spread_windows

    encoder = network.encoder
    definition = definition_of(network.provenance)
    episodes = dataset_episodes(dataset_id, lambda vectors: encode(encoder, vectors), encoder.features, definition)
    return spread_windows(episodes, network.context, MEASURED_WINDOWS).swapaxes(0, 1)


def removal_source(removal: Removal | None, config: ExportConfig) -> str:
    """What the tokens of the rung on silent channels are called."""
    return source_name(config.calibration if removal is not None and removal.how == "measured" else config.dataset)


def climb(
    model: DSFormer,
    folded: FoldedModel,
    network: Network,
    config: ExportConfig,
    observer: ExportObserver,
    kept: Mapping[str, npt.NDArray[np.bool_]],
) -> tuple[list[Rung], CodedArray]:
    """The whole ladder of a trained run, and tokens for the report on layers.

    See :func:`dsf.export.proof.verify.prove_run`.
    """
    from dsf.export.proof.verify import ClosedLoop, prove_run

    task = described_task(network.task, network.provenance)
    target, codec = network.target_return, folded.codec
    assert target is not None
    definition, episodes = definition_of(network.provenance), None
    if config.dataset is not None:
        episodes = dataset_episodes(config.dataset, codec.encode, len(codec.unit), definition)
    loop = None
    if config.episodes:
        limit, said = config.max_score_drop, remedies(network.provenance)
        loop = ClosedLoop(task, config.seed, config.looks, target, limit, said, observer.undecided)
    return prove_run(model, folded, network, loop, episodes, observer.verifying, kept)


def remedies(provenance: Mapping[str, Any]) -> str:
    """What may make integers lose less, of what was not done yet."""
    rules, trained = provenance["quantization"], provenance["train"]
    found = []
    if trained.get("qat_steps"):
        found.append("a longer quantization-aware training (dsf-train --qat-steps)")
    else:
        on_host = provenance.get("model", {}).get("embed_norm") == "layernorm"  # where neither helps
        if rules["embed_synapses"] == 1 and not on_host:
            found.append("--embed-synapses 2")
        if rules["residual_scales"] == "shared":
            found.append("--residual-scales channel --calibration DATASET")
        if not rules["per_channel"]:
            found.append("no --no-per-channel")
        if rules["bits"] < WEIGHT_BITS:
            found.append(f"--bits {WEIGHT_BITS}")
        if not on_host:
            found.append("quantization-aware training (dsf-train --init RUN --qat-steps N)")
    advice = f"{', '.join(found)}; or " if found else ""
    return f"{advice}accept more with --max-score-drop"


def calibration_of(
    config: ExportConfig, folded: FoldedModel, definition: TaskDefinition | None = None
) -> Calibration | None:
    """Statistics of the folded model on the calibration dataset, where integers depend on them, or None.

    Args:
        config: what to export.
        folded: the float network.
        definition: see :func:`~dsf.export.proof.episodes.dataset_episodes`.
    """
    if config.calibration is None or not config.calibrates:
        return None
    from dsf.export.conversion.calibrate import calibrate
    from dsf.export.proof.verify import SEQUENCES, spread_windows

    codec = folded.codec
    episodes = dataset_episodes(config.calibration, codec.encode, len(codec.unit), definition)
    return calibrate(folded, spread_windows(episodes, folded.context, SEQUENCES).swapaxes(0, 1))


def stamped(rungs: Sequence[Rung], tokens: str, seed: int) -> list[dict[str, Any]]:
    """Rungs as JSON values, each with what it was tried on: tokens, seed, versions."""
    return [
        {
            **dataclasses.asdict(rung),
            "tokens": OTHER_SOURCES.get(rung.name, tokens),
            "seed": seed,
            "versions": proof_versions(),
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


def require_passed(rungs: Sequence[Rung], floats: bool) -> None:
    """Refuse to go on where a rung does not hold; of the float network, only its own ones are asked.

    Raises:
        CommandFailed: naming the rungs.
    """
    failed = [rung for rung in rungs if rung.passed is False and (rung.name in OF_FLOATS or not floats)]
    if failed:
        names = ", ".join(rung.name for rung in failed)
        helps = "".join(f"; what may help: {rung.details['remedies']}" for rung in failed if "remedies" in rung.details)
        raise CommandFailed(f"nothing written: the ladder fails at {names}{helps}")


def place_on_chip(network: Network, name: str | None, observer: ExportObserver) -> PlacementSummary:
    """Place the network and list what breaks the chip's limits; without a name, on the default chip.

    Raises:
        CommandFailed: the chip was asked for and a published limit is broken.
    """
    chip = get_chip(name or DEFAULT_CHIP)
    summary = PlacementSummary(place(network, chip), tuple(violations(network, chip)), asked=name is not None)
    observer.placed(summary)
    if summary.asked and summary.binding:
        raise CommandFailed(f"nothing written: {summary.binding} limits of {chip.name} are broken, listed above")
    return summary

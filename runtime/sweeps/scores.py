"""From a finished training to a cell's line of results: scores of floats or of integers, and energy per decision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dsf.export.exporting import export
from dsf.export.network.network import Mode
from dsf.export.options import ExportConfig
from dsf.export.terminal import TerminalExport
from dsf.hardware_models.activity import measure_activity
from dsf.hardware_models.energy import estimate_energy
from dsf.hardware_models.preset import load_preset
from dsf.hardware_models.weight_memory import WeightMemory
from dsf.runtime.options import SimRunConfig
from dsf.runtime.simulate import simulate
from dsf.runtime.sweeps.counts import Counts, dense_counts, spiking_counts
from dsf.runtime.sweeps.energy import PRESETS, not_priced, rival_energy, spiking_energy
from dsf.runtime.sweeps.identity import code_version
from dsf.runtime.sweeps.jobs import TRAINING_NAME, OrderedCell
from dsf.runtime.sweeps.spec import Evaluation
from dsf.runtime.sweeps.store import Line
from dsf.shell.command import parse_arguments
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.file_values import read_json
from dsf.shell.files import write_json
from dsf.shell.typed_values import read_record
from dsf.tasks import Task
from dsf.tasks.registry import described_task


@dataclass(frozen=True)
class DrivenNetwork:
    """What a sweep keeps of an exported network's episodes.

    Attributes:
        returns: in the order of the seeds (reward units).
        joules_per_decision: by preset.
        mode: stream or window.
        events_per_decision: synaptic events; None in what an earlier dsf has left.
        counts: of a decision, where they are asked for.
    """

    returns: tuple[float, ...]
    joules_per_decision: dict[str, float]
    mode: Mode
    events_per_decision: float | None = None
    counts: Counts | None = None

    @classmethod
    def read(cls, path: Path) -> DrivenNetwork:
        """What an earlier worker has left."""
        return read_record(cls, read_json(path, "episodes of a sweep"), f"episodes of a sweep {path}", "remove it")


def line_of(
    cell: OrderedCell,
    header: dict[str, Any],
    evaluation: Evaluation,
    directory: Path,
    drives: dict[Path, DrivenNetwork],
) -> Line:
    """All that a table, and whoever doubts it, needs of one cell.

    Args:
        cell: to score.
        header: of the training's checkpoint.
        evaluation: the sweep's protocol.
        directory: of the job.
        drives: what this worker has driven already, by the file that keeps it; a new one is added.

    Raises:
        UserError, CommandFailed: the integers cannot be made or run, or the rival has no int8 form.
    """
    task, facts = described_task(header["task"], header), cell.facts
    if not task.reference:
        raise UserError(f"a table holds scores, and there is none for the data of this cell: recorded in {task.world}")
    last = score_of(header["scores"], evaluation)
    target = float(last["target_return"])
    returns, energy = last["returns"], not_priced("no rule for this model")
    counts: Counts | None = None
    if facts["energy_rule"] == "spiking" or cell.export is not None:
        try:
            found = driven(cell, header, target, evaluation, directory, drives)
            energy = spiking_energy(found.joules_per_decision, found.mode, found.events_per_decision)
            counts = found.counts
            if cell.export is not None:
                returns = list(found.returns)
        except (UserError, CommandFailed) as reason:
            if cell.export is not None:
                raise
            energy = not_priced(f"cannot become spikes: {reason}")
    if facts["evaluation_precision"] == "int8" and not header.get("quantization"):
        returns = scored_at_int8(target, evaluation, directory)
    if facts["energy_rule"] == "none":
        energy = not_priced("no rule for this model")
    elif facts["energy_rule"] != "spiking":
        energy = rival_energy(facts["energy_rule"], header, task, directory / TRAINING_NAME)
        if cell.counts is not None and facts["evaluation_precision"] not in (None, "fp32"):
            counts = dense_counts(directory / TRAINING_NAME, cell.counts)
    return {
        **facts,
        "task": task.name,
        "steps": header["step"],
        "target_return": target,
        "eval_seeds": [evaluation.seed, evaluation.episodes],
        "returns": returns,
        "score": mean_score(returns, task),
        "score_label": task.score_label,
        "best": best_of(header, task) if facts["evaluation_precision"] == "fp32" else None,
        "energy": energy,
        **({} if counts is None else {"counts": asdict(counts)}),
        **{name: header.get(name) for name in ("precision", "revision", "torch", "seconds")},
    }


def score_of(scores: list[dict[str, Any]], evaluation: Evaluation) -> dict[str, Any]:
    """The last checkpoint's at the declared target, on the sweep's own reset seeds."""
    asked = [*evaluation.seeds]
    return next(score for score in scores if score["checkpoint"] == "last" and score["seeds"] == asked)


def best_of(header: dict[str, Any], task: Task) -> dict[str, Any] | None:
    """The best checkpoint by the very episodes that score it: too high by construction, and labelled so."""
    best = header.get("best")
    if not best:
        return None
    return {"step": best["step"], "target_return": best["target_return"], "score": mean_score(best["returns"], task)}


def mean_score(returns: Sequence[float], task: Task) -> float:
    """Mean normalised score of a run's episodes."""
    return task.score(math.fsum(returns) / len(returns))


def exported_files(
    directory: Path, words: Sequence[str], code: str, counts: WeightMemory | None = None
) -> tuple[Path, Path]:
    """Where a job keeps an exported network, and what it has driven of it.

    Args:
        directory: of the job.
        words: options of dsf-export.
        code: version that made it, :func:`~dsf.runtime.sweeps.identity.code_version` of "export".
        counts: see :attr:`~dsf.runtime.sweeps.jobs.OrderedCell.counts`.
    """
    kept = "" if counts is None else f".{counts.weights}-{counts.fetch}"
    stem = "-".join(["network", code, *(word.strip("-") for word in words)]).replace("/", "_")
    return directory / f"{stem}.dsf.h5", directory / f"{stem}{kept}.driven.json"


def driven(
    cell: OrderedCell,
    header: dict[str, Any],
    target: float,
    evaluation: Evaluation,
    directory: Path,
    drives: dict[Path, DrivenNetwork],
) -> DrivenNetwork:
    """Export a training and drive the integers on the sweep's seeds.

    Cells whose options of dsf-export are equal share it: a float cell takes its energy from it, an integer cell all.
    A file hands it to later workers. Another version of the code makes its own.
    """
    words = list(cell.export or ())
    network, kept = exported_files(directory, words, code_version("export"), cell.counts)
    if kept not in drives and kept.exists():
        drives[kept] = DrivenNetwork.read(kept)
    if kept not in drives:
        run, dataset = str(directory / TRAINING_NAME), header["dataset"]["id"]
        chosen = ["--out", str(network), "--target-return", str(target), "--episodes", "0", "--dataset", dataset]
        config: ExportConfig = parse_arguments(ExportConfig, "dsf-export", "", [run, *chosen, *words])
        export(config, TerminalExport(Console()))  # to the job's log
        asked = SimRunConfig(
            network=network,
            backend="fast",
            episodes=evaluation.episodes,
            seed=evaluation.seed,
            target_return=target,
            compare=False,
            parity_decisions=0,
            hardware=PRESETS,
            fetch="event" if cell.counts is None else cell.counts.fetch,
        )
        done = simulate(asked)
        report, counter = done.report, done.report.result.counter
        activity = measure_activity(counter)  # as always, whatever counts are asked for
        joules = {name: estimate_energy(activity, load_preset(name)).nominal for name in PRESETS}
        counts = None
        if cell.counts is not None:
            counts = spiking_counts(done.plan.network, counter, report.mode, cell.counts, Path(run))
        figures = (tuple(report.returns), joules, report.mode, report.synaptic_events_per_decision)
        drives[kept] = DrivenNetwork(*figures, counts)
        write_json(kept, asdict(drives[kept]))
    return drives[kept]


def scored_at_int8(target: float, evaluation: Evaluation, directory: Path) -> list[float]:
    """Returns of the trained rival with 8-bit integers, on the sweep's seeds."""
    from dsf.train.evaluation.finished_run import score_run

    (score,) = score_run(directory / TRAINING_NAME, "int8", (target,), evaluation.episodes, evaluation.seed)
    return list(score.returns)

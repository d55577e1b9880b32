"""From a finished training to a cell's line of results: scores of floats or of integers, and energy per decision."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from dsf.export.cli import run as export
from dsf.export.options import ExportConfig
from dsf.runtime.cli import run as sim_run
from dsf.runtime.options import SimRunConfig
from dsf.runtime.sweeps.energy import PRESETS, not_priced, rival_energy, spiking_energy
from dsf.runtime.sweeps.identity import code_version
from dsf.runtime.sweeps.jobs import TRAINING_NAME
from dsf.shell.command import parse_arguments
from dsf.shell.errors import CommandFailed, UserError
from dsf.tasks import Task, get_task


def line_of(
    cell: dict[str, Any], header: dict[str, Any], evaluation: dict[str, int], directory: Path
) -> dict[str, Any]:
    """All that a table, and whoever doubts it, needs of one cell.

    Raises:
        UserError, CommandFailed: the integers cannot be made or run, or the rival has no int8 form.
    """
    task, facts = get_task(header["task"]), cell["facts"]
    last = score_of(header["scores"], evaluation)
    target = float(last["target_return"])
    returns, energy = last["returns"], not_priced("no rule for this model")
    if facts["energy_rule"] == "spiking" or cell["export"] is not None:
        try:
            report = driven(cell, header, target, evaluation, directory)
            energy = spiking_energy(report)
            if cell["export"] is not None:
                returns = [episode["return"] for episode in report["episodes"]]
        except (UserError, CommandFailed) as reason:
            if cell["export"] is not None:
                raise
            energy = not_priced(f"cannot become spikes: {reason}")
    if facts["evaluation_precision"] == "int8":
        returns = scored_at_int8(target, evaluation, directory)
    if facts["energy_rule"] == "none":
        energy = not_priced("no rule for this model")
    elif facts["energy_rule"] != "spiking":
        energy = rival_energy(facts["energy_rule"], header, task, directory / TRAINING_NAME)
    return {
        **facts,
        "task": task.name,
        "steps": header["step"],
        "target_return": target,
        "eval_seeds": [evaluation["seed"], evaluation["episodes"]],
        "returns": returns,
        "score": mean_score(returns, task),
        "score_label": task.score_label,
        "best": best_of(header, task) if facts["evaluation_precision"] == "fp32" else None,
        "energy": energy,
        **{name: header.get(name) for name in ("precision", "revision", "torch", "seconds")},
    }


def score_of(scores: list[dict[str, Any]], evaluation: dict[str, int]) -> dict[str, Any]:
    """The last checkpoint's at the declared target, on the sweep's own reset seeds."""
    first = evaluation["seed"]
    asked = list(range(first, first + evaluation["episodes"]))
    return next(score for score in scores if score["checkpoint"] == "last" and score["seeds"] == asked)


def best_of(header: dict[str, Any], task: Task) -> dict[str, Any] | None:
    """The best checkpoint by the very episodes that score it: too high by construction, and labelled so."""
    best = header.get("best")
    if not best:
        return None
    return {"step": best["step"], "target_return": best["target_return"], "score": mean_score(best["returns"], task)}


def mean_score(returns: list[float], task: Task) -> float:
    """Mean normalised score of a run's episodes."""
    return task.score(math.fsum(returns) / len(returns))


def driven(
    cell: dict[str, Any], header: dict[str, Any], target: float, evaluation: dict[str, int], directory: Path
) -> dict[str, Any]:
    """Export a training, drive the integers on the sweep's seeds, and return dsf-sim-run's report.

    Cells whose options of dsf-export are equal share it: a float cell takes its energy from it, an integer cell all.
    Another version of the code makes its own.
    """
    words = list(cell["export"] or ())
    stem = "-".join(["network", code_version("export"), *(word.strip("-") for word in words)]).replace("/", "_")
    network, report = directory / f"{stem}.dsf.h5", directory / f"{stem}.report.json"
    if not report.exists():
        dataset = header["dataset"]["id"]
        run, levels = str(directory / TRAINING_NAME), ["--episodes", "0", "--dataset", dataset]
        chosen = ["--out", str(network), "--target-return", str(target), *levels, *words]
        export(parse_arguments(ExportConfig, "dsf-export", "", [run, *chosen]))
        episodes, seed = evaluation["episodes"], evaluation["seed"]
        asked = SimRunConfig(network=network, episodes=episodes, seed=seed, target_return=target, json=report)
        quick = dataclasses.replace(asked, backend="fast", compare=False, parity_decisions=0, hardware=PRESETS)
        sim_run(quick)
    values: dict[str, Any] = json.loads(report.read_text())
    return values


def scored_at_int8(target: float, evaluation: dict[str, int], directory: Path) -> list[float]:
    """Returns of the trained rival with 8-bit integers, on the sweep's seeds."""
    from dsf.train.evaluation.command import evaluate_run

    run = directory / TRAINING_NAME
    (score,) = evaluate_run(run, "int8", (target,), evaluation["episodes"], evaluation["seed"])
    returns: list[float] = score["returns"]
    return returns

"""``dsf-bench search``: trials on both sides, cell by cell, and the chosen points once more with other seeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from dsf.runtime.search.file import read_search, search_path
from dsf.runtime.search.points import chosen
from dsf.runtime.search.results import point_of
from dsf.runtime.search.spec import SIDES, SearchSpec, described
from dsf.runtime.search.study import Study, Trial, alone
from dsf.runtime.sweeps.command import Launch, conclude, require_possible, run_cells, states_of, why
from dsf.runtime.sweeps.identity import Resolved, resolve_cell
from dsf.runtime.sweeps.jobs import Planned, plan
from dsf.runtime.sweeps.store import read_lines
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.installed import require_installed

TRIALS_NAME = "{}.trials.jsonl"


@dataclass(frozen=True)
class SearchConfig(Launch):
    """Search both sides of a comparison for score and energy, with the same freedom. Ctrl-C loses nothing: call it
    again. --report then trains what stands for both fronts again, with other seeds.
    """

    spec: Annotated[str, tyro.conf.Positional]
    """YAML file, or the name of a shipped search (docs/sweeps.md lists them)."""
    report: bool = False
    """Train and score the chosen points of both fronts with the report's seeds; dsf-bench front draws them."""
    dry_run: bool = False
    """Say what is known of every trial, and check the file; run nothing."""


def search(config: SearchConfig) -> None:
    """``dsf-bench search``."""
    until = config.until
    require_possible(config)
    if not (config.report or config.dry_run):
        require_installed("search", "optuna")
    console = Console(soft_wrap=True, markup=False)
    path = search_path(config.spec)
    spec = read_search(path)
    require_resolvable(spec, path)
    trials = config.out / TRIALS_NAME.format(spec.name)
    if config.dry_run:
        show(Study.read(spec, trials), console)
        return
    with alone(trials):
        study = Study.read(spec, trials)
        if config.report:
            report(study, config, console, until)
            return
        if config.retry_failed:
            study.again()
        while (batch := study.pending() or study.ask()) and run_batch(study, batch, config, console, until):
            pass
        show(study, console)
    left = len(study.pending()) + study.left()
    if left:
        raise CommandFailed(f"--minutes {config.minutes} are over, trials left: {left}; the next call goes on")


def require_resolvable(spec: SearchSpec, path: Path) -> None:
    """Refuse a family none of whose places dsf-train and dsf-export read, as far as their first values say.

    Raises:
        UserError: naming file, family and setting, or a dataset that is not at hand.
    """
    for name, family in spec.families.items():
        first = {option: values.first for option, values in family.space.items()}
        try:
            resolve_cell(spec.cell(name, first, spec.seeds[0], spec.evaluation))
        except UserError as error:
            where = f"sides.{spec.side_of(name)}.{name}"
            raise UserError(f"{path}: {where}, with the first value of every option: {error}") from None


def cells_of(spec: SearchSpec, trial: Trial) -> list[Resolved]:
    """A trial with every training seed of the search.

    Raises:
        UserError: dsf-train or dsf-export refuses it.
    """
    return [resolve_cell(spec.cell(trial.family, trial.params, seed, spec.evaluation)) for seed in spec.seeds]


def run_batch(
    study: Study, batch: Sequence[Trial], config: SearchConfig, console: Console, until: float | None
) -> bool:
    """Run the cells of some trials and tell what came of them; whether there is time for more.

    Raises:
        UserError: the dataset is not at hand.
    """
    planned: dict[str, list[Planned]] = {}
    for trial in batch:
        try:
            planned[name_of(trial)] = plan(cells_of(study.spec, trial))
        except UserError as error:
            told(study, replace(trial, state="failed", reason=str(error)), console)
    cells = list({cell.key: cell for found in planned.values() for cell in found}.values())
    if cells and cells[0].missing:
        raise UserError(cells[0].missing)
    states = states_of(cells, config.out, config.store)
    rerun = ("not run", "interrupted", "failed") if config.retry_failed else ("not run", "interrupted")
    if unfinished := [cell for cell in cells if states[cell] in rerun]:
        run_cells(unfinished, config, config.store, console, until)
        states = states_of(cells, config.out, config.store)
    by_key = {state_of.key: state for state_of, state in states.items()}
    lines = {line["key"]: line for line in read_lines(config.store)}
    for trial in batch:
        if (found := planned.get(name_of(trial))) is None:
            continue
        failed = [cell for cell in found if by_key[cell.key] == "failed"]
        if failed:
            reason = why(failed[0], "failed", config.out).removeprefix(": ")
            told(study, replace(trial, state="failed", reason=reason), console)
        elif all(by_key[cell.key] == "done" for cell in found):
            told(study, with_figures(study.spec, trial, [lines[cell.key] for cell in found]), console)
    return until is None or time.monotonic() < until


def name_of(trial: Trial) -> str:
    """For people."""
    return f"{trial.family} {trial.number}"


def with_figures(spec: SearchSpec, trial: Trial, lines: list[dict[str, object]]) -> Trial:
    """A trial with what its cells gave: failed, where they have no price."""
    try:
        point = point_of(spec, trial.family, trial.params, lines, spec.preset)
    except UserError as error:
        return replace(trial, state="failed", reason=str(error))
    if not point.microjoules > 0.0:
        return replace(trial, state="failed", reason=f"{spec.price.preset} has no price for anything that it does")
    return replace(trial, state="done", score=point.score, microjoules=point.microjoules)


def told(study: Study, trial: Trial, console: Console) -> None:
    """Put a trial down, and say it."""
    study.tell(trial)
    console.print(f"trial {line_of(trial)}")


def line_of(trial: Trial) -> str:
    """What is known of a trial."""
    found = trial.state if trial.state != "failed" else f"failed: {trial.reason}"
    if trial.state == "done":
        found = f"{trial.score:.1f}, {trial.microjoules:.4g} uJ"
    return f"{name_of(trial)} ({described(trial.params.items())}): {found}"


def show(study: Study, console: Console) -> None:
    """What is known: counts, and the front of either side so far."""
    spec = study.spec
    if study.others:
        console.print(f"{study.others} lines of {study.path} are of an earlier version of this file: left alone")
    for side in SIDES:
        families = spec.sides[side]
        for name, family in families.items():
            trials = study.of_family(name)
            count = {state: sum(trial.state == state for trial in trials) for state in ("done", "failed", "asked")}
            words = ", ".join(f"{number} {state}" for state, number in count.items() if number)
            console.print(f"{side}, {name}: {family.trials} trials, {words or 'none asked for yet'}")
        for trial in chosen(study.done(families), spec.report.most, lambda trial: trial.family):
            console.print(f"  chosen: {line_of(trial)}")


def report(study: Study, config: SearchConfig, console: Console, until: float | None) -> None:
    """Run the chosen points with the report's seeds.

    Raises:
        CommandFailed: the search has not ended, or a side has nothing to choose from, or cells have no result.
    """
    spec = study.spec
    if left := len(study.pending()) + study.left():
        raise CommandFailed(f"{spec.name} has trials left: {left}; run dsf-bench search without --report first")
    points = []
    for side in SIDES:
        done = study.done(spec.sides[side])
        if not done:
            raise CommandFailed(f"no trial of side {side} has figures: see dsf-bench search --dry-run for the reasons")
        points += chosen(done, spec.report.most, lambda trial: trial.family)
    console.print(f"{spec.name}: {len(points)} points stand for both fronts")
    cells = plan(
        [
            resolve_cell(spec.cell(trial.family, trial.params, seed, spec.report.evaluation))
            for seed in spec.report.seeds
            for trial in points
        ]
    )
    states = states_of(cells, config.out, config.store)
    rerun = ("not run", "interrupted", "failed") if config.retry_failed else ("not run", "interrupted")
    if unfinished := [cell for cell in cells if states[cell] in rerun and not cell.missing]:
        run_cells(unfinished, config, config.store, console, until)
    over = until is not None and time.monotonic() >= until
    conclude(cells, config, frozenset(), console, over)
    for cell in cells:
        console.print(f"{cell.resolved.cell.label}: {config.out / cell.training_key}")
    console.print(f"dsf-bench front {config.spec} --results {config.store} draws them")

"""``dsf-bench sweep``: run the cells of a sweep that are not done, wherever there is room."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dsf.runtime.sweeps.file import read_sweep, sweep_path
from dsf.runtime.sweeps.jobs import (
    LOG_NAME,
    TRAINING_NAME,
    Planned,
    failure_path,
    jobs_of,
    plan,
    read_record,
    resolve_read,
    result_path,
    write_failure,
)
from dsf.runtime.sweeps.local import Outcome, run_locally, visible_gpus
from dsf.runtime.sweeps.store import append_once, read_lines
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.installed import require_installed

DEFAULT_OUT = Path("runs/sweeps")
RESULTS_NAME = "results.jsonl"
SECONDS_PER_MINUTE = 60.0
State = Literal["done", "known", "failed", "interrupted", "not run", "no dataset"]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where cells run, and where they leave what they find: what sweeps and searches share."""

    launcher: Literal["local", "ray", "submitit"] = "local"
    """Where cells run: processes of this machine, tasks of a Ray cluster, or jobs of Slurm."""
    workers: int | None = None
    """Cells at a time. Default: one on this machine, as many as there is room for on a cluster."""
    cores_per_cell: int = 1
    """CPU cores and torch threads of each cell."""
    gpus_per_cell: float = 0.0
    """GPUs of each cell; 0.25 lets four small trainings share one."""
    out: Path = DEFAULT_OUT
    """Directory of all trainings; shared by sweeps, because equal cells are."""
    results: Path | None = None
    """Results store (JSON lines). Default: results.jsonl in --out."""
    minutes: float | None = None
    """Stop after this time, as Ctrl-C would: what is finished is kept, the next call goes on. Default: no limit."""
    retry_failed: bool = False
    """Run cells again that have failed."""
    ray_address: str | None = None
    """Cluster of --launcher ray: HOST:PORT, ray://HOST:PORT or auto; default: RAY_ADDRESS, else one for this sweep."""
    submitit_cluster: str | None = None
    """Executor of --launcher submitit, such as local; default: slurm."""
    slurm_partition: str | None = None
    """Slurm partition of --launcher submitit."""
    slurm_minutes: int = 240
    """Time limit of a cell with --launcher submitit. A cell that runs out of it has failed, and goes on where it was
    with --retry-failed."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: naming the option.
        """
        for flag, value in (("--workers", self.workers), ("--cores-per-cell", self.cores_per_cell)):
            if value is not None and value < 1:
                raise UserError(f"{flag} is {value}: it must be at least 1")
        if self.gpus_per_cell < 0.0 or (self.gpus_per_cell > 1.0 and not self.gpus_per_cell.is_integer()):
            raise UserError(f"--gpus-per-cell is {self.gpus_per_cell}: it must be a share up to 1, or whole GPUs")
        if self.ray_address is not None and self.launcher != "ray":
            raise UserError("--ray-address requires --launcher ray: add that, or drop it")
        if self.minutes is not None and not (math.isfinite(self.minutes) and self.minutes > 0.0):
            raise UserError(f"--minutes is {self.minutes}: it must be a positive number")
        if self.minutes is not None and self.launcher != "local":
            raise UserError("--minutes requires --launcher local: drop it, and stop the sweep with Ctrl-C")
        if self.launcher == "submitit" and self.workers is not None:
            raise UserError(
                "--launcher submitit does not use --workers (Slurm decides how many cells run at a time): drop it"
            )

    @property
    def store(self) -> Path:
        """Results store."""
        return self.results or self.out / RESULTS_NAME

    @property
    def until(self) -> float | None:
        """When to stop (of :func:`time.monotonic`), from now on."""
        return None if self.minutes is None else time.monotonic() + SECONDS_PER_MINUTE * self.minutes


@dataclass(frozen=True)
class SweepConfig(Launch):
    """Train and score every cell of a sweep that has no result yet. Ctrl-C loses nothing: call it again."""

    spec: Annotated[str, tyro.conf.Positional]
    """YAML file, or the name of a shipped sweep (docs/sweeps.md lists them)."""
    known: Path | None = None
    """Further results, such as published ones: cells that have a line there are not run, whatever version of the code,
    of torch and of the dataset has made it (a table finds lines in the same way)."""
    dry_run: bool = False
    """List the cells and what is known of them, and check them against dsf-train's options; run nothing."""


def sweep(config: SweepConfig) -> None:
    """``dsf-bench sweep``."""
    until = config.until
    require_possible(config)
    console = Console(soft_wrap=True, markup=False)  # reasons and labels hold brackets
    path = sweep_path(config.spec)
    spec = read_sweep(path)
    cells, store = plan(resolve_read(spec, path)), config.store
    places = known_places(config.known)
    states = states_of(cells, config.out, store, places, config.dry_run)
    count = Counter(states.values())
    console.print(f"{spec.name}: {len(states)} cells, " + ", ".join(f"{n} {state}" for state, n in count.items()))
    if config.dry_run:
        for cell in cells:
            console.print(f"{states[cell]:12} {cell.resolved.cell.label}{why(cell, states[cell], config.out)}")
        return
    unfinished = [cell for cell in cells if not cell.missing and states[cell] in ("not run", "interrupted")]
    unfinished += [cell for cell in cells if config.retry_failed and states[cell] == "failed"]
    if unfinished:
        run_cells(unfinished, config, store, console, until)
    over = until is not None and time.monotonic() >= until
    conclude(cells, config, places, console, over, config.known)


def require_possible(config: Launch) -> None:
    """Refuse what this machine cannot do, before anything starts.

    Raises:
        UserError: naming the option, or the package that is missing.
    """
    require_installed("train", "minari", "safetensors")
    if config.launcher == "local" and config.gpus_per_cell > len(visible_gpus()):
        here = len(visible_gpus())
        raise UserError(f"--gpus-per-cell is {config.gpus_per_cell}: this machine shows {here} GPUs; use 0 for the CPU")
    if config.launcher != "local":
        require_installed("cluster", config.launcher)


def known_places(path: Path | None) -> frozenset[str]:
    """Places of the lines of --known.

    Raises:
        UserError: it is not there, or a line is none of ours.
    """
    if path is None:
        return frozenset()
    if not path.exists():
        raise UserError(f"--known is {path}, and there is no such file: name a results store, or drop it")
    return frozenset(str(line["place"]) for line in read_lines(path))


def states_of(
    cells: list[Planned], out: Path, store: Path, places: frozenset[str] = frozenset(), look_only: bool = False
) -> dict[Planned, State]:
    """What is known of every cell; unless one only looks, results that are not in the store yet are put there.

    Args:
        cells: of the sweep.
        out: directory of all trainings.
        store: of results.
        places: that need not run, because other results have them.
        look_only: leave the store alone.
    """
    known = {line["key"] for line in read_lines(store)}
    states: dict[Planned, State] = {}
    for cell in cells:
        if cell.missing:
            states[cell] = "known" if cell.resolved.place in places else "no dataset"
            continue
        directory = out / cell.training_key
        if cell.key not in known and (line := read_record(result_path(directory, cell.key))):
            if not look_only:
                append_once(store, line)
            known.add(cell.key)
        if cell.key in known:
            states[cell] = "done"
        elif cell.resolved.place in places:
            states[cell] = "known"
        elif failure_path(directory, cell.key).exists():
            states[cell] = "failed"
        else:
            states[cell] = "interrupted" if (directory / TRAINING_NAME).exists() else "not run"
    return states


def why(cell: Planned, state: State, out: Path) -> str:
    """Behind a cell's label: why it has no result."""
    if state == "no dataset":
        return f": {cell.missing}"
    failure = read_record(failure_path(out / cell.training_key, cell.key)) if state == "failed" else None
    return "" if failure is None else f": {failure['reason']} (tried {failure['attempts']}x)"


def run_cells(cells: list[Planned], config: Launch, store: Path, console: Console, until: float | None = None) -> None:
    """Run cells and store each result as it comes, until :func:`time.monotonic` says so or all have ended."""
    jobs = jobs_of(cells, config.out, config.cores_per_cell)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("trainings", total=len(jobs))
        with contextlib.closing(launch(jobs, config, until)) as outcomes:
            for outcome in outcomes:
                for line in settle(outcome, store):
                    console.print(line)
                progress.advance(bar)


def launch(jobs: list[Any], config: Launch, until: float | None = None) -> Generator[Outcome, None, None]:
    """The launcher's outcomes."""
    if config.launcher == "local":
        yield from run_locally(jobs, config.workers or 1, config.cores_per_cell, config.gpus_per_cell, until)
        return
    from dsf.runtime.sweeps.cluster import run_jobs_on_ray, run_jobs_with_submitit

    if config.launcher == "ray":
        yield from run_jobs_on_ray(
            jobs, config.cores_per_cell, config.gpus_per_cell, config.workers, config.ray_address
        )
        return
    slurm: dict[str, Any] = {"timeout_min": config.slurm_minutes}
    if config.slurm_partition is not None:
        slurm["slurm_partition"] = config.slurm_partition
    folder = config.out / "submitit"
    asked = (config.cores_per_cell, config.gpus_per_cell)
    yield from run_jobs_with_submitit(jobs, *asked, folder, config.submitit_cluster, slurm)


def settle(outcome: Outcome, store: Path) -> Iterator[str]:
    """Store what a job has finished; returns a line about each of its cells."""
    job = outcome.job
    for cell in job.cells:
        label = cell.resolved.cell.label
        if line := read_record(result_path(job.directory, cell.key)):
            append_once(store, line)
            yield f"done: {label}: {line['score']:.1f}"
            continue
        died = outcome.code is None or outcome.code < 0  # whatever an earlier try has left does not say why
        if died or not failure_path(job.directory, cell.key).exists():
            ended = f"its process ended with {outcome.code}; {job.directory / LOG_NAME} has its last words"
            write_failure(job.directory, cell.facts(), outcome.reason or ended)
        failure = read_record(failure_path(job.directory, cell.key))
        assert failure is not None
        yield f"failed: {label}: {failure['reason']}"


def conclude(
    cells: list[Planned],
    config: Launch,
    places: frozenset[str],
    console: Console,
    over: bool,
    known: Path | None = None,
) -> None:
    """Say what there is now, and whether the time was over.

    Raises:
        CommandFailed: cells are without a result.
    """
    states = states_of(cells, config.out, config.store, places)
    count = Counter(states.values())
    without = [cell for cell, state in states.items() if state not in ("done", "known")]
    console.print(f"{count['done']} of {len(states)} cells done: {config.store}")
    if count["known"]:
        console.print(f"{count['known']} more have lines already: {known}")
    if not without:
        return
    if over:
        console.print(f"stopped after --minutes {config.minutes:g}; the next call goes on")
    for cell in without:
        console.print(f"{states[cell]}: {cell.resolved.cell.label}{why(cell, states[cell], config.out)}")
    remedy = "; --retry-failed runs the failed ones again" if "failed" in states.values() else ""
    raise CommandFailed(f"{len(without)} of {len(states)} cells have no result, listed above{remedy}")

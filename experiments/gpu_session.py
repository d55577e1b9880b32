"""A few minutes of one GPU, used to the full: CUDA tests, seconds per training step, and cells of the shipped sweeps.

    python experiments/gpu_session.py --out DIR [--minutes 9] [--known docs/results.jsonl] [--sweeps NAME ...]
    python experiments/gpu_session.py --dry-run --out DIR    # seconds, on the processor: tiny sizes, the same road

Its stages, one behind the other; the whole ends ``--minutes`` after its start, whatever is left over:

1. The tests with the marker ``cuda``. Datasets that the sweeps need and the store lacks are made meanwhile.
2. ``benchmarks/train_step.py`` on the GPU.
3. ``dsf-bench sweep`` for each sweep, as many cells at a time as cores, GPU memory and main memory have room for: they
   share the GPU, their episodes step MuJoCo on a core each. Cells that have a line in ``--known`` are not run. A line
   is appended to ``results.jsonl`` as its training ends; at the deadline what is unfinished is given up.

``--out`` gets six files: ``results.jsonl`` (lines of the sweeps' own, to be added to a results store), ``session.json``
(what ran, how long, what is left over, cell by cell; written anew after every stage), ``log.txt`` (all that was
printed), ``tests.xml``, ``train_step.json``, ``failed_cells.txt`` (last words of the workers of cells that failed).
Trainings themselves stay in ``--work``. Exit code 0: every stage ran, and what is left over is for want of time alone;
1: tests, the benchmark, a dataset or a cell failed; 2: no GPU, or an option that cannot work.

A bare machine without a network needs three things, which have to travel with the checkout. (a) Packages beside torch,
numpy, h5py, PyYAML, rich, safetensors, tensorboard, pytest and what else its Python has, as wheels for that Python:
gymnasium, mujoco, minari, snntorch, tyro at the versions of requirements.lock, and glfw, PyOpenGL, websockets, etils,
farama-notifications, typeguard, docstring-parser, imageio, typer, pytest-timeout where they are missing. (b) This
checkout, installed: ``python3 -m pip install --no-index --no-deps --no-build-isolation -e .``. (c) Datasets in a
folder for ``--datasets``. A dataset that is made there has the same recipe, but last bits of another processor: its
content hash differs, and a table says that versions are mixed. nvcc's C compiler builds the integers' kernels.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from dsf.runtime.sweeps.file import read_sweep, shipped_sweeps, sweep_path
from dsf.runtime.sweeps.identity import CQL, Resolved
from dsf.runtime.sweeps.jobs import LOG_NAME, failures_in, resolve_all
from dsf.runtime.sweeps.spec import SweepSpec
from dsf.runtime.sweeps.store import read_lines
from dsf.shell.child_processes import die_with_parent
from dsf.shell.errors import EXIT_FAILED, EXIT_USAGE, UserError
from dsf.shell.file_values import read_json, read_yaml
from dsf.shell.files import write_json
from dsf.testing.measurement import ROOT, when_and_what
from dsf.testing.training_runs import TINY_CELL
from dsf.train.data.recipes import RECIPES
from dsf.train.data.registry import resolve

FIRST_SWEEP = "table1_mujoco"
MARGIN_S = 15.0
"""Between the sweeps' deadline and the session's: workers take up to 2.5 s to end, the rest is for writing."""
WRITING_S = 4.0
"""Of the margin, for the list of what is left over."""
LEAST_S = 20.0
"""With less left no sweep is started: reading its cells and datasets takes as long."""
TESTS_SHARE, BENCHMARK_SHARE, DATASETS_SHARE = 0.35, 0.15, 0.2
"""Of the session, at most; datasets may go on so long once the tests have ended."""
GPU_BYTES_PER_CELL, HOST_BYTES_PER_CELL = 2 << 30, 4 << 30
"""Room for one training: torch's CUDA context takes most of the first, its libraries and a dataset of the second. Not
measured: no GPU was at hand."""
DATASET_STEPS, DRY_STEPS = 100_000, 400
TINY = {**TINY_CELL, "steps": 4}
"""Settings of a dry run's cells."""
WORDS = 40
"""Last lines of a failed cell's log that come back."""


@dataclass
class Session:
    """What one call does, and what it has found.

    Attributes:
        out: gets the files.
        work: trainings, and datasets where none came along.
        store: of the datasets.
        end: when everything has to be over, by :func:`time.monotonic`.
        seconds: of the whole.
        device: cuda, or cpu in a dry run.
        found: what session.json says.
        failed: one line per thing that went wrong.
    """

    out: Path
    work: Path
    store: Path
    end: float
    seconds: float
    device: str
    found: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the sweeps' deadline."""
        return self.end - MARGIN_S - time.monotonic()

    def note(self, **found: Any) -> None:
        """Put down what a stage has found, at once: whoever ends the machine leaves a whole file."""
        self.found |= found
        write_json(self.out / "session.json", {**self.found, "failed": self.failed})

    def say(self, text: str) -> None:
        """Print and log."""
        print(text, flush=True)
        with self.log() as log:
            log.write(f"{text}\n".encode())

    def log(self) -> IO[bytes]:
        """The log, to be appended to."""
        return (self.out / "log.txt").open("ab")

    def start(self, command: Sequence[str | Path], **variables: str) -> subprocess.Popen[bytes]:
        """Start a program whose words go to the log, in a process group of its own."""
        environment = {**os.environ, "MINARI_DATASETS_PATH": str(self.store), "OMP_WAIT_POLICY": "passive", **variables}
        with self.log() as log:
            log.write(f"$ {' '.join(map(str, command))}\n".encode())
            log.flush()
            return subprocess.Popen(
                [str(word) for word in command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )

    def wait(self, what: str, process: subprocess.Popen[bytes], limit_s: float, good: Sequence[int] = (0,)) -> bool:
        """Wait for a program; one that takes too long is ended. Returns whether all was well."""
        try:
            code = process.wait(max(0.0, limit_s))
        except subprocess.TimeoutExpired:
            self.failed.append(f"{what}: ended after {limit_s:.0f} s")
            return False
        finally:  # also where this program is interrupted
            end(process)
        if code not in good:
            self.failed.append(f"{what}: exit code {code}, see log.txt")
        return code in good


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program and its group; a sweep's workers die with it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def script(name: str) -> Path:
    """One of dsf's commands, as it was installed beside this Python."""
    return Path(sys.executable).parent / name


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the six files")
    parser.add_argument("--minutes", type=float, default=9.0, help="from this program's start to its end")
    parser.add_argument("--sweeps", nargs="+", help="shipped sweeps or YAML files; default: all, Table 1 first")
    parser.add_argument("--known", type=Path, help="results whose cells are not run")
    parser.add_argument("--datasets", type=Path, help="Minari's store, added to; default: a new one in --work")
    parser.add_argument("--work", type=Path, help="directory of trainings; default: a temporary one")
    parser.add_argument("--workers", type=int, help="cells at a time; default: as many as there is room for")
    parser.add_argument("--without", nargs="*", default=[], choices=["tests", "benchmark"], help="stages to leave out")
    parser.add_argument("--dry-run", action="store_true", help="on the processor, tiny, two cells of the first sweep")
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.minutes) and options.minutes > 0.0):
        raise UserError(f"--minutes is {options.minutes}: it must be a positive number")
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers is {options.workers}: it must be at least 1")
    if options.known is not None and not options.known.exists():
        raise UserError(f"--known is {options.known}, and there is no such file: name a results store, or drop it")
    if options.datasets is not None and not options.datasets.is_dir():
        raise UserError(f"--datasets is {options.datasets}, which is no directory: name Minari's store, or drop it")
    if not options.dry_run and not torch.cuda.is_available():
        raise UserError("torch finds no GPU here: use a machine that has one, or --dry-run")
    if options.sweeps is None:
        options.sweeps = [FIRST_SWEEP, *(name for name in shipped_sweeps() if name != FIRST_SWEEP)]
    if options.known is not None:
        read_lines(options.known)  # refused now, not behind the tests
    options.paths = [sweep_path(name) for name in (options.sweeps[:1] if options.dry_run else options.sweeps)]
    return options


def shrunk(path: Path, folder: Path) -> Path:
    """A sweep's file with its first dataset and two of its models at tiny sizes, for a dry run."""
    values = read_yaml(path, "sweep")
    datasets, models = list(values["datasets"]), values["models"]
    kept = [name for name, own in models.items() if (own or {}).get("settings", {}).get("policy") != CQL]
    for name in {kept[0], kept[-1]}:
        models[name]["settings"] = {**models[name].get("settings", {}), **TINY}
        models[name]["settings"].pop("preset", None)  # it would contradict the sizes
    small = {
        "name": values["name"],
        "datasets": datasets[:1],
        "models": {name: models[name] for name in dict.fromkeys((kept[0], kept[-1]))},
        "seeds": [0],
        "settings": {**values.get("settings", {}), **TINY},
        "evaluation": {"episodes": 1},
    }
    written = folder / path.name
    written.write_text(yaml.safe_dump(small, sort_keys=False))
    return written


def room(on_gpu: bool, asked: int | None) -> dict[str, int]:
    """How many cells run at a time, and what bounds it."""
    found = {
        "cores": len(os.sched_getaffinity(0)),
        "main memory": os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // HOST_BYTES_PER_CELL,
    }
    if on_gpu:
        found["GPU memory"] = torch.cuda.mem_get_info()[0] // GPU_BYTES_PER_CELL
    return {**found, "workers": asked or max(1, min(found.values()))}


def begin_datasets(session: Session, specs: list[SweepSpec], dry: bool) -> dict[str, subprocess.Popen[bytes]]:
    """Start to make the datasets that the sweeps need and the store lacks; those that nothing here makes are noted."""
    recipes = {recipe.dataset_id: (name, recipe) for name, recipe in RECIPES.items()}
    wanted = dict.fromkeys(resolve(name) for spec in specs for name in spec.datasets)
    missing = [name for name in wanted if not (session.store / name).exists()]
    making = {}
    for name in missing:
        if name in recipes:
            recipe_name, recipe = recipes[name]
            asked = ["--steps", str(DRY_STEPS if dry else DATASET_STEPS), "--workers", str(len(recipe.actors))]
            making[name] = session.start([script("dsf-data"), "collect", recipe_name, *asked], OMP_NUM_THREADS="1")
    nowhere = [name for name in missing if name not in recipes]
    session.note(datasets={"at hand": len(wanted) - len(missing), "made": list(making), "not at hand": nowhere})
    return making


def begin_tests(session: Session) -> subprocess.Popen[bytes]:
    """Start the CUDA tests."""
    report = session.out / "tests.xml"
    report.unlink(missing_ok=True)
    # Its image's packages may warn of what ours do not: warnings are no failures there.
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-m", "cuda", "tests/train/test_cuda.py"]
    return session.start([*command, f"--junitxml={report}"], OMP_NUM_THREADS="1")


def finish_tests(session: Session, process: subprocess.Popen[bytes], begun: float) -> None:
    """Wait for the CUDA tests; where there is a GPU, a test that is skipped counts as one that has not run."""
    limit = begun + TESTS_SHARE * session.seconds - time.monotonic()
    session.wait("CUDA tests", process, min(session.left, limit))
    count, report = Counter[str](), session.out / "tests.xml"
    if report.exists():
        for suite in xml.etree.ElementTree.parse(report).iter("testsuite"):
            count.update({name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")})
    ran, wrong = count["tests"] - count["skipped"], count["failures"] + count["errors"]
    if session.device == "cuda" and (not ran or count["skipped"]):
        session.failed.append(f"CUDA tests: {ran} ran, {count['skipped']} were skipped")
    session.note(tests={"ran": ran, **count})
    session.say(f"CUDA tests: {ran} ran, {wrong} failed, {count['skipped']} skipped")


def benchmark(session: Session, dry: bool) -> None:
    """Seconds per training step."""
    report = session.out / "train_step.json"
    command: list[str | Path] = [sys.executable, ROOT / "benchmarks" / "train_step.py", "--json", report]
    command += ["--device", session.device, *(["--quick", "--widths", "8"] if dry else [])]
    done = session.start(command, CUDA_VISIBLE_DEVICES=first_gpu(session))
    if session.wait("train_step.py", done, min(session.left, BENCHMARK_SHARE * session.seconds)):
        found = read_json(report, "benchmark")
        session.note(train_step=found)
        for width, row in found.items():
            told = ", ".join(f"{name.removesuffix('_s')} {1e3 * row[name]:.1f} ms" for name in row if name[-2:] == "_s")
            session.say(f"a training step at width {width}: {told} ({row['precision']})")


def first_gpu(session: Session) -> str:
    """The one GPU that everything here shares, for CUDA_VISIBLE_DEVICES; none in a dry run."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if session.device == "cuda" else ""


def sweep(session: Session, path: Path, workers: int, known: Path | None) -> None:
    """Run what there is time for of one sweep."""
    if session.left < LEAST_S:
        return
    told: list[str | Path] = ["--workers", str(workers), "--minutes", f"{session.left / 60:.3f}"]
    told += ["--gpus-per-cell", f"{1 / workers:.6f}"] if session.device == "cuda" else []
    told += ["--known", known.resolve()] if known is not None else []
    told += ["--out", session.work / "cells", "--results", session.out / "results.jsonl"]
    session.say(f"{path.stem}: {workers} cells at a time, {session.left:.0f} s left")
    done = session.start([script("dsf-bench"), "sweep", path, *told], CUDA_VISIBLE_DEVICES=first_gpu(session))
    # Exit code 1 says that cells have no result, which is what a deadline does; which ones and why, see conclude().
    session.wait(f"sweep {path.stem}", done, session.left + MARGIN_S - WRITING_S, good=(0, 1))


def conclude(session: Session, sweeps: dict[str, list[Resolved]], before: set[str], known: Path | None) -> None:
    """List what is done, what is left over, and what failed, with its worker's last words."""
    lines = read_lines(session.out / "results.jsonl")
    places = {line["place"] for line in lines}
    elsewhere = set() if known is None else {line["place"] for line in read_lines(known)}
    reasons = {name: failures_in(session.work / "cells", cells) for name, cells in sweeps.items()}
    told: dict[str, Any] = {}
    for name, cells in sweeps.items():
        over = [cell for cell in cells if cell.place not in places | elsewhere]
        left = [cell.cell.label for cell in over if cell.place not in reasons[name]]
        broken = {cell.cell.label: reasons[name][cell.place] for cell in over if cell.place in reasons[name]}
        new = sum(cell.place in places - before for cell in cells)
        told[name] = {"cells": len(cells), "new lines": new, "failed": broken, "left over": left}
        session.failed += [f"{name}: {label}: {reason}" for label, reason in broken.items()]
        session.say(f"{name}: {len(cells)} cells, {new} new lines, {len(broken)} failed, {len(left)} left over")
        for label in left:
            session.say(f"  left over: {label}")
    with (session.out / "failed_cells.txt").open("w") as file:
        for failure in sorted((session.work / "cells").glob("*/*.failed.json")):
            log = failure.parent / LOG_NAME
            last = log.read_text(errors="replace").splitlines()[-WORDS:] if log.exists() else []
            file.write("\n".join([f"== {failure}", failure.read_text(), *last, ""]))
    session.note(sweeps=told)


def run(session: Session, options: argparse.Namespace) -> None:
    """All stages."""
    dry = options.dry_run
    workers = room(not dry, options.workers)
    hardware = torch.cuda.get_device_name() if session.device == "cuda" else "the processor"
    about = {"device": hardware, "torch": torch.__version__, "python": sys.version.split()[0], "room for": workers}
    session.note(measured=when_and_what(), minutes=options.minutes, **about)
    paths = [shrunk(path, session.work) for path in options.paths] if dry else options.paths
    specs = {path.stem: read_sweep(path) for path in paths}
    making = begin_datasets(session, list(specs.values()), dry)
    try:
        begun = time.monotonic()
        tests = None if "tests" in options.without else begin_tests(session)
        cells = {name: resolve_all(spec) for name, spec in specs.items()}  # half a minute for all shipped sweeps
        if tests is not None:
            finish_tests(session, tests, begun)
        until = time.monotonic() + min(session.left, DATASETS_SHARE * session.seconds)
        for name, process in making.items():
            if session.wait(f"dataset {name}", process, until - time.monotonic()):
                session.say(f"made {name}")
    finally:
        for process in making.values():
            end(process)
    if "benchmark" not in options.without:
        benchmark(session, dry)
    results = session.out / "results.jsonl"
    results.touch()
    before = {line["place"] for line in read_lines(results)}
    for path in paths:
        sweep(session, path, workers["workers"], options.known)
    conclude(session, cells, before, options.known)


def main() -> int:
    """Run the session; returns the exit code."""
    begun = time.monotonic()
    try:
        options = parse()
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="dsf-gpu-") as scratch:
            work = (options.work or Path(scratch)).resolve()
            store = (options.datasets or work / "minari").resolve()
            store.mkdir(parents=True, exist_ok=True)
            seconds = 60.0 * options.minutes
            device = "cpu" if options.dry_run else "cuda"
            session = Session(options.out.resolve(), work, store, begun + seconds, seconds, device)
            run(session, options)
            session.note(seconds=round(time.monotonic() - begun, 1))
    except (UserError, OSError) as error:
        print(f"gpu_session.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    for line in session.failed:
        print(f"failed: {line}", file=sys.stderr)
    return EXIT_FAILED if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())

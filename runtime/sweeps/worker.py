"""One job of a sweep in a process of its own: ``python -m dsf.runtime.sweeps.worker JOB.json [--wait]``.

Trains (or continues) with the very code of ``dsf-train``, exports and drives the integers with that of ``dsf-export``
and ``dsf-sim-run``, and writes one file per cell. The job's lock is held all along, so however many sweeps run, nobody
works on a cell twice; the kernel lets go of it when this process dies, however that happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console

from dsf.runtime.sweeps.identity import CQL
from dsf.runtime.sweeps.jobs import (
    DATASETS_VARIABLE,
    LOCK_NAME,
    TRAINING_NAME,
    JobOrder,
    OrderedCell,
    StartOrder,
    failure_path,
    result_path,
    write_failure,
)
from dsf.runtime.sweeps.spec import Evaluation
from dsf.shell.child_processes import die_with_parent, keep_niceness
from dsf.shell.command import parse_arguments
from dsf.shell.errors import EXIT_FAILED, EXIT_SIGNAL, EXIT_USAGE, CommandFailed, UserError
from dsf.shell.files import write_json
from dsf.shell.interrupts import handle_ending_signals, unwind, unwinding_signal

if TYPE_CHECKING:
    from dsf.runtime.sweeps.scores import DrivenNetwork

EXIT_BUSY = 75
"""Somebody else works on the job (sysexits.h: try again later)."""
WAIT = "--wait"
"""Wait for the job's lock instead."""
PARENT_VARIABLE = "DSF_SWEEP_PARENT"
"""The process that has started a worker, which ends with it; a cluster's launcher ends it by itself."""
OWNER_NAME = "owner.json"
"""Who works on the job."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def work(order: JobOrder, directory: Path, wait: bool) -> int:
    """Do what is left of a job; returns the exit code."""
    with (directory / LOCK_NAME).open("a") as lock:
        try:
            _take(lock, directory, wait)
        except BlockingIOError:
            return EXIT_BUSY
        left = [cell for cell in order.cells if not result_path(directory, cell.key).exists()]
        if not left:
            return 0
        try:
            header = trained(order, directory)
        except Exception as error:
            require_unsignalled()
            for cell in left:
                write_failure(directory, cell.facts, reason_of(error))
            return EXIT_FAILED
        drives: dict[Path, DrivenNetwork] = {}
        done = [finish(cell, header, order.evaluation, directory, drives) for cell in left]
    return 0 if all(done) else EXIT_FAILED


def _take(lock: IO[str], directory: Path, wait: bool) -> None:
    """Hold a job, and say who does.

    Raises:
        BlockingIOError: somebody else does, and one does not wait.
    """
    fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    write_json(directory / OWNER_NAME, {"pid": os.getpid(), "parent": os.getppid(), "host": os.uname().nodename})


def reason_of(error: BaseException) -> str:
    """One line; what is no mistake of the user's goes to the log in full."""
    if not isinstance(error, (UserError, CommandFailed)):
        traceback.print_exception(type(error), error, error.__traceback__)
        return f"internal error, {type(error).__name__}: {' '.join(str(error).split())}"
    return str(error)


def finish(
    cell: OrderedCell,
    header: dict[str, Any],
    evaluation: Evaluation,
    directory: Path,
    drives: dict[Path, DrivenNetwork],
) -> bool:
    """Score one cell of a finished training, and write its line or why there is none."""
    from dsf.runtime.sweeps.scores import line_of

    try:
        write_json(result_path(directory, cell.key), line_of(cell, header, evaluation, directory, drives))
    except Exception as error:
        require_unsignalled()
        write_failure(directory, cell.facts, reason_of(error))
        return False
    failure_path(directory, cell.key).unlink(missing_ok=True)
    return True


def trained(order: JobOrder, directory: Path) -> dict[str, Any]:
    """Train to the end, from a checkpoint where an earlier try has left one; returns the checkpoint's header and, under
    ``seconds``, how long this try took. What dsf-train prints goes to the job's log.
    """
    if order.arguments[0] == CQL:
        return trained_by_cql(order, directory / TRAINING_NAME)
    from dsf.train.checkpoint import CHECKPOINT_NAME
    from dsf.train.config.training import CONFIG_NAME, TrainConfig
    from dsf.train.terminal import TerminalTraining
    from dsf.train.training import train

    out, threads = directory / TRAINING_NAME, order.threads
    checkpoint, begun = out / CHECKPOINT_NAME, time.monotonic()
    header, resume = None, []
    if checkpoint.exists():
        header, resume = read_header(checkpoint), ["--resume"]
        threads = int(json.loads((out / CONFIG_NAME).read_text())["threads"])  # sums depend on it in their last bits
    if header is None or not is_scored(header, order.evaluation):
        start = [] if order.start is None else ["--init", str(started(order.start, order, directory.parent))]
        words = [*order.arguments, *start, "--out", str(out), "--threads", str(threads), *resume]
        config: TrainConfig = parse_arguments(TrainConfig, "dsf-train", "", words)
        header = train(config, TerminalTraining(Console(soft_wrap=True))).header
    return {**header, "seconds": round(time.monotonic() - begun, 1)}


def started(start: StartOrder, order: JobOrder, out: Path) -> Path:
    """Run directory of a training that another one starts from. It is trained, or trained to its end, unless it has
    ended; where somebody else works on it, this waits.

    Args:
        start: it.
        order: the other's.
        out: directory of all jobs.

    Raises:
        CommandFailed: it cannot be trained; the message names its model.
    """
    directory = out / start.key
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_NAME).open("a") as lock:
        _take(lock, directory, wait=True)
        try:
            trained(replace(order, arguments=start.arguments, start=start.start), directory)
        except (UserError, CommandFailed) as error:
            raise CommandFailed(f"start {start.model}: {error}") from None
    return directory / TRAINING_NAME


def trained_by_cql(order: JobOrder, out: Path) -> dict[str, Any]:
    """The same with ``dsf-train cql``, which cannot go on from an earlier try: what that has left is dropped."""
    from dsf.train.conservative_q_learning import CQLConfig, header_of, train_cql

    begun = time.monotonic()
    if (header := header_of(out)) is None:
        if out.exists():
            shutil.rmtree(out)
        words = [*order.arguments[1:], "--out", str(out), "--threads", str(order.threads)]
        config: CQLConfig = parse_arguments(CQLConfig, "dsf-train cql", "", words)
        header = train_cql(config, lambda step: print(f"step {step} of {config.steps}", flush=True)).header
    return {**header, "seconds": round(time.monotonic() - begun, 1)}


def read_header(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's header.

    Raises:
        UserError: it is damaged, or another version wrote it.
    """
    from dsf.train.checkpoint import load_checkpoint

    return load_checkpoint(checkpoint).header


def is_scored(header: dict[str, Any], evaluation: Evaluation) -> bool:
    """Whether a training has ended, evaluation and all."""
    config = header["train"]
    steps = config.get("qat_steps") or config["steps"]
    asked = [*evaluation.seeds]
    return bool(header["step"] == steps and any(score["seeds"] == asked for score in header["scores"]))


def require_unsignalled() -> None:
    """An error that a signal has caused, which struck in code written in C, says nothing about a cell.

    Raises:
        SystemExit: the sweep is being stopped.
    """
    if (number := unwinding_signal()) is not None:
        sys.exit(EXIT_SIGNAL + number)


@contextlib.contextmanager
def _quiet_on_interrupt() -> Iterator[None]:
    """End quietly where the sweep is stopped, and take temporary files along."""
    handle_ending_signals(unwind)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(EXIT_SIGNAL + signal.SIGINT)


def environment_of(threads: int) -> dict[str, str]:
    """What a worker's process starts with: libraries read the number of threads when they are loaded."""
    return {**os.environ, **{name: str(threads) for name in THREAD_VARIABLES}}


def main(arguments: Sequence[str]) -> int:
    """A worker's life."""
    parent = os.environ.get(PARENT_VARIABLE, "")
    die_with_parent(int(parent) if parent.isdigit() else None)
    keep_niceness()
    job = Path(arguments[0])
    try:
        order = JobOrder.read(job)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_USAGE
    if order.datasets is not None:
        os.environ.setdefault(DATASETS_VARIABLE, order.datasets)
    with _quiet_on_interrupt():
        return work(order, job.parent, WAIT in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

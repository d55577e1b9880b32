"""From cells to work: which are done, and which trainings the others need. One job is one training and its cells.

A job has a directory named after its training's content hash: ``training/`` is dsf-train's run directory, ``log.txt``
what was printed, ``lock`` is held by whoever works on it, ``KEY.json`` is a finished cell and ``KEY.failed.json`` a
failed one.
Everything that a killed sweep needs to go on is in there; the results store is made from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dsf.hardware_models.weight_memory import WeightMemory
from dsf.runtime.sweeps.identity import Resolved, resolve_cell
from dsf.runtime.sweeps.spec import Cell, Evaluation, SweepSpec
from dsf.runtime.sweeps.store import Line, require_result
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.file_values import read_json
from dsf.shell.files import write_json
from dsf.shell.plain_text import shown
from dsf.shell.typed_values import read_record as read_record_of

JOB_NAME, LOCK_NAME, LOG_NAME, TRAINING_NAME = "job-{}.json", "lock", "log.txt", "training"
WRITING_LOCK_NAME = "job.lock"
FAILED = ".failed.json"
"""How a failure's file ends."""
LARGEST_RECORD = 1 << 24
"""Bytes of one file in a job's directory."""
DIGEST_LENGTH = 12
DATASETS_VARIABLE = "MINARI_DATASETS_PATH"
ORDER_VERSION = 2
"""Version of the protocol between a sweep and its workers."""


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result.

    Attributes:
        reason: in one line.
        attempts: so far.
        place: of the cell.
        code: version that failed.
    """

    reason: str
    attempts: int
    place: str
    code: str | None = None


@dataclass(frozen=True)
class Planned:
    """A cell, its content hash, and what is known of it.

    Attributes:
        resolved: the cell as dsf-train reads it.
        content_hash: of the dataset; empty where it is not at hand.
        missing: why the dataset is not at hand; empty where it is.
    """

    resolved: Resolved
    content_hash: str
    missing: str

    @cached_property
    def key(self) -> str:
        """Content hash of the result."""
        return self.resolved.key(self.content_hash)

    @cached_property
    def training_key(self) -> str:
        """Content hash of the training."""
        return self.resolved.training_key(self.content_hash)

    def facts(self) -> Line:
        """What a line of results says about the cell before it has run."""
        cell = self.resolved.cell
        start = {} if cell.start is None else {"start": cell.start.model}
        return {
            "key": self.key,
            "place": self.resolved.place,
            "code": self.resolved.code,
            "software": self.resolved.software,
            "dataset": cell.dataset,
            "dataset_id": self.resolved.dataset_id,
            "dataset_sha256": self.content_hash,
            "model": cell.model,
            "seed": cell.seed,
            "axes": dict(cell.axes),
            "settings": dict(cell.settings),
            "export": None if cell.export is None else dict(cell.export),
            "evaluation_precision": self.resolved.precision if cell.export is None else None,
            "energy_rule": cell.energy,
            **start,
        }


@dataclass(frozen=True)
class OrderedCell:
    """A cell as a worker gets it.

    Attributes:
        facts: what its line of results begins with, see :meth:`Planned.facts`.
        export: arguments of dsf-export, without RUN and --out; None where the float policy is scored.
        counts: how weights are kept and fetched in what is counted; None where nothing but prices is kept.
    """

    facts: Line
    export: tuple[str, ...] | None
    counts: WeightMemory | None = None

    @property
    def key(self) -> str:
        """Content hash of the result."""
        return str(self.facts["key"])


@dataclass(frozen=True)
class StartOrder:
    """A training that another one starts from. Whoever needs it first trains it, in its own job's directory.

    Attributes:
        model: its name.
        key: of the training, the name of its job's directory.
        arguments: as those of :class:`JobOrder`.
        start: what it starts from itself.
    """

    model: str
    key: str
    arguments: tuple[str, ...]
    start: StartOrder | None = None

    @classmethod
    def of(cls, resolved: Resolved | None, content_hash: str) -> StartOrder | None:
        """What a cell starts from."""
        if resolved is None:
            return None
        names = (resolved.cell.model, resolved.training_key(content_hash), resolved.arguments)
        return cls(*names, cls.of(resolved.start, content_hash))


@dataclass(frozen=True)
class JobOrder:
    """What a sweep tells a worker, through a file: the two may be of different processes and machines.

    Attributes:
        arguments: of dsf-train (or of ``dsf-train cql``), without --out, --threads and --resume.
        threads: of torch and of everything beneath.
        evaluation: the protocol of every cell.
        datasets: Minari's store, where the sweep was told one.
        cells: that share the training.
        start: the training that it starts from.
    """

    arguments: tuple[str, ...]
    threads: int
    evaluation: Evaluation
    datasets: str | None
    cells: tuple[OrderedCell, ...]
    start: StartOrder | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values, with the protocol's version."""
        return {"version": ORDER_VERSION, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> JobOrder:
        """The order in a file.

        Raises:
            UserError: another version of dsf wrote it, or a field is of another type.
        """
        values = read_json(path, "job of a sweep", LARGEST_RECORD)
        found = values.pop("version", None) if isinstance(values, dict) else None
        if found != ORDER_VERSION:
            raise UserError(
                f"{path} is a job of version {shown(found)}, and this dsf reads version {ORDER_VERSION}: "
                "let sweep and workers use the same dsf"
            )
        return read_record_of(cls, values, f"job of a sweep {path}", "start the sweep again")


@dataclass(frozen=True)
class Job:
    """A training and the cells that share it.

    Attributes:
        directory: of its own.
        cells: at least one.
        threads: of torch and of everything beneath.
    """

    directory: Path
    cells: tuple[Planned, ...]
    threads: int

    @property
    def starts(self) -> set[Path]:
        """Directories of the trainings that it starts from."""
        found, start = set(), StartOrder.of(self.cells[0].resolved.start, self.cells[0].content_hash)
        while start is not None:
            found.add(self.directory.parent / start.key)
            start = start.start
        return found

    def order(self) -> JobOrder:
        """What its worker is told."""
        first = self.cells[0].resolved
        cells = tuple(OrderedCell(cell.facts(), cell.resolved.export, cell.resolved.cell.counts) for cell in self.cells)
        datasets, start = os.environ.get(DATASETS_VARIABLE), StartOrder.of(first.start, self.cells[0].content_hash)
        return JobOrder(first.arguments, self.threads, first.cell.evaluation, datasets, cells, start)

    def write(self) -> Path:
        """Put down the order; returns the file.

        Sweeps that run side by side write here at the same moment. Each order has a file of its own, named by its
        content, so that nobody's worker reads another sweep's cells; the lock keeps their temporary files apart.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        values = self.order().to_json()
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        path = self.directory / JOB_NAME.format(digest[:DIGEST_LENGTH])
        with written_alone(self.directory):
            write_json(path, values)
        return path


@contextlib.contextmanager
def written_alone(directory: Path) -> Iterator[None]:
    """The only one that writes to a job's directory without holding the job: sweeps side by side take turns."""
    with (directory / WRITING_LOCK_NAME).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_taken(directory: Path) -> bool:
    """Whether a process is working on a job."""
    try:
        with (directory / LOCK_NAME).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # nobody has begun
        return False
    except BlockingIOError:
        return True
    return False


def result_path(directory: Path, key: str) -> Path:
    """Where a finished cell's line is."""
    return directory / f"{key}.json"


def failure_path(directory: Path, key: str) -> Path:
    """Where a failed cell's reason is."""
    return directory / f"{key}{FAILED}"


def read_record(path: Path) -> dict[str, Any] | None:
    """A result or a failure; None where there is none.

    Raises:
        UserError: it is neither; the message names file and field.
    """
    try:
        values = read_json(path, "record of a sweep", LARGEST_RECORD, line_breaks=True)
    except FileNotFoundError:
        return None
    if path.name.endswith(FAILED):
        return asdict(read_record_of(Failure, values, f"record of a sweep {path}", "remove it"))
    return require_result(values, f"record of a sweep {path}")


def write_failure(directory: Path, facts: Line, reason: str) -> None:
    """Note why a cell failed, and how often."""
    path, known = failure_path(directory, facts["key"]), {name: facts[name] for name in ("place", "code")}
    with written_alone(directory):
        earlier = read_record(path) or {"attempts": 0}
        write_json(path, {"reason": reason, "attempts": earlier["attempts"] + 1, **known})


def failures_in(out: Path, cells: Sequence[Resolved]) -> dict[str, str]:
    """Reasons of those cells that failed under this version of the code, by their places."""
    known = {(cell.place, cell.code) for cell in cells}
    found = (read_record(path) for path in sorted(out.glob("*/*.failed.json")))
    return {
        record["place"]: record["reason"]
        for record in found
        if record is not None and (record["place"], record.get("code")) in known
    }


def resolve_all(spec: SweepSpec) -> list[Resolved]:
    """Every cell through the parser of dsf-train.

    Raises:
        UserError: naming the first cell that it refuses, and why.
    """
    return [_resolved(cell) for cell in spec.cells()]


def resolve_read(spec: SweepSpec, path: Path) -> list[Resolved]:
    """:func:`resolve_all` of a sweep that was read from a file.

    Raises:
        UserError: naming the file, too.
    """
    try:
        return resolve_all(spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _resolved(cell: Cell) -> Resolved:
    try:
        return resolve_cell(cell)
    except UserError as error:
        raise UserError(f"cell {cell.label}: {error}") from None


def plan(cells: list[Resolved]) -> list[Planned]:
    """Add the datasets' content hashes; each dataset is read once."""
    known: dict[str, tuple[str, str]] = {}
    for cell in cells:
        if cell.dataset_id not in known:
            known[cell.dataset_id] = _content_hash(cell)
    return [Planned(cell, *known[cell.dataset_id]) for cell in cells]


def _content_hash(cell: Resolved) -> tuple[str, str]:
    """A dataset's content hash, and why there is none."""
    from dsf.train.data.dataset import load_dataset

    try:
        data = load_dataset(cell.dataset_id)
        if data.task.definition is not None and (data.unscored or not data.task.reference):
            lacking = data.unscored or (
                "there are no random and expert returns for its data: dsf-data import --task FILE.yaml can state them"
            )
            return "", f"a table holds scores, and task {data.task.name} has none: {lacking}"
        return data.content_hash, ""
    except (UserError, CommandFailed) as error:
        return "", str(error)


def jobs_of(cells: list[Planned], out: Path, threads: int) -> list[Job]:
    """One per training, in the cells' order."""
    groups: dict[str, list[Planned]] = {}
    for cell in {cell.key: cell for cell in cells}.values():
        groups.setdefault(cell.training_key, []).append(cell)
    return [Job((out / key).resolve(), tuple(group), threads) for key, group in groups.items()]

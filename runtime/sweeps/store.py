"""The results store: JSON lines, one per finished cell, appended whole, never twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsf.runtime.sweeps.counts import Counts
from dsf.shell.errors import UserError
from dsf.shell.file_values import parse_json, read_text
from dsf.shell.typed_values import read_record

Line = dict[str, Any]
REMEDY = "remove it"


@dataclass(frozen=True)
class Energy:
    """Of a decision: figures (microjoules by width and preset) and how they came about, or why there are none; synaptic
    events of exported integers.
    """

    microjoules: dict[str, dict[str, float | None]] | None = None
    cached_microjoules: dict[str, dict[str, float | None]] | None = None
    how: str | None = None
    not_priced: str | None = None
    events_per_decision: float | None = None


@dataclass(frozen=True)
class BestCheckpoint:
    """What the best checkpoint's own episodes gave."""

    step: int
    target_return: float
    score: float


@dataclass(frozen=True)
class StoredResult:
    """The fields of a line that commands read; others may stand beside them."""

    key: str
    place: str
    code: str
    dataset: str
    seed: int
    score: float
    returns: list[float]
    energy: Energy
    dataset_id: str | None = None
    dataset_sha256: str | None = None
    target_return: float | None = None
    steps: int | None = None
    export: dict[str, Any] | None = None
    precision: str | None = None
    best: BestCheckpoint | None = None
    counts: Counts | None = None
    axes: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


TABULATED = ("dataset_id", "dataset_sha256", "target_return", "steps", "export")
"""What a table needs besides."""


def read_lines(path: Path, tabulated: bool = False) -> list[Line]:
    """All results; none where there is no store. Half a line at the end (a power cut, or somebody is writing) is none.

    Args:
        path: of the store.
        tabulated: every line has what a table needs.

    Raises:
        UserError: a line is none of ours; the message names the field.
    """
    try:
        text = read_text(path, "results")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    whole = text[: text.rfind("\n") + 1]
    rows = enumerate(whole.split("\n"), 1)  # no other break: texts may hold what splitlines takes for one
    return [_line(row, f"{path}, line {number}", tabulated) for number, row in rows if row.strip()]


def _line(row: str, where: str, tabulated: bool) -> Line:
    line: Line = require_result(parse_json(row, where), f"{where} is no result of dsf-bench sweep")
    for name in TABULATED if tabulated else ():
        if name not in line:
            raise UserError(f"{where} is no result of dsf-bench sweep: {name} is missing: {REMEDY}")
    return line


def require_result(values: Any, where: str) -> Line:
    """A line of results, all of whose fields have the types that commands rely on.

    Raises:
        UserError: naming the field.
    """
    result = read_record(StoredResult, values, where, REMEDY)
    if result.energy.microjoules is not None and result.energy.how is None:
        raise UserError(f"{where}: energy: how is missing: {REMEDY}")
    line: Line = values
    return line


def append_once(path: Path, line: Line) -> bool:
    """Append a result unless its key is there; returns whether it was appended.

    One write under a lock, flushed to the disk; half a line that a power cut left behind is cut off first.

    Raises:
        OSError: the store cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file, locked(file.fileno()):
        _drop_half_line(file.fileno())
        if any(known["key"] == line["key"] for known in read_lines(path)):
            return False
        os.write(file.fileno(), (json.dumps(line, sort_keys=True) + "\n").encode())
        os.fsync(file.fileno())
    return True


def _drop_half_line(handle: int) -> None:
    size = os.fstat(handle).st_size
    content = os.pread(handle, size, 0)
    if content and not content.endswith(b"\n"):
        os.ftruncate(handle, content.rfind(b"\n") + 1)


@contextlib.contextmanager
def locked(handle: int) -> Iterator[None]:
    """The only one with this file, over all processes that ask."""
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)

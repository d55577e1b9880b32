"""A run's directory: config, metrics, TensorBoard events and two checkpoints, last and best."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from dsf.shell.errors import CommandFailed
from dsf.shell.files import partial_name, write_json, write_text
from dsf.train.checkpoint import CHECKPOINT_NAME, save_checkpoint
from dsf.train.config.training import CONFIG_NAME
from dsf.train.event_file import EventFile

BEST_NAME = "best.safetensors"
METRICS_NAME = "metrics.jsonl"
PARTIAL_FILES = tuple(partial_name(name) for name in (CHECKPOINT_NAME, BEST_NAME, CONFIG_NAME, METRICS_NAME))
"""What a run may leave that is killed while it writes."""
LOSS = "train/loss"
"""In every row of metrics but an evaluation's."""


class RunDirectory:
    """Writes a run's files. Where ``writes`` is false (ranks other than 0), every method does nothing.

    A file that cannot be written ends the run with one line; the checkpoints so far stay whole.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.events: EventFile | None = None

    def open(self, config: dict[str, Any], step: int, steps: int, keep_best: bool) -> None:
        """Create the directory, write the config, and clean up behind a run that was killed after its ``step``.

        What was written later is dropped: it is to come again, like the metrics of the evaluation behind the last of
        ``steps``. Without ``keep_best``, that holds for the best weights, too.
        """
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in [*PARTIAL_FILES, *([] if keep_best else [BEST_NAME])]:
            (self.path / leftover).unlink(missing_ok=True)
        with _writing(self.path / CONFIG_NAME):
            write_json(self.path / CONFIG_NAME, config)
        with _writing(self.path / METRICS_NAME):
            self._forget_metrics_after(step, finished=step == steps)
        with _writing(self.path):
            self.events = EventFile(self.path, step)

    def _forget_metrics_after(self, step: int, finished: bool) -> None:
        path = self.path / METRICS_NAME
        if not path.exists():
            return
        kept = [line for line in path.read_text().splitlines() if _stays(line, step, finished)]
        write_text(path, "".join(f"{row}\n" for row in kept))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append to metrics.jsonl and TensorBoard."""
        if self.events is None:
            return
        path = self.path / METRICS_NAME
        with _writing(path), path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        with _writing(self.events.path):
            self.events.log(step, values)

    def save(self, tensors: dict[str, Tensor], header: dict[str, Any], name: str = CHECKPOINT_NAME) -> None:
        """Write a checkpoint atomically."""
        if self.writes:
            with _writing(self.path / name):
                save_checkpoint(self.path / name, tensors, header)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a failed write (the disk is full) into one line that says how to go on.

    Raises:
        CommandFailed: ``path`` could not be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        message = f"could not write {path} ({reason}): free some space there, then continue with --resume"
        raise CommandFailed(message) from None


def _stays(line: str, step: int, finished: bool) -> bool:
    """Whether a resumed run keeps a line of metrics: it is whole, and its row will not be logged again."""
    try:
        row = json.loads(line)
        row_step = int(row["step"])
    except (ValueError, KeyError, TypeError):
        return False  # a killed run left half a line
    return row_step < step or (row_step == step and (LOSS in row or not finished))

"""TensorBoard's event files, written row by row in the caller's thread.

``SummaryWriter`` writes from a thread of its own: on a full disk that thread dies with a traceback, and the run learns
of it late or never.
"""

from __future__ import annotations

import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

FORMAT_VERSION = "brain.Event:2"
"""Names the layout of the records, at the head of every file."""


class EventFile:
    """One process's part of a run's events. TensorBoard reads a directory's files in the order of their names."""

    def __init__(self, directory: Path, step: int) -> None:
        """What earlier processes logged after ``step`` is to come again: TensorBoard then forgets it."""
        self.path = directory / f"events.out.tfevents.{time.time_ns()}"
        self._write(Event(wall_time=time.time(), file_version=FORMAT_VERSION))
        restart = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=step + 1, session_log=restart))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append scalars."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def _write(self, event: Event) -> None:
        with self.path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())

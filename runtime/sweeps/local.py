"""A sweep's jobs in worker processes of this machine, each on cores of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsf.runtime.sweeps.jobs import LOG_NAME, Job, is_taken
from dsf.runtime.sweeps.worker import EXIT_BUSY, PARENT_VARIABLE, WAIT, environment_of
from dsf.shell.interrupts import interrupts_deferred

POLL_S = 0.05
BUSY_S = 1.0
"""Before jobs are looked at again that another sweep is working on."""
SHARE_SLACK = 1e-6
"""1 / 0.1 is 10, whatever binary fractions make of it."""
STOP_S = 2.5
"""Time for workers to end by themselves: each has its checkpoints, so nothing is lost by ending it."""


@dataclass(frozen=True)
class Outcome:
    """How a job's process ended.

    Attributes:
        job: it.
        code: exit code, negative for a signal; None where a cluster lost it.
        reason: of a cluster.
    """

    job: Job
    code: int | None
    reason: str = ""


@dataclass
class _Slot:
    """Room for one job at a time."""

    cores: set[int]
    gpu: str | None
    job: Job | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self, job: Job) -> None:
        environment = environment_of(job.threads)
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        order = job.write()
        with interrupts_deferred():  # else a worker could start that nobody knows of
            self.job, self.process = job, start_worker(order, environment)
        if self.cores:
            with contextlib.suppress(ProcessLookupError):  # it has died already
                os.sched_setaffinity(self.process.pid, self.cores)


def start_worker(job: Path, environment: dict[str, str], wait: bool = False) -> subprocess.Popen[bytes]:
    """A worker's process: in a session of its own, so that Ctrl-C reaches the sweep alone, which then ends it.

    The kernel kills it when the starting thread is gone.
    """
    command = [sys.executable, "-m", "dsf.runtime.sweeps.worker", str(job), *([WAIT] if wait else [])]
    environment = {**environment, PARENT_VARIABLE: str(os.getpid())}
    with (job.parent / LOG_NAME).open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def run_locally(
    jobs: list[Job], workers: int, cores_per_cell: int, gpus_per_cell: float, until: float | None = None
) -> Iterator[Outcome]:
    """Run jobs side by side; outcomes come as they end. Closing the iterator ends what is running, and so does the
    time ``until`` (of :func:`time.monotonic`).

    A job that another sweep is working on waits until that has finished it. Workers are pinned to cores where there are
    enough of them for all; a GPU is shared by as many as fit.
    """
    waiting, look_at = deque(jobs), 0.0
    slots = _slots(min(workers, len(jobs)), cores_per_cell, gpus_per_cell)
    try:
        while (waiting or any(slot.process for slot in slots)) and (until is None or time.monotonic() < until):
            for slot in slots:
                if slot.process is None and waiting and time.monotonic() >= look_at:
                    if (
                        job := next_free(waiting, [slot.job for slot in slots if slot.process and slot.job])
                    ) is not None:
                        slot.start(job)
                    else:
                        look_at = time.monotonic() + BUSY_S
                elif slot.process is not None and (code := slot.process.poll()) is not None:
                    ended, slot.process = slot.job, None
                    assert ended is not None
                    if code == EXIT_BUSY:  # another sweep was faster
                        waiting.append(ended)
                    else:
                        yield Outcome(ended, code)
            time.sleep(POLL_S)
    finally:
        stop([slot.process for slot in slots if slot.process is not None])


def next_free(waiting: deque[Job], running: list[Job]) -> Job | None:
    """The next job that no other sweep is working on, if possible one that starts from nothing that those running may
    still be training, since it would wait for that. All others go to the end, to be looked up later.
    """
    in_the_making = {path for job in running for path in (job.directory, *job.starts)}
    for avoided in (in_the_making, set[Path]()):
        for _ in range(len(waiting)):
            job = waiting.popleft()
            if not is_taken(job.directory) and not job.starts & avoided:
                return job
            waiting.append(job)
    return None


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """End workers, gently first."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _slots(count: int, cores_per_cell: int, gpus_per_cell: float) -> list[_Slot]:
    """As many as are asked for, but no more than the GPUs hold."""
    places = gpu_places(visible_gpus(), gpus_per_cell) if gpus_per_cell else [None] * count
    count = min(count, len(places))
    available = sorted(os.sched_getaffinity(0))
    pinned = count * cores_per_cell <= len(available)
    slots = []
    for index in range(count):
        cores = set(available[index * cores_per_cell : (index + 1) * cores_per_cell]) if pinned else set()
        slots.append(_Slot(cores, places[index]))
    return slots


def gpu_places(gpus: list[str], gpus_per_cell: float) -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is of each cell that fits, neighbours on different GPUs where several share one.

    Args:
        gpus: names.
        gpus_per_cell: a share up to 1, or a whole number.
    """
    if gpus_per_cell > 1.0:
        whole = int(gpus_per_cell)
        return [",".join(gpus[first : first + whole]) for first in range(0, len(gpus) - whole + 1, whole)]
    return [*gpus] * int(1.0 / gpus_per_cell + SHARE_SLACK)


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES; none where there is no driver."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]

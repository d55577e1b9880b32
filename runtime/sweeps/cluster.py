"""A sweep's jobs on a Ray cluster or under Slurm. Both need what a resumable sweep needs anyway: every node sees the
sweep's directory and the datasets under the same paths, and has this dsf installed.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsf.runtime.loop.ray_cluster import connected
from dsf.runtime.sweeps.jobs import Job
from dsf.runtime.sweeps.local import Outcome, start_worker
from dsf.runtime.sweeps.worker import environment_of
from dsf.shell.errors import UserError
from dsf.shell.installed import require_installed

TRIES = 4
"""Tries of a job whose worker, Ray process or node dies: each goes on from the last checkpoint."""
POLL_S = 0.5


class WorkerKilled(Exception):
    """A job's worker was ended by a signal: for want of memory, say, or by somebody. Ray starts the job again."""


def work_here(job: str, threads: int) -> int:
    """Run a job's worker on this node, behind whoever has it; returns its exit code.

    A process of its own: torch reads its number of threads when it is loaded, and the kernel kills it with this one.
    """
    return start_worker(Path(job), environment_of(threads), wait=True).wait()


def work_or_be_retried(job: str, threads: int) -> int:
    """Run a job's worker as a task of Ray's, which by itself only notices the death of its own processes.

    Raises:
        WorkerKilled: a signal has ended the worker.
    """
    code = work_here(job, threads)
    if code < 0:
        raise WorkerKilled(f"its process was killed by {signal.Signals(-code).name} on {os.uname().nodename}")
    return code


def run_jobs_on_ray(
    jobs: list[Job], cores_per_cell: int, gpus_per_cell: float, workers: int | None, address: str | None
) -> Iterator[Outcome]:
    """Run jobs as tasks of a cluster; outcomes come as they end. Closing the iterator cancels the rest.

    Args:
        jobs: to do.
        cores_per_cell: CPUs that Ray sets apart for each.
        gpus_per_cell: GPUs that Ray sets apart, a fraction where several share one.
        workers: most jobs at a time; None is as many as the cluster has room for.
        address: see :func:`dsf.runtime.loop.ray_cluster.run_on_ray`.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    require_installed("cluster", "ray")
    import ray

    with connected(address):
        _require_room(ray.cluster_resources(), cores_per_cell, gpus_per_cell)
        room = {"num_cpus": cores_per_cell, "num_gpus": gpus_per_cell}
        task = ray.remote(**room, max_retries=TRIES - 1, retry_exceptions=[WorkerKilled])(work_or_be_retried)
        waiting = list(jobs)
        running: dict[Any, Job] = {}
        while waiting or running:
            while waiting and (workers is None or len(running) < workers):
                job = waiting.pop(0)
                running[task.remote(str(job.write()), job.threads)] = job
            (done,), _ = ray.wait(list(running))
            yield _outcome(running.pop(done), done)


def _require_room(cluster: dict[str, float], cores: int, gpus: float) -> None:
    """Refuse what Ray would wait for without an end.

    Raises:
        UserError: the whole cluster has less than one cell asks for.
    """
    for name, asked, flag in (("CPU", cores, "--cores-per-cell"), ("GPU", gpus, "--gpus-per-cell")):
        if asked > cluster.get(name, 0.0):
            raise UserError(f"{flag} is {asked:g}, the Ray cluster has {cluster.get(name, 0.0):g}: ask for less")


def _outcome(job: Job, reference: Any) -> Outcome:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return Outcome(job, ray.get(reference))
    except RayError as error:
        if isinstance(error, RayTaskError):  # whose own text is a traceback
            error = error.cause
        return Outcome(job, None, f"Ray gave up after {TRIES} tries: {' '.join(str(error).split())}")


def run_jobs_with_submitit(
    jobs: list[Job], cores_per_cell: int, gpus_per_cell: float, folder: Path, cluster: str | None, slurm: dict[str, Any]
) -> Iterator[Outcome]:
    """Submit every job to Slurm (or another executor of submitit's); outcomes come as they end. Closing the iterator
    cancels the rest.

    Args:
        jobs: to do.
        cores_per_cell: CPUs of each.
        gpus_per_cell: GPUs of each; Slurm knows whole ones only, so a fraction is rounded up.
        folder: of submitit's scripts and logs.
        cluster: submitit's name of an executor, such as local; None takes Slurm.
        slurm: further parameters of submitit, such as slurm_partition.

    Raises:
        UserError: submitit is not installed, or there is no Slurm here.
    """
    require_installed("cluster", "submitit")
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster or "slurm")
    except RuntimeError as error:
        raise UserError(f"--launcher submitit: {' '.join(str(error).split())}; submit where sbatch is") from None
    executor.update_parameters(cpus_per_task=cores_per_cell, gpus_per_node=math.ceil(gpus_per_cell), **slurm)
    running = {executor.submit(work_here, str(job.write()), job.threads): job for job in jobs}
    try:
        while running:
            for handle in [handle for handle in running if handle.done()]:
                yield _submitted(running.pop(handle), handle)
            time.sleep(POLL_S)
    finally:
        for handle in running:
            with contextlib.suppress(Exception):
                handle.cancel()


def _submitted(job: Job, handle: Any) -> Outcome:
    try:
        return Outcome(job, handle.result())
    except Exception as error:  # submitit raises its own and the job's
        return Outcome(job, None, f"job {handle.job_id}: {' '.join(str(error).split())}")

"""Data parallelism through torch's own launcher: ``torchrun --nproc-per-node N -m dsf.train.cli ...``.

Every rank draws the same global batch and takes its share of the windows; gradients and batch statistics are summed
over ranks, so that N ranks compute what one would (to rounding).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from dsf.shell.errors import CommandFailed
from dsf.train.config.training import DeviceKind

LAUNCHER_VARIABLE, LOCAL_RANK_VARIABLE = "WORLD_SIZE", "LOCAL_RANK"
"""Set by torchrun for each of its workers."""
LONGEST_WAIT = timedelta(hours=12)
"""For another rank: rank 0 plays every evaluation's episodes alone. A rank that dies is noticed at once."""


@contextmanager
def process_group(device: DeviceKind) -> Iterator[None]:
    """Join torchrun's process group, where torchrun started this process; leave it at the end, also on errors.

    On GPUs, each process takes one of its own.
    """
    if int(os.environ.get(LAUNCHER_VARIABLE, "1")) < 2:
        yield
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ[LOCAL_RANK_VARIABLE]))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _with_all_ranks() -> Iterator[None]:
    """Say in one line that another rank is gone.

    Raises:
        CommandFailed: the ranks lost each other.
    """
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CommandFailed(
            f"another process of this run has ended, see its message (here: {reason}); continue with --resume"
        ) from None


def world_size() -> int:
    """Ranks that share this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 writes the files."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_ranks(*tensors: Tensor) -> None:
    """Add every tensor over all ranks, in place; one message for tensors of one dtype."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _with_all_ranks():
        dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


def gather_from_ranks(tensor: Tensor) -> list[Tensor]:
    """Each rank's tensor (all of one shape), in the order of ranks."""
    if world_size() == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with _with_all_ranks():
        dist.all_gather(parts, tensor)
    return parts


def wait_for_all() -> None:
    """Let no rank run ahead."""
    if world_size() > 1:
        with _with_all_ranks():
            dist.barrier()

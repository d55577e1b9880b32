"""Data parallelism through torch's own launcher: ``torchrun --nproc-per-node N -m dsf.train.cli ...``.

Every rank draws the same global batch and takes its share of the windows; gradients and batch statistics are summed
over ranks, so that N ranks compute what one would (to rounding).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.processes.background import Background
from dsf.train.config.training import DeviceKind

LAUNCHER_VARIABLE, RANK_VARIABLE, LOCAL_RANK_VARIABLE = "WORLD_SIZE", "RANK", "LOCAL_RANK"
ADDRESS_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")
"""Set by torchrun for each of its workers."""
LONGEST_WAIT = timedelta(hours=12)
"""For another rank: rank 0 plays every evaluation's episodes alone. A rank that dies is noticed at once."""
QUIET_S = 10.0
"""Torchrun's processes find each other sooner; where one waits for longer, it says for what."""
POLL_S = 0.02
"""Between two looks whether they have."""

WAY_OUT = f"start this with torchrun, or unset {LAUNCHER_VARIABLE}"

Found = TypeVar("Found")


def launched_ranks() -> int:
    """Processes that torchrun has started for this run; 1 where it has not started this one.

    Raises:
        UserError: its variables contradict each other: they are left over from another program.
    """
    values = {name: os.environ.get(name, "") for name in (LAUNCHER_VARIABLE, RANK_VARIABLE, LOCAL_RANK_VARIABLE)}
    if not values[LAUNCHER_VARIABLE] or values[LAUNCHER_VARIABLE] == "1":
        return 1
    numbers = {name: int(value) if value.isdecimal() else -1 for name, value in values.items()}
    fit = 0 <= numbers[RANK_VARIABLE] < numbers[LAUNCHER_VARIABLE] and numbers[LOCAL_RANK_VARIABLE] >= 0
    missing = [name for name in ADDRESS_VARIABLES if not os.environ.get(name)]
    if missing or not fit:
        told = ", ".join(f"{name} is {value or 'not set'}" for name, value in values.items())
        told += "".join(f", {name} is not set" for name in missing)
        raise UserError(f"{told}: these are torchrun's; {WAY_OUT}")
    return numbers[LAUNCHER_VARIABLE]


def _interruptible(call: Callable[[], Found]) -> Found:
    """Call what waits in C++, where no signal reaches it, beside this thread, which waits here.

    What is waited for says so after a while.
    """
    begun, told = time.monotonic(), False
    thread: Background[Found] = Background("dsf-ranks")
    with thread:
        thread.begin(call)
        while not thread.is_ready():
            time.sleep(POLL_S)
            if not told and time.monotonic() - begun > QUIET_S:
                told = True
                others = f"{LAUNCHER_VARIABLE}={os.environ[LAUNCHER_VARIABLE]}"
                where = ":".join(os.environ[name] for name in ADDRESS_VARIABLES)
                print(f"waiting for the other processes of {others} at {where}; {WAY_OUT}", file=sys.stderr, flush=True)
        return thread.answer()


@contextmanager
def process_group(device: DeviceKind) -> Iterator[None]:
    """Join torchrun's process group, where torchrun started this process; leave it at the end, also on errors.

    On GPUs, each process takes one of its own.
    """
    if launched_ranks() == 1:
        yield
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ[LOCAL_RANK_VARIABLE]))
    try:
        _interruptible(lambda: dist.init_process_group("nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT))
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CommandFailed(f"the processes of this run do not find each other ({reason}): {WAY_OUT}") from None
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

"""Training as a function; it prints nothing. Torch is imported when it is called."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dsf.shell.errors import UserError
from dsf.shell.held_directory import held
from dsf.shell.installed import require_installed
from dsf.tasks import get_task
from dsf.tasks.data_returns import DataReturns
from dsf.tasks.definition import TaskDefinition
from dsf.train.config.training import CONFIG_NAME, TrainConfig
from dsf.train.observer import SILENT, TrainingObserver, TrainingStart
from dsf.train.trained_run import TrainedRun, UsedDataset

if TYPE_CHECKING:
    from dsf.train.data.dataset import OfflineDataset


def train(config: TrainConfig, observer: TrainingObserver = SILENT) -> TrainedRun:
    """Train and evaluate one run; its files are in ``config.out``.

    Under torchrun, every process calls this and does its share. Torch's number of threads is ``config.threads``
    afterwards.

    Args:
        config: what to train, and how.
        observer: hears how it goes on.

    Raises:
        UserError: the config cannot work here, or another process trains in the same directory.
        CommandFailed: the training diverged, a file cannot be written, or another process of the run is gone.
    """
    begun = time.monotonic()
    require_possible(config)
    from dsf.train.distributed import RANK_VARIABLE, launched_ranks, process_group, rank
    from dsf.train.initial import with_model_of_checkpoint

    first = launched_ranks() == 1 or int(os.environ[RANK_VARIABLE]) == 0  # which holds the directory for all
    with held(config.out) if first else contextlib.nullcontext(), process_group(config.device):
        require_possible(config)  # once more: who held it until now may have left a run there
        return _train(with_model_of_checkpoint(config.of_phase()), observer if rank() == 0 else SILENT, begun)


def require_possible(config: TrainConfig) -> None:
    """Refuse what cannot work on this machine: missing packages, and a run directory that cannot be used.

    Raises:
        UserError: the directory is a file, or holds a checkpoint already, or holds none to resume.
    """
    require_installed("train", "torch", "snntorch", "minari", "safetensors", "tensorboard")
    from dsf.train.checkpoint import CHECKPOINT_NAME

    if any(place.exists() and not place.is_dir() for place in (config.out, *config.out.parents)):
        raise UserError(f"--out {config.out} is, or lies below, a file: name a directory")
    existing = (config.out / CHECKPOINT_NAME).exists()
    if existing and not config.resume:
        raise UserError(f"{config.out} already holds a checkpoint: pass --resume to continue it, or another --out")
    if not existing and not is_own_directory(config.out):
        raise UserError(f"--out {config.out} holds a {CONFIG_NAME} that is not dsf-train's: name another directory")
    if config.resume and not existing:
        raise UserError(f"--resume: {config.out} holds no {CHECKPOINT_NAME}: drop --resume to start a new run")


def is_own_directory(place: Path) -> bool:
    """Whether nothing in a directory would be overwritten that an earlier run did not write."""
    path = place / CONFIG_NAME
    if not path.exists():
        return True
    try:
        return {"dataset", "model", "steps"} <= set(json.loads(path.read_text()))
    except (ValueError, TypeError):
        return False


def as_begun(config: TrainConfig, data: OfflineDataset) -> OfflineDataset:
    """The data of a run that is resumed, with the targets that it began with, which its input codec was fitted for: an
    older dsf knew no others than the task's declared ones.
    """
    from dsf.train.checkpoint import load_checkpoint

    stated = DataReturns.stated(load_checkpoint(config.out).header)
    targets = stated.targets if stated is not None else ()
    targets = targets or get_task(data.task.name).target_returns  # which an older dsf knew, of registered tasks alone
    return dataclasses.replace(data, task=dataclasses.replace(data.task, target_returns=targets))


def stated_definition(config: TrainConfig) -> TaskDefinition | None:
    """The task that the user describes, or that a run which is resumed began with; None is the dataset's own.

    Raises:
        UserError: the file, or the checkpoint, describes none.
    """
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.data.own_task import read_task_file

    if config.task is not None:
        return read_task_file(config.task)
    return load_checkpoint(config.out).task().definition if config.resume else None


def _train(config: TrainConfig, observer: TrainingObserver, begun: float) -> TrainedRun:
    """One process's part of a run that began at this monotonic time."""
    from dsf.train.checkpoint import CHECKPOINT_NAME
    from dsf.train.data.dataset import load_dataset
    from dsf.train.data.registry import resolve
    from dsf.train.distributed import world_size
    from dsf.train.models.rivals.build import describe_model
    from dsf.train.run_directory import BEST_NAME
    from dsf.train.trainer import Trainer

    data = load_dataset(resolve(config.dataset), config.data, definition=stated_definition(config))
    if config.resume:
        data = as_begun(config, data)
    observer.loaded(config, data)
    trainer = Trainer(config, data)
    if config.resume:
        trainer.restore()
    start = TrainingStart(
        config=config,
        model=describe_model(trainer.model, data.task),
        dataset=UsedDataset(data.dataset_id, data.content_hash, data.steps),
        step=trainer.step,
        largest_return=trainer.codec.largest(-1) * data.task.return_scale,
        device=trainer.device.type,
        precision=trainer.precision,
        processes=world_size(),
    )
    observer.begun(start)
    header = trainer.run(observer)
    run = TrainedRun.of_header(
        header,
        config.out / CHECKPOINT_NAME,
        config.out / BEST_NAME,
        parameters=trainer.model.parameter_count(),
        seconds=time.monotonic() - begun,
        unusual_populations=tuple(trainer.activity.unusual()),
    )
    observer.finished(run)
    return run

"""A training on a terminal: what is trained, progress, and scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dsf.shell.console import first_few
from dsf.tasks.registry import described_task, notes_on
from dsf.train.config.rivals import cannot_become_spikes
from dsf.train.config.training import TrainConfig, export_obstacles
from dsf.train.evaluation.score import Score
from dsf.train.observer import TrainingObserver, TrainingStart
from dsf.train.trained_run import TrainedRun

if TYPE_CHECKING:
    from dsf.train.data.dataset import OfflineDataset

SHOWN_FEATURES = 6
"""Inputs that are named in a line."""
LOG_LINES = 10
"""Lines of progress where the output is no terminal."""


class SpeedColumn(ProgressColumn):
    """Optimizer steps per second."""

    def render(self, task: Task) -> Text:
        """Rich calls this for every refresh; evaluation bars have no speed worth showing."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


COLUMNS = ("training", BarColumn, MofNCompleteColumn, SpeedColumn, TimeRemainingColumn, "{task.description}")
"""Columns of the bar."""


class TerminalTraining(TrainingObserver):
    """Prints how a training goes on: a bar on a terminal, lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        self.bar = TaskID(0)

    def loaded(self, config: TrainConfig, data: OfflineDataset) -> None:
        """What is wrong with config and data, though it can be trained."""
        for obstacle in obstacles(config):
            self.console.print(f"warning: this run cannot be exported: {obstacle}")
        if data.out_of_range_actions:
            self.console.print(
                f"note: in {data.out_of_range_actions} steps of {data.dataset_id} an action leaves "
                f"{action_range(data)}, which tanh cannot reach: dsf-data import --clip-actions would clip them"
            )
        for line in describe_own(data):
            self.console.print(f"note: {line}", markup=False, soft_wrap=True)
        if config.eval_episodes and data.unscored:
            self.console.print(
                f"note: this run is trained and not scored: {data.unscored}", markup=False, soft_wrap=True
            )
        for note in notes_on(data.task, config.eval_targets or data.task.target_returns, data.facts):
            self.console.print(f"note: {note}", markup=False)

        if constant := describe_constant(data):
            self.console.print(f"note: {constant}", soft_wrap=True)

    def begun(self, start: TrainingStart) -> None:
        """What is trained on what, and how it is computed."""
        dataset, config = start.dataset, start.config
        self.console.print(
            f"{start.model}, on {dataset.dataset_id} ({dataset.steps} steps, "
            f"sha256 {dataset.content_hash[:12]}), step {start.step} of {config.steps}"
        )
        if config.fine_tunes:
            ticks = f", at T = {config.model.ticks}" if config.policy == "dsformer" else ""
            self.console.print(f"goes on from {config.init} in floats{ticks}", markup=False, soft_wrap=True)
        self.console.print(describe_computation(start.device, start.precision, config, start.processes))
        for target in config.eval_targets:
            if target > (reach := start.largest_return):
                self.console.print(
                    f"note: return-to-go ends at {reach:.0f}: {target:g} looks the same until the difference is earned"
                )

    @contextlib.contextmanager
    def training(self, step: int, steps: int) -> Iterator[None]:
        """The bar."""
        columns = [TextColumn(column) if isinstance(column, str) else column() for column in COLUMNS]
        hidden = not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as self.progress:
            self.bar = self.progress.add_task("", total=steps, completed=step)
            yield

    def stepped(self, step: int, steps: int, loss: float) -> None:
        """The bar goes on, or one of a few lines is printed where none can be drawn."""
        if self.progress is not None:
            self.progress.update(self.bar, completed=step, description=f"loss {loss:.4f}")
        if not self.console.is_terminal and step % max(steps // LOG_LINES, 1) == 0:
            self.console.print(f"step {step} of {steps}, loss {loss:.4f}")

    @contextlib.contextmanager
    def evaluating(self, steps: int) -> Iterator[Callable[[int], None]]:
        """A second bar."""
        progress = self.progress
        assert progress is not None  # an evaluation is a part of a training
        bar = progress.add_task("evaluating", total=steps)
        yield lambda running: progress.advance(bar, running)
        progress.remove_task(bar)

    def finished(self, run: TrainedRun) -> None:
        """Scores, and where the weights are."""
        if unusual := run.unusual_populations:
            self.console.print(f"warning: {len(unusual)} populations hardly compute: {'; '.join(unusual)}")
        task = described_task(run.task, run.header)
        for score in [*run.scores, *([run.best] if run.best else [])]:
            self.console.print(score.describe(task))
        if (top := run.best_score) is not None:
            self.console.print(best_target(top, task.target_returns[0]))
        self.console.print(f"checkpoint: {run.checkpoint}")
        if run.best_checkpoint is not None:
            self.console.print(f"best checkpoint, chosen on the seeds above: {run.best_checkpoint}")


def best_target(top: Score, default: float) -> str:
    """Which target did best, and how an exported network asks for it where that is not what it does anyway."""
    said = f"of the targets scored, {top.target_return:g} did best (return {top.return_mean:.1f})"
    if top.target_return == default:
        return said
    return f"{said}: dsf-export --target-return {top.target_return:g} makes the network ask for it, not for {default:g}"


def action_range(data: OfflineDataset) -> str:
    """Between what actions lie, in words."""
    return "its bounds" if data.task.action_low else "[-1, 1]"


def describe_own(data: OfflineDataset) -> list[str]:
    """What a task that no registry holds was taken to be, a line; nothing of a registered one."""
    task = data.task
    if task.definition is None:
        return []
    actions = f"{task.action_size} choices" if task.discrete else f"{task.action_size} actions"
    targets = ", ".join(f"{target:g}" for target in task.target_returns)
    return [
        f"task {task.name} ({task.world}): {task.observation_size} observations, {actions}, {task.max_steps} steps at "
        f"most, return scale {task.return_scale:g}, target returns {targets} (dsf-data task {data.dataset_id} says why)"
    ]


def describe_constant(data: OfflineDataset) -> str:
    """Which features of the tokens never change; empty where all do."""
    values = [
        f"{data.task.feature(index)} ({data.statistics.mean[index]:g})"
        for index in np.flatnonzero(data.statistics.constant).tolist()
    ]
    if not values:
        return ""
    shown = first_few(values, SHOWN_FEATURES)
    return f"inputs that never change in {data.dataset_id}, so that nothing is learnt of them: {shown}"


def obstacles(config: TrainConfig) -> list[str]:
    """What will keep the run from being exported; quantization-aware training refuses it by itself."""
    if config.policy != "dsformer":
        return [cannot_become_spikes(config.policy)]
    return [] if config.qat_steps else export_obstacles(config.model)


def describe_computation(device: str, precision: str, config: TrainConfig, processes: int) -> str:
    """One line: device, precision, and how neurons are computed (nothing falls back in silence)."""
    from dsf.train.kernels.build import KernelsUnavailable, load_kernels, use_torch_threads

    said = f"{device}, {precision} matrix products, {config.threads} threads, {processes} process(es)"
    if config.policy != "dsformer":
        return said
    neuron = "snnTorch's Leaky, tick by tick"
    if config.neuron == "fused" and device == "cpu":
        try:
            load_kernels()
            neuron = "fused, C kernels" + (
                "" if use_torch_threads() else " on one thread (torch has no GNU OpenMP here)"
            )
            neuron += " (--compile has nothing to do)" if config.compile else ""
        except KernelsUnavailable as reason:
            compiled = " under torch.compile" if config.compile else ""
            neuron = f"fused, torch operations{compiled}, slower ({reason})"
    elif config.neuron == "fused":
        neuron = "fused, torch operations" + (" under torch.compile" if config.compile else "")
    return f"{said}; neurons: {neuron}"

"""The training loop: plain PyTorch, resumable bit for bit on CPU."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import mse_loss
from torch.utils.tensorboard.writer import SummaryWriter

from dsf.tasks import Episode, UserError, mean_confidence_interval, rollout
from dsf.tasks.console import CommandFailed
from dsf.tasks.files import write_json, write_text
from dsf.tasks.policy import FloatArray
from dsf.train.checkpoint import (
    CHECKPOINT_NAME,
    codec_to_json,
    git_revision,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from dsf.train.codec import InputCodec
from dsf.train.config import TrainConfig, to_json
from dsf.train.data import OfflineDataset, sample_windows
from dsf.train.model import DSFormer
from dsf.train.norm import set_blend
from dsf.train.policy import TorchPolicy

METRICS_NAME = "metrics.jsonl"
CONFIG_NAME = "config.json"
LOG_LINES = 10
"""Lines of progress where the output is no terminal."""
FREE_ON_RESUME = {"dataset", "resume", "log_every", "checkpoint_every", "eval_episodes", "eval_seed"}
"""Settings that do not touch the weights, and may differ when a run is resumed (the dataset is compared by hash)."""


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine to zero; 0 <= step < config.steps."""
    warmup = config.warmup_fraction * config.steps
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(config.steps - warmup, 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def blend_factor(step: int, config: TrainConfig) -> float:
    """PTBN's lambda: 1 at the first step, 0 from ``blend_fraction`` of the steps on (DSFormer section 4.3)."""
    span = config.blend_fraction * config.steps
    return max(0.0, 1.0 - step / span) if span > 0 else 0.0


def fit_codec(data: OfflineDataset, bits: int) -> InputCodec:
    """Fit the input codec so that no target return of the task is clipped."""
    targets: FloatArray = np.full((len(data.task.target_returns), data.tokens.shape[1]), np.nan)
    targets[:, -1] = np.array(data.task.target_returns) / data.task.return_scale
    return InputCodec.fit(data.tokens, targets, bits)


class Trainer:
    """One run: model, optimizer, sampler and the files in its directory."""

    def __init__(self, config: TrainConfig, data: OfflineDataset) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.data = config, data
        self.codec = fit_codec(data, config.model.input_bits)
        self.integers = self.codec.encode(data.tokens).astype(np.float32)
        self.windows_source = OfflineDataset(
            data.dataset_id, data.task, data.content_hash, self.integers, data.actions, data.starts
        )
        self.model = DSFormer(config.model, self.codec, data.task.action_size)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.sampler = np.random.default_rng(config.seed)
        self.step = 0

    def header(self) -> dict[str, Any]:
        """What a checkpoint says beside its tensors."""
        return {
            "model": to_json(self.config.model),
            "train": {key: value for key, value in to_json(self.config).items() if key not in ("model", "out")},
            "codec": codec_to_json(self.codec),
            "task": self.data.task.name,
            "dataset": {"id": self.data.dataset_id, "sha256": self.data.content_hash},
            "git_revision": git_revision(),
            "step": self.step,
            "sampler": self.sampler.bit_generator.state,
            "scores": [],
        }

    def save(self, header: dict[str, Any]) -> None:
        """Write the checkpoint."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        save_checkpoint(self.config.out / CHECKPOINT_NAME, {**tensors, **optimizer_tensors(self.optimizer)}, header)

    def restore(self) -> None:
        """Continue from the run directory's checkpoint.

        Raises:
            UserError: the checkpoint belongs to another config or dataset.
        """
        checkpoint = load_checkpoint(self.config.out)
        mine, theirs = self.header(), checkpoint.header
        for name in ("model", "dataset", "codec"):
            if mine[name] != theirs[name]:
                raise UserError(f"--resume: {checkpoint.path} was trained with another {name}: repeat its settings")
        for name in mine["train"].keys() - FREE_ON_RESUME:
            if mine["train"][name] != theirs["train"].get(name):
                raise UserError(f"--resume: {checkpoint.path} was trained with another {name}: repeat its settings")
        if "sampler" not in theirs:
            raise UserError(f"--resume: {checkpoint.path} was stripped for inference: start a new run instead")
        self.model.load_state_dict(checkpoint.group("model"))
        restore_optimizer(self.optimizer, checkpoint.group("optimizer"))
        self.sampler.bit_generator.state = theirs["sampler"]
        self.step = int(theirs["step"])
        self.forget_metrics_after(self.step)

    def forget_metrics_after(self, step: int) -> None:
        """Drop metrics that a run logged after its last checkpoint: they are about to be logged again."""
        path = self.config.out / METRICS_NAME
        if path.exists():
            rows = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
            write_text(path, "".join(f"{row}\n" for row in rows))

    def train_step(self) -> float:
        """One optimizer step; returns the loss (mean squared action error over existing tokens)."""
        config = self.config
        set_blend(self.model, blend_factor(self.step, config))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(self.step, config)
        windows = sample_windows(self.windows_source, config.batch_size, config.model.context, self.sampler)
        mask = torch.from_numpy(windows.mask)
        predicted = self.model(torch.from_numpy(windows.tokens), mask)
        loss = mse_loss(predicted[mask], torch.from_numpy(windows.actions)[mask])
        self.optimizer.zero_grad(set_to_none=True)
        if not torch.isfinite(loss):
            raise CommandFailed(f"the loss is {float(loss.detach())} at step {self.step}: lower --learning-rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def run(self, console: Console) -> dict[str, Any]:
        """Train to the end, evaluate the last checkpoint, and return its header."""
        config = self.config
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(config.out / CONFIG_NAME, to_json(config))
        writer = SummaryWriter(str(config.out), purge_step=self.step)
        self.model.train()
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=console, transient=True) as progress, writer:
            bar = progress.add_task("", total=config.steps, completed=self.step)
            while self.step < config.steps:
                loss = self.train_step()
                progress.update(bar, completed=self.step, description=f"loss {loss:.4f}")
                if self.step % config.log_every == 0 or self.step == config.steps:
                    self.log(writer, {"train/loss": loss, "train/blend": blend_factor(self.step - 1, config)})
                if not console.is_terminal and self.step % max(config.steps // LOG_LINES, 1) == 0:
                    console.print(f"step {self.step} of {config.steps}, loss {loss:.4f}")
                if self.step % config.checkpoint_every == 0 and self.step < config.steps:
                    self.save(self.header())
            header = self.header()
            self.save(header)
            if config.eval_episodes:
                header["scores"] = [self.evaluate(progress)]
                self.log(writer, {"eval/return": header["scores"][0]["return_mean"]})
                self.save(header)
        return header

    def log(self, writer: SummaryWriter, values: dict[str, float]) -> None:
        """Append to metrics.jsonl and TensorBoard."""
        with (self.config.out / METRICS_NAME).open("a") as file:
            file.write(json.dumps({"step": self.step, **values}) + "\n")
        for name, value in values.items():
            writer.add_scalar(name, value, self.step)

    def evaluate(self, progress: Progress) -> dict[str, Any]:
        """Score the model as it is now (the last checkpoint) at the task's first target return."""
        config, task = self.config, self.data.task
        bar = progress.add_task("evaluating", total=config.eval_episodes * task.max_steps)
        seeds = range(config.eval_seed, config.eval_seed + config.eval_episodes)
        target = task.target_returns[0]
        policy = TorchPolicy(self.model, lanes=config.eval_episodes)
        episodes = rollout(task, policy, seeds, target, lambda running: progress.advance(bar, running))
        return score_record("torch", "last", target, task.score, episodes)


def score_record(engine: str, checkpoint: str, target: float, score: Any, episodes: list[Episode]) -> dict[str, Any]:
    """A score with all that a reader needs to judge it."""
    returns = [episode.episode_return for episode in episodes]
    interval = mean_confidence_interval(returns)
    return {
        "engine": engine,
        "checkpoint": checkpoint,
        "target_return": target,
        "seeds": [episode.seed for episode in episodes],
        "returns": returns,
        "return_mean": interval.mean,
        "return_interval_95": [interval.low, interval.high],
        "score_mean": score(interval.mean),
    }

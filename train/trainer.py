"""The training loop: plain PyTorch, resumable bit for bit on CPU, data parallel under torchrun."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dsf.shell.errors import CommandFailed, UserError
from dsf.tasks.registry import ENVIRONMENT_FACT, TASK_FACT
from dsf.train.averaging import WeightAverage, has_statistics, reported_copy
from dsf.train.checkpoint import (
    codec_to_json,
    git_revision,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
)
from dsf.train.config.rivals import rival_from_json
from dsf.train.config.training import ADDED_SETTINGS, ADDED_TO_MODEL, TrainConfig, to_json
from dsf.train.data.batches import Batch, BatchSource
from dsf.train.data.dataset import OfflineDataset, require_context
from dsf.train.distributed import rank, sum_over_ranks, wait_for_all, world_size
from dsf.train.evaluation.closed_loop import evaluate
from dsf.train.initial import fine_tuned_from, initial_model
from dsf.train.models.activity import FiringStatistics, record_activity
from dsf.train.models.attention import PackedTokens
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.neurons import set_neuron_kind
from dsf.train.models.norm import set_blend
from dsf.train.models.portable import compile_kernels
from dsf.train.models.qat import QuantizedDSFormer, deployed
from dsf.train.models.rivals.qat import rival_quantization
from dsf.train.observer import SILENT, TrainingObserver
from dsf.train.precision import resolve_device, resolve_precision
from dsf.train.pruning import Pruner
from dsf.train.run_directory import BEST_NAME, LOSS, RunDirectory
from dsf.train.schedule import blend_factor, learning_rate_factor, penalty_factor, pruning_factor

FREE_ON_RESUME = {
    "dataset",
    "out",
    "resume",
    "log_every",
    "checkpoint_every",
    "eval_every",
    "eval_episodes",
    "eval_seed",
    "eval_targets",
    "init",
    "preset",
    "task",
}
"""Settings that do not touch the weights, and may differ when a run is resumed (the dataset is compared by hash, a
preset's model by its fields, a task by its definition)."""
ACTIVITY_WINDOWS = 64
"""Windows on which firing rates are measured."""


TRAINED = "trained"
"""Prefix of the tensors that training goes on from, where the checkpoint's model is another one."""
STATISTICS_SEED = 1 << 32
"""Added to the run's seed for the batches that statistics are estimated on: no step ever draws them."""


def named(prefix: str, model: torch.nn.Module) -> dict[str, Tensor]:
    """A model's tensors on the CPU, by names with a prefix."""
    return {f"{prefix}.{key}": tensor.cpu() for key, tensor in model.state_dict().items()}


def quantization_of(model: DecisionModel) -> dict[str, int | bool] | None:
    """What a checkpoint's header says of quantization-aware training; None of an ordinary run."""
    return model.to_json() if isinstance(model, QuantizedDSFormer) else rival_quantization(model)


def flat_settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by the name that the command line has for them, such as model.width."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        flat |= flat_settings(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def merge_scores(earlier: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores of one step: a finished run that is resumed with other targets or seeds keeps those it has."""
    asked = [(score["step"], score["target_return"], score["seeds"]) for score in found]
    same_step = [score for score in earlier if score.get("step") == found[0]["step"]]
    return [s for s in same_step if (s["step"], s["target_return"], s["seeds"]) not in asked] + found


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the random numbers that a rank's step draws, so that a resumed run needs no generator's state."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])


class Trainer:
    """One run: model, optimizer, batches and the files in its directory."""

    def __init__(self, config: TrainConfig, data: OfflineDataset) -> None:
        if config.batch_size % world_size():
            raise UserError(f"--batch-size is {config.batch_size}: it must be a multiple of {world_size()} processes")
        require_context(data, config.model.context)
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.data = config, data
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        self.model = initial_model(config, data).to(self.device)
        self.codec = self.model.codec
        self.batches = BatchSource(
            data, self.codec, config.batch_size, config.model.context, config.seed, rank(), world_size()
        )
        set_neuron_kind(self.model, config.neuron)
        if config.compile:
            compile_kernels()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.pruner = Pruner.of(self.model, config) if config.prunes else None
        self.directory = RunDirectory(config.out, writes=rank() == 0)
        self.average = None if config.ema is None else WeightAverage(self.model, config.ema)
        self._reported: tuple[int, DecisionModel] | None = None
        self.step = 0
        self.scores: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None

    def header(self) -> dict[str, Any]:
        """Everything but tensors that describes this run now; JSON values only."""
        task = self.data.task
        return {
            "model": to_json(self.config.model),
            "policy": self.model.kind,
            "rival": None if self.model.rival is None else dataclasses.asdict(self.model.rival),
            "train": to_json(self.config),
            "task": task.name,
            "dataset": {"id": self.data.dataset_id, "sha256": self.data.content_hash, "steps": self.data.steps},
            **self.data.facts,
            "codec": codec_to_json(self.codec),
            "precision": self.precision,
            "ranks": world_size(),
            "quantization": quantization_of(self.model),
            "revision": git_revision(),
            "torch": torch.__version__,
            "step": self.step,
            "scores": self.scores,
            "best": self.best,
        }

    def save(self, name: str | None = None) -> None:
        """Write the checkpoint, or another one (the best) beside it."""
        reported = self.reported()
        tensors = named("model", reported)
        if name is None:
            own = {} if reported is self.model else named(TRAINED, self.model)
            self.directory.save({**tensors, **own, **optimizer_tensors(self.optimizer)}, self.header())
        else:
            self.directory.save(tensors, {**self.header(), "scores": [self.best]}, name)

    def restore(self) -> None:
        """Continue from the run directory's checkpoint.

        Raises:
            UserError: the checkpoint belongs to another config or dataset.
        """
        checkpoint = load_checkpoint(self.config.out)
        mine, theirs = self.header(), checkpoint.header
        my_settings, their_settings = (
            {**flat_settings({**ADDED_SETTINGS, "model": ADDED_TO_MODEL}), **flat_settings(header["train"])}
            for header in (mine, theirs)
        )
        different = [
            name
            for name in sorted(my_settings.keys() - FREE_ON_RESUME, key=lambda name: (name != "policy", name))
            if my_settings[name] != their_settings.get(name)
        ]
        different += [
            name
            for name in ("dataset", ENVIRONMENT_FACT, TASK_FACT, "codec", "precision", "ranks")
            if mine.get(name) != theirs.get(name)
        ]
        if checkpoint.model_config() != self.config.model:
            different.append("model")
        if self.config.fine_tunes != (fine_tuned_from(checkpoint) is not None):
            different.append("init")
        rival = theirs.get("rival")
        if mine["rival"] != (rival and dataclasses.asdict(rival_from_json(rival))):  # with its younger fields' defaults
            different.append("rival")
        if different:
            raise UserError(f"--resume: {checkpoint.path} was trained with another {different[0]}: repeat its settings")
        if theirs["step"] and not checkpoint.group("optimizer"):
            raise UserError(f"--resume: {checkpoint.path} was stripped for inference: start a new run instead")
        reported = checkpoint.group("model")
        try:
            self.model.load_state_dict(checkpoint.group(TRAINED) or reported)
            if self.average is not None:
                self.average.restore(reported)
        except (RuntimeError, KeyError) as error:
            told = " ".join(str(error).split())
            raise UserError(f"--resume: {checkpoint.path}: tensors do not fit the config: {told}") from None
        restore_optimizer(self.optimizer, checkpoint.group("optimizer"))
        self.step, self.best, self.scores = int(theirs["step"]), theirs.get("best"), theirs["scores"]

    def train_step(self, batch: Batch) -> float:
        """One optimizer step; returns the loss over the global batch."""
        config = self.config
        set_blend(self.model, blend_factor(self.step, config))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(self.step, config)
        if self.model.randomised:
            torch.manual_seed(step_seed(config.seed, self.step, rank()))
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        value = loss.detach().clone()
        sum_over_ranks(value)
        loss.backward()
        sum_over_ranks(*(parameter.grad for parameter in self.parameters if parameter.grad is not None))
        if self.pruner is not None:
            self.pruner.hold_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip)
        if not torch.isfinite(value + norm):  # before the weights move: no checkpoint ever holds broken ones
            found = f"the loss is {float(value):g} and its gradient's norm {float(norm):g} at step {self.step}"
            raise CommandFailed(f"{found}: lower --learning-rate")
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        self.step += 1
        if self.pruner is not None:
            self.pruner.prune(
                pruning_factor(self.step, config), () if self.average is None else (self.average.weights,)
            )
        return float(value)

    def reported(self) -> DecisionModel:
        """The model as it is scored, kept and exported at this step; every rank has to ask for it.

        It is the model that trains, or where ``ema`` or ``norm_batches`` ask for it a copy, see
        :mod:`dsf.train.averaging`.
        """
        count = self.config.norm_batches if has_statistics(self.model) else 0
        if self.average is None and not count:
            return self.model
        if self._reported is None or self._reported[0] != self.step:
            source = dataclasses.replace(self.batches, seed=self.config.seed + STATISTICS_SEED)
            drawn = (source.draw(number) for number in range(count))
            batches = (
                (batch.integers.to(self.device), batch.mask.to(self.device), batch.ends.to(self.device))
                for batch in drawn
            )
            self._reported = self.step, reported_copy(self.model, self.average, batches)
        return self._reported[1]

    def loss(self, batch: Batch) -> Tensor:
        """This rank's share of the loss: it is the sum over ranks that is a mean over the global batch.

        Mean squared action error, or cross entropy of the choice, plus the penalty on activity.
        """
        mask = batch.mask.to(self.device)
        actions = batch.actions.to(self.device)[mask]
        config, weight = self.config, self.config.rate_penalty * penalty_factor(self.step, self.config)
        if not weight:
            return self.action_loss(self.predict(batch), actions) / batch.tokens
        with record_activity(self.model, by_token=config.rate_penalty_counts == "fetches") as activity:
            loss = self.action_loss(self.predict(batch), actions) / batch.tokens
        share_of_tokens = len(actions) / batch.tokens
        penalised = activity.penalised(config.rate_penalty_counts, config.rate_penalty_over, config.bits)
        return loss + weight * share_of_tokens * penalised

    def predict(self, batch: Batch) -> Tensor:
        """Answers for the existing tokens, (tokens, action_size) in float32."""
        integers, mask, ends = (part.to(self.device) for part in (batch.integers, batch.mask, batch.ends))
        tokens = PackedTokens(mask, ends)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            answers: Tensor = self.model.decide(tokens.pack(integers), tokens)
        return answers.float()

    def action_loss(self, answers: Tensor, actions: Tensor) -> Tensor:
        """Summed over tokens, averaged over the action's components."""
        if self.data.task.discrete:
            return functional.cross_entropy(answers, actions, reduction="sum")
        return functional.mse_loss(answers, actions, reduction="sum") / actions.shape[-1]

    def run(self, observer: TrainingObserver = SILENT) -> dict[str, Any]:
        """Train to the end, evaluate the last checkpoint, and return its header."""
        config = self.config
        self.directory.open(to_json(config), self.step, config.steps, keep_best=self.best is not None)
        with observer.training(self.step, config.steps):
            self.model.train()
            for batch in self.batches.from_step(self.step, config.steps):
                loss = self.train_step(batch)
                self.log(loss)
                observer.stepped(self.step, config.steps, loss)
                if config.eval_every and self.step % config.eval_every == 0 and self.step < config.steps:
                    self.evaluate(observer)
                if self.step % config.checkpoint_every == 0 and self.step < config.steps:
                    self.save()
            self.save()
            self.evaluate(observer)
            self.save()
            wait_for_all()
        return self.header()

    def log(self, loss: float) -> None:
        """Metrics of the step that is done, where they are due."""
        config = self.config
        if self.step % config.log_every == 0 or self.step == config.steps:
            self.directory.log(self.step, {LOSS: loss, "train/blend": blend_factor(self.step - 1, config)})

    def evaluate(self, observer: TrainingObserver) -> None:
        """Score the weights as they are now, keep them if they are the best so far, and log the activity.

        Rank 0 plays the episodes; the others wait.
        """
        config, task = self.config, self.data.task
        self.activity = self.measure_activity()
        metrics = self.activity.as_metrics() | ({} if self.pruner is None else self.pruner.as_metrics())
        if rank() == 0 and config.eval_episodes and not self.data.unscored:
            targets = config.eval_targets or task.target_returns
            seeds = range(config.eval_seed, config.eval_seed + config.eval_episodes)
            with observer.evaluating(len(targets) * config.eval_episodes * task.max_steps) as advance:
                found = evaluate(deployed(self.reported()), task, "last", self.step, targets, seeds, advance)
            self.scores = merge_scores(self.scores, [score.to_json() for score in found])
            metrics |= {f"eval/return@{score['target_return']:g}": score["return_mean"] for score in self.scores}
            self.keep_best()
        self.directory.log(self.step, metrics)

    def keep_best(self) -> None:
        """Save the weights beside the last ones where they score best so far; the same seeds choose and score."""
        top = max(self.scores, key=lambda score: float(score["return_mean"]))
        if self.config.eval_every and (self.best is None or top["return_mean"] > self.best["return_mean"]):
            self.best = {**top, "checkpoint": "best"}
            self.save(BEST_NAME)

    def measure_activity(self) -> FiringStatistics:
        """Firing rates and synaptic events on windows of the training data, in evaluation mode."""
        source = BatchSource(self.data, self.codec, ACTIVITY_WINDOWS, self.config.model.context, self.config.eval_seed)
        batch, model = source.draw(0), self.reported()
        model.eval()
        with torch.no_grad(), record_activity(model, by_token=model.kind == "dsformer") as activity:
            model(*(part.to(self.device) for part in (batch.integers, batch.mask, batch.ends)))
        self.model.train()
        return activity

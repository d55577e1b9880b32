"""Averaged weights and statistics estimated anew: their definitions, and that an interruption changes neither."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dsf.shell.command import parse_arguments
from dsf.shell.errors import CommandFailed
from dsf.testing.command_line import assert_refused
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, metrics, train_here, trained
from dsf.train import TrainConfig, train
from dsf.train.checkpoint import load_checkpoint
from dsf.train.config.training import ModelConfig
from dsf.train.data.dataset import load_dataset
from dsf.train.evaluation.closed_loop import evaluate
from dsf.train.models.dsformer import DSFormer
from dsf.train.observer import TrainingObserver
from dsf.train.trainer import STATISTICS_SEED, Trainer

KEEP, BATCHES, STEPS = 0.9, 3, 12
SMALL = ModelConfig(width=8, blocks=1, context=6, window=3)
RECIPE = ("--ema", str(KEEP), "--norm-batches", str(BATCHES))
SETTINGS = ("--steps", str(STEPS), "--checkpoint-every", "5", *TINY, *UNSCORED)


def small_trainer(out: Path, **settings: object) -> Trainer:
    config = TrainConfig(HOPPER, out, SMALL, steps=STEPS, batch_size=8, threads=1, device="cpu", **settings)  # type: ignore[arg-type]
    return Trainer(config, load_dataset(HOPPER))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_store")
def test_averaged_weights_are_the_recursion_over_all_steps(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, ema=KEEP)
    expected = {name: weight.detach().double() for name, weight in trainer.model.named_parameters()}
    for batch in trainer.batches.from_step(0, STEPS):
        trainer.train_step(batch)
        for name, weight in trainer.model.named_parameters():
            expected[name] = KEEP * expected[name] + (1.0 - KEEP) * weight.detach().double()
    reported = trainer.reported()
    assert reported is not trainer.model
    for name, weight in reported.named_parameters():
        assert torch.allclose(weight.double(), expected[name], atol=1e-6)
    assert any(not torch.allclose(w, dict(trainer.model.named_parameters())[n]) for n, w in reported.named_parameters())


@pytest.mark.usefixtures("tiny_store")
def test_new_statistics_are_plain_means_over_batches_of_the_very_weights(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, norm_batches=BATCHES)
    for batch in trainer.batches.from_step(0, STEPS):
        trainer.train_step(batch)
    model, reported = trainer.model, trainer.reported()
    assert isinstance(model, DSFormer) and isinstance(reported, DSFormer)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), reported.parameters()))
    means, variances = [], []
    source = replace(trainer.batches, seed=trainer.config.seed + STATISTICS_SEED)
    for number in range(BATCHES):
        batch = source.draw(number)
        embedded = model.embed(batch.integers[batch.mask] * model.input_unit).detach().double()
        means.append(embedded.mean(dim=0))
        variances.append(embedded.var(dim=0, unbiased=True))
    statistics = reported.embed_norm.batch
    assert torch.allclose(statistics.running_mean.double(), torch.stack(means).mean(dim=0), atol=1e-5)
    assert torch.allclose(statistics.running_var.double(), torch.stack(variances).mean(dim=0), rtol=1e-4)
    assert trainer.model.training


class PowerCut(TrainingObserver):
    """Ends a run after its seventh step."""

    def stepped(self, step: int, steps: int, loss: float) -> None:
        if step == 7:
            raise CommandFailed("the power went off")


@pytest.mark.usefixtures("same_threads")
@pytest.mark.parametrize("policy", ["dsformer", "dt"])
def test_an_interrupted_run_with_averages_continues_bit_for_bit(policy: str, tiny_store: Path, tmp_path: Path) -> None:
    settings, whole, broken = (*SETTINGS, *RECIPE, "--policy", policy), tmp_path / "whole", tmp_path / "broken"
    trained(HOPPER, "--out", str(whole), *settings)
    config = parse_arguments(TrainConfig, "dsf-train", "", [HOPPER, "--out", str(broken), *settings])
    with pytest.raises(CommandFailed, match="the power went off"):
        train(config, PowerCut())
    assert load_checkpoint(broken).header["step"] == 5
    trained(HOPPER, "--out", str(broken), *settings, "--resume")
    mine, theirs = load_checkpoint(broken).tensors, load_checkpoint(whole).tensors
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert {name.split(".")[0] for name in mine} == {"model", "trained", "optimizer"}
    assert metrics(broken) == metrics(whole)
    assert_refused(train_here(HOPPER, "--out", str(broken), *SETTINGS, "--policy", policy, "--resume"), "another ema")


def test_the_checkpoint_holds_what_was_scored(tiny_store: Path, tmp_path: Path) -> None:
    """Not the weights that training ended with: those are another policy."""
    scored = ("--eval-episodes", "1", "--eval-targets", "3600", "--learning-rate", "1e-2")
    trained(HOPPER, "--out", str(tmp_path), "--steps", "12", *TINY, *RECIPE, *scored)
    checkpoint = load_checkpoint(tmp_path)
    (again,) = evaluate(checkpoint.build_model(), load_dataset(HOPPER).task, "last", 12, (3600.0,), range(1000, 1001))
    assert list(again.returns) == checkpoint.header["scores"][0]["returns"]
    trained_weights, reported = checkpoint.group("trained"), checkpoint.group("model")
    assert np.any([not torch.equal(trained_weights[name], reported[name]) for name in reported])


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--ema", "1"), "--ema is 1.0: it is a share, above 0 and below 1"),
        (("--ema", "0"), "--ema is 0.0: it is a share, above 0 and below 1"),
        (("--ema", "nan"), "--ema is nan: it is a share, above 0 and below 1"),
        (("--norm-batches", "-1"), "--norm-batches is -1: it must be at least 0"),
    ],
)
def test_what_is_no_share_is_refused(arguments: tuple[str, ...], fragment: str, tmp_path: Path) -> None:
    assert_refused(train_here(HOPPER, "--out", str(tmp_path / "run"), *arguments), fragment)
    assert not (tmp_path / "run").exists()

"""Every kind of model and of loss: it learns for 100 steps on the real command line, reloads and is scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dsf.testing.training_runs import CARTPOLE, HOPPER, TINY, UNSCORED, metrics, trained
from dsf.train.checkpoint import load_checkpoint
from dsf.train.models.decision_model import DecisionModel
from dsf.train.run_directory import LOSS

STEPS = 100
SCORED = ("--eval-episodes", "1", "--eval-targets", "3600")
FAST = ("--learning-rate", "1e-2", "--batch-size", "16")
"""A hundred steps of a tiny model need it to learn anything."""

KINDS = {
    **{name: ("--model.attention", name) for name in ("pssa", "tssa", "sssa", "sdsa1", "sdsa3", "none")},
    **{f"norm {name}": ("--model.norm", name) for name in ("tdbn", "tdln", "reptbn", "none")},  # pssa has ptbn
    "full bias": ("--model.positional-bias", "full"),
    "layer norm behind the embedding": ("--model.embed-norm", "layernorm"),
    "inputs that are not quantized": ("--model.input-bits", "0"),
    "the paper's embedding": ("--model.embed-norm", "layernorm", "--model.input-bits", "0"),
    "two heads": ("--model.attention", "tssa", "--model.heads", "2"),
    "snnTorch's neurons": ("--neuron", "snntorch"),
    "bf16": ("--precision", "bf16"),
    "fp32": ("--precision", "fp32"),
    "rate penalty": ("--rate-penalty", "0.1"),
    "delayed reward": ("--data.delayed-reward",),
    "best episodes": ("--data.top-percent", "50"),
}
CANNOT_BECOME_SPIKES = {
    "norm tdln": "model.norm is tdln",
    "inputs that are not quantized": "model.input_bits is 0",
}


def answers(model: DecisionModel) -> torch.Tensor:
    """Actions of a model for one batch of windows, the first of them padded."""
    mask = torch.ones(2, model.config.context, dtype=torch.bool)
    mask[0, :-1] = False
    integers = torch.ones(*mask.shape, len(model.codec.unit)) * mask[..., None]
    with torch.no_grad():
        output: torch.Tensor = model(integers, mask)
    return output


def assert_learned(run: Path) -> None:
    """The loss fell from the first ten steps to the last ten."""
    losses = [row[LOSS] for row in metrics(run) if LOSS in row]
    assert len(losses) == STEPS and np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_reloads_and_is_scored(kind: str, tiny_store: Path, tmp_path: Path) -> None:
    said = trained(HOPPER, "--out", str(tmp_path), "--steps", str(STEPS), *TINY, *FAST, *SCORED, *KINDS[kind])
    assert_learned(tmp_path)
    rows = metrics(tmp_path)
    assert rows[0]["train/blend"] == 1.0 and rows[STEPS - 1]["train/blend"] == 0.0
    assert rows[-1]["step"] == STEPS and "eval/return@3600" in rows[-1] and rows[-1]["events_per_token"] > 0.0

    checkpoint = load_checkpoint(tmp_path)
    model = checkpoint.build_model()
    assert model.config.width == 8 and torch.isfinite(answers(model)).all() and not model.training
    assert [len(score["returns"]) for score in checkpoint.header["scores"]] == [1]

    before_training = said.split("step 10 of 100")[0]
    warning = "warning: this run cannot be exported: "
    assert said.count(warning) == before_training.count(warning)
    assert (warning + CANNOT_BECOME_SPIKES.get(kind, "nothing") in before_training) == (kind in CANNOT_BECOME_SPIKES)
    assert warning not in said or kind not in ("pssa", "norm tdbn", "norm none", "rate penalty")


@pytest.mark.slow
def test_choices_are_trained_and_scored(tiny_store: Path, tmp_path: Path) -> None:
    scored = ("--eval-episodes", "2", "--eval-targets", "50")
    trained(CARTPOLE, "--out", str(tmp_path), "--steps", str(STEPS), *TINY, *FAST, *scored)
    assert_learned(tmp_path)
    (score,) = load_checkpoint(tmp_path).header["scores"]
    assert score["target_return"] == 50.0 and len(score["returns"]) == 2 and min(score["returns"]) >= 1.0
    model = load_checkpoint(tmp_path).build_model()
    assert model.discrete and answers(model).shape == (2, 6, 2)


@pytest.mark.slow
def test_rate_penalty_lowers_activity(tiny_store: Path, tmp_path: Path) -> None:
    events = []
    for weight in ("0", "5"):
        run = tmp_path / weight
        penalty = ("--rate-penalty", weight)
        trained(HOPPER, "--out", str(run), "--steps", str(STEPS), *TINY, *FAST, *UNSCORED, *penalty)
        events.append(metrics(run)[-1]["events_per_token"])
    assert events[1] < 0.7 * events[0]

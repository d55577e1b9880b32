"""The real command line: training, resuming bit for bit, and refusing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_refused, run_command
from safetensors.torch import load_file

from dsf.tasks import UserError
from dsf.train.checkpoint import CHECKPOINT_NAME, load_checkpoint
from dsf.train.config import TrainConfig
from dsf.train.trainer import blend_factor, learning_rate_factor

TINY = ["--model.width", "8", "--model.blocks", "1", "--model.context", "6", "--model.window", "3"]
TINY += ["--batch-size", "4", "--log-every", "5", "--eval-episodes", "1", "--threads", "1"]


@pytest.fixture
def dataset(minari_store: Path) -> str:
    """A small local dataset."""
    assert run_command("dsf-data", "collect", "hopper-medium", "--steps", "400").returncode == 0
    return "dsf/hopper/medium-v0"


def test_train_writes_a_run_that_reloads(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run_command("dsf-train", dataset, "--out", str(out), "--steps", "20", *TINY)
    assert result.returncode == 0, result.stderr
    assert "target return 3600" in result.stdout and "95 %" in result.stdout
    assert json.loads((out / "config.json").read_text())["model"]["width"] == 8
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 20] and "eval/return" in rows[-1]
    assert list(out.glob("events.out.tfevents*"))
    checkpoint = load_checkpoint(out)
    assert checkpoint.header["dataset"]["id"] == dataset and checkpoint.header["scores"][0]["checkpoint"] == "last"
    assert checkpoint.build_model().config.width == 8
    assert_refused(run_command("dsf-train", dataset, "--out", str(out), *TINY), "--resume")


def test_resume_is_bit_identical_to_an_unbroken_run(dataset: str, tmp_path: Path) -> None:
    settings = ["--steps", "30", "--checkpoint-every", "10", *TINY, "--eval-episodes", "0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_command("dsf-train", dataset, "--out", str(whole), *settings).returncode == 0
    # Stop the second run after its first checkpoint by asking for it in a process that dies right there.
    script = (
        "import os, sys; from dsf.train import trainer, cli\n"
        "save = trainer.Trainer.save\n"
        "def save_and_die(self, header):\n"
        "    save(self, header); os._exit(9)\n"
        "trainer.Trainer.save = save_and_die\n"
        f"sys.argv = ['dsf-train', {dataset!r}, '--out', {str(broken)!r}] + {settings!r}\n"
        "cli.main()\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 9
    assert load_checkpoint(broken).header["step"] == 10
    resumed = run_command("dsf-train", dataset, "--out", str(broken), "--resume", *settings)
    assert resumed.returncode == 0, resumed.stderr
    left, right = load_file(whole / CHECKPOINT_NAME), load_file(broken / CHECKPOINT_NAME)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    other = run_command("dsf-train", dataset, "--out", str(broken), "--resume", *settings, "--seed", "5")
    assert_refused(other, "another seed")


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", -1), ("eval_seed", -1), ("eval_episodes", -1), ("batch_size", 1), ("learning_rate", float("nan"))],
)
def test_config_refuses_numbers_that_cannot_work(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} is"):
        TrainConfig("x", **{field: value})


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(run_command("dsf-train", "dsf/x-v0", "--out", str(tmp_path / "file" / "run")), "name a directory")


def test_schedules() -> None:
    config = TrainConfig("x", steps=100)
    assert blend_factor(0, config) == 1.0 and blend_factor(5, config) == 0.5 and blend_factor(10, config) == 0.0
    assert learning_rate_factor(0, config) == pytest.approx(0.1) and learning_rate_factor(9, config) == 1.0
    assert learning_rate_factor(10, config) == 1.0 and learning_rate_factor(99, config) < 1e-3


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path)
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path)

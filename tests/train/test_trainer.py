"""The real command line: a run's files and scores, and one line for everything that can go wrong."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer

from dsf.shell.errors import UserError
from dsf.tasks import get_task
from dsf.testing.command_line import assert_failed, assert_refused, run_command
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, metrics, train_here, trained
from dsf.train.checkpoint import CHECKPOINT_NAME, load_checkpoint
from dsf.train.config.training import TrainConfig
from dsf.train.evaluation.closed_loop import evaluate
from dsf.train.evaluation.score import Score
from dsf.train.run_directory import BEST_NAME, METRICS_NAME
from dsf.train.schedule import blend_factor, learning_rate_factor

TARGETS = ("3600.0", "1800.0")
EVALUATED = ("--eval-episodes", "2", "--eval-seed", "40", "--eval-targets", *TARGETS)
DISK_FULL_TIMEOUT_S = 120.0


@pytest.mark.slow
def test_train_writes_a_run_that_reloads(tiny_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("--steps", "20", *TINY, "--log-every", "5", "--eval-episodes", "1")
    result = run_command("dsf-train", HOPPER, "--out", str(out), *settings)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "target return 3600, one episode (seed 1000)" in result.stdout
    assert "last checkpoint, target return 1800" in result.stdout and "best checkpoint" not in result.stdout
    assert json.loads((out / "config.json").read_text())["model"]["width"] == 8
    assert [row["step"] for row in metrics(out)] == [5, 10, 15, 20, 20]
    assert {"eval/return@3600", "eval/return@1800", "events_per_token"} <= metrics(out)[-1].keys()
    assert len(list(out.glob("events.out.tfevents*"))) == 1 and not (out / BEST_NAME).exists()
    checkpoint = load_checkpoint(out)
    assert checkpoint.header["dataset"]["id"] == HOPPER and checkpoint.header["step"] == 20
    assert checkpoint.build_model().config.width == 8


@pytest.mark.slow
def test_best_and_last_are_kept_apart(tiny_store: Path, tmp_path: Path) -> None:
    said = trained(HOPPER, "--out", str(tmp_path), "--steps", "80", "--eval-every", "20", *TINY, *EVALUATED)
    last, best = load_checkpoint(tmp_path).header, load_checkpoint(tmp_path / BEST_NAME).header
    assert [score["checkpoint"] for score in last["scores"]] == ["last", "last"]
    assert [score["target_return"] for score in last["scores"]] == [3600.0, 1800.0]
    assert all(score["seeds"] == [40, 41] and score["step"] == 80 for score in last["scores"])

    rows = [row for row in metrics(tmp_path) if "events_per_token" in row]
    assert [row["step"] for row in rows] == [20, 40, 60, 80]
    returns = [max(row["eval/return@3600"], row["eval/return@1800"]) for row in rows]
    top = int(np.argmax(returns))  # the first of equals
    (score,) = best["scores"]
    assert score == best["best"] == last["best"]
    assert score["checkpoint"] == "best" and score["seeds"] == [40, 41]
    assert score["return_mean"] == returns[top] and score["step"] == best["step"] == rows[top]["step"]
    assert f"best checkpoint by these episodes (step {score['step']})" in said and str(tmp_path / BEST_NAME) in said

    task = get_task("hopper")  # the files hold the weights that were scored, and the same seeds score the same
    for name, scores in ((CHECKPOINT_NAME, last["scores"]), (BEST_NAME, best["scores"])):
        model = load_checkpoint(tmp_path / name).build_model()
        for recorded in scores:
            targets = [recorded["target_return"]]
            (score,) = evaluate(model, task, recorded["checkpoint"], recorded["step"], targets, [40, 41])
            assert score.to_json() == recorded and Score.from_json(recorded) == score
    assert not load_checkpoint(tmp_path / BEST_NAME).group("optimizer")


@pytest.mark.slow
def test_evaluation_leaves_the_weights_alone(tiny_store: Path, tmp_path: Path) -> None:
    for name, evaluations in (("often", ("--eval-every", "5", *EVALUATED)), ("never", UNSCORED)):
        trained(HOPPER, "--out", str(tmp_path / name), "--steps", "15", *TINY, *evaluations)
    often, never = load_checkpoint(tmp_path / "often").tensors, load_checkpoint(tmp_path / "never").tensors
    assert often.keys() == never.keys() and all(torch.equal(often[name], never[name]) for name in often)


@pytest.mark.slow
@pytest.mark.parametrize("file_name", [CHECKPOINT_NAME, METRICS_NAME])
def test_full_disk_ends_in_one_line_and_the_run_goes_on(file_name: str, tiny_store: Path, tmp_path: Path) -> None:
    steps = 300
    often = ("--steps", str(steps), "--checkpoint-every", "5")
    settings = ("--out", str(tmp_path), *often, *TINY, *UNSCORED, "--model.width", "32")
    command = [str(Path(sys.executable).parent / "dsf-train"), HOPPER, *settings]
    process = subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + DISK_FULL_TIMEOUT_S
    while not (tmp_path / CHECKPOINT_NAME).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    # From now on no file may grow beyond this, which fails as on a full disk, in the middle of a write.
    size = (tmp_path / file_name).stat().st_size
    room = size // 2 if file_name == CHECKPOINT_NAME else size + 10
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, room))
    _, errors = process.communicate(timeout=DISK_FULL_TIMEOUT_S)
    ended = subprocess.CompletedProcess([], process.returncode, "", errors)
    assert_failed(ended, f"could not write {tmp_path}", "File too large", "free some space", "--resume")
    assert not list(tmp_path.glob("*.partial"))

    good = load_checkpoint(tmp_path)
    assert 5 <= good.header["step"] < steps and good.build_model().config.width == 32
    said = trained(HOPPER, *settings, "--resume")
    assert f"step {good.header['step']} of {steps}" in said and load_checkpoint(tmp_path).header["step"] == steps
    assert [row["step"] for row in metrics(tmp_path)] == [*range(1, steps + 1), steps]


def test_diverging_run_ends_in_one_line_and_keeps_no_broken_weights(tiny_store: Path, tmp_path: Path) -> None:
    settings = ("--steps", "60", "--checkpoint-every", "1", *TINY, *UNSCORED)
    result = train_here(HOPPER, "--out", str(tmp_path), *settings, "--learning-rate", "1e9")
    assert_failed(result, "the loss is", "lower --learning-rate")
    assert all(torch.isfinite(tensor).all() for tensor in load_checkpoint(tmp_path).tensors.values())


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide a GPU that the machine may have."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("--model.context", "5000"), ("--model.context is 5000, longer than every episode", "choose")),
        (("--device", "cuda"), ("--device is cuda", "--device cpu")),
        (("--eval-targets", "many"), ("--eval-targets",)),
        (("--data.top-percent", "0"), ("--data.top-percent is 0",)),
    ],
    ids=["context", "device", "targets", "top percent"],
)
def test_wrong_arguments_are_refused(
    arguments: tuple[str, ...], fragments: tuple[str, ...], tiny_store: Path, tmp_path: Path
) -> None:
    assert_refused(train_here(HOPPER, "--out", str(tmp_path / "run"), *TINY, *arguments), *fragments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        ({"observations": np.full((31, 11), np.nan)}, "observations holds a value that is not finite"),
        ({"rewards": np.zeros((30, 2))}, "rewards has shape (30, 2)"),
    ],
    ids=["NaN", "shape"],
)
def test_wrong_data_are_refused(
    changed: dict[str, np.ndarray], fragment: str, minari_store: Path, tmp_path: Path
) -> None:
    episode = EpisodeBuffer(
        observations=np.zeros((31, 11)),
        actions=np.zeros((30, 3), np.float32),
        rewards=np.zeros(30),
        terminations=np.arange(30) == 29,
        truncations=np.zeros(30, bool),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari misses an author, a permalink and an environment
        minari.create_dataset_from_buffers(
            "test/wrong-v0",
            [episode, replace(episode, **changed)],
            observation_space=Box(-np.inf, np.inf, (11,), np.float64),
            action_space=Box(-1, 1, (3,), np.float32),
        )
    metadata = minari_store / "test/wrong-v0/data/metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "env_spec": EnvSpec("Hopper-v5").to_json()}))
    result = train_here("test/wrong-v0", "--out", str(tmp_path / "run"), *TINY)
    assert_refused(result, "dataset 'test/wrong-v0', episode 1", fragment)


def test_missing_dataset_is_refused(minari_store: Path, tmp_path: Path) -> None:
    assert_refused(train_here("dsf/hopper/medium-v0", "--out", str(tmp_path / "run")), "dsf-data collect")


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", -1), ("eval_seed", -1), ("eval_episodes", -1), ("batch_size", 1), ("learning_rate", float("nan"))],
)
def test_config_refuses_numbers_that_cannot_work(field: str, value: float) -> None:
    wrong: dict[str, Any] = {field: value}
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} is"):
        TrainConfig("x", **wrong)


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(train_here("dsf/x-v0", "--out", str(tmp_path / "file" / "run")), "name a directory")


def test_schedules() -> None:
    config = TrainConfig("x", steps=100)
    assert blend_factor(0, config) == 1.0 and blend_factor(5, config) == 0.5 and blend_factor(10, config) == 0.0
    assert learning_rate_factor(0, config) == pytest.approx(0.1) and learning_rate_factor(9, config) == 1.0
    assert learning_rate_factor(10, config) == 1.0 and learning_rate_factor(99, config) < 1e-3
    for steps in range(1, 60):
        config = TrainConfig("x", steps=steps)
        assert max(learning_rate_factor(step, config) for step in range(steps)) <= 1.0


def test_directory_of_something_else_is_not_overwritten(tiny_store: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"name": "another project"}')
    (tmp_path / "other.partial").write_text("not ours")
    assert_refused(train_here(HOPPER, "--out", str(tmp_path), *TINY), "that is not dsf-train's")
    assert (tmp_path / "config.json").read_text() == '{"name": "another project"}'
    assert (tmp_path / "other.partial").exists()


def test_targets_beyond_the_input_range_are_noted(tiny_store: Path, tmp_path: Path) -> None:
    said = trained(
        HOPPER, "--out", str(tmp_path), "--steps", "2", *TINY, "--eval-episodes", "1", "--eval-targets", "9000"
    )
    assert "return-to-go ends at 3600: 9000 looks the same" in said


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path)
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path)

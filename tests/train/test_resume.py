"""Interrupted runs: killed, continued bit for bit, and refused where they cannot be continued."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsf.shell.files import partial_name
from dsf.shell.held_directory import LOCK_NAME, held
from dsf.testing.command_line import assert_refused
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, metrics, train_here, trained
from dsf.train.checkpoint import CHECKPOINT_NAME, load_checkpoint, save_checkpoint
from dsf.train.run_directory import BEST_NAME, LOSS, METRICS_NAME

ENDURANCE = Path(__file__).parents[2] / "endurance"
STEPS = 12
SETTINGS = ("--steps", str(STEPS), "--checkpoint-every", "4", "--eval-every", "4", *TINY)
SCORED = ("--eval-episodes", "1", "--eval-targets", "3600")


@pytest.fixture(scope="module")
def finished(filled_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with scores and a best checkpoint; tests work on copies."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(filled_store))
        trained(HOPPER, "--out", str(run), *SETTINGS, *SCORED)
    return run


@pytest.fixture
def run(finished: Path, tiny_store: Path, tmp_path: Path) -> Path:
    """This test's own copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.slow
def test_killed_runs_end_as_the_unbroken_one(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, str(ENDURANCE / "kill_and_resume.py"), "--quick", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, (done.stdout, done.stderr)
    result = json.loads(report.read_text())
    assert result["mismatches"] == [] and result["kills"] == len(result["moments"]) == 3
    assert {moment["aim"] for moment in result["moments"]} == {"writing", "any", "starting"}
    assert "kill 3 of 3" in done.stdout and "0 mismatches" in done.stdout


def test_finished_run_is_scored_at_another_target_and_keeps_its_scores(run: Path) -> None:
    before = load_checkpoint(run).header["scores"]
    trained(HOPPER, "--out", str(run), "--resume", *SETTINGS, *SCORED, "--eval-targets", "777")
    after = load_checkpoint(run).header["scores"]
    assert after[: len(before)] == before and [score["target_return"] for score in after[len(before) :]] == [777.0]
    last = json.loads((run / METRICS_NAME).read_text().splitlines()[-1])
    assert {f"eval/return@{score['target_return']:g}" for score in after} <= set(last)


def test_run_continues_over_what_a_kill_left_behind(run: Path) -> None:
    before = {name: load_file(run / name) for name in (CHECKPOINT_NAME, BEST_NAME)}
    rows, best = (run / METRICS_NAME).read_text(), load_checkpoint(run).header["best"]
    leftovers = [run / partial_name(name) for name in (CHECKPOINT_NAME, BEST_NAME, "config.json")]
    for leftover in leftovers:
        leftover.write_bytes(b"half a file")
    with (run / METRICS_NAME).open("a") as file:
        file.write('{"step": 13, "train/loss": 0.1}\n{"step": 14, "train/l')
    trained(HOPPER, "--out", str(run), "--resume", *SETTINGS, *SCORED)
    assert not any(leftover.exists() for leftover in leftovers)
    assert (run / METRICS_NAME).read_text() == rows  # the last evaluation came again, and stands there once
    for name, tensors in before.items():
        after = load_file(run / name)
        assert after.keys() == tensors.keys() and all(torch.equal(after[key], tensors[key]) for key in tensors)
    assert load_checkpoint(run).header["best"] == best


def test_new_run_over_one_killed_before_its_first_checkpoint_starts_from_nothing(run: Path) -> None:
    (run / CHECKPOINT_NAME).unlink()
    trained(HOPPER, "--out", str(run), *SETTINGS, *UNSCORED, "--eval-every", "0", "--seed", "3")
    assert [row["step"] for row in metrics(run)] == [*range(1, STEPS + 1), STEPS]
    assert not (run / BEST_NAME).exists()  # it was another run's
    assert load_checkpoint(run).header["best"] is None


def test_tensorboard_keeps_every_step_once(run: Path) -> None:
    trained(HOPPER, "--out", str(run), "--resume", *SETTINGS, *SCORED)
    assert len(list(run.glob("events.out.tfevents*"))) == 2
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars(LOSS)] == list(range(1, STEPS + 1))
    logged = [row[LOSS] for row in metrics(run) if LOSS in row]
    assert [event.value for event in events.Scalars(LOSS)] == pytest.approx(logged)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--seed", "5"), "another seed"),
        (("--steps", "24"), "another steps"),
        (("--model.width", "16"), "another model.width"),
        (("--model.norm", "tdbn"), "another model.norm"),
        (("--data.top-percent", "50"), "another data.top_percent"),
        (("--learning-rate", "0.5"), "another learning_rate"),
    ],
)
def test_other_settings_are_named(changed: tuple[str, str], named: str, run: Path) -> None:
    before = (run / CHECKPOINT_NAME).read_bytes()
    assert_refused(train_here(HOPPER, "--out", str(run), "--resume", *SETTINGS, *changed), "--resume", named)
    assert (run / CHECKPOINT_NAME).read_bytes() == before


def test_settings_that_touch_no_weight_may_change(run: Path) -> None:
    other = ("--eval-targets", "1800", "--eval-seed", "7", "--checkpoint-every", "5", "--log-every", "2")
    trained(HOPPER, "--out", str(run), "--resume", *SETTINGS, *SCORED, *other)
    *_, score = load_checkpoint(run).header["scores"]
    assert score["target_return"] == 1800.0 and score["seeds"] == [7]


def test_other_data_are_refused(run: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
    from dsf.train.data.collect import collect_episodes, get_recipe, write_dataset

    store.mkdir()
    recipe = get_recipe("hopper-medium")
    write_dataset(recipe, collect_episodes(recipe, 200, 9, lambda: None), "test", overwrite=False)
    assert_refused(train_here(HOPPER, "--out", str(run), "--resume", *SETTINGS), "another dataset")


def test_stripped_checkpoint_can_be_read_and_not_continued(run: Path) -> None:
    checkpoint = load_checkpoint(run)
    weights = {f"model.{name}": tensor for name, tensor in checkpoint.group("model").items()}
    header = {key: value for key, value in checkpoint.header.items() if key != "format"}
    save_checkpoint(run / CHECKPOINT_NAME, weights, header)
    assert load_checkpoint(run).build_model().config.width == 8
    assert_refused(train_here(HOPPER, "--out", str(run), "--resume", *SETTINGS), "stripped for inference")


def test_damaged_checkpoint_is_refused(run: Path) -> None:
    path = run / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(train_here(HOPPER, "--out", str(run), "--resume", *SETTINGS), "damaged", CHECKPOINT_NAME)


def test_nothing_to_resume_and_nothing_to_overwrite(run: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    assert_refused(train_here(HOPPER, "--out", str(empty), "--resume", *SETTINGS), "drop --resume")
    assert not empty.exists()
    assert_refused(
        train_here(HOPPER, "--out", str(run), *SETTINGS, *UNSCORED), "already holds a checkpoint", "--resume"
    )


@pytest.mark.slow
def test_two_runs_do_not_share_a_directory(tiny_store: Path, tmp_path: Path) -> None:
    """The second ends at once and says who is there; what the first one writes is its own."""
    out = tmp_path / "run"
    with held(out):
        refused = train_here(HOPPER, "--out", str(out), "--steps", "2", *TINY, *UNSCORED)
    assert_refused(refused, f"{out} is in use by process {os.getpid()}", "name another directory")
    trained(HOPPER, "--out", str(out), "--steps", "2", *TINY, *UNSCORED)
    assert LOCK_NAME not in {path.name for path in out.iterdir()}
    with held(out):
        again = train_here(HOPPER, "--out", str(out), "--steps", "4", *TINY, *UNSCORED, "--resume")
    assert_refused(again, "is in use by process")

"""Training as a function: what it returns, what an observer hears, and that it prints nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dsf.shell.errors import CommandFailed, UserError
from dsf.tasks import Episode
from dsf.testing.training_runs import HOPPER
from dsf.train import TrainConfig, TrainedRun, load_dataset, train
from dsf.train.checkpoint import CHECKPOINT_NAME, load_checkpoint
from dsf.train.config.training import ModelConfig
from dsf.train.data.dataset import OfflineDataset
from dsf.train.evaluation.finished_run import score_run
from dsf.train.evaluation.score import Goals, Score, goals_reached
from dsf.train.observer import TrainingObserver, TrainingStart
from dsf.train.run_directory import BEST_NAME

STEPS, TARGETS, SEED = 6, (3600.0, 1800.0), 40


pytestmark = pytest.mark.usefixtures("same_threads")


def tiny(out: Path) -> TrainConfig:
    """A training of a second."""
    return TrainConfig(
        HOPPER,
        out=out,
        model=ModelConfig(width=8, blocks=1, context=6, window=3),
        steps=STEPS,
        batch_size=8,
        threads=1,
        device="cpu",
        log_every=1,
        eval_every=3,
        eval_episodes=2,
        eval_targets=TARGETS,
        eval_seed=SEED,
    )


class Listening(TrainingObserver):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.losses: list[float] = []
        self.lanes = 0
        self.start: TrainingStart | None = None
        self.run: TrainedRun | None = None

    def loaded(self, config: TrainConfig, data: OfflineDataset) -> None:
        self.heard.append(f"loaded {data.dataset_id}")

    def begun(self, start: TrainingStart) -> None:
        self.heard.append("begun")
        self.start = start

    @contextlib.contextmanager
    def training(self, step: int, steps: int) -> Iterator[None]:
        self.heard.append(f"from {step} to {steps}")
        yield
        self.heard.append("trained")

    def stepped(self, step: int, steps: int, loss: float) -> None:
        self.heard.append(f"step {step} of {steps}")
        self.losses.append(loss)

    @contextlib.contextmanager
    def evaluating(self, steps: int) -> Iterator[Callable[[int], None]]:
        self.heard.append(f"at most {steps} steps to score")

        def count(running: int) -> None:
            self.lanes += running

        yield count

    def finished(self, run: TrainedRun) -> None:
        self.heard.append("finished")
        self.run = run


def test_a_training_returns_what_it_has_written_and_prints_nothing(
    tiny_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run, data = train(tiny(out)), load_dataset(HOPPER)
    assert capfd.readouterr() == ("", "")
    assert (run.checkpoint, run.best_checkpoint) == (out / CHECKPOINT_NAME, out / BEST_NAME)
    assert (run.task, run.step) == ("hopper", STEPS) and run.seconds > 0.0
    assert (run.dataset.dataset_id, run.dataset.content_hash) == (HOPPER, data.content_hash)
    assert run.dataset.steps == data.steps
    checkpoint = load_checkpoint(out)
    assert run.parameters == checkpoint.build_model().parameter_count()
    assert {"format": 1, **run.header} == checkpoint.header
    assert [score.to_json() for score in run.scores] == checkpoint.header["scores"]
    assert [score.target_return for score in run.scores] == list(TARGETS)
    assert all(score.seeds == (SEED, SEED + 1) and score.step == STEPS for score in run.scores)
    assert run.best is not None and run.best.to_json() == checkpoint.header["best"]

    again = train(dataclasses.replace(tiny(out), resume=True, eval_episodes=0))  # a finished run keeps its scores
    assert again.scores == run.scores and again.best == run.best
    plain = train(dataclasses.replace(tiny(tmp_path / "plain"), eval_every=0, eval_episodes=0))
    assert (plain.scores, plain.best, plain.best_checkpoint) == ((), None, None)
    assert capfd.readouterr() == ("", "")


def test_an_observer_hears_everything_in_order(tiny_store: Path, tmp_path: Path) -> None:
    observer = Listening()
    run = train(tiny(tmp_path / "run"), observer)
    scored = f"at most {len(TARGETS) * 2 * 1000} steps to score"
    steps = [f"step {step} of {STEPS}" for step in range(1, STEPS + 1)]
    expected = [f"loaded {HOPPER}", "begun", f"from 0 to {STEPS}", *steps[:3], scored, *steps[3:], scored]
    assert observer.heard == [*expected, "trained", "finished"]
    assert observer.run is run and len(observer.losses) == STEPS and observer.lanes > 0
    start = observer.start
    assert start is not None and start.dataset == run.dataset and (start.step, start.processes) == (0, 1)
    assert start.device == "cpu" and f"{run.parameters:,} parameters" in start.model
    assert start.largest_return == pytest.approx(3600.0, rel=1e-3)


def test_a_training_that_fails_says_why_and_prints_nothing(
    tiny_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, observer = tiny(tmp_path / "run"), Listening()
    with pytest.raises(CommandFailed, match="lower --learning-rate"):
        train(dataclasses.replace(config, learning_rate=1e9, steps=60, eval_every=0), observer)
    assert observer.heard[-1].startswith("step ") and observer.run is None
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a directory"):
        train(tiny(tmp_path / "file"))
    train(config)
    with pytest.raises(UserError, match="already holds a checkpoint"):
        train(config)
    assert capfd.readouterr() == ("", "")


def test_a_run_is_scored_again_as_values_of_one_type(
    tiny_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny(tmp_path / "run"))
    assert tuple(score_run(run.checkpoint, targets=TARGETS, episodes=2, seed=SEED)) == run.scores
    assert run.best_checkpoint is not None and run.best is not None
    (best,) = score_run(run.best_checkpoint, targets=(run.best.target_return,), episodes=2, seed=SEED)
    assert best == run.best
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("goals", [None, Goals(0.5, 1.25), Goals(0.0, None)])
def test_a_score_survives_json(goals: Goals | None) -> None:
    score = Score("torch", "last", 3600.0, (1, 2), (10.0, 20.0), 15.0, (5.0, 25.0), 0.5, goals, 7)
    values = json.loads(json.dumps(score.to_json()))
    assert Score.from_json(values) == score
    assert ("success_rate" in values) == (goals is not None)
    assert goals_reached([]) is None


def test_a_goal_counts_where_no_shortest_way_to_it_is_known() -> None:
    """Adroit's hands say success, and nothing of a way; an environment without goals says neither."""
    hands = [Episode(seed, 1.0, 100, success=seed < 3) for seed in range(4)]
    assert goals_reached(hands) == Goals(0.75, None)
    assert goals_reached([Episode(0, 1.0, 100)]) is None
    mazes = [Episode(0, 1.0, 30, success=True, shortest=20), Episode(1, 0.0, 90, success=False, shortest=10)]
    assert goals_reached(mazes) == Goals(0.5, 1.5)

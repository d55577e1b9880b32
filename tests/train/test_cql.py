"""CQL through d3rlpy, an extra of its own: its data, one line where it is missing, and training where it is not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from dsf.testing.command_line import assert_refused
from dsf.testing.training_runs import CARTPOLE, HOPPER, run_here
from dsf.train.cli import main
from dsf.train.config.training import DataConfig
from dsf.train.conservative_q_learning import CQLConfig, header_of, train_cql, transitions
from dsf.train.data.dataset import load_dataset


def test_without_d3rlpy_one_line_says_how_to_get_it(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "d3rlpy" else name)
    refused = run_here(main, "dsf-train", "cql", HOPPER, "--out", str(tmp_path / "run"))
    assert_refused(refused, "needs d3rlpy", "pip install 'dsf[cql]'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("delayed", [False, True])
def test_transitions_are_the_kept_episodes(delayed: bool, tiny_store: Path) -> None:
    data = load_dataset(HOPPER, DataConfig(delayed_reward=delayed, top_percent=50))
    found = transitions(data)
    assert {len(array) for array in found.values()} == {data.steps} and data.steps < 400
    size, start = data.task.observation_size, 0
    for episode, length in zip(data.kept, data.lengths):
        part, first = slice(start, start + length), data.starts[episode]
        recorded = data.tokens[first : first + length]
        assert np.allclose(found["observations"][part], recorded[:, :size], atol=1e-5)
        assert np.allclose(found["actions"][part], data.actions[first : first + length], atol=1e-6)
        rewards = found["rewards"][part, 0]
        assert np.isclose(rewards.sum(), data.returns[episode], rtol=1e-4)
        assert bool(rewards[:-1].any()) != delayed
        ends = found["terminals"][part] + found["timeouts"][part]
        assert ends.tolist() == [False] * (length - 1) + [True]
        start += length


def test_wrong_arguments_are_refused() -> None:
    assert_refused(run_here(main, "dsf-train", "cql", HOPPER, "--steps", "0"), "--steps is 0")


if importlib.util.find_spec("d3rlpy"):

    @pytest.mark.filterwarnings("ignore")
    def test_cql_trains_and_is_scored(tiny_store: Path, tmp_path: Path) -> None:
        short = ("--steps", "100", "--batch-size", "16", "--eval-episodes", "1", "--threads", "1")
        done = run_here(main, "dsf-train", "cql", HOPPER, "--out", str(tmp_path / "run"), *short)
        assert done.returncode == 0 and "step 100 of 100" in done.stdout, done.stderr
        (score,) = json.loads((tmp_path / "run" / "scores.json").read_text())
        assert score["engine"] == "d3rlpy" and score["step"] == 100 and len(score["returns"]) == 1
        again = run_here(main, "dsf-train", "cql", HOPPER, "--out", str(tmp_path / "run"), *short)
        assert_refused(again, "exists already")
        assert_refused(
            run_here(main, "dsf-train", "cql", CARTPOLE, "--out", str(tmp_path / "x")), "continuous actions only"
        )

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.usefixtures("same_threads")
    def test_cql_as_a_function_returns_its_score(
        tiny_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        config = CQLConfig(HOPPER, out=tmp_path / "run", steps=20, batch_size=8, eval_episodes=1, threads=1)
        steps: list[int] = []
        run = train_cql(config, steps.append)
        assert capfd.readouterr().out == "" and steps == [20]
        assert run.checkpoint.is_file() and run.best_checkpoint is None and run.parameters > 0
        assert [score.to_json() for score in run.scores] == json.loads((tmp_path / "run" / "scores.json").read_text())
        assert (
            run.header == header_of(tmp_path / "run") and run.dataset.content_hash == load_dataset(HOPPER).content_hash
        )

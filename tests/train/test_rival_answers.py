"""Known answers: what a rival, and DSFormer, must be able to learn, and must not be able to where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dsf.tasks import get_task
from dsf.testing.training_runs import HOPPER, UNSCORED, metrics, trained
from dsf.train.config.rivals import PolicyKind, RivalConfig
from dsf.train.config.training import DataConfig, ModelConfig, TrainConfig
from dsf.train.data.batches import BatchSource
from dsf.train.data.collect import collect_episodes, get_recipe, write_dataset
from dsf.train.data.dataset import OfflineDataset, configure, load_dataset
from dsf.train.data.flat_store import FlatEpisodes, open_store, write_store
from dsf.train.run_directory import LOSS
from dsf.train.trainer import Trainer

HOPPER_SIZES = (11, 3)
EPISODES, STEPS = 40, 50
FIRM = 0.8
"""Size of the synthetic behaviour's actions."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "plain",
    [("--policy", "dt", "--rival.dropout", "0", "--steps", "600"), ("--policy", "twin", "--steps", "1200")],
    ids=["dt", "twin"],
)
def test_dense_rivals_overfit_one_trajectory(plain: tuple[str, ...], tiny_store: Path, tmp_path: Path) -> None:
    sizes = ("--model.width", "64", "--model.blocks", "2", "--model.context", "10", "--batch-size", "32")
    plain += ("--rival.mlp-hidden", "128", "--rival.width", "64")
    fitting = ("--data.top-percent", "1", "--learning-rate", "2e-3", "--weight-decay", "0")
    trained(HOPPER, "--out", str(tmp_path), *sizes, *plain, *fitting, *UNSCORED, "--threads", "1", "--log-every", "1")
    losses = [row[LOSS] for row in metrics(tmp_path) if LOSS in row]
    assert np.mean(losses[-20:]) < 1e-3 < losses[0]


@pytest.mark.slow
def test_cloning_an_expert_reaches_nine_tenths_of_its_return(minari_store: Path, tmp_path: Path) -> None:
    recipe = get_recipe("hopper-expert")
    write_dataset(recipe, collect_episodes(recipe, 10_000, 0, lambda: None), "test", overwrite=False)
    data = load_dataset(recipe.dataset_id)
    whole = data.episode_returns[:-1]  # the last episode is cut where the steps end
    scored = ("--eval-episodes", "5", "--eval-targets", "3600")
    sizes = ("--model.context", "1", "--model.window", "1", "--batch-size", "256", "--steps", "2500", "--threads", "1")
    trained(recipe.dataset_id, "--out", str(tmp_path), "--policy", "bc", *sizes, *scored)
    scores = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert whole.mean() > 3000 and scores["eval/return@3600"] > 0.9 * whole.mean()


def commanded_data(directory: Path, shuffled: bool) -> OfflineDataset:
    """Episodes whose behaviour does at each step what the return-to-go says: +0.8 above zero, -0.8 below.

    Return-to-go is drawn afresh for each step, so that neither the observation nor the previous action tells it. With
    ``shuffled``, the tokens hold other steps' returns: the same numbers, and nothing to learn from them.
    """
    generator, (observations, size) = np.random.default_rng(0), HOPPER_SIZES
    episodes = []
    for _ in range(EPISODES):
        to_go = generator.choice([-1.0, 1.0], STEPS)
        actions = np.repeat(FIRM * to_go[:, None], size, axis=1).astype(np.float32)
        previous = np.concatenate([np.zeros((1, size)), actions[:-1]])
        held = generator.permutation(to_go) if shuffled else to_go
        parts = [generator.normal(size=(STEPS, observations)), previous, held[:, None]]
        tokens = np.concatenate(parts, axis=1).astype(np.float32)
        episodes.append(FlatEpisodes(tokens, actions, np.array([STEPS]), to_go[:1], 0, (tokens, actions)))
    directory.mkdir()
    write_store(directory, episodes, observations + size + 1, size)
    return configure("commanded", get_task("hopper"), open_store(directory), DataConfig())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dsformer", "dt", "twin"])
def test_shuffled_returns_take_away_what_return_to_go_gave(kind: PolicyKind, tmp_path: Path) -> None:
    obedience = {}
    for shuffled in (False, True):
        data = commanded_data(tmp_path / f"data {shuffled}", shuffled)
        model = ModelConfig(width=32, blocks=1, context=6, window=3)
        sizes = RivalConfig() if kind == "dsformer" else RivalConfig(width=32, mlp_hidden=64)
        place = tmp_path / str(shuffled)
        config = TrainConfig("x", place, model, kind, sizes, steps=200, threads=1, learning_rate=3e-3)
        trainer = Trainer(config.of_phase(), data)
        for batch in trainer.batches.from_step(0, config.steps):
            trainer.train_step(batch)
        batch = BatchSource(data, trainer.codec, 64, model.context, seed=99).draw(0)
        trainer.model.eval()
        with torch.no_grad():
            answers = trainer.predict(batch)
        asked = batch.integers[..., -1][batch.mask].sign()  # returns are +-1 around a mean near 0
        obedience[shuffled] = float((answers * asked[:, None]).mean()) / FIRM
    assert obedience[False] > 0.9 and abs(obedience[True]) < 0.1, obedience

"""Datasets: assembling, sampling, collecting, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest
from conftest import assert_refused, run_command
from minari.data_collector import EpisodeBuffer

from dsf.tasks import UserError, get_task
from dsf.train.codec import InputCodec
from dsf.train.collect import RECIPES, collect_episodes, get_recipe, write_dataset
from dsf.train.data import assemble, load_dataset, sample_windows

HOPPER = get_task("hopper")


def episode(steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A random episode with Hopper's sizes."""
    generator = np.random.default_rng(seed)
    return {
        "observations": generator.normal(size=(steps + 1, 11)),
        "actions": generator.uniform(-1, 1, (steps, 3)).astype(np.float32),
        "rewards": generator.normal(size=steps),
        "terminations": np.arange(steps) == steps - 1,
        "truncations": np.zeros(steps, bool),
    }


def test_tokens_hold_observation_previous_action_and_return_to_go() -> None:
    episodes = [episode(3, 1), episode(2, 2)]
    data = assemble("x", HOPPER, episodes)
    assert data.starts.tolist() == [0, 3, 5]
    assert np.allclose(data.tokens[:3, :11], episodes[0]["observations"][:-1])
    assert not data.tokens[[0, 3], 11:14].any()
    assert np.array_equal(data.tokens[1, 11:14], episodes[0]["actions"][0])
    assert data.tokens[0, 14] == pytest.approx(episodes[0]["rewards"].sum() / 1000, rel=1e-5)
    assert data.episode_returns[1] == pytest.approx(episodes[1]["rewards"].sum(), rel=1e-5)


def test_windows_end_anywhere_and_never_cross_an_episode() -> None:
    data = assemble("x", HOPPER, [episode(4, 1), episode(9, 2)])
    windows = sample_windows(data, 4000, 5, np.random.default_rng(0))
    lengths = windows.mask.sum(axis=1)
    assert windows.mask[:, -1].all() and lengths.max() == 5 and lengths.min() == 1
    for tokens, mask in zip(windows.tokens[:200], windows.mask[:200]):
        rows = [int(np.flatnonzero((data.tokens == token).all(axis=1))[0]) for token in tokens[mask]]
        assert rows == list(range(rows[0], rows[0] + len(rows)))
        assert (rows[0] >= 4) == (rows[-1] >= 4)
        assert len(rows) == min(5, rows[-1] - (4 if rows[-1] >= 4 else 0) + 1)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rewards", np.zeros(2), "episode 0: rewards has shape"),
        ("observations", np.zeros((4, 17)), "episode 0: observations has shape"),
        ("observations", np.full((4, 11), np.nan), "episode 0: observations holds a value that is not finite"),
        ("actions", np.zeros((0, 3)), "episode 0"),
    ],
)
def test_damaged_episodes_are_named(field: str, value: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words):
        assemble("x", HOPPER, [{**episode(3), field: value}])


def test_codec_covers_the_data_and_never_clips_the_wished_points() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, (5000, 2))
    codec = InputCodec.fit(values, np.array([[np.nan, 40.0]]), bits=8)
    integers = codec.encode(values)
    assert integers.dtype == np.int32 and np.abs(integers).max() <= 127
    assert codec.encode(np.array([[5.0, 40.0]]))[0, 1] == 127
    error = np.abs(integers[:, 0] * codec.step[0] + codec.offset[0] - values[:, 0])
    assert error.max() <= codec.step[0] / 2 + 1e-9
    assert np.allclose(codec.unit, codec.step / values.std(axis=0))


def test_collecting_is_deterministic_and_makes_a_genuine_minari_dataset(minari_store: Path) -> None:
    recipe = get_recipe("hopper-medium-expert")
    hashes = []
    for seed in (7, 7, 8):
        episodes = collect_episodes(recipe, 700, seed, lambda: None)
        write_dataset(recipe, episodes, "test", overwrite=True)
        hashes.append(load_dataset(recipe.dataset_id).content_hash)
    assert hashes[0] == hashes[1] != hashes[2]
    dataset = minari.load_dataset("dsf/hopper/medium-expert-v0")
    assert dataset.total_steps == 700
    assert dataset.env_spec.id == "Hopper-v5"
    assert [path.name for path in minari_store.iterdir() if path.name.startswith(".collect-")] == []
    with pytest.raises(UserError, match="--overwrite"):
        write_dataset(recipe, episodes, "test", overwrite=False)


def test_every_recipe_finds_its_actors() -> None:
    for recipe in RECIPES.values():
        episodes = collect_episodes(recipe, 4 * len(recipe.actors), 0, lambda: None)
        assert sum(len(e.actions) for e in episodes) == 4 * len(recipe.actors)


def test_cli_collects_and_describes(minari_store: Path) -> None:
    made = run_command("dsf-data", "collect", "hopper-medium", "--steps", "300")
    assert made.returncode == 0, made.stderr
    info = run_command("dsf-data", "info", "dsf/hopper/medium-v0")
    assert "300 steps" in info.stdout and "content sha256" in info.stdout
    assert_refused(run_command("dsf-data", "collect", "hopper-medium", "--steps", "300"), "--overwrite")
    assert_refused(run_command("dsf-data", "collect", "walker-medium"), "unknown dataset", "hopper-medium")
    assert_refused(run_command("dsf-data", "collect", "hopper-medium", "--steps", "many"), "--steps")


def test_unknown_local_dataset_names_the_way_out(minari_store: Path, tmp_path: Path) -> None:
    result = run_command("dsf-train", "dsf/hopper/unknown-v0", "--out", str(tmp_path / "run"))
    assert_refused(result, "dsf/hopper/unknown-v0", "dsf-data collect")
    assert list(minari_store.iterdir()) == []
    assert not (tmp_path / "run").exists()


def test_remote_dataset_without_network_names_the_way_out(
    minari_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the hub client then fails at once, where there is a network too
    result = run_command("dsf-train", "mujoco/hopper/medium-v0", "--out", str(tmp_path / "run"))
    assert_refused(result, "mujoco/hopper/medium-v0", "could not be downloaded", "dsf-data collect")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["nope", "bad id!", "../../etc"])
def test_malformed_dataset_ids_are_refused(name: str, minari_store: Path) -> None:
    with pytest.raises(UserError, match="is no Minari dataset id"):
        load_dataset(name)


def test_discrete_actions_are_refused(minari_store: Path, tmp_path: Path) -> None:
    steps = EpisodeBuffer(
        observations=np.zeros((3, 4), np.float32),
        actions=np.zeros(2, np.int64),
        rewards=[1.0, 1.0],
        terminations=[False, True],
        truncations=[False, False],
    )
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers("test/cartpole-v0", [steps], env=gymnasium.make("CartPole-v1"))
    result = run_command("dsf-train", "test/cartpole-v0", "--out", str(tmp_path / "run"))
    assert_refused(result, "Discrete action space", "continuous")
    assert not (tmp_path / "run").exists()

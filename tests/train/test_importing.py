"""Importing: both layouts, what is reported, and every file that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest

from dsf.shell.errors import UserError
from dsf.testing.command_line import assert_refused, run_command
from dsf.train.data.collect import write_dataset
from dsf.train.data.dataset import load_dataset
from dsf.train.data.importing import import_file

LENGTHS = (5, 3, 4)
Arrays = dict[str, Any]


def steps(ends: tuple[str, str], observation_size: int = 11, action_size: int = 3) -> Arrays:
    """Three random episodes with Hopper's sizes: the first terminates, the others are cut."""
    generator, total = np.random.default_rng(0), sum(LENGTHS)
    ended = np.isin(np.arange(total), np.cumsum(LENGTHS) - 1)
    terminated = np.arange(total) == LENGTHS[0] - 1
    return {
        "observations": generator.normal(size=(total, observation_size)).astype(np.float32),
        "actions": generator.uniform(-1.0, 1.0, (total, action_size)).astype(np.float32),
        "rewards": generator.normal(size=total).astype(np.float32),
        ends[0]: terminated,
        ends[1]: ended & ~terminated,
    }


def npz(path: Path, **changes: Any) -> Path:
    """Write the layout of our third-party files; a change to None drops the array."""
    arrays = {**steps(("terminations", "truncations")), "env_id": "Hopper-v5", **changes}
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    return path


def hdf5(path: Path, **changes: Any) -> Path:
    """Write D4RL's layout."""
    arrays = {**steps(("terminals", "timeouts")), **changes}
    with h5py.File(path, "w") as file:
        file.create_dataset("infos/qpos", data=np.zeros((sum(LENGTHS), 6)))
        for name, values in arrays.items():
            if values is not None:
                file.create_dataset(name, data=values)
    return path


@pytest.mark.slow
def test_npz_becomes_a_genuine_minari_dataset(minari_store: Path, tmp_path: Path) -> None:
    final = np.arange(33, dtype=np.float32).reshape(3, 11)
    path = npz(tmp_path / "steps.npz", final_observations=final)
    result = run_command("dsf-data", "import", str(path), "--dataset-id", "dsf/hopper/mine-v0")
    assert result.returncode == 0, result.stderr
    assert "12 steps, 3 episodes of Hopper-v5" in result.stdout and "repeated" not in result.stdout
    dataset, source = minari.load_dataset("dsf/hopper/mine-v0"), np.load(path)
    episodes = list(dataset.iterate_episodes())
    assert tuple(len(episode.actions) for episode in episodes) == LENGTHS
    assert np.array_equal(np.vstack([episode.observations[:-1] for episode in episodes]), source["observations"])
    assert np.array_equal(np.vstack([episode.observations[-1] for episode in episodes]), final)
    assert np.array_equal(np.concatenate([episode.rewards for episode in episodes]), source["rewards"])
    assert [bool(episode.terminations[-1]) for episode in episodes] == [True, False, False]
    assert [bool(episode.truncations[-1]) for episode in episodes] == [False, True, True]
    assert dataset.env_spec.id == "Hopper-v5" and episodes[0].observations.dtype == np.float64
    assert [child.name for child in minari_store.iterdir() if child.name.startswith(".")] == []
    again = run_command("dsf-data", "import", str(path), "--dataset-id", "dsf/hopper/mine-v0")
    assert_refused(again, "dsf/hopper/mine-v0", "--overwrite")


def test_hdf5_is_read_with_and_without_final_observations(minari_store: Path, tmp_path: Path) -> None:
    following = np.roll(steps(("a", "b"))["observations"], -1, axis=0)
    following[[4, 7, 11]] += 1.0
    whole = import_file(hdf5(tmp_path / "whole.hdf5", next_observations=following), "dsf/a-v0", "hopper", False)
    assert whole.notes == ()
    assert np.array_equal(whole.episodes[1].observations[-1], following[7].astype(np.float64))
    short = hdf5(tmp_path / "short.hdf5", **steps(("terminals", "timeouts"), observation_size=17, action_size=6))
    result = run_command("dsf-data", "import", str(short), "--dataset-id", "dsf/b-v0", "--task", "halfcheetah")
    assert (result.returncode, result.stderr) == (0, "")  # MuJoCo has something to say about this environment's model
    assert "the last one of each of the 3 episodes is repeated" in result.stdout
    episode = minari.load_dataset("dsf/b-v0")[2]
    assert np.array_equal(episode.observations[-1], episode.observations[-2])


def test_hdf5_that_stops_in_the_middle_of_an_episode_is_cut_there(tmp_path: Path) -> None:
    cut = steps(("terminals", "timeouts"))["timeouts"]
    cut[-1] = False
    imported = import_file(hdf5(tmp_path / "x.hdf5", timeouts=cut), "dsf/x-v0", "hopper", False)
    assert imported.episodes[-1].truncations == [False, False, False, True]
    assert "marked as a truncation" in imported.notes[0]


@pytest.mark.slow
def test_actions_out_of_range_are_clipped_only_on_request(minari_store: Path, tmp_path: Path) -> None:
    actions = steps(("a", "b"))["actions"]
    actions[3, 1], actions[7, 0] = -2.5, 1.01
    path = npz(tmp_path / "x.npz", actions=actions)
    arguments = ("dsf-data", "import", str(path), "--dataset-id", "dsf/x-v0")
    finding = "2 of 36 action values (5.6 %) leave [-1, 1], the largest is 2.5"
    kept = run_command(*arguments)
    assert kept.returncode == 0 and f"{finding}: kept as they are; pass --clip-actions" in " ".join(kept.stdout.split())
    assert load_dataset("dsf/x-v0").out_of_range_actions == 2 and load_dataset("dsf/x-v0").actions[3, 1] == -2.5
    result = run_command(*arguments, "--clip-actions", "--overwrite")
    assert result.returncode == 0 and f"{finding}: clipped" in result.stdout
    data = load_dataset("dsf/x-v0")
    assert data.out_of_range_actions == 0 and data.actions[3, 1] == -1.0


def test_discrete_actions_are_imported_as_choices(minari_store: Path, tmp_path: Path) -> None:
    arrays = steps(("terminations", "truncations"), observation_size=4)
    choices = np.arange(12) % 2
    path = npz(tmp_path / "x.npz", **{**arrays, "actions": choices, "env_id": "CartPole-v1"})
    imported = import_file(path, "dsf/cartpole/x-v0", None, False)
    write_dataset(imported, imported.episodes, "test", overwrite=False)
    assert np.array_equal(load_dataset("dsf/cartpole/x-v0").actions.argmax(axis=1), choices)
    with pytest.raises(UserError, match="actions is not 0 to 1 at step 0"):
        import_file(npz(path, **{**arrays, "actions": choices + 2, "env_id": "CartPole-v1"}), "x-v0", None, False)


NAN = steps(("a", "b"))["observations"] * np.where(np.arange(12)[:, None] == 6, np.nan, 1.0)
REFUSED: dict[str, tuple[Arrays, str]] = {
    "NaN": ({"observations": NAN}, "observations is not finite at step 6"),
    "ragged": ({"rewards": np.zeros(11)}, r"observations has shape \(12, 11\), expected \(11, 11\)"),
    "sizes": ({"observations": np.zeros((12, 17))}, "task 'hopper'"),
    "empty": ({name: values[:0] for name, values in steps(("terminations", "truncations")).items()}, "shape"),
    "missing key": ({"actions": None}, "lacks actions: it holds env_id, observations"),
    "no env": ({"env_id": None}, "does not name its environment: pass --task NAME"),
    "unknown env": ({"env_id": "Robot-v5"}, "'Robot-v5' belongs to no registered task.*--task NAME.*--task FILE"),
    "another robot": ({"env_id": "Ant-v5"}, "environment Ant-v5 gives 105 numbers as observation, and the task has 11"),
    "other dynamics": ({"env_id": "Walker2d-v4"}, "foot friction"),
    "goals": ({"env_id": "PointMaze_UMaze-v3"}, "goals"),
    "no end": ({"truncations": np.zeros(12, bool), "terminations": np.zeros(12, bool)}, "ends the last episode"),
    "open end": ({"truncations": np.zeros(12, bool)}, "ends the last episode"),
    "flags": ({"truncations": np.full(12, 2)}, "truncations is neither 0 nor 1 at step 0"),
    "text": ({"rewards": np.array(["1"] * 12)}, "rewards holds <U1, not numbers"),
    "pickled": ({"rewards": np.array([None] * 12)}, "cannot be read .*pickles"),
    "final": ({"final_observations": np.zeros((2, 11))}, r"final_observations has shape \(2, 11\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_arrays_are_one_line(name: str, tmp_path: Path) -> None:
    changes, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as refusal:
        import_file(npz(tmp_path / "steps.npz", **changes), "dsf/x-v0", None, False)
    assert len(str(refusal.value).splitlines()) == 1 and "steps.npz" in str(refusal.value)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    whole = (npz(tmp_path / "a.npz").read_bytes(), hdf5(tmp_path / "a.hdf5").read_bytes())
    for content in (*(part[: len(part) // 2] for part in whole), b"", b"PK nothing", b"some text"):
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(UserError, match=r"damaged (cannot be read|is neither npz nor hdf5)") as refusal:
            import_file(tmp_path / "damaged", "dsf/x-v0", "hopper", False)
        assert len(str(refusal.value).splitlines()) == 1
    for missing in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(UserError, match="is no file"):
            import_file(missing, "dsf/x-v0", "hopper", False)


@pytest.mark.parametrize("dataset_id", ["nope", "../x-v0", "D4RL/hopper/x-v0", "mujoco/hopper/medium-v0"])
def test_unsuitable_ids_are_refused(dataset_id: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dataset-id"):
        import_file(npz(tmp_path / "steps.npz"), dataset_id, None, False)

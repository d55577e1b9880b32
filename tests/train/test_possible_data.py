"""Data that cannot be right: cut where the data prove an end, else refused with the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from dsf.shell.errors import UserError
from dsf.tasks import get_task
from dsf.testing.command_line import assert_refused, run_command
from dsf.train.data.collect import write_dataset
from dsf.train.data.dataset import load_dataset
from dsf.train.data.importing import Imported, import_file
from dsf.train.data.minari_files import METADATA_NAME

Arrays = dict[str, Any]
ID = "test/data-v0"
HORIZON = get_task("hopper").max_steps


def steps(total: int, terminals: tuple[int, ...] = (), timeouts: tuple[int, ...] = ()) -> Arrays:
    """Steps of Hopper's sizes in D4RL's names, with flags at these steps."""
    generator = np.random.default_rng(0)
    return {
        "observations": generator.normal(size=(total, 11)).astype(np.float32),
        "actions": generator.uniform(-1.0, 1.0, (total, 3)).astype(np.float32),
        "rewards": np.full(total, 3.0, np.float32),
        "terminals": np.isin(np.arange(total), terminals),
        "timeouts": np.isin(np.arange(total), timeouts),
    }


def followed(arrays: Arrays, joints: tuple[int, ...]) -> Arrays:
    """With next_observations, which are another episode's at the joints."""
    following = np.roll(arrays["observations"], -1, axis=0)
    following[list(joints)] += 0.5
    return {**arrays, "next_observations": following}


def as_npz(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def as_hdf5(path: Path, arrays: Arrays) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


Writer = Callable[[Path, Arrays], Path]
BOTH = pytest.mark.parametrize("write", [lambda p, a: as_npz(p / "x.npz", a), lambda p, a: as_hdf5(p / "x.hdf5", a)])


def imported(path: Path, max_steps: int | None = None, task: str = "hopper") -> Imported:
    return import_file(path, "me/x-v0", task, False, max_steps)


def lengths(found: Imported) -> list[int]:
    return [len(each.rewards) for each in found.episodes]


def episode(count: int, **changed: Any) -> EpisodeBuffer:
    """An episode of Hopper's sizes that terminates."""
    arrays = {
        "observations": np.zeros((count + 1, 11)),
        "actions": np.zeros((count, 3), np.float32),
        "rewards": np.ones(count),
        "terminations": np.arange(count) == count - 1,
        "truncations": np.zeros(count, bool),
    }
    return EpisodeBuffer(**{**arrays, **changed})


def in_minari(*episodes: EpisodeBuffer) -> Path:
    """Write a genuine dataset; returns its directory."""
    return write_dataset(Imported(ID, "hopper", "test", list(episodes), ()), list(episodes), "test", overwrite=False)


UNMARKED = {
    "one terminal in ten horizons": steps(10 * HORIZON, terminals=(10 * HORIZON - 1,)),
    "one time-out in ten horizons": steps(10 * HORIZON, timeouts=(10 * HORIZON - 1,)),
    "no flag at the end": steps(3 * HORIZON, terminals=(200,)),
    "terminals alone are marked": steps(3000, terminals=(1342, 2000, 2999)),
    "a step too many": steps(HORIZON + 1, terminals=(HORIZON,)),
    "marked, but ten horizons each": steps(20_000, timeouts=(9_999, 19_999)),
    "one long one among short ones": steps(2500, timeouts=(499, 999, 2499)),
}


@BOTH
@pytest.mark.parametrize("name", UNMARKED)
def test_episodes_beyond_the_horizon_are_refused_or_cut(name: str, write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, UNMARKED[name])
    with pytest.raises(UserError, match=r"steps, and one of task 'hopper' ends after 1,000.*--max-steps 1000"):
        imported(path)
    cut = imported(path, HORIZON)
    flags = UNMARKED[name]["terminals"] | UNMARKED[name]["timeouts"]
    pieces, start = [], 0
    for end in [*np.flatnonzero(flags), *([] if flags[-1] else [len(flags) - 1])]:
        pieces += [HORIZON] * ((end + 1 - start) // HORIZON) + [(end + 1 - start) % HORIZON]
        start = end + 1
    assert lengths(cut) == [piece for piece in pieces if piece]
    assert "cut every 1,000 steps" in " ".join(cut.notes)
    assert all(each.truncations[-1] != each.terminations[-1] for each in cut.episodes)
    assert sum(map(sum, (each.terminations for each in cut.episodes))) == UNMARKED[name]["terminals"].sum()


@pytest.mark.slow
def test_the_command_gives_no_score_of_one_huge_episode(minari_store: Path, tmp_path: Path) -> None:
    path = as_hdf5(tmp_path / "x.hdf5", steps(10 * HORIZON, terminals=(10 * HORIZON - 1,)))
    arguments = ("dsf-data", "import", str(path), "--dataset-id", "me/x-v0", "--task", "hopper")
    assert_refused(run_command(*arguments), "episode 0 has 10,000 steps", "--max-steps 1000")
    assert list(minari_store.iterdir()) == []
    cut = run_command(*arguments, "--max-steps", "1000")
    assert cut.returncode == 0 and "10 episodes of Hopper-v5, return 3000" in cut.stdout
    stated = run_command(*arguments, "--max-steps", "10000", "--overwrite")
    assert stated.returncode == 0 and "return 30000 +- 0" in stated.stdout
    assert "cut after 10000 steps" in stated.stdout and "D4RL-normalised" not in stated.stdout
    assert_refused(run_command(*arguments, "--max-steps", "0"), "--max-steps is 0")


@BOTH
def test_episodes_are_cut_where_the_next_observation_is_of_another_one(write: Writer, tmp_path: Path) -> None:
    ends = (999, 1999, 2499)
    arrays = followed(steps(3000, terminals=(2499,), timeouts=(2999,)), joints=ends)
    found = imported(write(tmp_path, arrays))
    assert lengths(found) == [1000, 1000, 500, 500]
    assert [each.terminations[-1] for each in found.episodes] == [False, False, True, False]
    assert found.notes[0].startswith("next_observations contradicts the next row at 2 steps without an end flag")
    assert "first at step 999" in found.notes[0]
    for each, end in zip(found.episodes, ends):  # what follows the last step is what the file says, not the next row
        assert np.array_equal(each.observations[-1], arrays["next_observations"][end].astype(np.float64))


def test_a_joint_is_none_for_the_number_format(tmp_path: Path) -> None:
    arrays = followed(steps(900, terminals=(899,)), joints=())
    arrays["next_observations"] = arrays["next_observations"].astype(np.float64) * (1.0 + 1e-7)
    assert lengths(imported(as_npz(tmp_path / "x.npz", arrays))) == [900]


@BOTH
def test_flags_that_the_observations_contradict_are_refused(write: Writer, tmp_path: Path) -> None:
    goes_on = followed(steps(900, terminals=(300, 600, 899)), joints=(600,))
    with pytest.raises(UserError, match=r"terminals is set at 1 steps after which .* goes on .*first at step 300"):
        imported(write(tmp_path, goes_on))
    with pytest.raises(UserError, match=r"contradicts the next row at 898 of 898 steps .*order of time"):
        imported(write(tmp_path, followed(steps(900, terminals=(500, 899)), joints=tuple(range(900)))))
    inverted = steps(900, terminals=tuple(set(range(900)) - {450}))
    with pytest.raises(UserError, match=r"899 of 900 steps are marked as an episode's last: .*the opposite"):
        imported(write(tmp_path, inverted))


def test_a_chunked_recording_keeps_its_time_outs(tmp_path: Path) -> None:
    arrays = followed(steps(1500, timeouts=(499, 999, 1499)), joints=())
    assert lengths(imported(as_npz(tmp_path / "x.npz", arrays))) == [500, 500, 500]


def test_people_have_no_horizon(minari_store: Path, tmp_path: Path) -> None:
    """D4RL's demonstrations of doors last 225 to 300 steps, and its task 200."""
    ends = tuple(np.cumsum([300, 225, 280]) - 1)
    arrays = steps(805, timeouts=ends)
    arrays["observations"], arrays["actions"] = np.zeros((805, 39)), np.zeros((805, 28))
    found = imported(as_npz(tmp_path / "x.npz", arrays), task="door")
    assert lengths(found) == [300, 225, 280]
    assert "3 of 3 episodes have more than the 200 steps of task 'door', the longest 300" in found.notes[0]
    assert lengths(imported(tmp_path / "x.npz", 200, "door")) == [200, 100, 200, 25, 200, 80]


@pytest.mark.parametrize("flags", [{}, {"terminations": np.zeros(2500, bool), "truncations": np.arange(2500) == 2499}])
def test_a_minari_dataset_with_an_episode_beyond_the_horizon_is_refused(flags: Arrays, minari_store: Path) -> None:
    in_minari(episode(4), episode(2500, **flags))
    with pytest.raises(UserError, match=f"^dataset '{ID}', episode 1 has 2,500 steps, .* ends after 1,000.*max-steps"):
        load_dataset(ID)


def test_a_minari_dataset_is_judged_by_its_own_horizon_where_it_states_one(minari_store: Path) -> None:
    path = in_minari(episode(2500)) / "data" / METADATA_NAME
    values = json.loads(path.read_text())
    for horizon, fits in ((2499, False), (2500, True), (10, False)):
        spec = {**json.loads(values["env_spec"]), "max_episode_steps": horizon}
        path.write_text(json.dumps({**values, "env_spec": json.dumps(spec)}))
        if fits:
            assert load_dataset(ID).steps == 2500
        else:
            with pytest.raises(UserError, match="episode 0 has 2,500 steps"):
                load_dataset(ID)


@pytest.mark.parametrize("name", ["terminations", "truncations"])
def test_an_end_flag_within_an_episode_is_refused(name: str, minari_store: Path) -> None:
    in_minari(episode(9), episode(9, **{name: np.isin(np.arange(9), (3, 8))}))
    with pytest.raises(UserError, match=f"episode 1: {name} is set at step 3 of 9, before the last: write the dataset"):
        load_dataset(ID)


def test_what_minari_itself_reads_of_an_import_is_what_was_cut(minari_store: Path, tmp_path: Path) -> None:
    found = imported(as_hdf5(tmp_path / "x.hdf5", steps(2500, terminals=(2499,))), HORIZON)
    write_dataset(found, found.episodes, "test", overwrite=False, max_steps=HORIZON)
    read = minari.load_dataset("me/x-v0")
    assert [len(each.rewards) for each in read.iterate_episodes()] == [1000, 1000, 500]
    assert read.env_spec.max_episode_steps == HORIZON
    assert load_dataset("me/x-v0").episode_returns.tolist() == [3000.0, 3000.0, 1500.0]

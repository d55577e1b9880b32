"""Datasets: the flat files, sampling, and every way in which a dataset can be wrong."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer

from dsf.shell.errors import UserError
from dsf.tasks import get_task
from dsf.testing.command_line import assert_refused, run_command
from dsf.testing.full_disk import small_files
from dsf.train.config.training import DataConfig
from dsf.train.data.dataset import (
    CACHE_NAME,
    OfflineDataset,
    best_episodes,
    configure,
    load_dataset,
    require_context,
    sample_windows,
    source_fingerprint,
)
from dsf.train.data.flat_store import ARRAY_NAMES, LOCK_NAME, METADATA_NAME, obtain_store, open_store, write_store
from dsf.train.data.flatten import flat_episodes

HOPPER = get_task("hopper")
ID = "test/data-v0"


def unlimited(size: int) -> Box:
    return Box(-np.inf, np.inf, (size,), np.float64)


def episode(steps: int, seed: int = 0, **changed: Any) -> EpisodeBuffer:
    """A random episode with Hopper's sizes."""
    generator = np.random.default_rng(seed)
    arrays = {
        "observations": generator.normal(size=(steps + 1, 11)),
        "actions": generator.uniform(-1, 1, (steps, 3)).astype(np.float32),
        "rewards": generator.integers(-2, 3, steps).astype(np.float64),
        "terminations": np.arange(steps) == steps - 1,
        "truncations": np.zeros(steps, bool),
    }
    return EpisodeBuffer(**{**arrays, **changed})


def write_minari(
    episodes: Sequence[EpisodeBuffer],
    env_id: str = "Hopper-v5",
    observation_space: gymnasium.Space | None = None,
    action_space: gymnasium.Space | None = None,
) -> Path:
    """Write a genuine Minari dataset; returns its directory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari misses an author, a permalink and an environment
        minari.create_dataset_from_buffers(
            ID,
            list(episodes),
            observation_space=observation_space or unlimited(11),
            action_space=action_space or Box(-1, 1, (3,), np.float32),
        )
    directory = Path(os.environ["MINARI_DATASETS_PATH"]) / ID
    metadata = directory / "data" / "metadata.json"
    # As if it came from this environment, which then need not be made (or be installed) here.
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "env_spec": EnvSpec(env_id).to_json()}))
    return directory


def in_files(directory: Path, episodes: Sequence[EpisodeBuffer], config: DataConfig) -> OfflineDataset:
    """The dataset that these episodes make, without the way through Minari."""
    write_store(directory, flat_episodes("here", HOPPER, episodes), features=15, action_size=3)
    return configure("x", HOPPER, open_store(directory), config)


def slow_windows(
    episodes: Sequence[EpisodeBuffer], config: DataConfig, context: int, drawn: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows and mask by definition, one step at a time; ``drawn`` counts through the steps of the kept episodes."""
    order = sorted(range(len(episodes)), key=lambda i: (-sum(episodes[i].rewards), i))
    kept = sorted(order[: math.ceil(len(episodes) * config.top_percent / 100)])
    steps = [(number, step) for number in kept for step in range(len(episodes[number].rewards))]
    tokens = np.zeros((len(drawn), context, 15))
    actions = np.zeros((len(drawn), context, 3))
    mask = np.zeros((len(drawn), context), bool)
    for row, (number, last) in enumerate(steps[position] for position in drawn):
        source = episodes[number]
        for back in range(min(context, last + 1)):
            step, column = last - back, context - 1 - back
            rewards = source.rewards if config.delayed_reward else source.rewards[step:]
            tokens[row, column, :11] = source.observations[step]
            tokens[row, column, 11:14] = source.actions[step - 1] if step else 0.0
            tokens[row, column, 14] = sum(rewards) / 1000
            actions[row, column] = source.actions[step]
            mask[row, column] = True
    return tokens, actions, mask


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    context=st.integers(1, 8),
    delayed_reward=st.booleans(),
    top_percent=st.sampled_from([100.0, 50.0, 25.0, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_windows_from_files_equal_the_definition(
    lengths: list[int], context: int, delayed_reward: bool, top_percent: float, seed: int
) -> None:
    episodes = [episode(length, seed + number) for number, length in enumerate(lengths)]
    config = DataConfig(delayed_reward, top_percent)
    with tempfile.TemporaryDirectory() as directory:
        data = in_files(Path(directory), episodes, config)
        windows = sample_windows(data, 16, context, np.random.default_rng(seed))
    drawn = np.random.default_rng(seed).integers(0, data.steps, 16).tolist()
    tokens, actions, mask = slow_windows(episodes, config, context, drawn)
    assert np.allclose(windows.tokens, tokens, rtol=1e-6, atol=1e-9)
    assert np.array_equal(windows.actions, actions.astype(np.float32))
    assert np.array_equal(windows.mask, mask)
    every_token = slow_windows(episodes, config, 1, range(data.steps))[0][:, 0]
    for name, expected in (("mean", every_token.mean(0)), ("std", every_token.std(0)), ("high", every_token.max(0))):
        assert np.allclose(getattr(data.statistics, name), expected, rtol=1e-5, atol=1e-7)
    returns = [sum(episodes[number].rewards) for number in data.kept]
    assert np.allclose(data.episode_returns, returns)


def test_steps_are_drawn_uniformly_from_the_kept_episodes(tmp_path: Path) -> None:
    episodes = [episode(30, 1, rewards=np.zeros(30)), episode(4, 2, rewards=np.ones(4)), episode(9, 3)]
    data = in_files(tmp_path, [*episodes, episode(12, 4, rewards=np.ones(12))], DataConfig(top_percent=50.0))
    assert data.kept.tolist() == [1, 3] and data.steps == 16
    windows = sample_windows(data, 16_000, 1, np.random.default_rng(0))
    _, counts = np.unique(windows.tokens[:, 0], axis=0, return_counts=True)
    assert len(counts) == 16 and np.abs(counts - 1000).max() < 150  # 5 standard deviations


@pytest.mark.parametrize(
    ("percent", "chosen"), [(100.0, [0, 1, 2, 3]), (75.0, [0, 1, 2]), (50.0, [1, 2]), (25.1, [1, 2]), (0.001, [1])]
)
def test_the_best_episodes_are_kept_in_order_and_ties_go_to_the_earlier(percent: float, chosen: list[int]) -> None:
    assert best_episodes(np.array([1.0, 3.0, 3.0, 1.0]), percent).tolist() == chosen


def test_a_share_is_exact() -> None:
    assert best_episodes(np.zeros(100), 7.0).tolist() == list(range(7))
    assert len(best_episodes(np.zeros(1000), 0.7)) == 7


def test_delayed_reward_gives_the_whole_return_at_every_step(minari_store: Path) -> None:
    write_minari([episode(6, 1, rewards=np.arange(6.0)), episode(3, 2, rewards=np.full(3, 100.0))])
    data = load_dataset(ID, DataConfig(delayed_reward=True))
    windows = sample_windows(data, 100, 4, np.random.default_rng(0))
    assert set(windows.tokens[windows.mask][:, -1].tolist()) == {np.float32(0.015), np.float32(0.3)}
    assert data.statistics.mean[-1] == pytest.approx((6 * 0.015 + 3 * 0.3) / 9, rel=1e-6)
    assert data.episode_returns.tolist() == [15.0, 300.0]
    assert load_dataset(ID).statistics.high[-1] == pytest.approx(0.3) != load_dataset(ID).statistics.low[-1]


def test_the_content_hash_is_that_of_all_arrays_in_order(minari_store: Path) -> None:
    episodes = [episode(5, 1), episode(7, 2)]
    write_minari(episodes)
    digest = hashlib.sha256()
    for each in episodes:
        for array in (each.observations, each.actions, each.rewards, each.terminations, each.truncations):
            digest.update(np.asarray(array).tobytes())
    assert load_dataset(ID).content_hash == digest.hexdigest()
    assert load_dataset(ID, DataConfig(True, 10.0)).content_hash == digest.hexdigest()


def the_store(place: Path) -> Path:
    """The only store in a cache directory, which holds nothing else but the lock."""
    (store,) = (path for path in place.iterdir() if path.name != LOCK_NAME)
    return store


def damage(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def replace_in_place(path: Path, content: bytes) -> None:
    """Write other bytes under the size and the times of those that are there."""
    state = path.stat()
    assert len(content) == state.st_size
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_flat_files_are_reused_until_the_source_changes(minari_store: Path) -> None:
    directory = write_minari([episode(5, 1), episode(7, 2)])
    first = load_dataset(ID)
    assert not first.tokens.flags.writeable and first.tokens.base is not None
    built = the_store(directory / CACHE_NAME)
    written = built.stat().st_ctime_ns
    assert load_dataset(ID, DataConfig(top_percent=50.0)).content_hash == first.content_hash
    assert the_store(directory / CACHE_NAME) == built and built.stat().st_ctime_ns == written
    source = directory / "data" / "main_data.hdf5"
    os.utime(source, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns + 1))
    assert load_dataset(ID).content_hash == first.content_hash
    assert the_store(directory / CACHE_NAME).name != built.name  # one store per dataset: the old one is gone
    assert np.isfinite(first.tokens).all()  # and who has it mapped keeps it


def test_a_source_that_is_replaced_under_its_size_and_times_is_read_again(minari_store: Path) -> None:
    source = write_minari([episode(5, rewards=np.full(5, 2.0))]) / "data" / "main_data.hdf5"
    first, old = load_dataset(ID), np.full(5, 2.0).tobytes()
    assert first.episode_returns.tolist() == [10.0]
    content = source.read_bytes()
    assert content.count(old) == 1
    replace_in_place(source, content.replace(old, np.full(5, 3.0).tobytes()))
    again = load_dataset(ID)
    assert again.episode_returns.tolist() == [15.0] and again.content_hash != first.content_hash


def test_a_changed_task_has_other_flat_files(minari_store: Path) -> None:
    directory = write_minari([episode(5, 1)])
    assert source_fingerprint(directory, HOPPER) != source_fingerprint(directory, replace(HOPPER, return_scale=1.0))


def cut_in_half(path: Path) -> None:
    """What a full disk or a crash leaves."""
    os.truncate(path, path.stat().st_size // 2)


def invent_hash(path: Path) -> None:
    """Metadata that parse, but are not those that were written."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "content_hash": "0" * 64}))


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("tokens.npy", cut_in_half),
        ("tokens.npy", damage),
        ("starts.npy", damage),
        ("summaries.npy", Path.unlink),
        (METADATA_NAME, Path.unlink),
        (METADATA_NAME, cut_in_half),
        (METADATA_NAME, invent_hash),
    ],
)
def test_damaged_flat_files_are_built_again(name: str, harm: Callable[[Path], None], minari_store: Path) -> None:
    directory = write_minari([episode(5, 1), episode(7, 2)])
    first = load_dataset(ID)
    tokens = first.tokens.copy()
    store = the_store(directory / CACHE_NAME)
    harm(store / name)
    # What a process that was killed while it built has left.
    (directory / CACHE_NAME / f".{store.name}.partial").mkdir()
    again = load_dataset(ID)
    assert again.content_hash == first.content_hash
    assert np.array_equal(again.tokens, tokens)
    assert the_store(directory / CACHE_NAME) == store and open_store(store).content_hash == first.content_hash


@pytest.mark.slow
def test_processes_that_build_at_once_all_succeed(minari_store: Path) -> None:
    directory = write_minari([episode(500, number) for number in range(40)])
    script = f"from dsf.train.data.dataset import load_dataset; print(load_dataset('{ID}').content_hash)"
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    hashes = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(hashes) == 1 and the_store(directory / CACHE_NAME)


def write_hopper(place: Path) -> None:
    """Fill a store with one episode."""
    write_store(place, flat_episodes("here", HOPPER, [episode(5)]), features=15, action_size=3)


def test_who_waits_for_a_build_takes_its_store(tmp_path: Path) -> None:
    builds = []

    def write(place: Path) -> None:
        builds.append(place)
        time.sleep(0.3)  # long enough for the others to find no store and wait
        write_hopper(place)

    with ThreadPoolExecutor(4) as pool:  # a lock belongs to an open file, so threads exclude each other as well
        stores = list(pool.map(lambda _: obtain_store("x", [tmp_path], "key", write), range(4)))
    assert len(builds) == 1
    assert {len(store.tokens) for store in stores} == {5}


def test_a_build_that_is_killed_leaves_neither_lock_nor_store(tmp_path: Path) -> None:
    script = "import sys, time, pathlib, dsf.train.data.flat_store as f\n"
    script += "f.build_store(pathlib.Path(sys.argv[1]), 'key', lambda place: time.sleep(60))"
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as building:
        while not (tmp_path / ".key.partial").exists():
            assert building.poll() is None
            time.sleep(0.01)
        building.kill()
    assert len(obtain_store("x", [tmp_path], "key", write_hopper).tokens) == 5
    assert the_store(tmp_path).name == "key"


def test_a_disk_that_fills_up_is_one_line(minari_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_minari([episode(500)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refusal = pytest.raises(UserError, match=r"no place for its flat files .*File too large.*: free some space")
    with small_files(10_000), refusal:
        load_dataset(ID)
    assert [path.name for path in (directory / CACHE_NAME).iterdir()] == [LOCK_NAME]
    assert load_dataset(ID).steps == 500


def test_a_store_that_cannot_be_written_leads_to_the_user_cache(
    minari_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_minari([episode(5, 1)])
    (directory / CACHE_NAME).write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load_dataset(ID).steps == 5
    assert len(list((tmp_path / "cache").rglob(METADATA_NAME))) == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=f"{ID}': no place for its flat files.*XDG_CACHE_HOME"):
        load_dataset(ID)


MEMORY_SCRIPT = """
import resource
from pathlib import Path

import h5py, minari
import numpy as np

from dsf.train.config.training import DataConfig
from dsf.train.data.dataset import load_dataset, sample_windows


def private_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmData:")[1].split()[0]) * 1024


limit = private_bytes() + ALLOWED
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    np.ones(2 * ALLOWED, np.uint8)
except MemoryError:
    pass
else:
    raise SystemExit("the limit does not hold")
for config in (DataConfig(), DataConfig(True, 50.0)):
    data = load_dataset(DATASET, config)
    generator = np.random.default_rng(0)
    for _ in range(200):
        sample_windows(data, 64, 20, generator)
print(data.tokens.nbytes + data.actions.nbytes)
"""


@pytest.mark.slow
def test_a_dataset_larger_than_memory_is_built_and_sampled(minari_store: Path) -> None:
    allowed = 48 << 20
    last = np.arange(4000) == 3999
    long_episode = episode(4000, terminations=~last & last, truncations=last)
    directory = write_minari([long_episode])
    dataset = minari.load_dataset(ID)
    while (directory / "data" / "main_data.hdf5").stat().st_size < 200 << 20:
        dataset.update_dataset_from_buffer([long_episode] * 50)
    script = MEMORY_SCRIPT.replace("ALLOWED", str(allowed)).replace("DATASET", repr(ID))
    # One thread: every other one's stack and heap would count.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + result.stdout
    assert int(result.stdout) > 2 * allowed


def broken(name: str, index: Any, value: float) -> EpisodeBuffer:
    """An episode of 4 steps with one wrong value."""
    wrong = episode(4)
    getattr(wrong, name)[index] = value
    return wrong


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (broken("observations", (4, 10), np.nan), "observations holds a value that is not finite"),
        (broken("actions", (0, 0), np.inf), "actions holds a value that is not finite"),
        (broken("rewards", 2, -np.inf), "rewards holds a value that is not finite"),
        (broken("observations", (0, 0), 1e200), "a value too large for 32-bit floats"),
        (broken("rewards", (slice(None),), 1e308), "a value too large for 32-bit floats"),
        (episode(4, rewards=np.zeros((4, 1))), r"rewards has shape \(4, 1\), expected \(4,\)"),
        (episode(4, rewards=np.zeros(2)), r"rewards has shape \(2,\), expected \(4,\)"),
        (episode(4, observations=np.zeros((4, 11))), r"observations has shape \(4, 11\), expected \(5, 11\)"),
        (episode(4, observations=np.zeros((5, 17))), r"observations has shape \(5, 17\), expected \(5, 11\)"),
        (episode(4, actions=np.zeros((4, 2))), r"actions has shape \(4, 2\), expected \(4, 3\)"),
    ],
)
def test_wrong_episodes_are_named(wrong: EpisodeBuffer, words: str, minari_store: Path) -> None:
    directory = write_minari([episode(4, 1), wrong, episode(9, 2)])
    with pytest.raises(UserError, match=f"^dataset '{ID}', episode 1: .*{words}.*(clean|write) the dataset") as refusal:
        load_dataset(ID)
    assert len(str(refusal.value).splitlines()) == 1
    assert [path.name for path in (directory / CACHE_NAME).iterdir()] == [LOCK_NAME]


def test_batches_change_nothing(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    episodes = [episode(int(length), seed) for seed, length in enumerate(generator.integers(1, 40, 60))]
    contents = []
    for steps in (1, 50, 1 << 20):
        place = tmp_path / str(steps)
        place.mkdir()
        write_store(place, flat_episodes(ID, HOPPER, episodes, steps), features=15, action_size=3)
        arrays = [(place / f"{name}.npy").read_bytes() for name in ARRAY_NAMES]
        contents.append((open_store(place).content_hash, arrays))
    assert contents[0] == contents[1] == contents[2]


SHAPELESS = episode(4, rewards=np.zeros(2))


@pytest.mark.parametrize(
    "later", [broken("observations", (0, 0), np.nan), SHAPELESS, broken("rewards", 0, np.nan), None]
)
def test_the_first_wrong_episode_is_named(later: EpisodeBuffer | None) -> None:
    def recorded() -> Iterator[EpisodeBuffer]:
        yield from (episode(4, 1), broken("actions", (3, 0), np.nan), episode(4, 2))
        if later is None:
            raise OSError("damaged")
        yield later

    for steps in (1, 9, 1 << 20):
        with pytest.raises(UserError, match="episode 1: actions holds a value that is not finite"):
            list(flat_episodes(ID, HOPPER, recorded(), steps))


@pytest.mark.slow
def test_wrong_rewards_end_the_command_with_one_line(minari_store: Path, tmp_path: Path) -> None:
    write_minari([episode(4, 1), episode(4, rewards=np.zeros((4, 1)))])
    result = run_command("dsf-train", ID, "--out", str(tmp_path / "run"))
    assert_refused(result, f"dataset '{ID}', episode 1: rewards has shape (4, 1), expected (4,)")
    assert not (tmp_path / "run").exists()


def test_an_empty_episode_is_named(minari_store: Path) -> None:
    directory = write_minari([episode(4, 1), episode(4, 2)])
    with h5py.File(directory / "data" / "main_data.hdf5", "a") as file:  # Minari itself writes none
        for name, array in file["episode_1"].items():
            if isinstance(array, h5py.Dataset):
                array.resize(1 if name == "observations" else 0, axis=0)
    with pytest.raises(UserError, match="episode 1 is empty: it has no steps; remove it from the dataset"):
        load_dataset(ID)


def test_a_dataset_without_episodes_is_refused(minari_store: Path) -> None:
    write_minari([])
    with pytest.raises(UserError, match=f"dataset '{ID}' has no episodes"):
        load_dataset(ID)


@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
def test_an_unreadable_source_is_refused_in_one_line(name: str, minari_store: Path) -> None:
    directory = write_minari([episode(4, 1)])
    cut_in_half(directory / "data" / name)
    with pytest.raises(
        UserError, match=f"dataset '{ID}' in .* cannot be read .*: make or download it again"
    ) as refusal:
        load_dataset(ID)
    assert len(str(refusal.value).splitlines()) == 1


def test_actions_out_of_range_are_counted_and_kept(minari_store: Path) -> None:
    actions = np.zeros((4, 3), np.float32)
    actions[1] = [1.37, -1.2, 0.0]
    actions[3, 2] = -1.0
    write_minari([episode(4, actions=actions), episode(4, actions=actions), episode(4)])
    data = load_dataset(ID)
    assert data.out_of_range_actions == 2
    assert np.array_equal(data.actions[:4], actions)


def test_a_context_longer_than_every_episode_is_refused(minari_store: Path) -> None:
    write_minari([episode(9, rewards=np.zeros(9)), episode(4, rewards=np.ones(4)), episode(6, rewards=np.ones(6))])
    require_context(load_dataset(ID), 9)
    with pytest.raises(UserError, match=f"--model.context is 10, .* '{ID}' .episode 0 .* 9 steps.: choose 9 or less"):
        require_context(load_dataset(ID), 10)
    with pytest.raises(UserError, match=r"--model.context is 7, .*episode 2 .* 6 steps"):
        require_context(load_dataset(ID, DataConfig(top_percent=60.0)), 7)


def cart_pole(choices: Sequence[float]) -> EpisodeBuffer:
    """A short episode of CartPole."""
    return episode(len(choices), observations=np.zeros((len(choices) + 1, 4)), actions=np.array(choices))


def test_discrete_actions_become_one_hot(minari_store: Path) -> None:
    write_minari([cart_pole([1, 0, 1]), cart_pole([0, 1])], "CartPole-v1", unlimited(4), Discrete(2))
    data = load_dataset(ID)
    assert data.task.discrete and data.actions.dtype == np.float32
    assert data.actions.tolist() == [[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]]
    assert data.tokens[:, 4:6].tolist() == [[0, 0], [0, 1], [1, 0], [0, 0], [1, 0]]
    assert data.out_of_range_actions == 0


def goal_episode(keys: Sequence[str], position_rows: int = 4) -> EpisodeBuffer:
    """Three steps of PointMaze; every part of its observations is told apart by its values."""
    sizes = {"observation": 4, "achieved_goal": 2, "desired_goal": 2}
    observations = {key: np.full((4, sizes[key]), float(number)) for number, key in enumerate(keys)}
    observations["observation"] = observations["observation"][:position_rows]
    return episode(3, observations=observations, actions=np.zeros((3, 2), np.float32))


def goal_space(keys: Sequence[str]) -> Dict:
    return Dict({key: unlimited(4 if key == "observation" else 2) for key in keys})


GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
PLANE = Box(-1, 1, (2,), np.float32)


def test_goal_observations_become_flat(minari_store: Path) -> None:
    write_minari([goal_episode(GOAL_KEYS)], "PointMaze_UMaze-v3", goal_space(GOAL_KEYS), PLANE)
    data = load_dataset(ID)
    assert data.task.observation_keys == ("observation", "desired_goal")
    assert data.tokens[0, :6].tolist() == [0, 0, 0, 0, 2, 2]


def test_a_set_that_never_ends_is_no_set_of_one_episode(minari_store: Path) -> None:
    """D4RL's mazes have a single episode of millions of steps, with a flag nowhere."""
    size = 4000
    parts = {"observation": np.zeros((size + 1, 4)), "desired_goal": np.zeros((size + 1, 2))}
    never = episode(size, observations=parts, actions=np.zeros((size, 2)), terminations=np.zeros(size, bool))
    space: dict[str, gymnasium.Space[Any]] = {name: unlimited(values.shape[1]) for name, values in parts.items()}
    write_minari([never], "PointMaze_UMaze-v3", Dict(space), PLANE)
    with pytest.raises(UserError, match="episode 0 has 4,000 steps, and one of task 'pointmaze-umaze' ends after 300"):
        load_dataset(ID)


@dataclass
class Misfit:
    """A dataset whose spaces do not fit its task, and what the refusal must say."""

    episode: EpisodeBuffer
    env_id: str
    observations: gymnasium.Space
    actions: gymnasium.Space
    words: str


MISFITS = {
    "discrete for continuous": Misfit(
        cart_pole([0, 1]), "Hopper-v5", unlimited(4), Discrete(2), "Discrete action space: this policy needs continuous"
    ),
    "continuous for discrete": Misfit(
        episode(3), "CartPole-v1", unlimited(11), Box(-1, 1, (3,)), "Box action space, but task 'cartpole' chooses"
    ),
    "more choices": Misfit(
        cart_pole([0, 2]), "CartPole-v1", unlimited(4), Discrete(3), "actions 0 to 2, but task 'cartpole' has 0 to 1"
    ),
    "choices from 1": Misfit(
        cart_pole([1, 2]), "CartPole-v1", unlimited(4), Discrete(2, start=1), "actions 1 to 2, but task 'cartpole'"
    ),
    "a choice out of range": Misfit(
        cart_pole([0, 7]), "CartPole-v1", unlimited(4), Discrete(2), "episode 0: actions holds 7, expected 0 to 1"
    ),
    "a choice that no integer holds": Misfit(
        cart_pole([0.0, 1e30]), "CartPole-v1", unlimited(4), Discrete(2), r"actions holds 1e\+30, expected 0 to 1"
    ),
    "no goal": Misfit(
        goal_episode(GOAL_KEYS[:2]),
        "PointMaze_UMaze-v3",
        goal_space(GOAL_KEYS[:2]),
        PLANE,
        "no Dict observation space with observation, desired_goal",
    ),
    "flat for goals": Misfit(
        episode(3), "PointMaze_UMaze-v3", unlimited(11), PLANE, "no Dict observation space with observation"
    ),
    "goals for flat": Misfit(
        goal_episode(GOAL_KEYS), "Hopper-v5", goal_space(GOAL_KEYS), Box(-1, 1, (3,)), "no flat Box observation space"
    ),
    "goal parts of two lengths": Misfit(
        goal_episode(GOAL_KEYS, 2), "PointMaze_UMaze-v3", goal_space(GOAL_KEYS), PLANE, "episode 0: observations has"
    ),
}


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS.keys())
def test_spaces_that_do_not_fit_are_refused(misfit: Misfit, minari_store: Path) -> None:
    write_minari([misfit.episode], misfit.env_id, misfit.observations, misfit.actions)
    with pytest.raises(UserError, match=misfit.words) as refusal:
        load_dataset(ID)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.slow
def test_unknown_local_dataset_names_the_way_out(minari_store: Path, tmp_path: Path) -> None:
    result = run_command("dsf-train", "dsf/hopper/unknown-v0", "--out", str(tmp_path / "run"))
    assert_refused(result, "dsf/hopper/unknown-v0", "dsf-data collect")
    assert list(minari_store.iterdir()) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
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

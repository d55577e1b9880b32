"""Flat files are believed only where this user has made them of this very source; what lies about is left alone."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from dsf.tasks import get_task
from dsf.train.data.collect import write_dataset
from dsf.train.data.dataset import CACHE_NAME, load_dataset, source_fingerprint
from dsf.train.data.flat_store import (
    LOCK_NAME,
    METADATA_NAME,
    SIGNATURE_NAME,
    build_store,
    find_store,
    require_own_directory,
    write_store,
)
from dsf.train.data.flatten import flat_episodes
from dsf.train.data.importing import Imported
from dsf.train.data.user_places import KEY_NAME, cache_key

ID = "test/data-v0"
HOPPER = get_task("hopper")


def episode(reward: float) -> EpisodeBuffer:
    """Five steps of Hopper's sizes."""
    return EpisodeBuffer(
        observations=np.zeros((6, 11)),
        actions=np.zeros((5, 3), np.float32),
        rewards=np.full(5, reward),
        terminations=np.arange(5) == 4,
        truncations=np.zeros(5, bool),
    )


@pytest.fixture
def directory(minari_store: Path) -> Path:
    """A genuine dataset with one episode that returns 10."""
    return write_dataset(Imported(ID, "hopper", "test", [episode(2.0)], ()), [episode(2.0)], "test", overwrite=False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build_false_store(place: Path, fingerprint: str) -> Path:
    """A whole store under this name, of other data: returns of a million."""

    def write(partial: Path) -> None:
        write_store(partial, flat_episodes("false", HOPPER, [episode(200_000.0)]), features=15, action_size=3)

    build_store(place, fingerprint, write)
    return place / fingerprint


def genuine() -> bool:
    return load_dataset(ID).episode_returns.tolist() == [10.0]


def test_a_store_that_came_with_a_dataset_is_built_again(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = source_fingerprint(directory, HOPPER)
    with monkeypatch.context() as stranger:
        stranger.setenv("XDG_CACHE_HOME", str(tmp_path / "stranger"))
        build_false_store(directory / CACHE_NAME, fingerprint)
        assert load_dataset(ID).episode_returns.tolist() == [1e6]  # who has made it believes it
    digest = load_dataset(ID).content_hash
    assert genuine()
    shutil.rmtree(directory / CACHE_NAME)
    assert load_dataset(ID).content_hash == digest


def test_a_store_of_another_dataset_is_not_believed_under_this_one_s_name(directory: Path) -> None:
    assert genuine()
    place, fingerprint = directory / CACHE_NAME, source_fingerprint(directory, HOPPER)
    false = build_false_store(place, "another")
    assert find_store(place, "another") is not None
    false.rename(place / fingerprint)
    assert find_store(place, fingerprint) is None and genuine()


def test_arrays_that_are_replaced_under_their_size_and_times_are_seen(directory: Path) -> None:
    assert genuine()
    (path,) = (directory / CACHE_NAME).glob("*/returns.npy")
    state = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-8] + np.array([1e6]).tobytes())
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert genuine()


def user_stores(cache: Path) -> list[Path]:
    return list(cache.rglob(METADATA_NAME))


def test_a_linked_cache_directory_is_left_alone(directory: Path, tmp_path: Path, cache: Path) -> None:
    precious = tmp_path / "home"
    (precious / "work").mkdir(parents=True)
    (precious / "work" / "thesis").write_text("years")
    (directory / CACHE_NAME).symlink_to(precious)
    assert genuine() and genuine()
    assert (precious / "work" / "thesis").read_text() == "years"
    assert [path.name for path in precious.iterdir()] == ["work"]
    assert len(user_stores(cache)) == 1


@pytest.fixture(params=["link", "pipe"])
def strange_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Puts something else where a file should be."""
    kept = tmp_path / "kept"
    kept.write_text("mine")

    def put(path: Path) -> None:
        path.unlink(missing_ok=True)
        if request.param == "link":
            path.symlink_to(kept)
        else:
            os.mkfifo(path)

    yield put
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("name", [LOCK_NAME, METADATA_NAME, SIGNATURE_NAME, "tokens.npy"])
def test_links_and_pipes_among_flat_files_neither_lead_away_nor_block(
    name: str, strange_file: Any, directory: Path
) -> None:
    assert genuine()
    (store,) = (path for path in (directory / CACHE_NAME).iterdir() if path.name != LOCK_NAME)
    strange_file(directory / CACHE_NAME / name if name == LOCK_NAME else store / name)
    if name == LOCK_NAME:
        shutil.rmtree(store)
    assert genuine()


def test_a_link_among_the_stores_does_not_lead_to_its_target(directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "inner").mkdir(parents=True)
    (directory / CACHE_NAME).mkdir()
    (directory / CACHE_NAME / ("0" * 64)).symlink_to(target)
    assert genuine()
    assert (target / "inner").is_dir()


def test_another_user_s_cache_directory_is_left_alone(directory: Path, tmp_path: Path, cache: Path) -> None:
    place = directory / CACHE_NAME
    if os.geteuid() == 0:
        place.mkdir()
        os.chown(place, 12345, 12345)
        assert genuine() and list(place.iterdir()) == [] and len(user_stores(cache)) == 1
    else:
        place = Path("/")
    with pytest.raises(OSError, match=r"Permission denied|another user's"):
        require_own_directory(place)


def test_the_key_is_made_once_and_nobody_else_can_read_it(cache: Path) -> None:
    key = cache_key()
    path = cache / "dsf" / KEY_NAME
    assert len(key) == 32 and key == cache_key() == path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in path.parent.iterdir()] == [KEY_NAME]
    path.chmod(0o644)  # others may know it by now
    other = cache_key()
    assert other != key and stat.S_IMODE(path.stat().st_mode) == 0o600 and cache_key() == other
    path.write_bytes(b"cut")
    assert len(cache_key()) == 32


UNKNOWN_USER = ("unshare", "-U", "--map-user=54321", "--map-group=54321")
"""Runs a command as a number that no list of users knows, where the kernel lets anybody do so."""


@pytest.mark.slow
def test_a_user_without_a_home_reads_datasets(directory: Path, minari_store: Path) -> None:
    can = shutil.which("unshare") and subprocess.run([*UNKNOWN_USER, "true"], capture_output=True).returncode == 0
    prefix = UNKNOWN_USER if can else ()
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "XDG_CACHE_HOME")}
    command = [*prefix, str(Path(sys.executable).with_name("dsf-data")), "info", ID]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "") and "return 10 +- 0" in result.stdout
    del environment["MINARI_DATASETS_PATH"]
    nowhere = subprocess.run(command, env=environment, capture_output=True, text=True)
    words = "this user has no home directory: set MINARI_DATASETS_PATH" if can else "could not be downloaded"
    assert nowhere.returncode == 2 and words in nowhere.stderr

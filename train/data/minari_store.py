"""Minari's store: where datasets are, how one is opened, and one line for each way in which that can fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsf.shell.errors import UserError
from dsf.train.data import flat_store
from dsf.train.data.minari_files import require_sound
from dsf.train.data.names import DATASET_ID, LOCAL_NAMESPACE
from dsf.train.data.registry import way_to_make
from dsf.train.data.user_places import cache_directory, expanded, home

STORE_VARIABLE = "MINARI_DATASETS_PATH"


def open_minari(dataset_id: str) -> Any:
    """Open a dataset from the local store or the remote hub; every failure is one line.

    Raises:
        UserError: the dataset is neither here nor reachable.
    """
    import minari

    store = store_directory()
    local = way_to_make(dataset_id, lambda other: (store / other / "data").exists())
    if not DATASET_ID.fullmatch(dataset_id):
        raise UserError(f"'{dataset_id}' is no Minari dataset id (such as mujoco/hopper/medium-v0): {local}")
    data = store / dataset_id / "data"
    if data.exists():
        try:
            require_sound(data)
            return minari.MinariDataset(data)
        except UserError as error:
            raise UserError(f"dataset '{dataset_id}' in {store}: {error}") from None
        except Exception as error:  # damaged metadata fail in as many ways as there are
            raise unreadable(dataset_id, error) from None
    if dataset_id.startswith(f"{LOCAL_NAMESPACE}/"):
        raise UserError(f"dataset '{dataset_id}' is not in {store}: {local}")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the hub client's retries would bury the one line below
    new_store = not store.exists()
    try:
        with minari_store(str(store)):
            return minari.load_dataset(dataset_id, download=True)
    except Exception as error:  # the hub's client raises types of its own, not OSError, when there is no network
        if new_store and store.is_dir() and not any(store.iterdir()):
            store.rmdir()  # Minari makes it before it looks
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"dataset '{dataset_id}' could not be downloaded ({reason}); {local}") from None


def unreadable(dataset_id: str, error: Exception) -> UserError:
    """The one line for a local dataset that Minari cannot read."""
    reason = f"{type(error).__name__}: {one_line(error)}"
    return UserError(f"dataset '{dataset_id}' in {store_path()} cannot be read ({reason}): make or download it again")


def one_line(error: Exception, limit: int = 120) -> str:
    """The start of an exception's message, on one line."""
    return " ".join(str(error).split())[:limit]


def store_path() -> str:
    """Where Minari keeps datasets.

    Raises:
        UserError: nobody has said where, and the user has no home.
    """
    stated = os.environ.get(STORE_VARIABLE)
    if stated:
        return expanded(stated)
    place = home()
    if place is None:
        raise UserError(f"this user has no home directory: set {STORE_VARIABLE} to the directory of the datasets")
    return str(place / ".minari" / "datasets")


def store_directory() -> Path:
    """The store, which need not exist.

    Raises:
        UserError: it is something else than a directory, or see :func:`store_path`.
    """
    store = Path(store_path())
    if store.exists() and not store.is_dir():
        raise UserError(f"{STORE_VARIABLE} is {store}, which is no directory: set it to one")
    return store


@contextmanager
def minari_store(path: str) -> Iterator[None]:
    """Point Minari at a store for a while; it reads this variable on every call."""
    before = os.environ.get(STORE_VARIABLE)
    os.environ[STORE_VARIABLE] = path
    try:
        yield
    finally:
        if before is None:
            del os.environ[STORE_VARIABLE]
        else:
            os.environ[STORE_VARIABLE] = before


def user_cache_path() -> Path | None:
    """Where flat files go if the Minari store cannot be written; every store has a directory of its own there."""
    caches = cache_directory()
    return None if caches is None else caches / flat_store.checksum(os.path.realpath(store_path()))[:16]

"""One tiny dataset of each kind of action, made once for all training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsf.train.collect import collect_episodes, get_recipe, write_dataset

STEPS = {"hopper-medium": 400, "cartpole-expert": 300}


@pytest.fixture(scope="session")
def filled_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Minari store with both datasets."""
    store = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(store))
        for name, steps in STEPS.items():
            recipe = get_recipe(name)
            write_dataset(recipe, collect_episodes(recipe, steps, 0, lambda: None), "test", overwrite=False)
    return store


@pytest.fixture
def tiny_store(filled_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store with both datasets as this test's own; nobody writes to it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(filled_store))
    return filled_store

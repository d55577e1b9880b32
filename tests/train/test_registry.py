"""The paper's datasets under their D4RL names, and the list of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsf.shell.errors import UserError
from dsf.tasks import get_task
from dsf.testing.command_line import assert_refused, run_command
from dsf.train.data.collect import RECIPES, collect_episodes, get_recipe, write_dataset
from dsf.train.data.names import DATASET_ID
from dsf.train.data.registry import LOCAL, REGISTRY, REMOTE, resolve, way_to_make


def test_every_set_of_the_paper_is_registered() -> None:
    for task in ("hopper", "walker2d", "halfcheetah"):
        assert {f"{task}-{role}-v2" for role in ("medium", "medium-replay", "medium-expert")} <= set(REGISTRY)
    for task in ("pen", "door", "hammer", "relocate"):
        assert {f"{task}-{role}-v1" for role in ("human", "cloned", "expert")} <= set(REGISTRY)
    assert sum(name.startswith("antmaze-") for name in REGISTRY) == 6
    assert sum(name.startswith("maze2d-") for name in REGISTRY) == 8


def test_entries_are_consistent() -> None:
    collected = {recipe.dataset_id: recipe.task for recipe in RECIPES.values()}
    for entry in REGISTRY.values():
        get_task(entry.task)
        assert DATASET_ID.fullmatch(entry.source)
        assert entry.kind == (LOCAL if entry.source in collected else REMOTE)
        for local in {entry.source, entry.alternative} & set(collected):
            assert collected[local] == entry.task
        assert entry.has_d4rl_references != entry.d4rl_name.startswith("maze2d")


def test_names_resolve_to_minari_ids() -> None:
    assert resolve("hopper-medium-expert-v2") == "dsf/hopper/medium-expert-v1"
    assert resolve("hopper-medium-v2") == "dsf/hopper/medium-v0"  # Minari's medium is not D4RL's
    assert REGISTRY["hopper-medium-v2"].alternative == "mujoco/hopper/medium-v0"
    assert resolve("pen-human-v1") == "D4RL/pen/human-v2"
    assert resolve("maze2d-large-dense-v1") == "D4RL/pointmaze/large-dense-v2"
    assert resolve("mujoco/hopper/medium-v0") == "mujoco/hopper/medium-v0"
    assert resolve("nope") == "nope"
    with pytest.raises(UserError, match="'hopper-medium-v0' is registered as hopper-medium-v2"):
        resolve("hopper-medium-v0")


def test_list_shows_what_is_here(minari_store: Path, tmp_path: Path) -> None:
    recipe = get_recipe("hopper-medium")
    write_dataset(recipe, collect_episodes(recipe, 30, 0, lambda: None), "test", overwrite=False)
    result = run_command("dsf-data", "list", "--json", str(tmp_path / "list.json"))
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert rows["hopper-medium-v2"][:3] == ["hopper", "dsf/hopper/medium-v0", "yes"]
    assert rows["walker2d-medium-replay-v2"][:3] == ["walker2d", "dsf/walker2d/medium-replay-v0", "no"]
    assert set(REGISTRY) <= set(rows)
    assert "dsf/hopper/medium-v0: 30 steps" in result.stdout
    listed = json.loads((tmp_path / "list.json").read_text())
    here = {row["d4rl_name"]: row["here"] for row in listed["paper"]}
    assert [name for name in here if here[name]] == ["hopper-medium-v2"]
    assert listed["store"][0]["dataset_id"] == "dsf/hopper/medium-v0" and listed["store"][0]["steps"] == 30


def test_list_refuses_a_place_that_cannot_be_written(minari_store: Path, tmp_path: Path) -> None:
    assert_refused(run_command("dsf-data", "list", "--json", str(tmp_path / "none" / "list.json")), "does not exist")


@pytest.mark.parametrize(
    ("name", "dataset_id"),
    [
        ("walker2d-medium", "dsf/walker2d/medium-v0"),
        ("pointmaze-umaze", "dsf/pointmaze/umaze-v0"),
        ("x/y-v3", "x/y-v3"),
    ],
)
def test_names_without_version_and_names_of_recipes_are_understood(name: str, dataset_id: str) -> None:
    assert resolve(name) == dataset_id


@pytest.mark.parametrize(
    ("dataset_id", "recipe"),
    [
        ("dsf/walker2d/medium-v0", "dsf-data collect walker2d-medium'"),
        ("mujoco/halfcheetah/expert-v0", "dsf-data collect halfcheetah-expert'"),
        ("D4RL/pointmaze/umaze-v2", "dsf-data collect pointmaze-umaze'"),
        ("D4RL/pen/human-v2", "dsf-data list"),
    ],
)
def test_what_cannot_be_loaded_names_what_can_be_made(dataset_id: str, recipe: str) -> None:
    assert recipe in way_to_make(dataset_id)

"""Whatever is registered is known everywhere: CONTRIBUTING says which of these tests fails when a file is forgotten.

The tests that compute (each attention on each engine, each target read back) run over the same lists; these are the
ones that say that the lists are whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from dsf.export.network.nodes import ALLOWED_SOURCES, HOST_KINDS, NODE_KINDS
from dsf.export.network.reference import ReferenceEngine
from dsf.export.proof.rungs import compare_torch
from dsf.export.proof.written import COMPARISONS
from dsf.export.targets.options import EXTRAS, SUFFIXES, Target
from dsf.export.write import WRITERS
from dsf.hardware_models import load_preset, preset_names
from dsf.runtime.engines.interface import BackendName
from dsf.runtime.open_engine import open_engine
from dsf.runtime.sweeps.energy import DENSE
from dsf.runtime.sweeps.spec import LAYER_PRICED
from dsf.tasks import TASKS
from dsf.tasks.maze_tasks import MAZE_TASKS
from dsf.testing.lava import lava_runs_here
from dsf.testing.random_networks import KINDS, random_network, random_tokens
from dsf.testing.rival_models import small_model
from dsf.train.config.rivals import OBSTACLES, RIVAL_NAMES, PolicyKind
from dsf.train.config.training import AttentionKind, BiasKind
from dsf.train.data.recipes import RECIPES
from dsf.train.data.registry import REGISTRY
from dsf.train.models.attention import ATTENTIONS

DOCS = Path(__file__).resolve().parents[2] / "docs"
RIVALS: tuple[PolicyKind, ...] = tuple(kind for kind in get_args(PolicyKind) if kind != "dsformer")


def test_every_task_has_a_dataset_with_a_name() -> None:
    """tests/tasks/test_task.py drives each one's environment."""
    named = {entry.task for entry in REGISTRY.values()} | {recipe.task for recipe in RECIPES.values()}
    assert named | {task.name for task in MAZE_TASKS} == set(TASKS)


def test_every_attention_is_compared_on_every_engine() -> None:
    """test_ladder, test_lava and test_stream_window run over KINDS."""
    assert {sizes.get("attention", "pssa") for sizes in KINDS.values()} == set(get_args(AttentionKind))
    assert {sizes.get("positional_bias", "relative") for sizes in KINDS.values()} == set(get_args(BiasKind))
    assert {*ATTENTIONS, "none"} == set(get_args(AttentionKind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_attention_computes_in_torch_as_in_the_reference(kind: str) -> None:
    network = random_network(7, width=8, heads=2, blocks=1, context=5, window=3, **KINDS[kind])
    rung = compare_torch(network, random_tokens(network, network.context, 3, seed=1))
    assert rung.passed is True, rung


def test_every_kind_of_node_is_in_a_network_that_engines_are_compared_on() -> None:
    networks = [random_network(7, heads=2, blocks=1, **sizes) for sizes in KINDS.values()]
    assert {type(node) for network in networks for node in network.nodes} == set(NODE_KINDS.values())
    assert set(ALLOWED_SOURCES) == set(NODE_KINDS.values()) - set(HOST_KINDS)


@pytest.mark.parametrize("kind", RIVALS)
def test_every_rival_is_named_built_refused_by_export_and_priced(kind: PolicyKind) -> None:
    assert small_model(kind).kind == kind
    assert kind in RIVAL_NAMES and kind in OBSTACLES
    priced = [*LAYER_PRICED, *(policy for policies in DENSE.values() for policy in policies)]
    assert priced.count(kind) == 1
    assert f"`{kind}`" in (DOCS / "training.md").read_text()


def test_every_target_is_written_read_back_and_explained() -> None:
    targets = set(get_args(Target))
    assert targets == set(SUFFIXES) == set(EXTRAS) == set(WRITERS) == set(COMPARISONS)
    assert len(set(SUFFIXES.values())) == len(targets)
    text = (DOCS / "export.md").read_text()
    assert [name for name in targets if f"\n| `{name}" not in text] == []


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_its_figures_in_the_documents(name: str) -> None:
    """benchmarks of the shipped network: docs/energy.json is compared with fresh figures in test_energy_document."""
    assert load_preset(name).name == name
    assert name in json.loads((DOCS / "energy.json").read_text())["presets"]
    assert f"\n| {name} | " in (DOCS / "energy.md").read_text()


def test_every_engine_is_another_one_and_equals_the_reference() -> None:
    network, kinds = random_network(3, blocks=1), set()
    tokens = random_tokens(network, 4, 1, seed=2)
    here = [name for name in get_args(BackendName) if name != "lava" or lava_runs_here()]
    for backend in here:
        reference = ReferenceEngine(network)
        with open_engine(network, backend) as engine:
            kinds.add(type(engine))
            for token in tokens:
                assert np.array_equal(engine.step_graded(token)[0], reference.step_graded(token)), backend
    assert len(kinds) == len(here)

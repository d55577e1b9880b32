"""docs/energy.md holds: the figures come out again, and a changed price would show."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "energy.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("energy", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def written(script: ModuleType) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(script.FIGURES.read_text())
    return figures


def test_the_documents_figures_come_out_again(script: ModuleType, written: dict[str, Any]) -> None:
    measured, _ = script.measure()
    assert script.drifted(written, measured) == []


def test_the_document_shows_the_figures(script: ModuleType, written: dict[str, Any]) -> None:
    assert script.render(written) in script.DOCUMENT.read_text()


@pytest.mark.parametrize("key", ["joules_per_decision", "low", "high"])
def test_drift_is_seen(script: ModuleType, written: dict[str, Any], key: str) -> None:
    changed = copy.deepcopy(written)
    changed["presets"]["loihi2_derived"][key] *= 1.03
    changed["presets"]["odin"][key] *= 1.01
    (line,) = script.drifted(written, changed)
    assert line.startswith(f"loihi2_derived, {key}: ")


def test_a_preset_that_is_new_or_gone_is_seen(script: ModuleType, written: dict[str, Any]) -> None:
    changed = copy.deepcopy(written)
    del changed["presets"]["odin"]
    assert script.drifted(written, changed) == ["odin: only on one side"]


def test_the_document_counts_every_quantity() -> None:
    from dsf.hardware_models.activity import QUANTITIES

    text = (SCRIPT.parents[1] / "docs" / "energy.md").read_text()
    assert all(f"| {name} | {meaning} |" in text for name, meaning in QUANTITIES.items())

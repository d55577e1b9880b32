"""docs/energy.md holds: the figures come out again, and a changed price would show."""

from __future__ import annotations

import copy
import json
from typing import Any

import energy
import pytest


@pytest.fixture
def written() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(energy.FIGURES.read_text())
    return figures


@pytest.mark.slow
def test_the_documents_figures_come_out_again(written: dict[str, Any]) -> None:
    measured, _ = energy.measure()
    assert energy.drifted(written, measured) == []


def test_the_document_shows_the_figures(written: dict[str, Any]) -> None:
    assert energy.render(written) in energy.DOCUMENT.read_text()


@pytest.mark.parametrize("key", ["joules_per_decision", "low", "high"])
def test_drift_is_seen(written: dict[str, Any], key: str) -> None:
    changed = copy.deepcopy(written)
    changed["presets"]["loihi2_derived"][key] *= 1.03
    changed["presets"]["odin"][key] *= 1.01
    (line,) = energy.drifted(written, changed)
    assert line.startswith(f"loihi2_derived, {key}: ")


def test_a_preset_that_is_new_or_gone_is_seen(written: dict[str, Any]) -> None:
    changed = copy.deepcopy(written)
    del changed["presets"]["odin"]
    assert energy.drifted(written, changed) == ["odin: only on one side"]


def test_the_document_counts_every_quantity() -> None:
    from dsf.hardware_models.activity import QUANTITIES

    text = energy.DOCUMENT.read_text()
    assert all(f"| {name} | {meaning} |" in text for name, meaning in QUANTITIES.items())

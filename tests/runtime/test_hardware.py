"""A run under presets: what the report says of energy, cores and time, from the command line on."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dsf.export.network.file import write_network
from dsf.export.network.network import Mode
from dsf.export.network.nodes import NetworkError
from dsf.export.placement.chips import CHIPS, LOIHI_1, Figure
from dsf.hardware_models import load_preset
from dsf.hardware_models.work import stages
from dsf.runtime.cli import main
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.runtime.report.hardware import SAMPLED_DECISIONS, price_run, replay_spikes, require_cores
from dsf.tasks import get_task
from dsf.testing.command_line import assert_refused
from dsf.testing.random_networks import random_network, random_tokens
from dsf.testing.training_runs import run_here

MINE = {
    "title": "mine",
    "notes": "a test's own",
    "energy_pj": {"synaptic_events": {"low": 1, "nominal": 2, "high": 4, "grade": "D", "source": "made up"}},
}


def run(tmp_path: Path, *options: str) -> tuple[dict[str, Any], str]:
    """A closed loop of a small network on the fast engine: its JSON and its output."""
    path = tmp_path / "net.dsf.h5"
    write_network(random_network(0, features=15), path)
    arguments = (str(path), "--backend", "fast", "--no-compare", "--json", str(tmp_path / "out.json"), *options)
    result = run_here(main, "dsf-sim-run", *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads((tmp_path / "out.json").read_text()), result.stdout


@pytest.mark.slow
def test_repeated_presets_and_a_users_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(MINE))
    summary, printed = run(tmp_path, "--hardware", "loihi2_derived", "--hardware", str(mine))
    assert set(summary["energy"]) == {"loihi2_derived", "mine"}
    events = summary["synaptic_events_per_decision"]
    assert summary["energy"]["mine"]["joules_per_decision"] == pytest.approx(2e-12 * events)
    assert summary["energy"]["mine"]["high"] == pytest.approx(4e-12 * events)
    assert "cores" not in summary["energy"]["mine"] and "mine has no price for" in printed.replace("\n", " ")
    chip = summary["energy"]["loihi2_derived"]
    assert chip["cores"]["fit"][0].startswith("fits: ") and chip["cores"]["assumptions"]
    assert chip["latency"]["mean"]["low"] <= chip["latency"]["mean"]["nominal"] <= chip["latency"]["mean"]["high"]
    assert chip["static_joules_per_control_period"]["nominal"] == pytest.approx(0.232 * 0.008)
    assert summary["energy"]["mine"]["static_joules_per_control_period"] is None
    assert chip["cores"]["searched"]["load"] < chip["cores"]["in_order"]["load"] and "(in order: " in printed
    assert "graded messages of the host" in " ".join(printed.replace("│", " ").split()), "what has no time is listed"
    assert "real time" in chip["latency"]["verdict"]
    for figures in summary["energy"].values():
        assert sum(figures["layers"].values()) == pytest.approx(figures["joules_per_decision"])
        assert sum(figures["terms"].values()) == pytest.approx(figures["joules_per_decision"])


def test_without_the_option_three_presets_price_the_run(tmp_path: Path) -> None:
    summary, printed = run(tmp_path)
    assert set(summary["energy"]) == {"paper_45nm", "int8_45nm", "loihi2_derived"}
    assert "on the chip: a model of" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("content", "words"),
    [("title: [", "is no YAML"), (yaml.safe_dump({**MINE, "energy_pj": {"joy": 1}}), "unknown field 'joy'")],
)
def test_a_broken_file_is_refused_before_anything_runs(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert_refused(run_here(main, "dsf-sim-run", "--backend", "fast", "--hardware", str(path)), words)


def test_a_network_that_no_chip_can_hold_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two input axons are too few for a neuron that reads 15 features."""
    tiny = dataclasses.replace(LOIHI_1, input_axons_per_core=Figure(2, "inferred", "own"))
    monkeypatch.setitem(CHIPS, "loihi1", tiny)
    network, presets = random_network(0, features=15), [load_preset("loihi2_derived"), load_preset("loihi1_fitted")]
    require_cores(network, presets[:1])
    with pytest.raises(NetworkError, match="input axons of 2 of a core of Loihi 1"):
        require_cores(network, presets)


def test_a_preset_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINE))
    options = ("--backend", "fast", "--hardware", str(path), "--json", str(path))
    assert_refused(run_here(main, "dsf-sim-run", *options), "mine.yaml")
    assert yaml.safe_load(path.read_text()) == MINE


@pytest.mark.parametrize("mode", ["stream", "window"])
def test_a_runs_figures(mode: Mode) -> None:
    """Replayed spikes are the run's; messages of the mapping price the run; every token of a window is timed."""
    network = random_network(1, features=15)
    engine = ReferenceLoopEngine(network, mode)
    tokens = random_tokens(network, 12, 1, seed=0)
    spikes = [engine.step_graded(token)[1] for token in tokens]
    replayed = replay_spikes(network, mode, tokens[:, 0])
    assert len(replayed) == 12 <= SAMPLED_DECISIONS[mode]
    for one, other in zip(spikes, replayed):
        for name, values in one.items():
            present = other[name] if mode == "stream" else other[name][:, -1]
            assert np.array_equal(present, values)
    presets = [load_preset("paper_45nm"), load_preset("loihi1_fitted")]
    paper, fitted = price_run(network, mode, engine.counter, tokens[:, 0], presets)
    assert paper.on_chip is None and fitted.on_chip is not None and fitted.on_chip.latency is not None
    activity = fitted.on_chip.mapping.activity(engine.counter)
    messages = fitted.energy.terms["messages"].nominal
    assert messages == pytest.approx(111e-12 * activity.per_decision("messages"))
    lockstep, idle = activity.per_decision("inactive_updates"), fitted.on_chip.latency.idle_updates
    updates = fitted.energy.terms["inactive_updates"].nominal
    assert idle > 0 and updates == pytest.approx(51.2e-12 * (lockstep + idle)), "energy and time count the same ticks"
    decided = [min(index + 1, network.context) if mode == "window" else 1 for index in range(12)]
    pipeline = max(stages(network).values()) - 1
    assert fitted.on_chip.latency.ticks == pytest.approx(network.ticks * np.mean(decided) + pipeline)
    written = fitted.to_json(get_task("hopper"))
    assert json.loads(json.dumps(written)).keys() == written.keys()
    assert written["latency"]["energy_delay_js"]["nominal"] > 0


def test_without_a_control_period_there_is_no_verdict() -> None:
    """An environment of --env need not state one."""
    network = random_network(0, features=15)
    engine = ReferenceLoopEngine(network)
    tokens = random_tokens(network, 3, 1, seed=0)
    for token in tokens:
        engine.step_graded(token)
    (figures,) = price_run(network, "stream", engine.counter, tokens[:, 0], [load_preset("loihi2_derived")])
    task = dataclasses.replace(get_task("hopper"), control_period_s=math.nan)
    values = figures.to_json(task)
    latency = values["latency"]
    assert latency["verdict"] == "not known: Hopper-v5 states no control period"
    assert values["static_joules_per_control_period"] is None and latency["static_joules"]["nominal"] > 0

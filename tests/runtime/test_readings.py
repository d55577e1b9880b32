"""Figures that were read as something else: each has the name of what it measures, in terminal, JSON and page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsf.export.inspect import count_totals, neuron_words
from dsf.export.network.file import read_network, write_network
from dsf.export.targets.nir_graph import REASONS
from dsf.export.targets.options import NIR_LEAVES_OUT
from dsf.hardware_models import SpikeCounter, estimate_energy, load_preset, measure_activity
from dsf.hardware_models.layers import layer_rows
from dsf.hardware_models.preset import parse_preset
from dsf.runtime.artifacts import network_path
from dsf.runtime.options import SimRunConfig
from dsf.runtime.report.html import write_html
from dsf.runtime.report.run_report import COMPARISON_NOTE, RunReport
from dsf.runtime.report.terminal import print_report, run_rows, small
from dsf.runtime.simulate import Run, simulate
from dsf.shell.errors import UserError
from dsf.testing.chain_network import TICKS, chain_network
from dsf.testing.random_networks import random_network
from dsf.train.data.minari_store import open_minari
from dsf.train.data.registry import way_to_make


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two episodes of a small network, with the integer reference beside them."""
    path = tmp_path_factory.mktemp("net") / "net.dsf.h5"
    write_network(random_network(0, features=15), path)
    page = path.with_suffix(".html")
    return simulate(SimRunConfig(path, backend="fast", episodes=2, hardware=("loihi2_derived",), html=page))


def shown(report: RunReport) -> str:
    """The whole report on a wide terminal, on one line."""
    console = Console(width=200)
    with console.capture() as capture:
        print_report(report, console)
    return " ".join(capture.get().replace("│", " ").split())


def page_of(ran: Run, report: RunReport, path: Path) -> str:
    write_html(path, ran.plan.network, report)
    return path.read_text()


@pytest.mark.slow
def test_wall_time_is_of_the_loop_of_the_comparison_and_of_the_whole(ran: Run, tmp_path: Path) -> None:
    wall = ran.report.to_json()["wall_seconds"]
    assert wall["loop"] == ran.report.result.seconds > 0 and wall["comparison"] > 0
    assert wall["whole"] >= wall["loop"] + wall["comparison"]
    report = dataclasses.replace(ran.report, times=dataclasses.replace(ran.report.times, comparison=95.2, whole=97.06))
    rows = {name: value for name, value in run_rows(report).items() if "wall" in name}
    assert list(rows) == ["wall time: loop", "wall time: comparison", "wall time: whole run"]
    assert rows["wall time: comparison"] == "95.2 s" and rows["wall time: whole run"] == "97.1 s"
    assert float(rows["wall time: loop"].split()[0]) > 0, "a short loop does not read as none"
    page = page_of(ran, report, tmp_path / "page.html")
    assert "<h2>Wall time</h2>" in page and "95.2 s" in page and "97.1 s" in page

    alone = dataclasses.replace(ran.report, times=dataclasses.replace(ran.report.times, comparison=None))
    assert "wall time: comparison" not in run_rows(alone) and alone.to_json()["wall_seconds"]["comparison"] is None


@pytest.mark.slow
def test_returns_of_float_and_integers_are_not_left_without_a_word(ran: Run, tmp_path: Path) -> None:
    """Integers of one seed are equal to the last bit, so they need none."""
    assert list(ran.report.comparison) == ["integer reference"] and ran.report.comparison_note is None
    assert COMPARISON_NOTE not in shown(ran.report) and ran.report.to_json()["comparison_note"] is None
    floats = {"float (torch, window)": ran.report.episodes, **ran.report.comparison}
    report = dataclasses.replace(ran.report, comparison=floats)
    assert "only means over many seeds compare" in shown(report)
    assert report.to_json()["comparison_note"] == COMPARISON_NOTE
    assert COMPARISON_NOTE in page_of(ran, report, tmp_path / "page.html")


@pytest.mark.slow
def test_an_interval_of_a_few_episodes_is_not_called_one_of_95_percent(ran: Run, tmp_path: Path) -> None:
    said = "2 episodes: too few for 95 %"
    assert said in shown(ran.report) and ran.report.to_json()["return_interval_note"] == said
    assert said in page_of(ran, ran.report, tmp_path / "page.html")
    for count, note in ((1, "one episode"), (5, "5 episodes: too few for 95 %"), (6, "")):
        results = tuple(ran.report.result.results[0] for _ in range(count))
        report = dataclasses.replace(ran.report, result=dataclasses.replace(ran.report.result, results=results))
        assert report.interval_note == note


def test_cores_that_are_needed_and_cores_in_use_tell_one_story(ran: Run) -> None:
    (figures,) = ran.report.hardware
    chip, words = figures.on_chip, shown(ran.report)
    assert chip is not None and chip.searched.cores > chip.naive.cores == chip.fit.needed
    assert f"fits: {chip.naive.cores} of 128 cores on 1 chip(s) of Loihi 2 suffice" in words
    assert f"{chip.searched.cores} of loihi2, 1: spread out for a short tick" in words
    assert f"(in order: {chip.naive.cores}, which suffice)" in words
    assert figures.to_json(ran.report.task)["cores"]["counted_on"] == "searched"


def test_a_network_has_one_number_of_neurons(ran: Run) -> None:
    """The export, inspect and a run's layers count the same ones, and the kinds add up."""
    network = read_network(network_path())
    totals = count_totals(network)
    assert neuron_words(totals) == (
        "5,504 neurons (3,840 LIF, 384 gates, 384 sums of attention, 896 adders of the residual)"
    )
    for found in (totals, count_totals(random_network(1, attention="tssa")), count_totals(ran.plan.network)):
        assert found["neurons"] == sum(found[kind] for kind in ("lif_neurons", "gates", "attention_sums", "adders"))
    assert sum(row.neurons for row in ran.report.hardware[0].layers) == count_totals(ran.plan.network)["neurons"]
    assert "firing rate (per LIF neuron and tick)" in run_rows(ran.report)


def test_nir_names_everything_that_it_leaves_out() -> None:
    named = NIR_LEAVES_OUT.lower()
    assert all(kind.__name__.lower() in named for kind in REASONS)
    assert "reset" in named and "one source twice" in named


def test_a_data_set_that_is_there_is_named_and_not_to_be_made_again(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in = "dsf/pointmaze/umaze-v0"
    said = way_to_make("D4RL/pointmaze/umaze-v2", lambda other: other == stand_in)
    assert f"'{stand_in}' is here" in said and "collect" not in said
    assert "collect pointmaze-umaze" in way_to_make("D4RL/pointmaze/umaze-v2")
    # What is asked for itself is not here, whatever the store says.
    assert "collect pointmaze-umaze" in way_to_make(stand_in, lambda other: other == stand_in)
    monkeypatch.setattr("minari.load_dataset", _no_network)
    with pytest.raises(UserError, match=r"could not be downloaded.*'dsf/hopper/medium-v0' is here"):
        open_minari("mujoco/hopper/medium-v0")


def _no_network(*_arguments: Any, **_options: Any) -> Any:
    raise ConnectionError("no network")


def test_the_papers_model_counts_the_first_layer_once_per_token() -> None:
    """6 weights and 2 ticks: 6 products of 4.6 pJ in the paper's formula, 12 for whoever repeats them."""
    network = chain_network()
    counter = SpikeCounter(network)
    counter.decisions = counter.tokens = 1
    activity = measure_activity(counter)
    assert (activity.total("macs"), activity.total("repeated_macs")) == (6 + 6, 6 * (TICKS - 1))
    for preset, products, picojoules in (
        ("paper_45nm", 6, 4.6),
        ("int8_45nm", 6 * TICKS, 0.3 + 3.5),
        ("cpu", 12, 8600),
    ):
        energy = estimate_energy(activity, load_preset(preset))
        (embed,) = (layer for layer in energy.layers if layer.node == "embed")
        assert embed.nominal == pytest.approx(products * picojoules * 1e-12), preset
        rows = {row.layer: row for row in layer_rows(network, activity, energy)}
        assert rows["embed"].macs == products, "the count beside the energy is the one that was priced"
    assert "repeated_macs" in estimate_energy(activity, load_preset("paper_45nm")).included


def test_a_preset_of_ones_own_prices_every_product_as_before() -> None:
    price = {"low": 1.0, "nominal": 2.0, "high": 4.0, "grade": "D", "source": "a test's own"}
    values: dict[str, Any] = {"title": "t", "notes": "n", "energy_pj": {"macs": price}}
    preset = parse_preset("mine", values)
    assert preset.energy_pj["repeated_macs"] == preset.energy_pj["macs"]
    other = {**price, "nominal": 1.5}
    own = parse_preset("mine", {**values, "energy_pj": {"macs": price, "repeated_macs": other}})
    assert own.energy_pj["repeated_macs"].nominal == 1.5
    held = parse_preset("mine", {**values, "included": {"repeated_macs": "macs: held"}})
    assert "repeated_macs" not in held.energy_pj


def test_small_energies_keep_their_digits() -> None:
    assert [small(value) for value in (24.126, 0.634, 0.1, 0.0212, 0.00034, 0.0)] == [
        "24.13",
        "0.63",
        "0.10",
        "0.021",
        "0.00034",
        "0.00",
    ]


@pytest.mark.slow
def test_the_page_says_unproven_in_words(ran: Run, tmp_path: Path) -> None:
    details = {"verdict": "unproven", "settled_by": "about 300 episodes"}
    rungs = [
        {"name": "L0 -> L2 closed loop", "passed": None, "summary": "score drop 9.0", "details": details},
        {"name": "L1 -> L2", "passed": None, "summary": "claims nothing", "details": {}},
    ]
    network = ran.plan.network.with_verification({"rungs": rungs})
    path = tmp_path / "page.html"
    write_html(path, network, ran.report)  # the note, which says what would settle it, is the report's
    page = path.read_text()
    assert "<td>L0 -&gt; L2 closed loop</td><td>unproven</td><td>score drop 9.0</td>" in page
    assert "<td>L1 -&gt; L2</td><td>-</td>" in page


def test_the_whole_report_is_json(ran: Run) -> None:
    json.dumps(ran.report.to_json(), allow_nan=False)

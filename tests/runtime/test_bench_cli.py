"""dsf-bench, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsf.export.network.file import read_network, write_network
from dsf.export.network.network import Mode
from dsf.hardware_models import estimate_energy, load_preset, measure_activity, preset_names
from dsf.hardware_models.paper_table import TSSA_RATES, paper_rows
from dsf.runtime.artifacts import network_path
from dsf.runtime.bench_cli import SECTION, EnergyTableConfig, energy_table, rates_of_tssa
from dsf.runtime.energy_table.figures import EnergyTable, count_decisions, work_out
from dsf.runtime.energy_table.sheets import Sheet, rival_sheet, sheets
from dsf.shell.errors import UserError
from dsf.shell.generated_section import markers
from dsf.testing.random_networks import random_network

DOCUMENT = Path(__file__).parents[2] / "docs" / "energy_table.md"


WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch())
from dsf.runtime.bench_cli import main
main()
"""


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, where torch cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def table() -> EnergyTable:
    network = read_network(network_path())
    modes: tuple[Mode, ...] = ("window", "stream")
    counters = {mode: count_decisions(network, 60, mode, "reference") for mode in modes}
    return work_out(network, counters, TSSA_RATES, TSSA_RATES)


@pytest.mark.slow
def test_the_table_is_printed_and_written(tmp_path: Path) -> None:
    document, values = tmp_path / "page.md", tmp_path / "table.json"
    begin, end = markers(SECTION)
    document.write_text(f"before\n{begin}\nstale\n{end}\nafter\n")
    result = bench("energy-table", "--decisions", "40", "--json", str(values), "--markdown", str(document))
    assert result.returncode == 0, result.stderr
    assert "[cost " in result.stdout, "brackets are no markup"
    assert "78.4 %" in result.stdout and "SpikeBERT: left out" in result.stdout
    text = document.read_text()
    assert text.startswith(f"before\n{begin}\n### The paper's Table 1") and text.endswith(f"{end}\nafter\n")
    assert "stale" not in text
    written = json.loads(values.read_text())
    assert written["decisions"] == {"stream": 40, "window": 40}
    assert {entry["preset"] for entry in written["presets"]} == set(preset_names())
    again = document.read_text()
    assert bench("energy-table", "--decisions", "40", "--markdown", str(document)).returncode == 0
    assert document.read_text() == again, "the same figures, written twice"


@pytest.mark.slow
def test_mistakes_are_one_line() -> None:
    for arguments, words in (
        ((), "name one of energy-table"),
        (("energy",), "name one of energy-table"),
        (("energy-table", "--decisions", "0"), "--decisions is 0: it must be at least 1"),
    ):
        result = bench(*arguments)
        assert result.returncode == 2, arguments
        assert words in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert "dsf-bench energy-table" in bench("--help").stdout


def test_files_that_cannot_work_are_refused_before_anything_runs(tmp_path: Path) -> None:
    plain = tmp_path / "plain.md"
    plain.write_text("nothing to replace")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"markdown": plain}, "has no part between <!-- energy-table:begin -->"),
        ({"markdown": tmp_path / "no" / "x.md"}, "create it first"),
        ({"json": tmp_path / "no" / "x.json"}, "create it first"),
        ({"network": plain}, "plain.md"),
        ({"json": network_path()}, "is the input"),
        ({"network": plain, "json": plain}, "is the input"),
        ({"markdown": plain, "json": plain}, "is the input"),
    )
    for options, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            energy_table(EnergyTableConfig(**options))
        assert "\n" not in str(caught.value)
    assert plain.read_text() == "nothing to replace"


def test_a_network_of_another_attention_is_refused(tmp_path: Path) -> None:
    """Its rates would stand in the wrong row."""
    path = tmp_path / "sssa.dsf.h5"
    write_network(random_network(0, blocks=1, attention="sssa", features=15), path)
    for option, name in (("network", "PSSA"), ("tssa", "TSSA")):
        chosen: dict[str, Any] = {option: path}
        with pytest.raises(UserError, match=f"has no {name}"):
            energy_table(EnergyTableConfig(decisions=1, **chosen))


def test_tssa_is_measured_where_a_network_is_given(tmp_path: Path) -> None:
    path = tmp_path / "tssa.dsf.h5"
    write_network(random_network(0, blocks=1, attention="tssa", features=15), path)
    rates = rates_of_tssa(EnergyTableConfig(tssa=path, decisions=3, backend="reference"))
    assert rates.source == "measured: tssa.dsf.h5, 3 closed-loop decisions" and rates != TSSA_RATES
    assert rates_of_tssa(EnergyTableConfig()) == TSSA_RATES


@pytest.mark.slow
def test_decisions_are_counted_over_episodes() -> None:
    """A network that falls soon needs more than one; the count is exact in both modes."""
    network = read_network(network_path())
    stream, window = (count_decisions(network, 30, mode, "reference") for mode in ("stream", "window"))
    assert (stream.decisions, stream.tokens) == (30, 30)
    assert (window.decisions, window.tokens) == (30, sum(range(1, 21)) + 10 * 20)
    assert count_decisions(network, 1_003, "stream", "fast").decisions == 1_003, "an episode has 1,000"


@pytest.mark.slow
def test_savings_come_from_the_runs_own_counts(table: EnergyTable) -> None:
    activity = measure_activity(table.counters["stream"])
    for versus in table.versus:
        if versus.mode != "stream":
            continue
        preset = load_preset(versus.preset)
        assert versus.spiking == estimate_energy(activity, preset)
        assert (versus.dense is None) == ("macs" not in preset.energy_pj)
    int8 = next(versus for versus in table.versus if (versus.preset, versus.mode) == ("int8_45nm", "stream"))
    cached = next(rival for rival in table.rivals if "int8, key-value cache, a step" in rival.name)
    assert int8.dense is not None and int8.dense == estimate_energy(cached.activity, load_preset("int8_45nm"))
    assert int8.saving == pytest.approx(1 - int8.spiking.nominal / int8.dense.nominal)


@pytest.mark.slow
def test_the_headline_at_equal_width(table: EnergyTable) -> None:
    """TSSA's recorded rates stand in for PSSA's: 8 bits change the saving by the ratio of the prices."""
    fp32, int8 = (table.savings[f"PSSA {width} against DT {width}"] for width in ("fp32", "int8"))
    assert table.savings["printed"] == pytest.approx(0.784, abs=5e-4)
    assert (1 - int8) / (1 - fp32) == pytest.approx((0.03 / 0.23) / (0.9 / 4.6), rel=0.02)
    assert table.savings["PSSA fp32 against DT int8"] < 0 < fp32


@pytest.mark.slow
def test_sheets_are_the_same_in_markdown(table: EnergyTable) -> None:
    found = sheets(table)
    assert all(len(row) == len(sheet.columns) for sheet in found for row in sheet.rows)
    assert (
        Sheet("t", ["a", "b"], [["1", "2"]], ["n"]).markdown()
        == "### t\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n- n\n"
    )
    headline = next(sheet for sheet in found if "each hardware preset" in sheet.title)
    chips = [row for row in headline.rows if row[0] == "loihi1_fitted"]
    assert len(chips) == 2 and all(row[3].startswith("[") and row[4].startswith("[cost") for row in chips)
    assert any("loihi1_fitted" in note and "dynamic operations" in note for note in headline.notes)


@pytest.mark.slow
def test_the_document_holds_what_depends_on_no_run(table: EnergyTable) -> None:
    """Figures of a run may differ in their last digits between machines; formulas may not."""
    text = DOCUMENT.read_text()
    assert rival_sheet(table).markdown() in text
    lines = sheets(table)[0].markdown().splitlines()
    for model in ("DT", "FCNet", "SpikeGPT", "SpikeBERT", "TSSA"):
        row = next(line for line in lines if line.startswith(f"| {model} |"))
        assert row in text
    for rival in paper_rows(TSSA_RATES, TSSA_RATES)[:5]:
        assert rival.difference in text

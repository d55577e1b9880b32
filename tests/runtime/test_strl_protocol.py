"""benchmarks/strl_protocol.py: which cells there are, what a budget changes, one tiny cell, and the document."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def protocol() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {part: importlib.import_module(f"strl_{part}") for part in ("protocol", "cells", "lines", "tables")}


def test_every_seed_has_a_whole_table_and_sweeps_share_the_papers_values_with_it(
    protocol: dict[str, ModuleType],
) -> None:
    cells = protocol["cells"].cells
    assert len(cells([0, 1], [])) == 2 * 3 * 2 * 4
    # Two pairs, three values changed of each of three settings; the fourth is the paper's, which the table has.
    assert len(cells([0], [0])) == 24 + 2 * 3 * 3
    assert len(cells([], [0])) == 2 * (3 * 3 + 1)
    names = [cell.name for cell in cells([0, 1], [0, 1])]
    assert len(set(names)) == len(names)


def test_budgets_are_declared_per_pair_and_options_change_all(
    protocol: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, parse = protocol["cells"], protocol["protocol"].parse
    monkeypatch.setattr(sys, "argv", ["strl_protocol.py"])
    options = parse()
    assert cells.budget_of(("position", "shortest"), options) == cells.PUBLISHED != cells.LOCAL
    assert cells.budget_of(("walls", "shortest"), options) == cells.LOCAL
    monkeypatch.setattr(sys, "argv", ["strl_protocol.py", "--steps", "7", "--whole-walks", "0"])
    options = parse()
    found = [cells.budget_of(pair, options) for pair in (("position", "shortest"), ("view", "shortest"))]
    assert [(budget.steps, budget.scored) for budget in found] == [(7, 51), (7, 20)]
    told = cells.training_arguments(cells.swept(("walls", "wall_follower"), "tau", "8.0", 3), found[1])
    pairs = dict(zip(told[::2], told[1::2]))
    assert pairs["--rival.strl.tau"] == "8.0" and pairs["--rival.strl.attention"] == "causal"
    assert (pairs["--seed"], pairs["--steps"], pairs["--model.window"]) == ("3", "7", "10")


def test_one_cell_is_trained_scored_and_counted(
    protocol: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    road, cells = protocol["protocol"], protocol["cells"]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    only = "walls-wall_follower-strl-causal"
    monkeypatch.setattr(sys, "argv", ["strl_protocol.py", "--quick", "--out", str(tmp_path), "--only", only])
    options = road.parse()
    cell = cells.Cell("walls", "wall_follower", "strl", "causal", 0)
    assert road.is_asked(cell, options.only)
    road.collect(options, cell.pair, cells.QUICK)
    line = road.measure(cell, options)
    assert line["budget"] == cells.QUICK.as_json() and 0 <= line["accuracy"] <= 1 and line["episodes"] == 2
    assert line["tokens"] > cells.QUICK.whole_walks * cells.QUICK.context  # whole walks
    assert line["operations"]["macs"] > 0 and line["operations"]["additions"] > 0
    assert road.times(cell, options)["ms_per_decision"] > 0
    bound = road.bounds(cell.pair, options)
    shown = "\n".join(protocol["tables"].table([line], [line, bound], lambda pair: cells.QUICK.as_json()))
    assert f"| {line['parameters']:,} | {100 * line['accuracy']:.2f} (one seed) |" in shown
    assert f"| look-up table | the past | | | {100 * bound['causal']['accuracy']:.2f} |" in shown
    # The same measurement again is known by its key, with another budget it is not.
    lines = protocol["lines"]
    asked = lines.line_of(cell, cells.QUICK)
    assert lines.key(line) == lines.key(asked) != lines.key(lines.line_of(cell, cells.LOCAL))


def test_the_document_shows_what_was_measured(
    protocol: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    road, tables = protocol["protocol"], protocol["tables"]
    before, copy = tables.DOCUMENT.read_text(), tmp_path / "strl.md"
    copy.write_text(before)
    monkeypatch.setattr(tables, "DOCUMENT", copy)
    monkeypatch.setattr(sys, "argv", ["strl_protocol.py", "--render"])
    road.main()
    assert copy.read_text() == before

"""experiments/strl_protocol.py: which cells there are, what a budget changes, one tiny cell, and the document."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import strl_cells
import strl_lines
import strl_protocol
import strl_tables


def test_every_seed_has_a_whole_table_and_sweeps_share_the_papers_values_with_it() -> None:
    cells = strl_cells.cells
    assert len(cells([0, 1], [])) == 2 * 3 * 2 * 4
    # Two pairs, three values changed of each of three settings; the fourth is the paper's, which the table has.
    assert len(cells([0], [0])) == 24 + 2 * 3 * 3
    assert len(cells([], [0])) == 2 * (3 * 3 + 1)
    names = [cell.name for cell in cells([0, 1], [0, 1])]
    assert len(set(names)) == len(names)


def test_budgets_are_declared_per_pair_and_options_change_all(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = strl_protocol.parse
    monkeypatch.setattr(sys, "argv", ["strl_protocol.py"])
    options = parse()
    assert strl_cells.budget_of(("position", "shortest"), options) == strl_cells.PUBLISHED != strl_cells.LOCAL
    assert strl_cells.budget_of(("walls", "shortest"), options) == strl_cells.LOCAL
    monkeypatch.setattr(sys, "argv", ["strl_protocol.py", "--steps", "7", "--whole-walks", "0"])
    options = parse()
    found = [strl_cells.budget_of(pair, options) for pair in (("position", "shortest"), ("view", "shortest"))]
    assert [(budget.steps, budget.scored) for budget in found] == [(7, 51), (7, 20)]
    told = strl_cells.training_arguments(strl_cells.swept(("walls", "wall_follower"), "tau", "8.0", 3), found[1])
    pairs = dict(zip(told[::2], told[1::2]))
    assert pairs["--rival.strl.tau"] == "8.0" and pairs["--rival.strl.attention"] == "causal"
    assert (pairs["--seed"], pairs["--steps"], pairs["--model.window"]) == ("3", "7", "10")


@pytest.mark.slow
def test_one_cell_is_trained_scored_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    only = "walls-wall_follower-strl-causal"
    monkeypatch.setattr(sys, "argv", ["strl_protocol.py", "--quick", "--out", str(tmp_path), "--only", only])
    options = strl_protocol.parse()
    cell = strl_cells.Cell("walls", "wall_follower", "strl", "causal", 0)
    assert strl_protocol.is_asked(cell, options.only)
    strl_protocol.collect(options, cell.pair, strl_cells.QUICK)
    line = strl_protocol.measure(cell, options)
    assert line["budget"] == strl_cells.QUICK.as_json() and 0 <= line["accuracy"] <= 1 and line["episodes"] == 2
    assert line["tokens"] > strl_cells.QUICK.whole_walks * strl_cells.QUICK.context  # whole walks
    assert line["operations"]["macs"] > 0 and line["operations"]["additions"] > 0
    assert strl_protocol.times(cell, options)["ms_per_decision"] > 0
    bound = strl_protocol.bounds(cell.pair, options)
    shown = "\n".join(strl_tables.table([line], [line, bound], lambda pair: strl_cells.QUICK.as_json()))
    assert f"| {line['parameters']:,} | {100 * line['accuracy']:.2f} (one seed) |" in shown
    assert f"| look-up table | the past | | | {100 * bound['causal']['accuracy']:.2f} |" in shown
    # The same measurement again is known by its key, with another budget it is not.
    asked = strl_lines.line_of(cell, strl_cells.QUICK)
    assert strl_lines.key(line) == strl_lines.key(asked) != strl_lines.key(strl_lines.line_of(cell, strl_cells.LOCAL))


def test_the_document_shows_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before, copy = strl_tables.DOCUMENT.read_text(), tmp_path / "strl.md"
    copy.write_text(before)
    monkeypatch.setattr(strl_tables, "DOCUMENT", copy)
    monkeypatch.setattr(sys, "argv", ["strl_protocol.py", "--render"])
    strl_protocol.main()
    assert copy.read_text() == before

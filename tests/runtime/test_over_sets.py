"""A sweep's rows over all datasets together: which sets count, hand-made figures, the picture, and the refusals."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dsf.runtime import bench_cli
from dsf.runtime.sweeps.file import read_sweep
from dsf.runtime.sweeps.identity import Resolved
from dsf.runtime.sweeps.jobs import resolve_all
from dsf.runtime.sweeps.over_sets import OverSets, over_sets, over_sets_markdown
from dsf.runtime.sweeps.plot import aggregate_figure
from dsf.runtime.sweeps.store import read_lines
from dsf.runtime.sweeps.table import build_table
from dsf.testing.command_line import assert_refused
from dsf.testing.training_runs import run_here

SETS = ["hopper-medium-v2", "hopper-expert-v2", "hopper-medium-replay-v2"]
ROWS = {"low": "bc", "base": "dt", "high": "fcnet", "some": "spikegpt"}
"""Methods; "some" is asked for on the first set only."""
SCORES: dict[str, list[list[float]]] = {
    "low": [[0.0, 10.0], [2.0, 2.0], [1.0, 1.0]],
    "base": [[10.0, 10.0], [20.0, 100.0], [7.0, 7.0]],
    "high": [[50.0, 60.0], [60.0, 70.0]],
    "some": [[99.0, 98.0]],
}
"""By set, then by training seed."""


def sweep(tmp_path: Path, **fields: Any) -> Path:
    models: dict[str, Any] = {name: {"settings": {"policy": policy}} for name, policy in ROWS.items()}
    spec = {"name": "mine", "datasets": SETS, "models": models, "seeds": [0, 1], "table": {"baseline": "base"}}
    spec["exclude"] = [{"model": "some", "dataset": dataset} for dataset in SETS[1:]]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**spec, **fields}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep as it is above; results beside it are each test's own."""
    return sweep(tmp_path_factory.mktemp("mine"))


@functools.cache
def cells_of(path: Path) -> list[Resolved]:
    """The cells of a sweep, each read by the parser once."""
    return resolve_all(read_sweep(path))


def store(path: Path, scores: dict[str, list[list[float]]]) -> Path:
    """Lines of these scores, beside the sweep's file."""
    lines = []
    for number, cell in enumerate(cells_of(path)):
        runs = scores.get(cell.cell.model, [])
        index = SETS.index(cell.cell.dataset)
        if index < len(runs) and cell.cell.seed < len(runs[index]):
            line: dict[str, Any] = {"key": str(number), "place": cell.place, "code": "c", "dataset": cell.cell.dataset}
            line |= {"seed": cell.cell.seed, "score": runs[index][cell.cell.seed], "returns": [1.0], "energy": {}}
            line |= {"dataset_id": cell.dataset_id, "dataset_sha256": "h", "target_return": 3.0, "steps": 5}
            lines.append(json.dumps({**line, "export": None, "precision": "fp32"}) + "\n")
    results = path.with_name("results.jsonl")
    results.write_text("".join(lines))
    return results


def found_in(path: Path, scores: dict[str, list[list[float]]]) -> OverSets:
    cells = cells_of(path)
    return over_sets(build_table(read_sweep(path), cells, read_lines(store(path, scores)), {}))


@pytest.mark.slow
def test_every_row_is_aggregated_over_the_sets_that_all_have_run(mine: Path) -> None:
    found = found_in(mine, SCORES)
    assert found.sets == tuple(SETS[:2]) and found.of == 3  # "high" lacks the third; "some" has no say, "low" has
    assert "2 of 3 sets" in found.title and ", ".join(SETS[:2]) in found.title and SETS[2] not in found.title
    rows = {row.row.name: row for row in found.rows}
    assert list(rows) == ["high", "base", "low", "some"]  # by score; without one, last
    high, base, low, some = rows.values()
    assert high.middle is not None and base.middle is not None and low.middle is not None
    # 50, 60, 60, 70 and 10, 10, 20, 100 and 0, 2, 2, 10: of four the outer two are left out.
    assert (high.middle.mean, base.middle.mean, low.middle.mean) == (60.0, 15.0, 2.0)
    assert [row.mean and row.mean.mean for row in (high, base, low, some)] == [60.0, 35.0, 3.5, None]
    # base: two equal runs, and 20 and 100, of which one in four draws takes the same twice: 15 and 55, else 35.
    assert base.mean is not None and (base.mean.low, base.mean.high) == (15.0, 55.0)
    # high wins all four pairs of the first set; on the second 60 and 70 beat 20 and lose to 100.
    assert high.better is not None and high.better.mean == 0.75 and (high.better.low, high.better.high) == (0.5, 1.0)
    # low: a tie and a loss in two pairs each, then four losses.
    assert low.better is not None and low.better.mean == 0.125
    assert base.better is None and some.reason == "1 of 3 sets run"


@pytest.mark.slow
def test_whole_sweeps_and_bare_ones_say_so(mine: Path) -> None:
    whole = found_in(mine, {**SCORES, "high": [*SCORES["high"], [5.0, 5.0]]})
    assert whole.sets == tuple(SETS) and whole.title == "all 3 sets"
    assert [row.reason for row in whole.rows if row.mean is None] == ["1 of 3 sets run"]
    bare = found_in(mine, {})
    assert bare.sets == () and {row.reason for row in bare.rows} == {"not run"}
    assert [row.row.name for row in bare.rows] == ["low", "base", "high", "some"]  # the table's order
    assert over_sets_markdown(bare).startswith("Over no set: none of the 3 has been run by all rows.")
    half = found_in(mine, {"low": [[1.0]], "base": [[1.0, 1.0]]})  # one seed of two is no set
    assert half.sets == (SETS[0],) and [row.reason for row in half.rows if row.mean is None] == ["not run"] * 3
    apart = found_in(mine, {"low": [[1.0, 1.0]], "base": [[], [1.0, 1.0]]})
    assert apart.sets == () and [row.reason for row in apart.rows[:2]] == ["1 of 3 sets run"] * 2


def test_a_baseline_that_has_not_run_and_few_runs_are_said(tmp_path: Path) -> None:
    found = found_in(sweep(tmp_path, seeds=[0]), {"high": [[5.0], [6.0], [7.0]]})
    assert not found.trimmed and list(found.statistics.values()) == ["mean", "P(better than base)"]  # three runs
    text = over_sets_markdown(found)
    assert "| high | 6.0 [6.0, 6.0] | baseline not run |" in text and "| base | not run | not run |" in text


def test_the_picture_shows_the_figures_and_names_the_sets(mine: Path) -> None:
    found = found_in(mine, SCORES)
    figure = aggregate_figure(found)
    panels = figure.axes
    titles = [panel.get_title() for panel in panels]
    assert titles == ["interquartile mean", "mean", "P(better than base)"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["high", "base", "low", "some"]
    assert [text.get_text() for text in panels[0].texts] == ["1 of 3 sets run"]
    assert [text.get_text() for text in panels[2].texts] == ["-", "1 of 3 sets run"]
    bar = panels[1].patches[1].get_extents().transformed(panels[1].transData.inverted())
    assert (bar.x0, bar.x1, (bar.y0 + bar.y1) / 2) == pytest.approx((15.0, 55.0, 1.0))
    assert [np.ravel(line.get_xdata())[0] for line in panels[1].lines] == [60.0, 35.0, 3.5]
    said = " ".join(figure.get_suptitle().split())
    assert said == f"Over {found.title}" and SETS[1] in said


def bench(*arguments: object) -> Any:
    return run_here(bench_cli.main, "dsf-bench", *map(str, arguments))


@pytest.mark.slow
def test_the_command_writes_the_picture_and_a_part_of_the_sets_stands_in_the_table(mine: Path, tmp_path: Path) -> None:
    results, picture = store(mine, SCORES), tmp_path / "all.png"
    asked = ("table", "mine", "--spec", mine, "--results", results)
    plain = bench(*asked)
    part = "Over 2 of 3 sets, those that all rows with figures have run: hopper-medium-v2, hopper-expert-v2"
    assert f"{part}; the highest first.\n" in plain.stdout
    assert "| high | 60.0 [55.0, 65.0] | 60.0 [55.0, 65.0] | 0.75 [0.50, 1.00] |\n" in plain.stdout
    store(mine, {**SCORES, "high": [*SCORES["high"], [5.0, 5.0]]})
    assert "Over " not in bench(*asked).stdout  # the column "all sets" has them
    done = bench(*asked, "--aggregate-plot", picture)
    assert "Over all 3 sets; the highest first.\n" in done.stdout and picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_replaces_neither_results_nor_the_other_picture(mine: Path, tmp_path: Path) -> None:
    results, picture = store(mine, {}), tmp_path / "x.png"
    asked = ("table", "mine", "--spec", mine, "--results", results)
    for option in ("--plot", "--aggregate-plot", "--markdown"):
        assert_refused(bench(*asked, option, results), f"{results}: it is the input")
    assert_refused(bench(*asked, "--plot", picture, "--aggregate-plot", picture), "name two files")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"datasets": SETS[:1], "exclude": []}, "has one: use --plot"),
        ({"table": {"columns": "model"}}, "has the columns model: use --plot"),
    ],
)
def test_sweeps_without_several_sets_are_refused(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    path, picture = sweep(tmp_path, **fields), tmp_path / "x.png"
    results = store(path, {})
    refused = bench("table", "mine", "--spec", path, "--results", results, "--aggregate-plot", picture)
    assert_refused(refused, "--aggregate-plot requires a sweep with several datasets", said)
    assert refused.stdout == "" and not picture.exists()

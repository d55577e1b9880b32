"""Sweep files, results and records that a stranger may have written: one line with file and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsf.runtime.sweeps.file import read_sweep
from dsf.runtime.sweeps.identity import resolve_cell
from dsf.runtime.sweeps.jobs import JobOrder, read_record
from dsf.runtime.sweeps.store import read_lines
from dsf.runtime.sweeps.table import build_table, markdown
from dsf.shell.errors import UserError
from dsf.testing.command_line import assert_refused, run_command

SWEEP = """\
name: mine
datasets: [hopper-medium-v2]
models: {a: {settings: {model.attention: pssa}}}
seeds: [0]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "axes: {model.ticks: [%s], model.width: [%s]}" % (("1, " * 999 + "1",) * 2),
            "it has 1,000,000 cells, limit 5,000",
        ),
        ("axes: {model.ticks: &a [*a]}", "line 5 refers to itself"),
        ("settings: {a: &a [x, x], b: [*a, *a], steps: 2020-01-01}", r"settings\.steps is datetime\.date"),
        ("title: [a]", r"title is \['a'\]: it must be text"),
        ("seeds: [1]", "the field 'seeds' is there twice"),
        ("evaluation: {episodes: 9223372036854775808}", r"evaluation\.episodes is 9223372036854775808"),
        ('notes: "a\\e[2J"', r"notes holds control characters"),
        ("table: {columns: [dataset]}", r"table\.columns is "),
    ],
)
def test_sweep_files_of_wrong_shape_are_one_line(more: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{SWEEP}{more}\n")
    with pytest.raises(UserError, match=said) as refusal:
        read_sweep(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["x --> <!-- y", "a\nb", "", "x" * 101, "<b>"])
def test_the_name_of_a_sweep_cannot_end_a_section(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"name is |name is missing"):
        read_sweep(written(tmp_path, SWEEP.replace("name: mine", f"name: {json.dumps(name)}")))


def line(path: Path, **fields: Any) -> dict[str, Any]:
    """A result of the sweep's only cell."""
    cell = resolve_cell(read_sweep(path).cells()[0])
    energy = {"how": "counted", "microjoules": {"fp32": {"paper_45nm": 1.5}}, "cached_microjoules": {"fp32": {}}}
    return {
        **{"key": "k", "place": cell.place, "code": cell.code, "dataset": "hopper-medium-v2", "seed": 0, "score": 1.0},
        **{"returns": [1.0], "energy": energy, "dataset_id": "d", "dataset_sha256": "0", "target_return": 3.0},
        **{"steps": 4, "export": None, "best": {"step": 1, "target_return": 3.0, "score": 2.0}, **fields},
    }


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"energy": None}, "energy is None, expected names and values"),
    ({"energy": {"microjoules": {"fp32": 3}}}, r"energy: microjoules\.fp32 is 3"),
    ({"energy": {"microjoules": {"fp32": {"paper_45nm": "x"}}}}, r"paper_45nm is 'x', expected a finite number"),
    ({"energy": {"microjoules": {}}}, "energy: how is missing"),
    ({"returns": 3}, "returns is 3, expected a list"),
    ({"returns": ["x"]}, r"returns\[0\] is 'x'"),
    ({"score": "1"}, "score is '1'"),
    ({"score": float("inf")}, "score is inf, expected a finite number"),
    ({"score": True}, "score is True"),
    ({"seed": "0"}, "seed is '0', expected a whole number"),
    ({"place": ["p"]}, r"place is \['p'\]"),
    ({"dataset": {}}, r"dataset is \{\}"),
    ({"dataset_id": 3}, "dataset_id is 3"),
    ({"target_return": "x"}, "target_return is 'x'"),
    ({"steps": [4]}, r"steps is \[4\]"),
    ({"export": 3}, "export is 3"),
    ({"best": {"score": 1.0}}, "best: step is missing"),
    ({"dataset": "a\x1b[2J"}, "dataset holds control characters"),
    ({"code": "\ud800"}, "code holds control characters"),
]


@pytest.mark.parametrize(("fields", "said"), WRONG, ids=[said[:20] for _, said in WRONG])
def test_results_of_wrong_type_name_line_and_field(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    sweep, store = written(tmp_path, SWEEP), tmp_path / "results.jsonl"
    good = line(sweep)
    store.write_text(f"{json.dumps(good)}\n{json.dumps({**good, **fields})}\n")
    with pytest.raises(UserError, match=f"^{store}, line 2.*{said}"):
        read_lines(store)


@pytest.mark.parametrize("name", ["dataset_id", "dataset_sha256", "target_return", "steps", "export"])
def test_a_table_needs_what_it_shows(name: str, tmp_path: Path) -> None:
    sweep, store = written(tmp_path, SWEEP), tmp_path / "results.jsonl"
    found = line(sweep)
    del found[name]
    store.write_text(json.dumps(found) + "\n")
    assert read_lines(store) == [found]
    with pytest.raises(UserError, match=f"line 1 is no result of dsf-bench sweep: {name} is missing"):
        read_lines(store, tabulated=True)


def test_every_field_left_out_or_made_another_is_one_line_of_the_command(tmp_path: Path) -> None:
    """One command for the lot: the store's second line is whole, its first misses what a table reads."""
    sweep, store = written(tmp_path, SWEEP), tmp_path / "results.jsonl"
    store.write_text(json.dumps({**line(sweep), "energy": []}) + "\n")
    result = run_command("dsf-bench", "table", "mine", "--spec", str(sweep), "--results", str(store))
    assert_refused(result, "line 1", "energy is [], expected names and values", "remove it")


def test_names_in_a_table_are_no_markup(tmp_path: Path) -> None:
    sweep = written(tmp_path, SWEEP.replace("{a: ", '{"a|<i>": ') + 'title: "t <!-- sweep:mine:end -->"\n')
    spec = read_sweep(sweep)
    cells = [resolve_cell(cell) for cell in spec.cells()]
    odd = line(sweep, dataset="[x](y)|<u>")
    text = markdown(build_table(spec, cells, [odd], {}))
    assert "<" not in text and "### t &lt;!-- sweep:mine:end -->" in text and r"3 on \[x](y)\|&lt;u>" in text
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in rows[:3]} == {rows[0].count("|")}


def test_records_of_a_sweep_have_their_types(tmp_path: Path) -> None:
    failed = tmp_path / "k.failed.json"
    failed.write_text('{"reason": 3, "attempts": 1, "place": "p"}')
    with pytest.raises(UserError, match=f"{failed}: reason is 3, expected text"):
        read_record(failed)
    order = tmp_path / "job-1.json"
    order.write_text('{"version": 2, "arguments": "x", "threads": 1, "evaluation": {}, "datasets": null, "cells": []}')
    with pytest.raises(UserError, match=f"{order}: arguments is 'x', expected a list"):
        JobOrder.read(order)

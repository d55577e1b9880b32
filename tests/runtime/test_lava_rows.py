"""experiments/lava_rows.py: a tiny sweep's integer row in real Lava; what stands, what differs, what is gone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import lava_rows
import pytest
import yaml

from dsf.export.network.file import file_digest, read_network
from dsf.runtime.engines.probes import spiking_populations
from dsf.runtime.sweeps.file import read_sweep
from dsf.runtime.sweeps.jobs import JobOrder, jobs_of, plan, read_record, resolve_all, result_path
from dsf.runtime.sweeps.store import append_once
from dsf.runtime.sweeps.worker import work
from dsf.shell.generated_section import markers
from dsf.testing.command_line import assert_refused
from dsf.testing.lava import lava_runs_here
from dsf.testing.training_runs import CARTPOLE, HOPPER, TINY_CELL, run_here

INTEGERS = {"tssa-int8": {"settings": {"model.attention": "tssa"}, "export": {"bits": 8}}}


def write_spec(path: Path, **fields: Any) -> Path:
    settings = {**TINY_CELL, "steps": 3, "model.blocks": 2}
    spec: dict[str, Any] = {"name": "tiny", "datasets": [CARTPOLE], "seeds": [0], "evaluation": {"episodes": 2}}
    spec |= {"models": INTEGERS, "settings": settings}
    path.write_text(yaml.safe_dump({**spec, **fields}))
    return path


def swept(spec: Path, out: Path) -> None:
    """What ``dsf-bench sweep`` does with its one job, in this process: a worker's own takes seconds to import torch."""
    (job,) = jobs_of(plan(resolve_all(read_sweep(spec))), out, threads=1)
    order = JobOrder.read(job.write())
    assert work(order, job.directory, wait=False) == 0
    for cell in order.cells:
        line = read_record(result_path(job.directory, cell.key))
        assert line is not None and append_once(out / "results.jsonl", line)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text().splitlines()]


def prove(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here(lava_rows.main, "lava_rows", *map(str, arguments))


@pytest.mark.slow
@pytest.mark.skipif(not lava_runs_here(), reason="Lava is frozen on Python 3.10")
def test_a_row_is_proven_once_and_refuted_when_it_differs(tiny_store: Path, same_threads: None, tmp_path: Path) -> None:
    out, kept, document = tmp_path / "out", tmp_path / "rows.jsonl", tmp_path / "rows.md"
    swept(write_spec(tmp_path / "s.yaml"), out)
    # Another dataset and another seed have not run: the row of the first is left out, that of the second takes seed 0.
    spec = write_spec(tmp_path / "more.yaml", datasets=[HOPPER, CARTPOLE], seeds=[7, 0])
    asked = (spec, "--out", out, "--lines", kept, "--markdown", document, "--json", tmp_path / "rows.json")
    done = prove(*asked)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert f"not run: {HOPPER} tssa-int8" in done.stdout and f"equal: {CARTPOLE} tssa-int8 seed 0" in done.stdout
    (line,), (result,) = (read_rows(path) for path in (kept, out / "results.jsonl"))
    (file,) = out.glob("*/*.dsf.h5")
    network = read_network(file)
    neurons = sum(network[name].size for name in spiking_populations(network))
    assert line["network_sha256"] == file_digest(file) and line["key"] == result["key"] and line["mode"] == "window"
    assert line["compared_spikes"] == line["decisions"] * neurons * 4 and line["mismatches"] == 0
    assert line["compared_accumulators"] == line["decisions"] * 2  # actions
    assert line["returned"] == line["claimed"] == result["returns"][0] == line["decisions"]  # one reward per step
    assert line["backend"] == "lava-fused" and line["reset_seed"] == 8000
    assert json.loads((tmp_path / "rows.json").read_text()) == [{**line, "equal": True}]
    shown = document.read_text()
    assert f"| tiny | {CARTPOLE} | tssa-int8 | 0 | {line['network_sha256'][:12]} | lava-fused, window |" in shown
    assert shown.startswith(markers("lava-rows")[0]) and "0 mismatches" in shown

    kept.write_text(json.dumps({**line, "seconds": 123.4}) + "\n")  # what stands is not played again
    assert "123.4 s" in prove(*asked).stdout and json.loads(kept.read_text())["seconds"] == 123.4
    kept.write_text(json.dumps({**line, "mismatches": 3}) + "\n")
    refused = prove(*asked)
    assert refused.returncode == 1 and "3 mismatches" in refused.stderr and "**no**" in document.read_text()

    store = tmp_path / "other.jsonl"
    store.write_text(json.dumps({**result, "returns": [result["returns"][0] + 0.5, 1.0]}) + "\n")
    refused = prove(*asked, "--results", store, "--backend", "fast")  # another claim, another engine: played again
    assert refused.returncode == 1 and "differs" in refused.stderr and refused.stderr.count("\n") == 1
    assert json.loads(kept.read_text())["mismatches"] == 0

    file.unlink()
    gone = prove(*asked)
    assert gone.returncode == 1 and f"no network of result {result['key']} is below {out}" in gone.stderr


@pytest.mark.skipif(not lava_runs_here(), reason="Lava is frozen on Python 3.10")
def test_bad_input_ends_in_one_line(tmp_path: Path) -> None:
    spec, document = write_spec(tmp_path / "s.yaml"), tmp_path / "rows.md"
    rest = ("--out", tmp_path, "--lines", tmp_path / "rows.jsonl", "--markdown", document)
    assert_refused(prove(*rest), "lava_rows", "give one of SWEEP")
    assert_refused(prove(spec, "--render", *rest), "lava_rows", "give one of SWEEP")
    assert_refused(prove(spec, *rest), "lava_rows", "there are no results at")
    assert_refused(prove("nowhere", *rest), "lava_rows", "there is no sweep nowhere")
    assert_refused(prove(spec, *rest, "--backend", "fast", "--fast-channels"), "lava_rows", "--fast-channels requires")
    (tmp_path / "results.jsonl").touch()
    floats = write_spec(tmp_path / "f.yaml", models={"pssa": {}})
    assert_refused(prove(floats, *rest), "lava_rows", "has no model with export")
    (tmp_path / "rows.jsonl").write_text('{"sweep": "tiny"}\n')
    assert_refused(prove(spec, *rest), "lava_rows", "line 1: dataset is missing")
    document.write_text("no section\n")
    assert_refused(prove(spec, *rest), "lava_rows", "<!-- lava-rows:begin -->")


def test_a_row_is_equal_where_nothing_differs() -> None:
    facts: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(lava_rows.PlayedRow)}
    assert lava_rows.PlayedRow(**facts).equal
    for name in ("mismatches", "accumulator_mismatches", "returned"):
        assert not lava_rows.PlayedRow(**{**facts, name: 1}).equal


def test_the_document_shows_what_was_played() -> None:
    begin, end = markers(lava_rows.SECTION)
    config = lava_rows.LavaRowsConfig(render=True)
    inside = config.markdown.read_text().partition(f"{begin}\n")[2].partition(end)[0]
    assert inside == lava_rows.section(lava_rows.read_rows(config.lines))

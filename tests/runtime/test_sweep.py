"""Sweeps of tiny trainings through the real command line: cached, failed and retried, killed and continued."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dsf.runtime.sweeps.energy import dense_energy
from dsf.runtime.sweeps.file import read_sweep
from dsf.runtime.sweeps.jobs import jobs_of, plan, resolve_all
from dsf.tasks import get_task
from dsf.testing.command_line import assert_refused, run_command
from dsf.testing.training_runs import (
    CARTPOLE,
    HOPPER,
    TINY_CELL,
    WAIT_S,
    bench,
    results,
    start_sweep,
    wait_for,
    write_spec,
)
from dsf.train.checkpoint import load_checkpoint
from dsf.train.evaluation.finished_run import score_run

ENDURANCE = Path(__file__).parents[2] / "endurance"
DIVERGING = {"learning-rate": 1e30}


def trainings_begun(out: Path) -> int:
    """How often a training has begun or gone on, over all jobs."""
    return sum(log.read_text().count("parameters, on") for log in out.glob("*/log.txt"))


@pytest.mark.slow
def test_cells_are_run_once_and_failed_ones_on_request(tiny_store: Path, tmp_path: Path) -> None:
    models = {"pssa": {"energy": "spiking"}, "int8": {"export": {"bits": 8}, "energy": "spiking"}}
    spec = write_spec(tmp_path / "s.yaml", models={**models, "wild": {"settings": DIVERGING}}, seeds=[0, 1])
    sweep = ("sweep", spec, "--out", tmp_path / "out", "--workers", "2")
    first = bench(*sweep)
    assert first.returncode == 1 and first.stderr.count("\n") == 1, first.stderr
    assert "2 of 6 cells have no result" in first.stderr and "--retry-failed" in first.stderr
    assert "failed: dsf/cartpole/expert-v0 wild seed 1: the loss is" in first.stdout
    assert "lower --learning-rate (tried 1x)" in first.stdout
    lines, begun = results(tmp_path / "out"), trainings_begun(tmp_path / "out")
    assert sorted((line["model"], line["seed"]) for line in lines) == [(m, s) for m in ("int8", "pssa") for s in (0, 1)]
    assert begun == 4  # integers share their training
    assert all(len(line["returns"]) == 2 and line["energy"]["microjoules"]["int8"] for line in lines)

    second = bench(*sweep)
    assert "4 done, 2 failed" in second.stdout and second.returncode == 1
    assert results(tmp_path / "out") == lines and trainings_begun(tmp_path / "out") == begun
    retried = bench(*sweep, "--retry-failed")
    assert "(tried 2x)" in retried.stdout and trainings_begun(tmp_path / "out") == begun + 2

    (tmp_path / "out" / "results.jsonl").write_text(json.dumps(lines[0], sort_keys=True) + '\n{"half a li')
    bench(*sweep)  # finished cells are in their jobs' directories, too
    assert sorted(line["key"] for line in results(tmp_path / "out")) == sorted(line["key"] for line in lines)

    table = bench("table", "tiny", "--spec", spec, "--out", tmp_path / "out", "--plot", tmp_path / "t.png")
    assert table.returncode == 0, table.stderr
    assert "| wild | failed |" in table.stdout and "Failed: wild: the loss is" in table.stdout
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_int8_scores_the_very_training_of_fp32(tiny_store: Path, tmp_path: Path) -> None:
    """Two cells, one training; energies are those of the sizes that were trained."""
    rival = {"settings": {"policy": "dt"}, "energy": "decision-transformer"}
    models = {"dt": rival, "dt-int8": {**rival, "precision": "int8"}}
    spec, out = write_spec(tmp_path / "s.yaml", models=models), tmp_path / "out"
    done = bench("sweep", spec, "--out", out)
    assert done.returncode == 0 and "2 of 2 cells done" in done.stdout, (done.stdout, done.stderr)
    assert sum(log.read_text().count("step 0 of 20") for log in out.glob("*/log.txt")) == 1
    lines = {line["model"]: line for line in results(out)}
    assert [lines[name]["evaluation_precision"] for name in models] == ["fp32", "int8"]
    (run,) = {path.parent for path in out.glob(f"*/{lines['dt-int8']['key']}.json")}
    assert (run / f"{lines['dt']['key']}.json").exists()
    header = load_checkpoint(run / "training").header
    (recorded,) = header["scores"]
    assert lines["dt"]["returns"] == recorded["returns"]
    asked = {"targets": (recorded["target_return"],), "episodes": 2, "seed": recorded["seeds"][0]}
    (integers,) = score_run(run / "training", "int8", **asked)
    assert lines["dt-int8"]["returns"] == list(integers.returns)
    priced = dense_energy("decision-transformer", header, get_task("cartpole"))
    assert lines["dt"]["energy"] == lines["dt-int8"]["energy"] == priced
    assert header["rival"]["mlp_hidden"] != header["model"]["mlp_ratio"] * header["model"]["width"]
    assert "| dt-int8 |" in bench("table", "tiny", "--spec", spec, "--out", out).stdout


@pytest.mark.slow
def test_cql_is_a_cell_and_where_it_is_not_installed_a_reason(tiny_store: Path, tmp_path: Path) -> None:
    models = {"cql": {"settings": {"policy": "cql"}, "energy": "mlp"}}
    spec, out = write_spec(tmp_path / "s.yaml", datasets=[HOPPER], models=models), tmp_path / "out"
    done = bench("sweep", spec, "--out", out)
    if not importlib.util.find_spec("d3rlpy"):
        assert done.returncode == 1 and "needs d3rlpy: install them with pip install 'dsf[cql]'" in done.stdout
        return
    assert done.returncode == 0, (done.stdout, done.stderr)
    (line,) = results(out)
    (score,) = json.loads(next(out.glob("*/training/scores.json")).read_text())
    assert line["returns"] == score["returns"] and line["steps"] == 20 and line["software"]["d3rlpy"] != "missing"
    macs = 11 * 256 + 2 * 256**2 + 256 * 3
    assert line["energy"]["microjoules"]["fp32"]["paper_45nm"] == pytest.approx(macs * 4.6e-6, rel=1e-5)


@pytest.mark.slow
def test_sweeps_side_by_side_write_their_jobs_at_the_same_moment(tiny_store: Path, tmp_path: Path) -> None:
    """Each gets a whole file back, and two sweeps with different cells of one training keep theirs apart."""
    planned = plan(resolve_all(read_sweep(write_spec(tmp_path / "s.yaml"))))
    (whole,) = jobs_of(planned, tmp_path, threads=1)
    half = dataclasses.replace(whole, cells=whole.cells[:1])
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda job: job.write(), [whole, half] * 50))
    assert [len(json.loads(file.read_text())["cells"]) for file in files] == [2, 1] * 50


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_stopped_and_killed_sweeps_lose_and_double_nothing(tiny_store: Path, tmp_path: Path) -> None:
    """Ctrl-C, then kill -9, then two sweeps at once on what is left."""
    settings = {**TINY_CELL, "steps": 300, "checkpoint-every": 10}
    out, seeds = tmp_path / "out", [0, 1]
    spec = write_spec(tmp_path / "s.yaml", settings=settings, models={"pssa": {}}, seeds=seeds)
    for number, code in ((signal.SIGINT, 128 + signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)):
        before = {path: path.stat().st_mtime_ns for path in out.glob("*/training/checkpoint.safetensors")}
        process = start_sweep(spec, out)
        wait_for(lambda seen=before: any(
            path.stat().st_mtime_ns != seen.get(path) for path in out.glob("*/training/checkpoint.safetensors")
        ))  # fmt: skip
        process.send_signal(number)
        _, errors = process.communicate(timeout=WAIT_S)
        assert process.returncode == code
        assert errors == ("dsf-bench sweep: interrupted\n" if number == signal.SIGINT else "")
        workers = [json.loads(path.read_text())["pid"] for path in out.glob("*/owner.json")]
        wait_for(lambda workers=workers: not any(map(running, workers)))
    both = [start_sweep(spec, out) for _ in range(2)]
    for process in both:
        printed, errors = process.communicate(timeout=2 * WAIT_S)
        assert process.returncode == 0 and "2 of 2 cells done" in printed, errors
    assert sorted(line["seed"] for line in results(out)) == seeds
    logs = [log.read_text() for log in out.glob("*/log.txt")]
    starts = [line for log in logs for line in log.splitlines() if "parameters, on" in line]
    assert any("step 0 of" not in line for line in starts), starts  # one went on from a checkpoint
    assert len(starts) == 4, "the two at once have shared the work"


@pytest.mark.slow
def test_a_sweep_ends_in_time_and_runs_no_cell_that_has_a_line_elsewhere(tiny_store: Path, tmp_path: Path) -> None:
    """The line is of another version of the code and of torch, which a table takes, too."""
    models = {"pssa": {}, "long": {"settings": {"steps": 1_000_000, "checkpoint-every": 10}}}
    spec, out, known = write_spec(tmp_path / "s.yaml", models=models), tmp_path / "out", tmp_path / "known.jsonl"
    place = resolve_all(read_sweep(spec))[0].place
    line = {"key": "k", "place": place, "code": "another", "dataset": CARTPOLE, "seed": 0, "score": 1.0, "returns": []}
    known.write_text(json.dumps({**line, "energy": {}}) + "\n")
    done = bench("sweep", spec, "--out", out, "--known", known, "--minutes", "0.03")
    assert done.returncode == 1 and "1 of 2 cells have no result" in done.stderr, (done.stdout, done.stderr)
    said = done.stdout.splitlines()
    assert said[0] == "tiny: 2 cells, 1 known, 1 not run" and f"1 more have lines already: {known}" in said
    assert said[-2] == "stopped after --minutes 0.03; the next call goes on"
    assert said[-1] in (f"{state}: {CARTPOLE} long seed 0" for state in ("interrupted", "not run"))
    assert not list(out.glob("*/*.failed.json")) and not (out / "results.jsonl").exists()
    assert len(list(out.glob("*/job-*.json"))) == 1
    workers = [json.loads(path.read_text())["pid"] for path in out.glob("*/owner.json")]
    assert not any(map(running, workers))
    assert_refused(bench("sweep", spec, "--known", tmp_path / "none"), "--known is", "no such file")


if importlib.util.find_spec("submitit"):

    def test_submitted_cells_are_the_local_ones(tiny_store: Path, tmp_path: Path) -> None:
        spec, places = write_spec(tmp_path / "s.yaml"), (tmp_path / "submitted", tmp_path / "local")
        submitted = ("--launcher", "submitit", "--submitit-cluster", "local")
        for place, options in zip(places, (submitted, ())):
            assert bench("sweep", spec, "--out", place, *options).returncode == 0
        tables = [bench("table", "tiny", "--spec", spec, "--out", place).stdout for place in places]
        assert tables[0] == tables[1]


if importlib.util.find_spec("ray"):

    def test_a_cluster_that_loses_a_worker_loses_no_cell(tmp_path: Path) -> None:
        report = tmp_path / "report.json"
        command = [sys.executable, str(ENDURANCE / "sweep_on_ray.py"), "--quick", "--json", str(report)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, (done.stdout, done.stderr)
        found = json.loads(report.read_text())
        assert found["nodes"] == 2 and found["killed"]["worker"] and found["resumed"] == 1 and found["tables_equal"]
        assert (found["lost"], found["doubled"], found["left_behind"]) == (0, 0, [])


def test_a_launcher_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("ray", "submitit") else name)
    for launcher in ("ray", "submitit"):
        result = bench("sweep", write_spec(tmp_path / "s.yaml"), "--launcher", launcher)
        assert_refused(result, f"needs {launcher}", "dsf[cluster]")


@pytest.mark.slow
def test_a_missing_dataset_is_said_and_nothing_else_is_lost(minari_store: Path, tmp_path: Path) -> None:
    result = run_command("dsf-bench", "sweep", str(write_spec(tmp_path / "s.yaml")), "--out", str(tmp_path / "out"))
    assert result.returncode == 1 and "dsf-data collect cartpole-expert" in result.stdout
    assert result.stderr.count("\n") == 1

"""experiments/gpu_session.py: its road on the processor with tiny sizes, its deadline, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_session
import pytest
import yaml

from dsf.runtime.sweeps.file import read_sweep, shipped_sweeps, sweep_path
from dsf.runtime.sweeps.jobs import resolve_all
from dsf.shell.errors import UserError
from dsf.testing.training_runs import CARTPOLE, TINY_CELL

SCRIPT = Path(gpu_session.__file__)
FILES = ["failed_cells.txt", "log.txt", "results.jsonl", "session.json", "tests.xml", "train_step.json"]


def write_spec(path: Path, **settings: Any) -> Path:
    spec: dict[str, Any] = {
        "name": "mine",
        "datasets": [CARTPOLE],
        "models": {"dt": {"settings": {"policy": "dt"}}},
        "seeds": [0, 1],
    }
    path.write_text(yaml.safe_dump({**spec, "settings": {**TINY_CELL, **settings}, "evaluation": {"episodes": 1}}))
    return path


def call(out: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_a_dry_run_goes_the_whole_road(tmp_path: Path) -> None:
    """Datasets, tests, benchmark, two cells; the same files as on a GPU, and the lines are the sweeps' own."""
    done = call(tmp_path, "--dry-run")
    assert done.returncode == 0 and done.stderr == "", (done.stdout, done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    found = json.loads((tmp_path / "session.json").read_text())
    assert found["failed"] == [] and found["tests"]["ran"] == 0 < found["tests"]["skipped"] == found["tests"]["tests"]
    assert found["train_step"]["8"]["ours_s"] > 0 and len(found["datasets"]["made"]) == 1
    assert found["sweeps"] == {"table1_mujoco": {"cells": 2, "new lines": 2, "failed": {}, "left over": []}}
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    (dataset,) = {line["dataset_id"] for line in lines}
    assert [dataset] == found["datasets"]["made"] and all(line["steps"] == 4 for line in lines)
    assert {line["model"] for line in lines} < set(read_sweep(sweep_path("table1_mujoco")).models)


@pytest.mark.parametrize("name", shipped_sweeps())
def test_every_shipped_sweep_has_a_tiny_form(name: str, tmp_path: Path) -> None:
    cells = resolve_all(read_sweep(gpu_session.shrunk(sweep_path(name), tmp_path)))
    assert len(cells) == min(2, len(read_sweep(sweep_path(name)).models))
    assert all((cell.config.steps, cell.config.batch_size) == (4, 8) for cell in cells)


@pytest.mark.slow
def test_the_deadline_holds_and_what_is_left_over_is_named(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cell has a line elsewhere, the other would train for hours."""
    monkeypatch.setattr(gpu_session, "LEAST_S", 1.0)
    spec, known, out = write_spec(tmp_path / "mine.yaml", steps=10_000_000), tmp_path / "known.jsonl", tmp_path / "out"
    cells = resolve_all(read_sweep(spec))
    line = {"key": "k", "code": "c", "dataset": CARTPOLE, "seed": 0, "score": 1.0, "returns": [], "energy": {}}
    known.write_text(json.dumps({**line, "place": cells[0].place}) + "\n")
    out.mkdir()
    seconds, begun = gpu_session.MARGIN_S + 4.0, time.monotonic()
    session = gpu_session.Session(out, tmp_path / "work", tiny_store, begun + seconds, seconds, "cpu")
    gpu_session.sweep(session, spec, 1, known)
    gpu_session.conclude(session, {"mine": cells}, set(), known)
    assert time.monotonic() - begun < seconds
    found = {"cells": 2, "new lines": 0, "failed": {}, "left over": [f"{CARTPOLE} dt seed 1"]}
    assert session.failed == [] and session.found["sweeps"] == {"mine": found}
    assert "stopped after --minutes" in (out / "log.txt").read_text()


@pytest.mark.slow
def test_a_failed_cell_comes_back_with_its_reason(tiny_store: Path, tmp_path: Path) -> None:
    spec, out = write_spec(tmp_path / "mine.yaml", **{"steps": 20, "learning-rate": 1e30}), tmp_path / "out"
    out.mkdir()
    session = gpu_session.Session(out, tmp_path / "work", tiny_store, time.monotonic() + 200.0, 200.0, "cpu")
    gpu_session.sweep(session, spec, 2, None)
    gpu_session.conclude(session, {"mine": resolve_all(read_sweep(spec))}, set(), None)
    assert [failure.partition(": the loss is")[0] for failure in session.failed] == [
        f"mine: {CARTPOLE} dt seed {seed}" for seed in (0, 1)
    ]
    assert session.found["sweeps"]["mine"]["left over"] == []
    assert (out / "failed_cells.txt").read_text().count("step 0 of 20") == 2  # its workers' own words


@pytest.mark.slow
def test_without_a_gpu_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = call(tmp_path / "out")
    assert done.returncode == 2 and done.stderr == (
        "gpu_session.py: torch finds no GPU here: use a machine that has one, or --dry-run\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0"], r"--minutes is 0\.0"),
        (["--minutes", "nan"], r"--minutes is nan"),
        (["--workers", "0"], r"--workers is 0"),
        (["--known", "none.jsonl"], r"--known is none\.jsonl, and there is no such file"),
        (["--datasets", "none"], r"--datasets is none, which is no directory"),
        (["--sweeps", "none"], r"there is no sweep none"),
    ],
)
def test_options_that_cannot_work_are_one_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        gpu_session.parse(["--out", "out", "--dry-run", *words])

"""Trainings that start from another cell's: through the real command line, once each, resumed after a kill."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch

from dsf.runtime.sweeps.counts import Counts
from dsf.runtime.sweeps.file import read_sweep
from dsf.runtime.sweeps.jobs import JobOrder, jobs_of, plan, resolve_all
from dsf.runtime.sweeps.local import next_free
from dsf.testing.training_runs import TINY_CELL, bench, results, start_sweep, wait_for, write_spec
from dsf.train.checkpoint import load_checkpoint

CHAIN: dict[str, Any] = {
    "base": {"takes": ["norm-batches"]},
    "fewer": {"start": "base", "settings": {"learning-rate": 1.0e-4, "prune-weights": 0.5}},
    "four": {
        "start": "fewer",
        "settings": {"qat-steps": 4, "bits": 4, "prune-weights": 0.5},
        "export": {},
        "energy": "spiking",
    },
}


def test_a_start_has_what_says_what_a_model_is_and_what_it_takes(tmp_path: Path) -> None:
    axes = {"model.ticks": [2], "model.width": [16], "norm-batches": [3]}
    cells = resolve_all(read_sweep(write_spec(tmp_path / "s.yaml", models=CHAIN, axes=axes)))
    four = next(cell for cell in cells if cell.cell.model == "four")
    assert four.start is not None and four.start.start is not None
    fewer, base = four.start, four.start.start
    models = [one.config.model for one in (base, fewer, four)]  # type: ignore[union-attr]
    assert [model.width for model in models] == [16, 16, 16]
    assert [model.ticks for model in models] == [4, 4, 2]  # fewer does not say that it takes them
    assert [one.config.norm_batches for one in (base, fewer, four)] == [3, 0, 3]  # type: ignore[union-attr]
    assert four.training["init"] == fewer.training and "--init" not in four.arguments


def test_what_it_starts_from_counts_and_not_where_that_is(tmp_path: Path) -> None:
    def keys(**base: Any) -> tuple[str, str, str]:
        models = {**CHAIN, "base": {**CHAIN["base"], "settings": base}}
        planned = plan(resolve_all(read_sweep(write_spec(tmp_path / "s.yaml", models=models))))
        four = next(cell for cell in planned if cell.resolved.cell.model == "four")
        return four.training_key, four.key, four.resolved.place

    usual = keys()
    assert keys(**{"log-every": 7}) == usual
    assert not set(keys(**{"weight-decay": 0.5})) & set(usual)


@pytest.mark.slow
def test_each_start_is_trained_once_whoever_needs_it_first(tiny_store: Path, tmp_path: Path) -> None:
    """Two models start from one base; killed in the middle, the sweep goes on where it was."""
    models = {**CHAIN, "other": {"start": "base", "settings": {"learning-rate": 2.0e-4}}}
    settings = {**TINY_CELL, "steps": 100, "checkpoint-every": 10}
    del models["base"]["takes"]
    spec, out = write_spec(tmp_path / "s.yaml", models=models, settings=settings), tmp_path / "out"
    process = start_sweep(spec, out)
    wait_for(lambda: list(out.glob("*/training/checkpoint.safetensors")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = bench("sweep", spec, "--out", out, "--workers", "2")
    assert done.returncode == 0 and "4 of 4 cells done" in done.stdout, (done.stdout, done.stderr)
    started = [log.read_text().count("step 0 of 100") for log in out.glob("*/log.txt")]
    assert sum(started) == 3, "base, fewer and other begin once each; four has steps of its own"
    cells = {cell.resolved.cell.model: cell for cell in plan(resolve_all(read_sweep(spec)))}
    runs = {name: load_checkpoint(out / cell.training_key / "training") for name, cell in cells.items()}
    for name, start in (("fewer", "base"), ("four", "fewer"), ("other", "base")):
        assert runs[name].header["train"]["init"] == str((out / cells[start].training_key / "training").resolve())
    lines = {line["model"]: line for line in results(out)}
    assert lines["four"]["start"] == "fewer" and "start" not in lines["base"]
    weights = [tensor for name, tensor in runs["fewer"].group("model").items() if name.endswith("expand.weight")]
    zeros = [torch.count_nonzero(matrix == 0).item() / matrix.numel() for matrix in weights]
    assert zeros == [0.5] * len(zeros)


@pytest.mark.slow
def test_a_start_that_fails_is_the_reason(tiny_store: Path, tmp_path: Path) -> None:
    models = {"wild": {"settings": {"learning-rate": 1e30}}, "tame": {"start": "wild"}}
    spec = write_spec(tmp_path / "s.yaml", models=models, exclude=[{"model": "wild"}])
    done = bench("sweep", spec, "--out", tmp_path / "out")
    assert done.returncode == 1 and "failed: dsf/cartpole/expert-v0 tame seed 0: start wild: the loss is" in done.stdout


def test_an_order_tells_the_whole_chain(tmp_path: Path) -> None:
    planned = plan(resolve_all(read_sweep(write_spec(tmp_path / "s.yaml", models=CHAIN))))
    job = jobs_of(planned, tmp_path, threads=1)[-1]
    order = JobOrder.read(job.write())
    assert order == job.order() and order.start is not None and order.start.start is not None
    assert [order.start.model, order.start.start.model, order.start.start.start] == ["fewer", "base", None]
    assert order.start.key == planned[1].training_key


@pytest.mark.slow
def test_counts_of_a_dense_rival_at_four_bits(tiny_store: Path, tmp_path: Path) -> None:
    """Zeros, bits and the cache lower what is fetched; the bounds of a share are kept."""
    models = {
        "float": {"settings": {"policy": "twin", "prune-weights": 0.5}},
        "twin-4": {
            "start": "float",
            "settings": {"qat-steps": 3, "bits": 4, "prune-weights": 0.5},
            "precision": "trained",
            "energy": "layers",
        },
    }
    out, counts = tmp_path / "out", {"weights": "packed", "fetch": "token"}
    spec = write_spec(tmp_path / "s.yaml", models=models, counts=counts, exclude=[{"model": "float"}])
    done = bench("sweep", spec, "--out", out)
    assert done.returncode == 0, (done.stdout, done.stderr)
    (line,) = results(out)  # what it starts from is no cell
    assert line["evaluation_precision"] == "int4" and "int4" in json.dumps(line) and line["start"] == "float"
    found = line["counts"]
    assert found["bits"] == 4 and {item.name for item in dataclasses.fields(Counts)} == found.keys()
    window, kept, skipping = (found["per_decision"][name] for name in ("window", "cached", "cached-skipping"))
    assert window["weight_bytes"] == kept["weight_bytes"] == found["weight_bytes"] >= skipping["weight_bytes"]
    assert window["macs"] > kept["macs"] >= skipping["macs"] > 0 and 0 < found["active"] <= 1
    whole = 6 * 8 + 8 * 2 + 8 * 24 + 8 * 8 + 2 * 8 * 32  # embedding of 4 + 1 + 1 features or more, head, block
    assert found["weights"] < 0.7 * whole and found["weight_bytes"] < whole / 2


def test_cells_that_would_wait_for_a_start_are_begun_last(tmp_path: Path) -> None:
    models = {**CHAIN, "apart": {"settings": {"learning-rate": 0.5}}}
    planned = plan(resolve_all(read_sweep(write_spec(tmp_path / "s.yaml", models=models))))
    base, fewer, four, apart = jobs_of(planned, tmp_path / "out", threads=1)
    assert four.starts == {base.directory, fewer.directory} and base.starts == set()
    waiting = deque([fewer, four, apart])
    assert next_free(waiting, [base]) is apart and next_free(waiting, [base]) is fewer
    assert next_free(waiting, [fewer]) is four, "rather than nothing"

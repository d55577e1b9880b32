"""Tiny training runs and sweeps through the real command line, and what they leave behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch
import yaml

from dsf.testing.fault_injection import default_signals
from dsf.train.cli import main
from dsf.train.data.collect import collect_episodes, get_recipe, write_dataset
from dsf.train.run_directory import METRICS_NAME

HOPPER, CARTPOLE = "dsf/hopper/medium-v0", "dsf/cartpole/expert-v0"
"""What the fixture ``tiny_store`` holds."""
MODEL = ("--model.width", "8", "--model.blocks", "1", "--model.context", "6", "--model.window", "3")
TINY = (*MODEL, "--batch-size", "8", "--threads", "1", "--device", "cpu", "--log-every", "1")
TINY_CELL: dict[str, Any] = {
    "batch-size": 8,
    "device": "cpu",
    "model.width": 8,
    "model.blocks": 1,
    "model.context": 6,
    "model.window": 3,
}
"""The same sizes as settings of a sweep."""
UNSCORED = ("--eval-episodes", "0")
WAIT_S = 60.0
"""Longest wait for anything."""


def train_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``dsf-train`` in this process."""
    return run_here(main, "dsf-train", *arguments)


def run_here(main: Callable[[], NoReturn], program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a console script in this process, which saves the seconds that a new one takes to import torch."""
    output, errors = io.StringIO(), io.StringIO()
    handler, threads, code = signal.getsignal(signal.SIGTERM), torch.get_num_threads(), None
    with (
        patch.object(sys, "argv", [program, *arguments]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        finally:
            signal.signal(signal.SIGTERM, handler)
            torch.set_num_threads(threads)
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


def trained(*arguments: str) -> str:
    """Run ``dsf-train`` in this process to a good end; returns what it printed."""
    result = train_here(*arguments)
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


@contextlib.contextmanager
def only_dataset(directory: Path, name: str, steps: int) -> Iterator[None]:
    """Inside, Minari's store is ``directory/minari`` and holds some steps of one recipe: for ``--quick`` of scripts."""
    store, recipe = directory / "minari", get_recipe(name)
    store.mkdir()
    with patch.dict(os.environ, {"MINARI_DATASETS_PATH": str(store)}):
        write_dataset(recipe, collect_episodes(recipe, steps, 0, lambda: None), "quick", overwrite=False)
        yield


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics, every one of them whole."""
    return [json.loads(line) for line in (run / METRICS_NAME).read_text().splitlines()]


def write_spec(path: Path, **fields: Any) -> Path:
    """A sweep of one dataset and 20 steps; ``fields`` replace its own."""
    spec: dict[str, Any] = {"name": "tiny", "datasets": [CARTPOLE], "evaluation": {"episodes": 2}, "seeds": [0]}
    spec["models"] = {"pssa": {"energy": "spiking"}, "int8": {"export": {"bits": 8}, "energy": "spiking"}}
    spec["settings"] = {**TINY_CELL, "steps": 20}
    path.write_text(yaml.safe_dump({**spec, **fields}, sort_keys=False))
    return path


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    """``dsf-bench`` in this process."""
    from dsf.runtime import bench_cli  # not before it is needed: it imports most of dsf

    return run_here(bench_cli.main, "dsf-bench", *map(str, arguments))


def results(out: Path) -> list[dict[str, Any]]:
    """Lines of the store."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def start_sweep(spec: Path, out: Path, command: str = "sweep") -> subprocess.Popen[str]:
    """A process of its own."""
    words = [str(Path(sys.executable).parent / "dsf-bench"), command, str(spec), "--out", str(out)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, preexec_fn=default_signals)


def wait_for(found: Any) -> None:
    """Until it is true."""
    deadline = time.monotonic() + WAIT_S
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)

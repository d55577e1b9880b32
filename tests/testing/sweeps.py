"""Tiny sweeps through the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dsf.runtime import bench_cli
from dsf.testing.fault_injection import default_signals
from dsf.testing.training_runs import CARTPOLE, TINY_CELL, run_here

WAIT_S = 60.0
"""Longest wait for anything."""


def write_spec(path: Path, **fields: Any) -> Path:
    """A sweep of one dataset and 20 steps; ``fields`` replace its own."""
    spec: dict[str, Any] = {"name": "tiny", "datasets": [CARTPOLE], "evaluation": {"episodes": 2}, "seeds": [0]}
    spec["models"] = {"pssa": {"energy": "spiking"}, "int8": {"export": {"bits": 8}, "energy": "spiking"}}
    spec["settings"] = {**TINY_CELL, "steps": 20}
    path.write_text(yaml.safe_dump({**spec, **fields}, sort_keys=False))
    return path


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    """``dsf-bench`` in this process."""
    return run_here(bench_cli.main, "dsf-bench", *map(str, arguments))


def results(out: Path) -> list[dict[str, Any]]:
    """Lines of the store."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def start_sweep(spec: Path, out: Path, command: str = "sweep") -> subprocess.Popen[str]:
    """A process of its own."""
    words = [str(Path(sys.executable).parent / "dsf-bench"), command, str(spec), "--out", str(out)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, preexec_fn=default_signals)


def wait_for(found: Callable[[], Any]) -> None:
    """Until it is true."""
    deadline = time.monotonic() + WAIT_S
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)

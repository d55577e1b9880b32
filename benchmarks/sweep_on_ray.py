"""A sweep on a Ray cluster of two nodes that loses a worker midway: no cell lost, none doubled, the local table.

    python benchmarks/sweep_on_ray.py            # 12 cells from 6 trainings
    python benchmarks/sweep_on_ray.py --quick    # 12 cells from 2 trainings

Two ``ray start`` on loopback, one CPU each; the Ray process behind a training is killed with SIGKILL once that
training has a checkpoint. The same sweep then runs with the local launcher; the tables are compared as text. Needs the
extras train and cluster. The cluster is stopped at the end, however that comes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

BIN = Path(sys.executable).parent
CPUS_PER_NODE = 1
DATASET, RECIPE = "dsf/cartpole/expert-v0", "cartpole-expert"
TINY = {"batch-size": 8, "device": "cpu", "model.width": 8, "model.blocks": 1, "model.context": 6, "model.window": 3}
PATIENCE_S = 300.0


def specification(quick: bool) -> dict[str, Any]:
    """Twelve cells: with --quick from 2 trainings (cells that differ in export or pricing share one), else from 6."""
    models: dict[str, Any] = {"pssa": {"energy": "spiking"}, "int8": {"export": {"bits": 8}, "energy": "spiking"}}
    if quick:
        rules = ("none", "decision-transformer")
        models |= {f"pssa-{rule}": {"energy": rule} for rule in rules}
        models |= {f"int8-{rule}": {"export": {"bits": 8}, "energy": rule} for rule in rules}
    return {
        "name": "ray",
        "datasets": [DATASET],
        "models": models,
        "seeds": list(range(12 // len(models))),
        "settings": {**TINY, "steps": 150 if quick else 400, "checkpoint-every": 20},
        "evaluation": {"episodes": 2},
    }


def run(*command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of this environment's programs to its end.

    Raises:
        RuntimeError: it failed.
    """
    words = [str(BIN / str(command[0])), *map(str, command[1:])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
    if check and done.returncode:
        raise RuntimeError(f"{words[:3]} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def free_port() -> int:
    """A port that nobody listens at: another cluster on this machine is none of ours."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def cluster(place: Path) -> Iterator[str]:
    """Two nodes on loopback; yields the address. Only their processes are ended: ``ray stop`` would end everybody's."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    common = ("--num-cpus", CPUS_PER_NODE, "--object-store-memory", 80_000_000, "--disable-usage-stats")
    os.environ["RAY_TMPDIR"] = str(place)  # else nodes also look at what other clusters have left in /tmp/ray
    own = ("--node-ip-address", "127.0.0.1", "--temp-dir", place, "--include-dashboard", "false")
    try:
        run("ray", "start", "--head", "--port", port, *own, *common)
        run("ray", "start", "--address", address, "--node-ip-address", "127.0.0.1", *common)
        yield address
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in processes_of(place):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
            time.sleep(2.0)


def processes_of(place: Path, program: str = "") -> list[int]:
    """Ray's processes of a cluster, by the directory that all of them are told; perhaps those of one program only."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes()
            if str(place).encode() in line and program.encode() in line.split(b"\0")[0] and b"ray" in line:
                found.append(int(path.parent.name))
    return [process for process in found if process != os.getpid()]


def kill_a_worker(out: Path, sweep: subprocess.Popen[str]) -> int | None:
    """Kill the Ray process behind the first training that has a checkpoint and is not done; returns its id."""
    deadline = time.monotonic() + PATIENCE_S
    while sweep.poll() is None and time.monotonic() < deadline:
        for checkpoint in out.glob("*/training/checkpoint.safetensors"):
            job = checkpoint.parents[1]
            owner = json.loads((job / "owner.json").read_text())
            if not list(job.glob("[0-9a-f]*.json")):
                os.kill(owner["parent"], signal.SIGKILL)
                return int(owner["parent"])
        time.sleep(0.02)
    return None


def measure(quick: bool, place: Path) -> dict[str, Any]:
    """Run both sweeps and count."""
    os.environ["MINARI_DATASETS_PATH"] = str(place / "minari")
    (place / "minari").mkdir()
    run("dsf-data", "collect", RECIPE, "--steps", 300, "--seed", 0)
    spec, begun = place / "ray.yaml", time.monotonic()
    values = specification(quick)
    spec.write_text(yaml.safe_dump(values, sort_keys=False))
    with tempfile.TemporaryDirectory(prefix="two_nodes") as short, cluster(Path(short)) as address:
        nodes = len(processes_of(Path(short), "/raylet"))
        command = [BIN / "dsf-bench", "sweep", spec, "--launcher", "ray", "--ray-address", address]
        words = [str(word) for word in (*command, "--out", place / "on_ray")]
        sweep = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        killed = kill_a_worker(place / "on_ray", sweep)
        printed, errors = sweep.communicate(timeout=PATIENCE_S)
    on_ray = time.monotonic() - begun
    run("dsf-bench", "sweep", spec, "--out", place / "local", "--workers", 2)
    keys = [json.loads(line)["key"] for line in (place / "on_ray" / "results.jsonl").read_text().splitlines()]
    logs = "".join(log.read_text() for log in (place / "on_ray").glob("*/log.txt"))
    starts = [line for line in logs.splitlines() if "parameters, on" in line]
    names = ("on_ray", "local")
    tables = [run("dsf-bench", "table", "ray", "--spec", spec, "--out", place / name).stdout for name in names]
    return {
        "cells": 12,
        "nodes": nodes,
        "killed": killed,
        "exit_code": sweep.returncode,
        "said": (printed + errors).strip().splitlines()[-1],
        "lost": 12 - len(set(keys)),
        "doubled": len(keys) - len(set(keys)),
        "trainings_begun_or_resumed": len(starts),
        "resumed": sum("step 0 of" not in line for line in starts),
        "tables_equal": tables[0] == tables[1],
        "seconds_on_ray": round(on_ray, 1),
        "seconds": round(time.monotonic() - begun, 1),
    }


def main() -> None:
    """Measure, print, and fail where a cell is lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = measure(options.quick, Path(place))
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    whole = found["killed"] and found["tables_equal"] and found["nodes"] == 2
    sys.exit(0 if whole and found["lost"] == found["doubled"] == found["exit_code"] == 0 else 1)


if __name__ == "__main__":
    main()

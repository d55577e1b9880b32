"""A sweep on a Ray cluster of two nodes that loses workers midway: no cell lost, none doubled, the local table.

    python endurance/sweep_on_ray.py            # 12 cells from 6 trainings, three kills, the last of a whole node
    python endurance/sweep_on_ray.py --quick    # 4 cells from 2 trainings, one kill

Two ``ray start`` on loopback, one CPU each. Trainings are killed (SIGKILL) once they have a checkpoint: one by its own
process, in the full run another by the Ray process behind it and a third with all of its node. The same sweep then runs
with the local launcher; the tables are compared as text. Needs the extras train and cluster. On two
cores with a load of 5 to 10 from other work: 103 to 108 s with --quick, seven minutes without.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from ray_nodes import Cluster, children, descendants, is_alive, kill, two_nodes

BIN = Path(sys.executable).parent
CPUS_PER_NODE = 1
DATASET, RECIPE = "dsf/cartpole/expert-v0", "cartpole-expert"
TINY = {"batch-size": 8, "device": "cpu", "model.width": 8, "model.blocks": 1, "model.context": 6, "model.window": 3}
PATIENCE_S, POLL_S = 300.0, 0.02
KILLS = {True: ("worker",), False: ("worker", "ray process", "node")}
"""What is killed with --quick, and without."""


def specification(quick: bool) -> dict[str, Any]:
    """Two cells of each training; without --quick one of them is exported, and what that takes is priced."""
    priced = {"pssa": {"energy": "spiking"}, "int8": {"export": {"bits": 8}, "energy": "spiking"}}
    plain = {"pssa": {"energy": "none"}, "as-transformer": {"energy": "decision-transformer"}}
    return {
        "name": "ray",
        "datasets": [DATASET],
        "models": plain if quick else priced,
        "seeds": list(range(2 if quick else 6)),
        "settings": {**TINY, "steps": 100 if quick else 200, "checkpoint-every": 10},
        "evaluation": {"episodes": 2},
    }


def start(*command: object) -> subprocess.Popen[str]:
    """Start one of this environment's programs."""
    words = [str(BIN / str(command[0])), *map(str, command[1:])]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(program: subprocess.Popen[str]) -> str:
    """Wait for a program; returns what it printed.

    Raises:
        RuntimeError: it failed.
    """
    printed, errors = program.communicate(timeout=PATIENCE_S)
    if program.returncode:
        raise RuntimeError(f"{program.args!r} ended with {program.returncode}: {printed.strip()} {errors.strip()}")
    return printed


class Killer:
    """Kills trainings of a sweep on a cluster, each at most once, and sees where they run."""

    def __init__(self, out: Path, sweep: subprocess.Popen[str], cluster: Cluster) -> None:
        self.out, self.sweep, self.cluster = out, sweep, cluster
        self.struck: set[Path] = set()
        self.raylets: set[int] = set()

    def strike(self, what: str) -> int | None:
        """Kill a training that has a checkpoint and no result; returns the process, None where the sweep is over."""
        deadline = time.monotonic() + PATIENCE_S
        while self.sweep.poll() is None and time.monotonic() < deadline:
            for job in {path.parents[1] for path in self.out.glob("*/training/checkpoint.safetensors")} - self.struck:
                if (found := self.victims(job, what)) is not None:
                    self.struck.add(job)
                    for process in found:
                        kill(process, signal.SIGKILL)
                    return found[0]
            time.sleep(POLL_S)
        return None

    def victims(self, job: Path, what: str) -> list[int] | None:
        """Processes to kill, if a job is at its training now (and, for a node, is there)."""
        owner = json.loads((job / "owner.json").read_text())
        node = self.cluster.second.pid
        if not is_alive(owner["pid"]) or list(job.glob("[0-9a-f]*.json")):
            return None
        if what == "node":
            there = [node, *descendants(node)]
            return there if owner["pid"] in there else None
        return [owner["pid" if what == "worker" else "parent"]]


def nodes_at_work(cluster: Cluster) -> int:
    """Nodes that have a Ray process."""
    return sum(bool(children(node.pid)) for node in (cluster.head, cluster.second))


def sweep_on_ray(spec: Path, place: Path, quick: bool, collecting: subprocess.Popen[str]) -> dict[str, Any]:
    """The sweep on a cluster, with its kills."""
    sockets = tempfile.TemporaryDirectory(prefix="nodes", dir="/tmp")
    with sockets as short, two_nodes(Path(short), CPUS_PER_NODE) as cluster:
        finish(collecting)
        nodes, begun = nodes_at_work(cluster), time.monotonic()
        options = ("--launcher", "ray", "--ray-address", cluster.address, "--out", place / "on_ray")
        sweep = start("dsf-bench", "sweep", spec, *options)
        killer = Killer(place / "on_ray", sweep, cluster)
        killed = {what: killer.strike(what) for what in KILLS[quick]}
        printed, errors = sweep.communicate(timeout=PATIENCE_S)
        seconds = round(time.monotonic() - begun, 1)
    said = (printed + errors).strip().splitlines()[-1]
    return {"nodes": nodes, "killed": killed, "exit_code": sweep.returncode, "said": said, "seconds_on_ray": seconds}


def measure(quick: bool, place: Path) -> dict[str, Any]:
    """Run both sweeps and count."""
    os.environ["MINARI_DATASETS_PATH"] = str(place / "minari")
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # a dozen processes here would compile torch's sources anew
        os.environ["PYTHONPYCACHEPREFIX"] = str(place / "bytecode")
    (place / "minari").mkdir()
    spec, begun, values = place / "ray.yaml", time.monotonic(), specification(quick)
    spec.write_text(yaml.safe_dump(values, sort_keys=False))
    segments = object_stores()
    found = sweep_on_ray(spec, place, quick, start("dsf-data", "collect", RECIPE, "--steps", 300, "--seed", 0))
    left = sorted(object_stores() - segments)
    local = time.monotonic()
    finish(start("dsf-bench", "sweep", spec, "--out", place / "local", "--workers", 2))
    found["seconds_local"] = round(time.monotonic() - local, 1)
    names = ("on_ray", "local")
    rendering = [start("dsf-bench", "table", "ray", "--spec", spec, "--out", place / name) for name in names]
    on_ray, locally = map(finish, rendering)
    trainings = len(values["seeds"])
    return {
        **counted(place / "on_ray", len(values["models"]) * trainings),
        "trainings": trainings,
        **found,
        "tables_equal": on_ray == locally,
        "left_behind": [*descendants(os.getpid()), *left],
        "seconds": round(time.monotonic() - begun, 1),
    }


def object_stores() -> set[str]:
    """Names of Ray's shared-memory segments."""
    return {path.name for path in Path("/dev/shm").glob("*plasma*")}


def counted(out: Path, cells: int) -> dict[str, int]:
    """What the results and the trainings' logs say."""
    keys = [json.loads(line)["key"] for line in (out / "results.jsonl").read_text().splitlines()]
    logs = "".join(log.read_text() for log in out.glob("*/log.txt"))
    starts = [line for line in logs.splitlines() if "parameters, on" in line]
    return {
        "cells": cells,
        "lost": cells - len(set(keys)),
        "doubled": len(keys) - len(set(keys)),
        "begun": sum("step 0 of" in line for line in starts),
        "resumed": sum("step 0 of" not in line for line in starts),
    }


def is_whole(found: dict[str, Any]) -> bool:
    """Whether the sweep has taken the kills as it should."""
    killed = [process for process in found["killed"].values() if process]
    right = found["lost"] == found["doubled"] == found["exit_code"] == 0 and found["tables_equal"]
    once = found["begun"] == found["trainings"] and found["resumed"] == len(killed) == len(found["killed"])
    return bool(right and once and found["nodes"] == 2 and not found["left_behind"])


def main() -> None:
    """Measure, print, and fail where a cell is lost or doubled, or anything is left behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the nodes are stopped then, too
    with tempfile.TemporaryDirectory() as place:
        found = measure(options.quick, Path(place))
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(0 if is_whole(found) else 1)


if __name__ == "__main__":
    main()

"""Decisions per second of the shipped Hopper network in Lava, fused and expanded, against the same arithmetic bare.

Prints, from one run on one machine: milliseconds per decision on random tokens for each backend, for the reference
engine without Lava and for the fused blocks' arithmetic without Lava, MuJoCo's own step, and how many operating-system
processes and context switches a decision costs. The ratios are what to compare between machines.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from dsf.export.file import read_network
from dsf.export.network import Network
from dsf.runtime.artifacts import network_path
from dsf.runtime.engine import BackendName, Engine, LavaModel, open_engine
from dsf.runtime.lava_blocks import split_network
from dsf.runtime.lava_layout import CONTINUES
from dsf.tasks import get_task

WARM_UP = 5
FULL = {"reference": 1000, "fused": 1000, "expanded": 100}
QUICK = {"reference": 300, "fused": 300, "expanded": 20}
ENV_STEPS = 2000


def context_switches(engine: Engine) -> int:
    """Voluntary and involuntary switches of all threads of Lava's children so far."""
    supervisor = getattr(engine, "supervisor", None)
    total = 0
    for actor in [] if supervisor is None else supervisor.actors:
        for status in Path(f"/proc/{actor.pid}/task").glob("*/status"):
            lines = [line for line in status.read_text().splitlines() if "ctxt_switches" in line]
            total += sum(int(line.split()[1]) for line in lines)
    return total


def measure(network: Network, backend: BackendName, model: LavaModel, decisions: int) -> dict[str, Any]:
    """Open-loop decisions on random tokens: the network's cost without the environment."""
    limit = network.encoder.limit
    tokens = np.random.default_rng(0).integers(-limit, limit + 1, (decisions + WARM_UP, 1, network.encoder.size))
    with open_engine(network, backend, model) as engine:
        for token in tokens[:WARM_UP]:
            engine.step_graded(token)
        switches, started = context_switches(engine), time.perf_counter()
        for token in tokens[WARM_UP:]:
            engine.step_graded(token)
        seconds = time.perf_counter() - started
        supervisor = getattr(engine, "supervisor", None)
        return {
            "ms_per_decision": 1e3 * seconds / decisions,
            "decisions_per_second": decisions / seconds,
            "ticks_per_decision": engine.ticks_per_token,
            "processes": 0 if supervisor is None else len(supervisor.actors),
            "context_switches_per_decision": (context_switches(engine) - switches) / decisions,
        }


def bare_blocks_ms(network: Network, decisions: int) -> float:
    """The arithmetic of the fused blocks in this process: what is left of a fused decision when Lava is gone."""
    from dsf.runtime.lava_fused import FusedBlock

    parts = split_network(network)
    blocks = [FusedBlock(nodes, network.ticks) for nodes in parts.blocks]
    residual = np.random.default_rng(0).integers(-500, 900, parts.embed.size).astype(np.float64)
    started = time.perf_counter()
    for _ in range(decisions):
        for block in blocks:
            block.start_token(CONTINUES)
        for tick in range(network.ticks):
            for block in blocks:
                block(tick, residual)
    return 1e3 * (time.perf_counter() - started) / decisions


def environment_step_ms() -> float:
    """MuJoCo's Hopper step."""
    env = get_task("hopper").make_env()
    env.reset(seed=0)
    started = time.perf_counter()
    for _ in range(ENV_STEPS):
        _, _, terminated, truncated, _ = env.step(np.zeros(3))
        if terminated or truncated:
            env.reset()
    return 1e3 * (time.perf_counter() - started) / ENV_STEPS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 45 seconds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    counts, network = QUICK if arguments.quick else FULL, read_network(network_path())
    rows = {
        "reference": measure(network, "reference", "fused", counts["reference"]),
        "lava fused": measure(network, "lava", "fused", counts["fused"]),
        "lava expanded": measure(network, "lava", "expanded", counts["expanded"]),
    }
    bare = rows["reference"]["ms_per_decision"]
    print("| engine | ms / decision | decisions / s | x reference | ticks | processes | context switches / decision |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['ms_per_decision']:.2f} | {row['decisions_per_second']:.0f} "
            f"| {row['ms_per_decision'] / bare:.1f} | {row['ticks_per_decision']} | {row['processes']} "
            f"| {row['context_switches_per_decision']:.0f} |"
        )
    step, blocks = environment_step_ms(), bare_blocks_ms(network, counts["reference"])
    print(f"\nfused blocks' arithmetic without Lava: {blocks:.2f} ms per decision; MuJoCo Hopper step: {step:.3f} ms")
    if arguments.json:
        values = {**rows, "bare_blocks_ms": blocks, "mujoco_step_ms": step}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Decisions and ticks per second in Lava: fused and expanded, stream and window, stock channels and fast ones.

    python benchmarks/lava_decision.py [--quick] [--json FILE]

The networks are the shipped Hopper one (D = 128) and one of its shape with random weights and D = 256; the tokens are
random, and there is no environment. The contenders of a row group run in turns, in short rounds, so that a noisy
machine disturbs all of them alike; the median round counts, and the ratios are what to compare between machines (the
best round is what a decision takes while nobody else wants the cores):

    stock           Lava's own channels
    fast            --lava-fast-channels
    fast, counts    the same with --probe none: populations report how often they fired and nothing else

For scale it also times the reference engine, the fused blocks' arithmetic without Lava, and MuJoCo's own step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsf.export.network.file import read_network
from dsf.export.network.network import Mode, Network
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.runtime.engines.interface import STOCK_LAVA, Engine, LavaModel, LavaOptions
from dsf.runtime.lava_backend.stages.blocks import split_network
from dsf.runtime.lava_backend.stages.layout import CONTINUES
from dsf.runtime.open_engine import open_engine
from dsf.shell.generated_section import replace_section
from dsf.tasks import get_task
from dsf.testing.measurement import ROOT, when_and_what

DOCUMENT = ROOT / "docs" / "performance.md"
SHIPPED, WIDE = "D=128", "D=256"
CONTENDERS = {
    "stock": STOCK_LAVA,
    "fast": LavaOptions(fast_channels=True),
    "fast, counts": LavaOptions(fast_channels=True, probes=()),
}
TOKENS = 512
ENV_STEPS = 2000


@dataclass(frozen=True)
class Group:
    """Contenders that run in turns."""

    network: str
    mode: Mode
    model: LavaModel

    @property
    def name(self) -> str:
        """For tables and JSON."""
        return f"{self.network} {self.mode} {self.model}"


GROUPS = tuple(
    Group(network, mode, model)
    for model in ("fused", "expanded")
    for mode in ("stream", "window")
    for network in (SHIPPED, WIDE)
)
QUICK_GROUPS = tuple(
    group for group in GROUPS if group.network == SHIPPED and (group.mode, group.model) != ("window", "expanded")
)


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        groups: of contenders.
        rounds: per contender.
        seconds: about how long a round takes; at least one decision.
    """

    groups: tuple[Group, ...]
    rounds: int
    seconds: float


FULL, QUICK = Effort(GROUPS, 9, 0.5), Effort(QUICK_GROUPS, 3, 0.2)


def wide_network(shipped: Network) -> Network:
    """Twice as wide as the shipped one, with random weights."""
    from dsf.testing.random_networks import random_network

    sizes: dict[str, Any] = {"width": 256, "blocks": 3, "window": 7, "context": shipped.context, "mlp_ratio": 4}
    return random_network(0, features=shipped.encoder.size, **sizes)


def deciding(engine: Engine, count: int) -> Callable[[], float]:
    """A round of random decisions; it returns its seconds per decision."""
    network = engine.network
    limit = network.encoder.limit
    tokens = np.random.default_rng(0).integers(-limit, limit + 1, (TOKENS, 1, network.encoder.size))

    def one_round() -> float:
        started = time.perf_counter()
        for number in range(count):
            engine.step_graded(tokens[number % TOKENS])
        return (time.perf_counter() - started) / count

    return one_round


def context_switches(engine: Engine) -> int:
    """Voluntary and involuntary switches of all threads of Lava's children so far."""
    total = 0
    for actor in engine.supervisor.actors:  # type: ignore[attr-defined]
        for status in Path(f"/proc/{actor.pid}/task").glob("*/status"):
            lines = [line for line in status.read_text().splitlines() if "ctxt_switches" in line]
            total += sum(int(line.split()[1]) for line in lines)
    return total


@contextlib.contextmanager
def started(group: Group, network: Network) -> Iterator[dict[str, Engine]]:
    """All contenders of a group, side by side, with a full window behind them."""
    with contextlib.ExitStack() as stack:
        engines = {
            name: stack.enter_context(open_engine(network, "lava", group.model, group.mode, options))
            for name, options in CONTENDERS.items()
        }
        for engine in engines.values():
            deciding(engine, network.context if group.mode == "window" else 1)()
        yield engines


def measure(group: Group, network: Network, effort: Effort) -> dict[str, dict[str, float]]:
    """Medians over rounds in which the contenders take turns."""
    with started(group, network) as engines:
        rounds = {name: round_of(engine, effort.seconds) for name, engine in engines.items()}
        before = {name: (context_switches(engine), engine.counter.decisions) for name, engine in engines.items()}
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(effort.rounds):
            for name, one_round in rounds.items():
                seconds[name].append(one_round())
        found = {}
        for name, engine in engines.items():
            switches, decisions = context_switches(engine) - before[name][0], engine.counter.decisions - before[name][1]
            tokens = network.context if group.mode == "window" else 1
            median = statistics.median(seconds[name])
            found[name] = {
                "ms_per_decision": 1e3 * median,
                "best_ms_per_decision": 1e3 * min(seconds[name]),
                "decisions_per_second": 1 / median,
                "ticks_per_second": tokens * engine.ticks_per_token / median,
                "ticks_per_decision": tokens * engine.ticks_per_token,
                "processes": len(engine.supervisor.actors),  # type: ignore[attr-defined]
                "context_switches_per_decision": switches / decisions,
                "of_stock": median / statistics.median(seconds["stock"]),
            }
    return found


def round_of(engine: Engine, seconds: float) -> Callable[[], float]:
    """A round that takes about so long."""
    return deciding(engine, max(int(seconds / deciding(engine, 1)()), 1))


def bare_blocks_ms(network: Network, rounds: int) -> float:
    """The arithmetic of the fused blocks in this process: what is left of a fused decision when Lava is gone."""
    from dsf.runtime.lava_backend.stages.fused import FusedBlock

    parts = split_network(network)
    blocks = [FusedBlock(nodes, network.ticks) for nodes in parts.blocks]
    residual = np.random.default_rng(0).integers(-500, 900, parts.embedding.residual.size).astype(np.float64)
    times = []
    for _ in range(100 * rounds):
        before = time.perf_counter()
        for block in blocks:
            block.start_token(CONTINUES)
        for tick in range(network.ticks):
            for block in blocks:
                block(tick, residual)
        times.append(time.perf_counter() - before)
    return 1e3 * statistics.median(times)


def environment_step_ms() -> float:
    """MuJoCo's Hopper step."""
    env = get_task("hopper").make_env()
    env.reset(seed=0)
    before = time.perf_counter()
    for _ in range(ENV_STEPS):
        _, _, terminated, truncated, _ = env.step(np.zeros(3))
        if terminated or truncated:
            env.reset()
    env.close()
    return 1e3 * (time.perf_counter() - before) / ENV_STEPS


def report(rows: dict[str, dict[str, dict[str, float]]], scale: dict[str, Any]) -> str:
    """All groups and contenders, as the table of docs/performance.md."""
    before, after = scale["load"]
    lines = [
        f"{when_and_what()}, load average {before:.1f} before, {after:.1f} after, on {os.cpu_count()} cores:",
        "",
        "| network, mode, model | channels | ms, median | ms, best | decisions / s | ticks / s | of stock | switches |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group, contenders in rows.items():
        lines += [
            f"| {group} | {name} | {row['ms_per_decision']:.2f} | {row['best_ms_per_decision']:.2f} "
            f"| {row['decisions_per_second']:.1f} | {row['ticks_per_second']:.0f} | {row['of_stock']:.2f} "
            f"| {row['context_switches_per_decision']:.0f} |"
            for name, row in contenders.items()
        ]
    line = (
        "ms at D=128: reference {reference_ms:.2f}, fused blocks without Lava {bare_blocks_ms:.2f}, "
        "MuJoCo step {mujoco_step_ms:.3f}"
    )
    return "\n".join([*lines, "", line.format(**scale)])


def main() -> None:
    """Measure and print; whole runs also write docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, at D = 128")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    effort, shipped = QUICK if options.quick else FULL, read_network(network_path())
    networks, load = {SHIPPED: shipped}, [os.getloadavg()[0]]
    if not options.quick:
        networks[WIDE] = wide_network(shipped)
    rows = {group.name: measure(group, networks[group.network], effort) for group in effort.groups}
    load.append(os.getloadavg()[0])
    scale: dict[str, Any] = {
        "reference_ms": 1e3 * round_of(ReferenceLoopEngine(shipped), effort.seconds)(),
        "bare_blocks_ms": bare_blocks_ms(shipped, effort.rounds),
        "mujoco_step_ms": environment_step_ms(),
        "load": load,
    }
    text = report(rows, scale)
    print(text)
    if not options.quick:
        replace_section(DOCUMENT, "lava", text)
    if options.json:
        options.json.write_text(json.dumps({**rows, **scale}, indent=2) + "\n")


if __name__ == "__main__":
    main()

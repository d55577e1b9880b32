"""What the fast engine gains from weights that are 0: a decision with all of them, and with those that exist.

    python benchmarks/sparse_weights.py [--quick] [--json FILE]

The smallest weights of every matrix are set to 0, a share at a time, of the shipped network (128 wide, 3 blocks) and of
a random one twice as wide. "tiles" computes with zeros, as for any dense network; "quicker" leaves them out wherever it
takes that for less time. Both run the same network on the same tokens, taking turns in short rounds, and the quickest
round of each counts: whatever else a shared machine does only makes a round longer. The integers of the two are
compared. Neither network decides anything of use: nobody trained what is left of it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import Readout, Synapses
from dsf.export.network.sparse import stored_bytes
from dsf.export.proof.rungs import random_entering
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.fast_engine import FastEngine, SparseForm
from dsf.testing.measurement import when_and_what
from dsf.testing.random_networks import random_network, sparser

SHARES = (0.0, 0.7, 0.8, 0.9, 0.95, 0.98)
LANES = (1, 64)
ROUNDS, QUICK_ROUNDS = 120, 30
TOKENS = 16
"""Decisions of a round, over all lanes at least."""
WIDE: dict[str, Any] = {"width": 256, "blocks": 3, "mlp_ratio": 4, "window": 7, "context": 20, "features": 15}
FORMS: tuple[SparseForm, ...] = ("tiles", "quicker")


def measure(network: Network, lanes: int, rounds: int) -> dict[str, float]:
    """Least microseconds per decision of each form, and the share of neurons' ticks with a spike."""
    engines = {form: FastEngine(network, lanes, sparse=form) for form in FORMS}
    tokens = random_entering(network, (max(TOKENS // lanes, 2), lanes), np.random.default_rng(0))
    seconds = dict.fromkeys(FORMS, np.inf)
    for _ in range(rounds):
        answers = {}
        for form, engine in engines.items():
            started = time.perf_counter()
            for token in tokens:
                engine.step_graded(token)
            seconds[form] = min(seconds[form], time.perf_counter() - started)
            answers[form] = engine.accumulators.copy()
        if not np.array_equal(answers["tiles"], answers["quicker"]):
            raise SystemExit(
                "sparse_weights.py: the two forms differ, which is a bug: run the tests of the fast engine"
            )
    counter = engines["tiles"].counter
    slots = counter.tokens * network.ticks * sum(fired.size for fired in counter.fired.values())
    spikes = sum(int(fired.sum()) for fired in counter.fired.values())
    return {f"{form}_us": seconds[form] / len(tokens) / lanes * 1e6 for form in FORMS} | {"rate": spikes / slots}


def rows(networks: dict[str, Network], rounds: int) -> list[dict[str, Any]]:
    """One measurement per network, share of zeros, and number of environments."""
    found = []
    for name, whole in networks.items():
        for share in SHARES:
            network = sparser(whole, share)
            matrices = [node.weights for node in network.nodes if isinstance(node, (Synapses, Readout))]
            kept = sum(map(stored_bytes, matrices)) / sum(weights.size for weights in matrices)
            for lanes in LANES:
                figures = measure(network, lanes, rounds)
                ratio = figures["tiles_us"] / figures["quicker_us"]
                found.append(
                    {"network": name, "zeros": share, "lanes": lanes, **figures, "ratio": ratio, "bytes": kept}
                )
    return found


def table(found: list[dict[str, Any]]) -> Table:
    """All of it for people."""
    page = Table(title=f"{when_and_what()}, load average {os.getloadavg()[0]:.1f}", title_justify="left")
    for column in ("network", "zeros", "bytes of all", "environments", "rate", "tiles, us", "quicker, us", "ratio"):
        page.add_column(column, justify="left" if column == "network" else "right")
    for row in found:
        times = (f"{row[name]:.2f}" for name in ("tiles_us", "quicker_us", "ratio"))
        share, kept = f"{row['zeros']:.0%}", f"{row['bytes']:.0%}"
        page.add_row(row["network"], share, kept, str(row["lanes"]), f"{row['rate']:.2f}", *times)
    return page


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    networks = {"shipped, D = 128": read_network(network_path()), "random, D = 256": random_network(1, **WIDE)}
    found = rows(networks, QUICK_ROUNDS if options.quick else ROUNDS)
    Console(width=120).print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

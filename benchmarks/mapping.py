"""Mappings on a chip's mesh, naive and searched: busiest core, hops, time per decision, and seconds of the search.

    python benchmarks/mapping.py [--quick] [--json FILE]

Networks: the shipped one (D = 128), and an untrained one of twice its width, whose neurons fire more often. Spikes are
those of the first decisions of closed-loop Hopper episodes. Three mappings each:

    in order    populations on cores of their own, as full as they get; cores in order along the mesh
    moved       the same cores, places searched
    searched    work spread over more cores of the same chips, then places searched
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.reference import decode, encode
from dsf.export.placement.chips import get_chip
from dsf.hardware_models import (
    NetworkMapping,
    Preset,
    SpikeCounter,
    estimate_latency,
    load_preset,
    map_in_order,
    measure_mapping,
    search_mapping,
    search_places,
)
from dsf.hardware_models.schedule import Spikes
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.adapters import FastLoopEngine
from dsf.shell.console import table_console
from dsf.shell.units import MICROSECOND
from dsf.tasks import Token, get_task, rollout

PRESETS = ("loihi2_derived", "loihi1_fitted")
WIDE: dict[str, Any] = {"width": 256, "blocks": 3, "window": 7, "context": 20, "features": 15, "mlp_ratio": 4}
DECISIONS, QUICK_DECISIONS = 200, 50
TARGET = 3600.0
COLUMNS = (
    "mapping",
    "cores",
    "busiest core, us / tick",
    "hops",
    "to other chips",
    "us / decision",
    "lockstep",
    "search, s",
)


class Recorder:
    """A policy that keeps the spikes of its first decisions."""

    lanes = 1

    def __init__(self, network: Network, decisions: int) -> None:
        self.engine, self.decisions, self.spikes = FastLoopEngine(network), decisions, list[Spikes]()

    def reset(self, lane: int) -> None:
        """A new episode starts."""
        self.engine.reset(lane)

    def act(self, token: Token) -> Any:
        """One decision."""
        network = self.engine.network
        answers, spikes = self.engine.step_graded(encode(network.encoder, token.vector()))
        if len(self.spikes) < self.decisions:
            self.spikes.append({name: values.copy() for name, values in spikes.items()})
        return decode(network.readout, answers)


def record(network: Network, decisions: int) -> tuple[SpikeCounter, list[Spikes]]:
    """Counts and spikes of so many decisions."""
    policy, seed = Recorder(network, decisions), 0
    while len(policy.spikes) < decisions:
        rollout(get_task(network.task), policy, range(seed, seed + 1), TARGET)
        seed += 1
    counter = SpikeCounter(network)
    for spikes in policy.spikes:
        counter.add(spikes)
    return counter, policy.spikes


def measure(network: Network, preset: Preset, decisions: int) -> list[dict[str, Any]]:
    """One row per mapping."""
    counter, spikes = record(network, decisions)
    chip = get_chip(str(preset.chip))
    ways: dict[str, Callable[[], NetworkMapping]] = {
        "in order": lambda: map_in_order(network, chip),
        "moved": lambda: search_places(map_in_order(network, chip), counter),
        "searched": lambda: search_mapping(network, chip, counter, preset),
    }
    rows = []
    for name, way in ways.items():
        started = time.perf_counter()
        mapping = way()
        seconds = time.perf_counter() - started
        times = {
            f"{schedule}_us": estimate_latency(mapping, preset, spikes, schedule).mean.nominal / MICROSECOND
            for schedule in ("pipelined", "lockstep")
        }
        figures = dataclasses.asdict(measure_mapping(mapping, counter, preset))
        rows.append({"mapping": name, "seconds": seconds, **figures, **times})
    return rows


def print_rows(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    """One table."""
    table = Table(*COLUMNS, title=title, title_justify="left")
    for row in rows:
        table.add_row(
            row["mapping"],
            f"{row['cores']} on {row['chips']} chip(s)",
            f"{row['load'] / 1000:.1f}",
            f"{row['hops']:,.0f}",
            f"{row['off_chip']:,.0f}",
            f"{row['pipelined_us']:.0f}",
            f"{row['lockstep_us']:.0f}",
            f"{row['seconds']:.2f}",
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"D = 128 only, {QUICK_DECISIONS} decisions")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    networks = {"D = 128": read_network(network_path())}
    if not options.quick:
        from dsf.testing.random_networks import random_network

        networks["D = 256, untrained"] = random_network(0, **WIDE)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, network in networks.items():
        for preset in PRESETS:
            title = f"{name}, {preset}"
            found[title] = measure(network, load_preset(preset), QUICK_DECISIONS if options.quick else DECISIONS)
            print_rows(title, found[title], table_console())
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""The shipped network under every hardware preset; writes docs/energy.md and docs/energy.json.

    python experiments/energy.py            # three closed-loop episodes on the fast engine
    python experiments/energy.py --check    # says whether the documents still hold

The test suite runs the check.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from dsf.export.network.file import read_network
from dsf.hardware_models import load_preset, preset_names
from dsf.runtime.artifacts import network_path
from dsf.runtime.loop.closed_loop import LoopSettings, run_serially
from dsf.runtime.open_engine import open_engine
from dsf.runtime.report.hardware import SAMPLED_DECISIONS, HardwareFigures, price_run
from dsf.shell.files import write_json
from dsf.shell.generated_section import replace_section
from dsf.tasks import get_task

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT, FIGURES = ROOT / "docs" / "energy.md", ROOT / "docs" / "energy.json"
SEEDS = range(12_000, 12_003)
TOLERANCE = 0.02
"""Relative; another processor's MuJoCo may walk a little differently, a changed price or count shows."""
MICRO = 1e-6


def measure() -> tuple[dict[str, Any], list[HardwareFigures]]:
    """Figures of three episodes, as JSON values and as they are."""
    network = read_network(network_path())
    task = get_task(network.task)
    target = task.target_returns[0] if network.target_return is None else network.target_return
    settings = LoopSettings(task, target, sampled=SAMPLED_DECISIONS["stream"])
    with open_engine(network, "fast") as engine:
        result = run_serially(engine, settings, SEEDS)
    presets = [load_preset(name) for name in preset_names()]
    found = price_run(network, "stream", result.counter, result.results[0].tokens, presets)
    figures = {
        "network": network_path().name,
        "dataset": network.provenance["dataset"]["id"],
        "env_id": task.env_id,
        "mode": "stream",
        "target_return": target,
        "seeds": [SEEDS.start, SEEDS.stop - 1],
        "returns": [episode.episode_return for episode in result.episodes],
        "decisions": result.decisions,
        "control_period_s": task.control_period_s,
        "presets": {figure.preset.name: without_rows(figure.to_json(task)) for figure in found},
    }
    return figures, found


def without_rows(values: dict[str, Any]) -> dict[str, Any]:
    """The layers' rows are as long as all else, and any run's --json has them."""
    return {name: value for name, value in values.items() if name != "layer_table"}


def drifted(written: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """Energies and times that have left the tolerance, one line each; presets that are not in both."""
    lines = [f"{name}: only on one side" for name in set(written["presets"]) ^ set(measured["presets"])]
    for name in sorted(set(written["presets"]) & set(measured["presets"])):
        before, now = headline(written["presets"][name]), headline(measured["presets"][name])
        for key in {**before, **now}:
            one, other = before.get(key, 0.0), now.get(key, 0.0)
            if abs(one - other) > TOLERANCE * max(abs(one), abs(other)):
                lines.append(f"{name}, {key}: {one:.4g} written, {other:.4g} measured")
    return lines


def headline(values: dict[str, Any]) -> dict[str, float]:
    """What the document shows of a preset."""
    found = {key: values[key] for key in ("joules_per_decision", "low", "high")}
    if "latency" in values:
        found |= {f"{level} latency": values["latency"]["mean"][level] for level in ("low", "nominal", "high")}
        found["cores"] = values["cores"]["searched"]["cores"]
    return found


def render(figures: dict[str, Any]) -> str:
    """The generated part of the document."""
    first, last = figures["seeds"]
    returns = ", ".join(f"{value:.0f}" for value in figures["returns"])
    lines = [
        f"{figures['network']} ({figures['dataset']}) on {figures['env_id']}, {figures['mode']} mode, reset seeds "
        f"{first} to {last}, target return {figures['target_return']:.0f}, {figures['decisions']:,} decisions; "
        f"returns {returns}. Dynamic energy per decision.",
        "",
        "| preset | grade | uJ | low to high | static uJ per control period | largest terms | without a price |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, values in figures["presets"].items():
        joules = values["joules_per_decision"]
        largest = sorted(values["terms"].items(), key=lambda item: -item[1])[:3]
        shares = ", ".join(f"{share / joules:.0%} {words(term)}" for term, share in largest)
        band = f"{values['low'] / MICRO:,.2f} to {values['high'] / MICRO:,.2f}"
        unpriced = ", ".join(map(words, values["unpriced_per_decision"])) or "-"
        cells = (f"{joules / MICRO:,.2f}", band, burnt(values["static_joules_per_control_period"]), shares, unpriced)
        lines.append(f"| {name} | {values['grade']} | {' | '.join(cells)} |")
    lines += ["", *chip_table(figures), ""]
    return "\n".join(lines)


def chip_table(figures: dict[str, Any]) -> list[str]:
    """Cores and times of the presets with a chip."""
    heads = ["preset", "cores, chips", "in order", "hops", "us per decision (low to high)", "grade", "binds"]
    heads += ["static uJ while deciding"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, values in figures["presets"].items():
        if "latency" not in values:
            continue
        latency, searched, naive = values["latency"], values["cores"]["searched"], values["cores"]["in_order"]
        mean = latency["mean"]
        time = f"{mean['nominal'] / MICRO:.0f} ({mean['low'] / MICRO:.0f} to {mean['high'] / MICRO:.0f})"
        term = max(latency["terms"], key=latency["terms"].__getitem__)
        binds = f"{words(term)} {latency['terms'][term] / mean['nominal']:.0%}"
        cores = f"{searched['cores']}, {searched['chips']} | {naive['cores']} | {searched['hops']:,.0f}"
        lines.append(
            f"| {name} | {cores} | {time} | {latency['grade']} | {binds} | {burnt(latency['static_joules'])} |"
        )
    return lines


def burnt(band: dict[str, float] | None) -> str:
    """Static microjoules."""
    return "not known" if band is None else f"{band['nominal'] / MICRO:,.1f}"


def words(name: str) -> str:
    """A quantity's name for people."""
    return name.replace("_", " ")


def main() -> None:
    """Measure, then write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the documents instead of writing them")
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    options = parser.parse_args()
    figures, _ = measure()
    if options.json:
        write_json(options.json, figures)
    if options.check:
        lines = drifted(json.loads(FIGURES.read_text()), figures)
        Console().print("\n".join(lines) or "docs/energy.json holds", soft_wrap=True)
        sys.exit(int(bool(lines)))
    write_json(FIGURES, figures)
    figures = json.loads(FIGURES.read_text())  # in the file's order
    replace_section(DOCUMENT, "energy", render(figures))


if __name__ == "__main__":
    main()

"""Cost per decision against the length of the context, in stream and in window mode: beside table4_context's scores.

    python experiments/context_cost.py --out runs/sweeps --results docs/results.jsonl

The networks are those that the sweep exported for its energies. Each plays one episode in every mode that computes what
training did: PSSA in stream mode (one token per decision) and in window mode (the last K tokens replayed), TSSA in
window mode alone. Decision Transformer's figures are the sweep's own: its whole window, and with keys and values kept,
which beyond the context is another function. docs/context_cost.jsonl keeps the lines.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dsf.runtime.options import SimRunConfig
from dsf.runtime.simulate import simulate
from dsf.runtime.sweeps.energy import PRESETS
from dsf.runtime.sweeps.file import read_sweep, sweep_path
from dsf.runtime.sweeps.jobs import resolve_all
from dsf.runtime.sweeps.scores import exported_files
from dsf.runtime.sweeps.store import read_lines
from dsf.runtime.sweeps.table import lines_by_place, result_of
from dsf.shell.files import write_text
from dsf.shell.generated_section import replace_section
from dsf.shell.units import MICROJOULE
from dsf.testing.measurement import ROOT

SWEEP, AXIS, SECTION = "table4_context", "model.context", "context-cost"
LINES, DOCUMENT = ROOT / "docs" / "context_cost.jsonl", ROOT / "docs" / "results.md"
MODES: dict[str, tuple[str, ...]] = {"pssa": ("stream", "window"), "tssa": ("window",)}
DENSE = {"whole window": "microjoules", "keys and values kept": "cached_microjoules"}


@dataclass(frozen=True)
class Cost:
    """One network in one mode.

    Attributes:
        model, context, seed: the cell.
        mode: how it decided.
        events: synaptic events per decision; None of a dense model.
        microjoules: per decision, by preset.
    """

    model: str
    context: int
    seed: int
    mode: str
    events: float | None
    microjoules: dict[str, float]


def spiking_costs(line: dict[str, Any], model: str, context: int, out: Path, reset_seed: int) -> list[Cost]:
    """A network's, in each of its modes."""
    directories = [record.parent for record in sorted(out.glob(f"*/{line['key']}.json"))]
    networks = [exported_files(directory, (), line["code"])[0] for directory in directories]
    found = []
    for network in [path for path in networks if path.exists()][:1]:
        for mode in MODES[model]:
            asked = SimRunConfig(
                network=network,
                backend="fast",
                mode=mode,  # type: ignore[arg-type]
                seed=reset_seed,
                target_return=line["target_return"],
                compare=False,
                parity_decisions=0,
                hardware=PRESETS,
            )
            report = simulate(asked).report
            joules = {figures.preset.name: figures.energy.nominal / MICROJOULE for figures in report.hardware}
            found.append(Cost(model, context, line["seed"], mode, report.synaptic_events_per_decision, joules))
    return found


def dense_costs(line: dict[str, Any], model: str, context: int) -> list[Cost]:
    """Decision Transformer's at int8, from the sweep's line."""
    return [
        Cost(model, context, line["seed"], mode, None, line["energy"][field]["int8"])
        for mode, field in DENSE.items()
        if line["energy"].get(field)
    ]


def section(costs: list[Cost]) -> str:
    """Markdown, a row per context."""
    if not costs:
        return "Not run.\n"
    columns = list(dict.fromkeys((cost.model, cost.mode) for cost in costs))
    preset = PRESETS[-1]
    text = [
        f"Microjoules per decision under {preset}, the mean over training seeds; of spiking networks (8 bits) with "
        "synaptic events per decision behind them, counted in one episode each (`python experiments/context_cost.py`).",
        "",
        "| context | " + " | ".join(f"{model}, {mode}" for model, mode in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for context in sorted({cost.context for cost in costs}):
        row = []
        for column in columns:
            chosen = [cost for cost in costs if (cost.context, cost.model, cost.mode) == (context, *column)]
            if not chosen:
                row.append("not run")
                continue
            mean = sum(cost.microjoules[preset] for cost in chosen) / len(chosen)
            events = [cost.events for cost in chosen if cost.events is not None]
            row.append(f"{mean:.3g}" + (f" ({sum(events) / len(events):,.0f})" if events else ""))
        text.append(f"| {context} | " + " | ".join(row) + " |")
    return "\n".join([*text, ""])


def main() -> None:
    """Play what has not been played, then write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sweeps"), help="directory of the sweep's trainings")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results.jsonl")
    parser.add_argument("--quick", action="store_true", help="only write the section from the lines that are there")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    costs = [Cost(**json.loads(line)) for line in LINES.read_text().splitlines()] if LINES.exists() else []
    done = {(cost.model, cost.context, cost.seed) for cost in costs}
    spec = read_sweep(sweep_path(SWEEP))
    by_place = lines_by_place(read_lines(options.results, tabulated=True))
    for cell in [] if options.quick else resolve_all(spec):
        line, context = result_of(cell, by_place), cell.cell.value(AXIS)
        model = cell.cell.model
        if line is None or not isinstance(context, int) or (model, context, cell.cell.seed) in done:
            continue
        if model in MODES:
            found = spiking_costs(line, model, context, options.out, spec.evaluation.seed)
        else:
            found = dense_costs(line, model, context)
        costs += found
        for cost in found:
            console.print(f"{cell.cell.label}, {cost.mode}: {cost.microjoules}")
        write_text(LINES, "".join(json.dumps(asdict(cost)) + "\n" for cost in costs))
    if options.json:
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")
    replace_section(DOCUMENT, SECTION, section(costs))


if __name__ == "__main__":
    main()

"""Makes the tables of docs/strl.md from the lines that benchmarks/strl_protocol.py has measured."""

from __future__ import annotations

import json
from typing import Any

from generated_section import ROOT, replace_section

from dsf.tasks import mean_confidence_interval

DOCUMENT = ROOT / "docs" / "strl.md"
NAMES = {"strl": "STRL", "dt": "dense (Decision Transformer)", "strl-spike": "STRL-spike"}
Line = dict[str, Any]


def said(line: Line) -> str:
    """One finished line, for the screen."""
    what = f"{line['observation']}, {line['expert']}"
    if line["kind"] == "bound":
        shares = [f"{line[label]['accuracy']:.2%}" for label in ("causal", "next")]
        return f"{what}: look-up table {shares[0]}, with the next observation {shares[1]}"
    own = f"{line['model']} {line['attention']} {line['changed'] or ''} seed {line['seed']}"
    integers = line.get("integers")
    more = f"; integers {integers['accuracy']:.2%}, {integers['success']:.1%} solved" if integers else ""
    return f"{what}, {own}: accuracy {line['accuracy']:.2%}, {line['success']:.1%} solved{more}"


def spread(values: list[float], unit: str = "%") -> str:
    """Mean over training seeds, with its 95 % interval where there is more than one."""
    scale, digits = (100.0, 2) if unit == "%" else (1.0, 3)
    if not values:
        return "not run"
    interval = mean_confidence_interval([scale * value for value in values])
    low_high = f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]" if len(values) > 1 else " (one seed)"
    return f"{interval.mean:.{digits}f}{low_high}"


def ways(lines: list[Line]) -> str:
    """Moves over shortest of the solved mazes; nothing where none was solved."""
    found = [line["moves_over_shortest"] for line in lines if line["moves_over_shortest"] is not None]
    return spread(found, "") if found else ("none solved" if lines else "not run")


def write_document(lines: list[Line], cells: list[Any], budget: dict[str, Any]) -> None:
    """Replace the generated parts of docs/strl.md by the figures of one budget."""
    mine = [line for line in lines if line["budget"] == budget]
    of_data = ("mazes", "held_out", "context")
    bounds = [x for x in lines if x["kind"] == "bound" and all(x["budget"][n] == budget[n] for n in of_data)]
    replace_section(DOCUMENT, "strl-table", "\n".join([*head(budget), *table(mine, bounds, cells)]))
    replace_section(DOCUMENT, "strl-sweeps", "\n".join(sweeps(mine, cells)))


def head(budget: dict[str, Any]) -> list[str]:
    """The budget, in words."""
    said = {name: f"{value:,}" if isinstance(value, int) else f"{value:g}" for name, value in budget.items()}
    return [
        "{mazes} training mazes, {held_out} validation and {held_out} test mazes; {steps} steps of {batch} windows "
        "of up to {context} tokens, learning rate {learning_rate}; width {width}, {blocks} blocks, {heads} heads "
        "(STRL, dense); {episodes} unseen mazes in the closed loop. Mean over training seeds [95 % interval]."
        "".format_map(said),
        "",
    ]


def table(lines: list[Line], bounds: list[Line], cells: list[Any]) -> list[str]:
    """Observation x expert x model x attention; look-up tables first in each group."""
    rows = [
        "| observation | expert | model | sees | seeds | parameters | token accuracy, % | solved, % "
        "| moves / shortest |",
        "|---" * 9 + "|",
    ]
    groups = dict.fromkeys((cell.observation, cell.expert) for cell in cells)
    models = dict.fromkeys((cell.model, cell.attention) for cell in cells)
    for group in groups:
        first = f"| {group[0]} | {group[1].replace('_', ' ')} |"
        bound = next((x for x in bounds if (x["observation"], x["expert"]) == group), None)
        for label, sees in (("next", "the next observation too"), ("causal", "the past")):
            share = f"{100 * bound[label]['accuracy']:.2f}" if bound else "not run"
            rows.append(f"{first} look-up table | {sees} | | | {share} | | |")
        for model, attention in models:
            found = [x for x in lines if is_cell(x, *group, model, attention) and not x["changed"]]
            sees = "the whole window" if attention == "bidirectional" else "the past"
            rows.append(f"{first} {NAMES[model]} | {sees} | {row(found)}")
            if model == "strl-spike":
                whole = [{**x, **x["integers"]} for x in found if "integers" in x]
                rows.append(f"{first} STRL-spike, 8-bit integers | {sees} | {row(whole)}")
    return rows


def row(lines: list[Line]) -> str:
    """The measured columns."""
    counts = sorted({f"{line['parameters']:,}" for line in lines})
    shares = [spread([line[name] for line in lines]) for name in ("accuracy", "success")]
    return f"{len(lines)} | {', '.join(counts)} | {shares[0]} | {shares[1]} | {ways(lines)} |"


def is_cell(line: Line, observation: str, expert: str, model: str, attention: str) -> bool:
    """Whether a line belongs to this cell of the table, whatever its seed."""
    wanted = ("cell", observation, expert, model, attention)
    return wanted == tuple(line.get(name) for name in ("kind", "observation", "expert", "model", "attention"))


def sweeps(lines: list[Line], cells: list[Any]) -> list[str]:
    """Ticks, threshold and tau of causal STRL, with the firing rate beside the accuracy."""
    rows = [
        "| changed | value | seeds | token accuracy, % | solved, % | spikes per neuron and tick, % | ms per window |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in {json.dumps(c.changed): c for c in cells if c.changed}.values():
        asked = (cell.observation, cell.expert, cell.model, cell.attention)
        found = [x for x in lines if is_cell(x, *asked) and x["changed"] == cell.changed]
        ((name, value),) = cell.changed.items()
        figures = " | ".join(spread([x[part] for x in found]) for part in ("accuracy", "success", "firing_rate"))
        rows.append(
            f"| {name} | {value} | {len(found)} | {figures} | {spread([x['ms_per_window'] for x in found], '')} |"
        )
    return rows

"""Makes the tables of docs/strl.md from the lines that experiments/strl_protocol.py has measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from statistics import mean
from typing import Any

from strl_cells import MODELS, PUBLISHED_ON, SWEEPS, SWEPT_ON, Budget, cells, swept
from strl_lines import Line

from dsf.shell.generated_section import replace_section
from dsf.tasks import mean_confidence_interval
from dsf.testing.measurement import ROOT

DOCUMENT = ROOT / "docs" / "strl.md"
NAMES = {"strl": "STRL", "dt": "dense (Decision Transformer)", "strl-spike": "STRL-spike"}
INTEGERS = "STRL-spike, 8-bit integers"
SEES = {"bidirectional": "the whole window", "causal": "the past"}
BUDGET_TEXT = (
    "{mazes} training mazes, {held_out} validation and {held_out} test mazes; {steps} steps of {batch} windows of up "
    "to {context} tokens, learning rate {learning_rate}; width {width}, {blocks} blocks, {heads} heads (STRL, dense); "
    "token accuracy on {scored}; {episodes} unseen mazes in the closed loop; look-up tables of {table_mazes} mazes"
)
BudgetOf = Callable[[tuple[str, str]], dict[str, Any]]


def said(line: Line) -> str:
    """One finished line, for the screen."""
    what = f"{line['observation']}, {line['expert']}"
    if line["kind"] == "bound":
        shares = [f"{line[label]['accuracy']:.2%}" for label in ("causal", "next")]
        return f"{what}: look-up table {shares[0]}, with the next observation {shares[1]}"
    if line["kind"] == "ends":
        return f"{what}, seed {line['seed']}: windows one token shorter {line['shorter']:.2%}"
    if line["kind"] == "time":
        return f"{what}, {line['model']} {line['attention']} {line['changed'] or ''}: {line['ms_per_decision']:.3f} ms"
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


def write_document(lines: list[Line], budget_of: BudgetOf) -> None:
    """Replace the generated parts of docs/strl.md by the figures of the budgets that ``budget_of`` gives each pair."""
    mine = [x for x in lines if x["kind"] == "cell" and x["budget"] == budget_of(pair_of(x))]
    replace_section(
        DOCUMENT,
        "strl-table",
        "\n".join([*head(budget_of), *table(mine, lines, budget_of), *last_token(lines, budget_of)]),
    )
    timed = [x for x in lines if x["kind"] == "time" and x["budget"] == budget_of(pair_of(x))]
    replace_section(DOCUMENT, "strl-work", "\n".join(work(mine, timed)))
    replace_section(DOCUMENT, "strl-sweeps", "\n".join(sweeps(mine, timed)))


def pair_of(line: Line) -> tuple[str, str]:
    """Observation and expert."""
    return line["observation"], line["expert"]


def head(budget_of: BudgetOf) -> list[str]:
    """The budgets, in words."""
    every = [cell.pair for cell in cells([0], [])]
    budgets = {json.dumps(budget_of(pair)): budget_of(pair) for pair in every}
    said = []
    for budget in budgets.values():
        pairs = dict.fromkeys(pair for pair in every if budget_of(pair) == budget)
        of = ", ".join(f"{observation} and {spoken(expert)}" for observation, expert in pairs)
        figures = {name: f"{value:,}" if isinstance(value, int) else f"{value:g}" for name, value in budget.items()}
        figures["scored"] = scored(budget)
        said.append(f"- {of}: " + BUDGET_TEXT.format_map(figures))
    return [*said, "", "Mean over training seeds [95 % interval].", ""]


def scored(budget: dict[str, Any]) -> str:
    """Which tokens token accuracy asks for."""
    if budget["whole_walks"]:
        return f"whole recorded walks through {budget['whole_walks']} test mazes"
    return f"the first {budget['context']} tokens of all test mazes' walks"


def spoken(expert: str) -> str:
    """An expert's name as prose has it."""
    return expert.replace("_", " ")


def table(lines: list[Line], every: list[Line], budget_of: BudgetOf) -> list[str]:
    """Observation x expert x model x attention; look-up tables first in each group."""
    rows = [
        "| observation | expert | model | sees | seeds | parameters | token accuracy, % | solved, % "
        "| moves / shortest |",
        "|---" * 9 + "|",
    ]
    bounds = [x for x in every if x["kind"] == "bound"]
    for pair in dict.fromkeys(cell.pair for cell in cells([0], [])):
        first = f"| {pair[0]} | {spoken(pair[1])} |"
        wanted = Budget(**budget_of(pair)).of_data
        bound = next((x for x in bounds if pair_of(x) == pair and Budget(**x["budget"]).of_data == wanted), None)
        for label, sees in (("next", "the next observation too"), ("causal", "the past")):
            share = f"{100 * bound[label]['accuracy']:.2f}" if bound else "not run"
            rows.append(f"{first} look-up table | {sees} | | | {share} | | |")
        for model, attention in MODELS:
            found = of_cell(lines, pair, model, attention)
            rows.append(f"{first} {NAMES[model]} | {SEES[attention]} | {row(found)}")
            if model == "strl-spike":
                rows.append(f"{first} {INTEGERS} | {SEES[attention]} | {row(integers_of(found))}")
    return rows


def last_token(lines: list[Line], budget_of: BudgetOf) -> list[str]:
    """What the token that has none behind it does to the bidirectional form on the paper's pair."""
    budget = budget_of(PUBLISHED_ON)
    found = [x for x in lines if x["kind"] == "ends" and x["budget"] == budget]
    shares = {name: spread([x[name] for x in found]) for name in ("shorter", "last", "shorter_last")}
    return [
        "",
        "A window's last token has no future to show. Moves come in pairs, since rooms are two cells apart, so token "
        f"{budget['context']} is the second of a pair and known all the same: the bidirectional form has "
        f"{shares['last']} % of them right. Asked in windows of {budget['context'] - 1} tokens, the same networks "
        f"reach {shares['shorter']} %, with {shares['shorter_last']} % of the last tokens, where the move is free.",
    ]


def of_cell(
    lines: list[Line], pair: tuple[str, str], model: str, attention: str, changed: dict[str, str] | None = None
) -> list[Line]:
    """The lines of one cell of the table, whatever their seed."""
    wanted = (*pair, model, attention, changed or {})
    names = ("observation", "expert", "model", "attention", "changed")
    return [line for line in lines if wanted == tuple(line[name] for name in names)]


def integers_of(lines: list[Line]) -> list[Line]:
    """What the exported integers of these lines did."""
    return [{**line, **line["integers"]} for line in lines if "integers" in line]


def row(lines: list[Line]) -> str:
    """The measured columns."""
    counts = sorted({f"{line['parameters']:,}" for line in lines})
    shares = [spread([line[name] for line in lines]) for name in ("accuracy", "success")]
    return f"{len(lines)} | {', '.join(counts)} | {shares[0]} | {shares[1]} | {ways(lines)} |"


def work(lines: list[Line], timed: list[Line]) -> list[str]:
    """What one decision computes, and how long it takes, on the first pair of the sweeps."""
    rows = [
        "| model | sees | seeds | multiply-accumulates | additions | spikes per neuron and tick, % | ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, attention in MODELS:
        found, times = (of_cell(some, SWEPT_ON[0], model, attention) for some in (lines, timed))
        if model == "strl-spike":
            rows.append(f"| {INTEGERS}, stream mode | {SEES[attention]} | {of_one_decision(integers_of(found), times)}")
        else:
            rows.append(f"| {NAMES[model]} | {SEES[attention]} | {of_one_decision(found, times)}")
    return rows


def of_one_decision(lines: list[Line], timed: list[Line]) -> str:
    """The measured columns of :func:`work`."""
    if not lines:
        return "0 | not run | not run | not run | not run |"
    counts = [f"{mean([line['operations'][name] for line in lines]):,.0f}" for name in ("macs", "additions")]
    rates = [line["firing_rate"] for line in lines if line["firing_rate"] is not None]
    rate = spread(rates) if rates else "-"
    return f"{len(lines)} | {' | '.join(counts)} | {rate} | {took(timed)} |"


def took(timed: list[Line]) -> str:
    """Milliseconds per decision, of one training seed."""
    return f"{timed[0]['ms_per_decision']:.3f}" if timed else "not run"


def sweeps(lines: list[Line], timed: list[Line]) -> list[str]:
    """Ticks, threshold and tau of causal STRL, with the firing rate beside the accuracy."""
    rows = [
        "| observation, expert | changed | value | seeds | token accuracy, % | solved, % "
        "| spikes per neuron and tick, % | additions per decision | ms per decision |",
        "|---" * 9 + "|",
    ]
    for pair in SWEPT_ON:
        for name, values in SWEEPS.items():
            for value in values:
                cell = swept(pair, name, value, 0)
                found, times = (of_cell(x, pair, cell.model, cell.attention, cell.changed) for x in (lines, timed))
                shares = " | ".join(spread([x[part] for x in found]) for part in ("accuracy", "success", "firing_rate"))
                added = f"{mean([x['operations']['additions'] for x in found]):,.0f}" if found else "not run"
                first = f"| {pair[0]}, {spoken(pair[1])} | {name} | {value} | {len(found)}"
                rows.append(f"{first} | {shares} | {added} | {took(times)} |")
    return rows

"""The energy table for people: the same sheets in the terminal and in Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsf.export.network.nodes import HostEmbedding
from dsf.hardware_models import EnergyEstimate, estimate_energy, load_preset, measure_activity
from dsf.hardware_models.paper_table import PARTS, Operations, PaperRow, Sizes
from dsf.hardware_models.weight_memory import FETCHES
from dsf.runtime.energy_table.figures import MEMORY_PRESETS, EnergyTable, Versus
from dsf.shell.units import MICROJOULE

MILLION = 1e6
BORROWED = "int8_45nm"
"""Preset that prices the Decision Transformer where a preset cannot."""
DENSE_PRESETS = ("paper_45nm", "int8_45nm", "dense_7nm")
"""Under which dense rivals are listed: those that price a multiply-accumulate as such."""


@dataclass(frozen=True)
class Sheet:
    """A table, and what has to be said below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def print(self, console: Console) -> None:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in self.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        for note in self.notes:
            console.print(f"- {note}", soft_wrap=True, markup=False)

    def markdown(self) -> str:
        """For a document."""
        lines = [f"### {self.title}", "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def sheets(table: EnergyTable) -> list[Sheet]:
    """All of them."""
    first = [paper_sheet(table), width_sheet(table), versus_sheet(table), rival_sheet(table)]
    return [*first, fetch_sheet(table), verdict_sheet(table)]


def paper_sheet(table: EnergyTable) -> Sheet:
    """Operations part by part, and energy beside what the paper prints."""
    columns = ["model", *(f"{part}, M" for part in PARTS), "MACs, M", "ACs, M", "uJ", "printed", "difference"]
    columns += ["attention uJ", "printed"]
    notes = [
        f"One decision at {_sizes()} (inferred). "
        "M: million operations, MACs of dense parts, ACs of spiking ones; priced at fp32, 4.6 and 0.9 pJ (paper_45nm).",
        "The paper prints these figures in joules; only microjoules fit its own prices.",
        *(f"{row.model}: {row.difference}." for row in table.rows),
        *(f"{row.model}'s firing rates: {row.rates}." for row in table.rows if row.rates),
    ]
    rows = [_paper_row(row, table) for row in table.rows]
    return Sheet("The paper's Table 1, energy column, by formula", columns, rows, notes)


def _sizes() -> str:
    sizes = Sizes()
    return f"{sizes.steps} steps, {sizes.blocks} blocks, width {sizes.width}, T = {sizes.ticks}"


def _paper_row(row: PaperRow, table: EnergyTable) -> list[str]:
    ours = row.microjoules(table.arithmetic["fp32"])
    if row.parts is None or ours is None:
        return [row.model, *["-"] * (len(PARTS) + 3), f"{row.published:.1f}", "-", "-", "-"]
    parts = [_operations(row.parts[part]) for part in PARTS]
    attention = row.microjoules(table.arithmetic["fp32"], "attention")
    printed = "-" if row.published_attention is None else f"{row.published_attention:.1f}"
    total = [f"{row.total.macs / MILLION:.2f}", f"{row.total.acs / MILLION:.2f}", f"{ours:.1f}", f"{row.published:.1f}"]
    return [row.model, *parts, *total, f"{ours / row.published - 1:+.1%}", f"{attention:.1f}", printed]


def _operations(operations: Operations) -> str:
    return f"{(operations.macs or operations.acs) / MILLION:.2f}"


def width_sheet(table: EnergyTable) -> Sheet:
    """The headline, and what is left of it at equal width."""
    named = {"printed": "as printed: 88.8 against 410.5 uJ"}
    rows = [[named.get(name, f"by formula, {name}"), _verdict(saving)] for name, saving in table.savings.items()]
    energies = {
        f"{row.model} {width}": row.microjoules(prices)
        for row in table.rows
        if row.model in ("DT", "PSSA")
        for width, prices in table.arithmetic.items()
    }
    listed = ", ".join(f"{name} {energy:.1f}" for name, energy in energies.items())
    notes = [
        f"uJ by formula: {listed}. int8: 0.23 pJ per MAC and 0.03 per AC, arithmetic alone, as in the paper.",
        "The last row is no equal comparison: it shows how much of the headline is the dense side's 32 bits.",
    ]
    return Sheet("The saving of 78.4 %, under the paper's model", ["PSSA against DT", "spikes"], rows, notes)


def versus_sheet(table: EnergyTable) -> Sheet:
    """The network's measured work against an int8 Decision Transformer of as many weights."""
    columns = ["preset", "mode", "spiking uJ (band)", "DT int8 uJ (band)", "spikes", "grade"]
    made = ", ".join(f"{counter.decisions:,} in {mode} mode" for mode, counter in table.counters.items())
    notes = [
        f"Measured over closed-loop decisions: {made}. Window: all tokens of the context anew per decision, on both "
        "sides; the Decision Transformer's is always full. Stream: one token, against a key-value cache; the three new "
        "tokens share one fetch of the weights.",
        f"In brackets: a preset without a price for a MAC has no Decision Transformer of its own. There {BORROWED}'s "
        "stands for it: another technology, and other things counted. Read it as an order of magnitude.",
        "Memory counts where a preset prices it: per byte of weights, or inside a chip's synaptic operation. An event "
        "fetches its weight, whatever other ticks have fetched. No static power, and no latency.",
        "arm, cpu and gpu have one price per operation, as if a processor could skip what does not fire.",
        *_host_notes(table),
        *_unpriced_notes(table),
    ]
    borrowed = {versus.mode: versus.dense for versus in table.versus if versus.preset == BORROWED}
    rows = [_versus_row(versus, borrowed[versus.mode]) for versus in table.versus]
    return Sheet("The same saving under each hardware preset, 8 bits on both sides", columns, rows, notes)


def _host_notes(table: EnergyTable) -> list[str]:
    """What the host computes beside the chip, where it embeds."""
    notes = []
    for mode, counter in table.counters.items():
        host = measure_activity(counter).nodes[0]
        if host.kind == HostEmbedding.__name__:
            macs, others, fetched = (
                count / max(counter.decisions, 1) for count in (host.macs_fp32, host.host_operations, host.host_bytes)
            )
            notes.append(
                f"The spiking side's host embedding, per decision in {mode} mode: {macs:,.0f} multiply-accumulates in "
                f"float64 (macs_fp32, at its price where a preset has one), {others:,.0f} other operations and "
                f"{fetched:,.0f} bytes of weights (no preset prices these)."
            )
    return notes


def _unpriced_notes(table: EnergyTable) -> list[str]:
    """Presets by what they have no price for."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for versus in table.versus:
        names = grouped.setdefault(tuple(versus.spiking.unpriced), [])
        if versus.preset not in names:
            names.append(versus.preset)
    return [
        f"Spiking work counted without a price in {', '.join(names)}: {', '.join(unpriced).replace('_', ' ')}."
        for unpriced, names in grouped.items()
        if unpriced
    ]


def _versus_row(versus: Versus, borrowed: EnergyEstimate | None) -> list[str]:
    row = [versus.preset, versus.mode, _microjoules(versus.spiking)]
    if versus.dense is not None and versus.saving is not None:
        return [*row, _microjoules(versus.dense), _verdict(versus.saving), versus.spiking.grade]
    assert borrowed is not None
    verdict = _verdict(1 - versus.spiking.nominal / borrowed.nominal)
    return [*row, f"[{_microjoules(borrowed)}]", f"[{verdict}]", versus.spiking.grade]


def _verdict(saving: float) -> str:
    return f"save {saving:.1%}" if saving >= 0 else f"cost {1 - saving:,.2f} times as much"


def _microjoules(energy: EnergyEstimate) -> str:
    nominal = f"{energy.nominal / MICROJOULE:,.2f}"
    if energy.low == energy.high:
        return nominal
    return f"{nominal} ({energy.low / MICROJOULE:,.2f} to {energy.high / MICROJOULE:,.2f})"


def rival_sheet(table: EnergyTable) -> Sheet:
    """Every dense way to the same decision."""
    columns = ["per decision", "MACs, M", "weight bytes, k", "key-value bytes, k"]
    columns += [f"{name} uJ" for name in DENSE_PRESETS]
    presets = [load_preset(name) for name in DENSE_PRESETS]
    rows = []
    for rival in table.rivals:
        activity = rival.activity
        macs = activity.per_decision("macs") + activity.per_decision("macs_fp32")
        counts = [f"{macs / MILLION:.2f}", f"{activity.per_decision('weight_bytes') / 1e3:,.0f}"]
        energies = [_microjoules(estimate_energy(activity, preset)) for preset in presets]
        rows.append([rival.name, *counts, f"{rival.key_value_bytes / 1e3:,.0f}", *energies])
    notes = [
        "Products of attention count the pairs that the causal mask leaves. Keys and values that are read back are "
        "counted, but no preset has a price for them; softmax, norms and activation functions are not counted.",
        "paper_45nm prices every product at fp32, whatever its width, and no memory.",
        "A cache is not the window once an episode is longer than the context: kept keys and values have seen older "
        "tokens. Streaming PSSA is exact there.",
    ]
    return Sheet("Dense rivals with as many weights", columns, rows, notes)


def fetch_sheet(table: EnergyTable) -> Sheet:
    """Ways to keep and fetch weights, on both sides."""
    columns = ["per decision", "weight bytes, k", *(f"{name} uJ" for name in MEMORY_PRESETS)]
    presets = [load_preset(name) for name in MEMORY_PRESETS]
    rows = [
        [way.name, f"{way.activity.per_decision('weight_bytes') / 1e3:,.0f}"]
        + [_microjoules(estimate_energy(way.activity, preset)) for preset in presets]
        for way in table.fetched
    ]
    notes = [
        "Packed: every matrix at the width of its largest weight, in the cheapest of three formats; weights of zero "
        "are neither met nor, in sparse rows, fetched (docs/energy.md).",
        *(f"{schedule.cited[0].upper()}{schedule.cited[1:]}." for schedule in FETCHES.values()),
        "Dense rivals of 4 bits were not trained for this page: it is what they would cost, with every product at the "
        "price of 8 bits. The twin has one token per step; with kept keys and values it is, as the Decision "
        "Transformer, another function than its window once an episode is longer than the context.",
    ]
    return Sheet("Weights: how they are kept and fetched (stream mode)", columns, rows, notes)


def verdict_sheet(table: EnergyTable) -> Sheet:
    """Break-even bounds."""
    rows = [[bound.verdict] for bound in table.verdicts]
    return Sheet("Published break-even bounds, and this run (stream mode)", ["verdict"], rows)

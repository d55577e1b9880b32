"""A sweep's table: results in the places of its cells, with the statistics of :mod:`dsf.tasks.aggregate_metrics`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsf.runtime.sweeps.energy import PRESETS
from dsf.runtime.sweeps.identity import CQL, Resolved
from dsf.runtime.sweeps.spec import DATASET, MODEL, SEED, Setting, SweepSpec
from dsf.runtime.sweeps.store import Line
from dsf.shell.plain_text import markdown_text
from dsf.tasks import ConfidenceInterval
from dsf.tasks.aggregate_metrics import FEWEST_FOR_TRIMMING, probability_of_improvement, stratified_bootstrap

NOT_RUN, FAILED, NO_SUCH_CELL = "not run", "failed", "-"
CACHED_NOTE = "one step's tokens, keys and values kept: beyond the context another function"
PRICED = [(width, preset) for width in ("fp32", "int8") for preset in PRESETS]
"""Columns of the table of energies."""
EVENTS = "events_per_decision"
"""Field of a line's energy."""


@dataclass(frozen=True)
class TableEntry:
    """A row and a column of the table: the cells that differ in their seed only.

    Attributes:
        asked: training seeds.
        lines: of those that have run, by seed.
        reasons: of those that failed.
    """

    asked: tuple[int, ...]
    lines: tuple[Line, ...]
    reasons: tuple[str, ...] = ()

    @property
    def scores(self) -> list[float]:
        """Mean normalised score of each training seed."""
        return [float(line["score"]) for line in self.lines]

    @property
    def complete(self) -> bool:
        """Whether every seed has run."""
        return bool(self.asked) and len(self.lines) == len(self.asked)

    def text(self) -> str:
        """Interquartile mean, interval, each seed's mean; or why there is none."""
        if not self.asked:
            return NO_SUCH_CELL
        if not self.lines:
            return FAILED if self.reasons else NOT_RUN
        each = ", ".join(f"{score:.1f}" for score in self.scores)
        missing = "" if self.complete else f"; {len(self.lines)} of {len(self.asked)} seeds"
        if len(self.lines) == 1:
            return f"{self.scores[0]:.1f} (one seed{'' if self.complete else missing})"
        return f"{stratified_bootstrap([self.scores])} ({each}{missing})"


@dataclass(frozen=True)
class TableRow:
    """One method, or one value of each row axis."""

    name: str
    model: Setting | None
    others: tuple[Setting | None, ...]
    """Values of the row axes but the model: rows are compared where these are equal."""
    entries: tuple[TableEntry, ...]

    @property
    def title(self) -> str:
        """The name in a table."""
        return markdown_text(self.name)

    @property
    def overall(self) -> ConfidenceInterval | None:
        """Over all columns, where every cell has run."""
        if len(self.entries) < 2 or not all(entry.complete for entry in self.entries):
            return None
        return stratified_bootstrap([entry.scores for entry in self.entries])


@dataclass(frozen=True)
class SweepTable:
    """A sweep with its results.

    Attributes:
        spec: what was asked for.
        columns: values of the column axis.
        rows: from the sweep's order.
        warnings: what makes the rows hard to compare.
    """

    spec: SweepSpec
    columns: tuple[Setting | None, ...]
    rows: tuple[TableRow, ...]
    warnings: tuple[str, ...] = field(default=())

    def rival(self, row: TableRow) -> TableRow | None:
        """The baseline's row with the same values of the other axes; None for itself, and where there is none."""
        found = [other for other in self.rows if other.model == self.spec.table.baseline and other.others == row.others]
        return None if not found or found[0] is row else found[0]


def build_table(spec: SweepSpec, cells: Sequence[Resolved], lines: list[Line], failures: dict[str, str]) -> SweepTable:
    """Put the results in their places; where one has several, the last of this version of the code counts, else the
    last.
    """
    by_place = lines_by_place(lines)
    groups: dict[tuple[Any, ...], dict[Any, list[Resolved]]] = {}
    columns: list[Setting | None] = []
    for cell in cells:
        row = tuple(cell.cell.value(axis) for axis in spec.row_axes)
        column = cell.cell.value(spec.table.columns)
        columns += [] if column in columns else [column]
        groups.setdefault(row, {}).setdefault(column, []).append(cell)
    varied = [index for index in range(len(spec.row_axes)) if len({row[index] for row in groups}) > 1]
    rows = []
    for values, found in sorted(groups.items(), key=lambda item: _order(spec, item[0])):
        name = ", ".join(_named(spec.row_axes[index], values[index]) for index in varied) or markdown_text(
            str(values[0])
        )
        entries = tuple(_entry(found.get(column, []), by_place, failures) for column in columns)
        places = dict(zip(spec.row_axes, values))
        others = tuple(value for axis, value in places.items() if axis != MODEL)
        rows.append(TableRow(name, places.get(MODEL), others, entries))
    return SweepTable(spec, tuple(columns), tuple(rows), tuple(_warnings(rows)))


def lines_by_place(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Results by the places of their cells, in their order."""
    by_place: dict[str, list[Line]] = {}
    for line in lines:
        by_place.setdefault(line["place"], []).append(line)
    return by_place


def result_of(cell: Resolved, by_place: Mapping[str, list[Line]]) -> Line | None:
    """The result that counts for a cell: the last of this version of the code, else the last; None: there is none."""
    found = by_place.get(cell.place)
    return ([line for line in found if line["code"] == cell.code] or found)[-1] if found else None


def _order(spec: SweepSpec, values: tuple[Any, ...]) -> list[int]:
    """Rows stand in the order of their axes' values in the sweep; those that only an include names come last."""
    known: dict[str, list[Any]] = {DATASET: list(spec.datasets), MODEL: list(spec.models), **spec.axes}
    choices = [known[axis] for axis in spec.row_axes]
    return [chosen.index(value) if value in chosen else len(chosen) for chosen, value in zip(choices, values)]


def _named(axis: str, value: Any) -> str:
    return str(value) if axis in (DATASET, MODEL) else f"{axis} {value}"


def _headings(table: SweepTable) -> list[str]:
    """Of the columns."""
    return [markdown_text(_named(table.spec.table.columns, column)) for column in table.columns]


def _entry(cells: list[Resolved], by_place: dict[str, list[Line]], failures: dict[str, str]) -> TableEntry:
    lines = [line for cell in cells if (line := result_of(cell, by_place)) is not None]
    reasons = [failures[cell.place] for cell in cells if cell.place in failures and cell.place not in by_place]
    asked = tuple(cell.cell.seed for cell in cells)
    return TableEntry(asked, tuple(sorted(lines, key=lambda line: int(line[SEED]))), tuple(reasons))


def _mixes_versions(lines: Sequence[Line], also_priced: bool) -> bool:
    """Whether results that depend on the same code come from several versions of it.

    Args:
        lines: of a table.
        also_priced: a line has the version of the integers' code where they only price it, as
            :attr:`~dsf.runtime.sweeps.identity.Resolved.code` says; in the first stores only where they are scored.
    """
    versions: dict[tuple[bool, bool], set[str]] = {}
    for line in lines:
        integers = bool(line["export"]) or (also_priced and line.get("energy_rule") == "spiking")
        is_cql = (line.get("settings") or {}).get("policy") == CQL
        versions.setdefault((integers, is_cql), set()).add(line["code"])
    return any(len(codes) > 1 for codes in versions.values())


def _warnings(rows: Sequence[TableRow]) -> list[str]:
    """What makes rows, or one row's results among themselves, hard to compare."""
    by_row = [[line for entry in row.entries for line in entry.lines] for row in rows]
    lines = [line for row in by_row for line in row]
    found = []
    for dataset in dict.fromkeys(line["dataset_id"] for line in lines):
        if len({line["dataset_sha256"] for line in lines if line["dataset_id"] == dataset}) > 1:
            found.append(f"results of different versions of {markdown_text(dataset)} are mixed")
    if all(_mixes_versions(lines, also_priced) for also_priced in (False, True)):
        found.append("results of different versions of the code are mixed")
    if any(len({line.get("precision") for line in row}) > 1 for row in by_row):  # rivals are always fp32
        found.append("trainings with bf16 and with fp32 products are mixed in one row")
    return list(dict.fromkeys(found))


def markdown(table: SweepTable, aggregate: str = "") -> str:
    """The whole table with all that a reader needs to judge it.

    Args:
        table: results in their places.
        aggregate: a part about all columns together, behind the scores.
    """
    spec = table.spec
    told = (" ".join(text.split()).replace("<", "&lt;") for text in (spec.title or spec.name, spec.notes))
    title, notes = told  # no tag, and no comment that ends a document's section
    parts = [f"### {title}", *([notes] if notes else [])]
    parts += [_protocol(table), _scores(table), *([aggregate] if aggregate else [])]
    if any(line.get("best") for row in table.rows for entry in row.entries for line in entry.lines):
        parts.append(_best(table))
    if any(line["energy"].get("microjoules") for row in table.rows for entry in row.entries for line in entry.lines):
        parts.append(_energies(table))
    failed = [(row, entry) for row in table.rows for entry in row.entries if entry.reasons]
    parts += [
        f"Failed: {row.title}: {markdown_text(reason)}."
        for row, entry in failed
        for reason in dict.fromkeys(entry.reasons)
    ]
    parts += [f"Careful: {warning}." for warning in table.warnings]
    return "\n\n".join(parts) + "\n"


def _protocol(table: SweepTable) -> str:
    """One paragraph: how every figure came about."""
    spec, evaluation = table.spec, table.spec.evaluation
    lines = [line for row in table.rows for entry in row.entries for line in entry.lines]
    targets = {(line["dataset"], line["target_return"]) for line in lines}
    asked = (
        ", ".join(f"{target:g} on {markdown_text(name)}" for name, target in sorted(targets))
        or "as the sweep's file says"
    )
    steps = sorted({line["steps"] for line in lines})
    length = f"{' and '.join(f'{count:,}' for count in steps)} training steps, " if steps else ""
    few = "" if len(spec.seeds) >= FEWEST_FOR_TRIMMING else ", with fewer than four runs their mean"
    last = evaluation.seed + evaluation.episodes - 1
    return (
        f"{length}last checkpoint, {evaluation.episodes} episodes per training seed on reset seeds {evaluation.seed} "
        f"to {last}, target returns {asked}. Normalised scores: interquartile mean of the training seeds' means{few} "
        "[95 % stratified bootstrap over training seeds] (each seed's mean)."
    )


def markdown_rows(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _scores(table: SweepTable) -> str:
    spec = table.spec
    over_all = spec.table.columns == DATASET and len(table.columns) > 1
    baseline = spec.table.baseline
    head = ["", *_headings(table)]
    head += ["all sets"] if over_all else []
    head += [f"P(better than {markdown_text(baseline)})"] if baseline is not None else []
    rows = []
    for row in table.rows:
        texts = [row.title, *(entry.text() for entry in row.entries)]
        if over_all:
            texts.append(NOT_RUN if row.overall is None else str(row.overall))
        if baseline is not None:
            texts.append(_improvement(row, table))
        rows.append(texts)
    return markdown_rows(head, rows)


def _improvement(row: TableRow, table: SweepTable) -> str:
    """Over the columns that both have run with all seeds."""
    if (rival := table.rival(row)) is None:
        return NO_SUCH_CELL
    both = zip(row.entries, rival.entries)
    pairs = [(ours, theirs) for ours, theirs in both if ours.complete and theirs.complete]
    if not pairs:
        return NOT_RUN
    found = probability_of_improvement([ours.scores for ours, _ in pairs], [theirs.scores for _, theirs in pairs])
    part = "" if len(pairs) == len(table.columns) else f" ({len(pairs)} of {len(table.columns)} columns)"
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]{part}"


def _best(table: SweepTable) -> str:
    """The other rule, apart: it is biased upwards."""
    note = (
        "Best checkpoint by the very episodes that score it, so too high by construction; mean of the training seeds."
    )
    rows = []
    for row in table.rows:
        found = [[line["best"]["score"] for line in entry.lines if line.get("best")] for entry in row.entries]
        absent = NO_SUCH_CELL if any(entry.lines for entry in row.entries) else NOT_RUN
        rows.append([row.title, *(f"{statistics.mean(scores):.1f}" if scores else absent for scores in found)])
    return f"{note}\n\n{markdown_rows(['', *_headings(table)], rows)}"


def _energies(table: SweepTable) -> str:
    used = [line["energy"] for row in table.rows for entry in row.entries for line in entry.lines]
    counted = any(energy.get(EVENTS) is not None for energy in used)
    head = ["microjoules per decision", *(f"{width}, {preset}" for width, preset in PRICED)]
    head += ["synaptic events", "how"] if counted else ["how"]
    rows = []
    for row in table.rows:
        lines = [line for entry in row.entries for line in entry.lines]
        priced = [line["energy"] for line in lines if line["energy"].get("microjoules")]
        texts = [_mean_price(priced, width, preset) for width, preset in PRICED]
        reason = lines[0]["energy"].get("not_priced") or "" if lines and not priced else ""
        how = (
            markdown_text(priced[0]["how"]) if priced else f"not priced: {markdown_text(reason)}" if lines else NOT_RUN
        )
        events = [found for energy in priced if (found := energy.get(EVENTS)) is not None]
        texts += [f"{statistics.mean(events):,.0f}" if events else NO_SUCH_CELL] if counted else []
        rows.append([row.title, *texts, how])
        if cached := [{"microjoules": found} for energy in priced if (found := energy.get("cached_microjoules"))]:
            rows.append(
                [
                    row.title,
                    *(_mean_price(cached, width, preset) for width, preset in PRICED),
                    *([NO_SUCH_CELL] if counted else []),
                    CACHED_NOTE,
                ]
            )
    note = (
        "Counted operations times published prices (docs/energy.md), mean over the row. Compare rows of one schedule: "
        "stream mode computes one token per decision, the whole window all of the context's. int8_45nm has no price "
        "for a spiking addition at fp32; paper_45nm prices every operation at fp32 whatever the width."
    )
    return f"{markdown_rows(head, rows)}\n\n{note}"


def _mean_price(priced: list[dict[str, Any]], width: str, preset: str) -> str:
    found = [energy["microjoules"].get(width, {}).get(preset) for energy in priced]
    known = [value for value in found if value is not None]
    return f"{statistics.mean(known):.3g}" if known else NO_SUCH_CELL

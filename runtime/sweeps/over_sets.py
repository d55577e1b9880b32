"""A sweep's rows over datasets together, every row over the same ones: the sets that all rows have run.

An aggregate over other sets is another quantity, so a row is never compared over sets of its own. Rows that were asked
for on every dataset and have run at least one decide which sets these are; a row that lacks one of them has no figure
and says how many it has run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dsf.runtime.sweeps.spec import DATASET
from dsf.runtime.sweeps.table import FAILED, NO_SUCH_CELL, NOT_RUN, SweepTable, TableRow, markdown_rows
from dsf.shell.errors import UserError
from dsf.shell.plain_text import markdown_text
from dsf.tasks import ConfidenceInterval
from dsf.tasks.aggregate_metrics import FEWEST_FOR_TRIMMING, probability_of_improvement, stratified_bootstrap

BASELINE_NOT_RUN = "baseline not run"


@dataclass(frozen=True)
class RowOverSets:
    """A row over the sets that all have run.

    Attributes:
        row: of the table.
        middle: interquartile mean of its runs' normalised scores; None where it lacks one of the sets.
        mean: of the same runs; seeds and sets weigh alike.
        better: chance that one of its runs beats one of the baseline's; None where :attr:`alone` says why.
        alone: why there is no comparison with the baseline.
    """

    row: TableRow
    middle: ConfidenceInterval | None = None
    mean: ConfidenceInterval | None = None
    better: ConfidenceInterval | None = None
    alone: str = NO_SUCH_CELL

    @property
    def reason(self) -> str:
        """Why it has no figure."""
        run = sum(entry.complete for entry in self.row.entries)
        if run:
            return f"{run} of {len(self.row.entries)} sets run"
        begun = any(entry.lines for entry in self.row.entries)
        return FAILED if not begun and any(entry.reasons for entry in self.row.entries) else NOT_RUN


@dataclass(frozen=True)
class OverSets:
    """All rows, those with figures first and the highest of them on top.

    Attributes:
        sets: names of the datasets that count, in the table's order.
        of: how many there are in the sweep.
        trimmed: whether there are enough runs for an interquartile mean that is another figure than the mean.
        baseline: model of ``better``.
        rows: see :class:`RowOverSets`.
    """

    sets: tuple[str, ...]
    of: int
    trimmed: bool
    baseline: str | None
    rows: tuple[RowOverSets, ...]

    @property
    def title(self) -> str:
        """Over which sets, in words."""
        if not self.sets:
            return f"no set: none of the {self.of} has been run by all rows"
        if len(self.sets) == self.of:
            return f"all {self.of} sets"
        return f"{len(self.sets)} of {self.of} sets, those that all rows with figures have run: {', '.join(self.sets)}"

    @property
    def statistics(self) -> dict[str, str]:
        """Attributes of a row that say something here, with what they are called."""
        found = {"middle": "interquartile mean"} if self.trimmed else {}
        found["mean"] = "mean"
        return found if self.baseline is None else {**found, "better": f"P(better than {self.baseline})"}


def has_several_sets(table: SweepTable) -> bool:
    """Whether the table's columns are datasets, and more than one."""
    return table.spec.table.columns == DATASET and len(table.columns) > 1


def over_sets(table: SweepTable) -> OverSets:
    """Aggregate every row over the sets that all have run with all seeds.

    Raises:
        UserError: the table's columns are no datasets, or there is one only.
    """
    spec = table.spec
    if not has_several_sets(table):
        found = "has one" if spec.table.columns == DATASET else f"has the columns {spec.table.columns}"
        raise UserError(f"--aggregate-plot requires a sweep with several datasets, and {spec.name} {found}: use --plot")
    everywhere = [row for row in table.rows if all(entry.asked for entry in row.entries)]
    deciding = [row for row in everywhere if any(entry.complete for entry in row.entries)]
    every = range(len(table.columns)) if deciding else ()
    places = [index for index in every if all(row.entries[index].complete for row in deciding)]
    rows = [_row(row, table, places) for row in table.rows]
    counts = [sum(len(found.row.entries[index].lines) for index in places) for found in rows if found.mean]
    trimmed = bool(counts) and min(counts) >= FEWEST_FOR_TRIMMING
    values = [found.middle if trimmed else found.mean for found in rows]
    order = sorted(range(len(rows)), key=lambda index: -value.mean if (value := values[index]) else math.inf)
    sets = tuple(str(table.columns[index]) for index in places)
    return OverSets(sets, len(table.columns), trimmed, spec.table.baseline, tuple(rows[i] for i in order))


def _row(row: TableRow, table: SweepTable, places: list[int]) -> RowOverSets:
    if not _has(row, places):
        return RowOverSets(row)
    scores = [row.entries[index].scores for index in places]
    middle, mean = stratified_bootstrap(scores), stratified_bootstrap(scores, trimmed=0.0)
    rival = table.rival(row)
    if rival is None or not _has(rival, places):
        return RowOverSets(row, middle, mean, alone=NO_SUCH_CELL if rival is None else BASELINE_NOT_RUN)
    theirs = [rival.entries[index].scores for index in places]
    return RowOverSets(row, middle, mean, probability_of_improvement(scores, theirs))


def _has(row: TableRow, places: list[int]) -> bool:
    """Whether a row has run all of some sets, of which there are any."""
    return bool(places) and all(row.entries[index].complete for index in places)


def over_sets_markdown(found: OverSets) -> str:
    """The figures of the picture as a table."""
    names = found.statistics
    rows = []
    for row in found.rows:
        values = {name: getattr(row, name) for name in names}
        texts = {
            name: row.reason if row.mean is None else row.alone if value is None else _text(name, value)
            for name, value in values.items()
        }
        rows.append([row.row.title, *texts.values()])
    order = "; the highest first" if found.sets else ""
    return (
        f"Over {markdown_text(found.title)}{order}.\n\n{markdown_rows(['', *map(markdown_text, names.values())], rows)}"
    )


def _text(name: str, value: ConfidenceInterval) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]" if name == "better" else str(value)

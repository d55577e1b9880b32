"""A sweep as pictures: its table with one panel per column, and its rows over all datasets together."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from dsf.runtime.report.pictures import prepare_matplotlib
from dsf.runtime.sweeps.over_sets import OverSets
from dsf.runtime.sweeps.table import SweepTable
from dsf.shell.files import replacing
from dsf.shell.plain_text import figure_text
from dsf.tasks.aggregate_metrics import stratified_bootstrap

PANEL_WIDTH, ROW_HEIGHT, MARGIN = 2.6, 0.32, 1.1
"""Inches."""
AGGREGATE_WIDTH, LABELS_WIDTH, TITLE_CHARACTERS = 2.4, 1.8, 34
"""Inches of a panel and of the rows' names, and characters of the title per panel and line."""
EVEN = 0.5
"""Chance of a run that is no better and no worse."""

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_plot(table: SweepTable, path: Path) -> None:
    """One panel per column, one interval per row, one dot per training seed, as a PNG; places without results stay
    empty and say so.

    Raises:
        OSError: it cannot be written.
    """
    prepare_matplotlib()
    from matplotlib.figure import Figure

    size = (2.0 + PANEL_WIDTH * len(table.columns), MARGIN + ROW_HEIGHT * len(table.rows))
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(table.columns), sharey=True, squeeze=False)[0]
    for index, (column, panel) in enumerate(zip(table.columns, panels)):
        for height, row in enumerate(table.rows):
            entry = row.entries[index]
            if not entry.lines:
                panel.text(0.5, height, entry.text(), transform=panel.get_yaxis_transform(), ha="center", va="center")
                continue
            found = stratified_bootstrap([entry.scores])
            panel.plot([found.low, found.high], [height, height], color="tab:blue", linewidth=4, alpha=0.4)
            panel.plot(entry.scores, [height] * len(entry.scores), ".", color="tab:gray")
            panel.plot(found.mean, height, "|", color="black", markersize=12)
        panel.set_title(figure_text(str(column)), fontsize="small")
        panel.set_xlabel("normalised score", fontsize="small")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(table.rows)), [figure_text(row.name) for row in table.rows])
    panels[0].set_ylim(len(table.rows) - 0.5, -0.5)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def aggregate_figure(found: OverSets) -> Figure:
    """One row per method over the same sets, in the manner of rliable (Agarwal et al., NeurIPS 2021): a panel per
    statistic, a bar for its 95 % interval and a line for its value. Rows without figures say how far they are.
    """
    prepare_matplotlib()
    from matplotlib.figure import Figure

    names = found.statistics
    size = (LABELS_WIDTH + AGGREGATE_WIDTH * len(names), MARGIN + 0.5 + ROW_HEIGHT * len(found.rows))
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for (name, label), panel in zip(names.items(), panels):
        for height, row in enumerate(found.rows):
            value = getattr(row, name)
            if value is not None:
                panel.barh(height, value.high - value.low, 0.6, value.low, color="tab:blue", alpha=0.5)
                panel.plot([value.mean] * 2, [height - 0.3, height + 0.3], color="black", linewidth=2)
                continue
            place, told = panel.get_yaxis_transform(), row.reason if row.mean is None else row.alone
            words = panel.text(0.5, height, told, transform=place, ha="center", va="center", fontsize="small")
            words.set_backgroundcolor("white")  # not through the line of even chances
        if name == "better":
            panel.axvline(EVEN, color="tab:gray", linestyle=":")
            panel.set_xlim(-0.02, 1.02)
        else:
            panel.set_xlabel("normalised score", fontsize="small")
        panel.use_sticky_edges = False  # else the lowest bar ends at the frame
        panel.set_title(figure_text(label), fontsize="small")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(found.rows)), [figure_text(row.row.name) for row in found.rows])
    panels[0].set_ylim(len(found.rows) - 0.5, -0.5)
    lines = textwrap.wrap(f"Over {found.title}", TITLE_CHARACTERS * len(names), break_on_hyphens=False)
    figure.suptitle("\n".join(map(figure_text, lines)), fontsize="small")
    return figure


def write_aggregate_plot(found: OverSets, path: Path) -> None:
    """Write :func:`aggregate_figure` as a PNG.

    Raises:
        OSError: it cannot be written.
    """
    figure = aggregate_figure(found)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

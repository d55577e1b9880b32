"""A sweep's table as a picture: one panel per column, one interval per row, one dot per training seed."""

from __future__ import annotations

from pathlib import Path

from dsf.runtime.report.pictures import prepare_matplotlib
from dsf.runtime.sweeps.table import SweepTable
from dsf.shell.files import replacing
from dsf.shell.plain_text import figure_text
from dsf.tasks.aggregate_metrics import stratified_bootstrap

PANEL_WIDTH, ROW_HEIGHT, MARGIN = 2.6, 0.32, 1.1
"""Inches."""


def write_plot(table: SweepTable, path: Path) -> None:
    """Write a PNG; places without results stay empty and say so.

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

"""Both fronts as a picture: microjoules per decision (log) against the score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsf.runtime.report.pictures import prepare_matplotlib
from dsf.runtime.search.front import Fronts
from dsf.runtime.search.spec import SIDES
from dsf.shell.files import replacing
from dsf.shell.plain_text import figure_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"spiking": "tab:orange", "dense": "tab:blue"}
SIZE = (8.0, 5.0)
"""Inches."""


def front_figure(found: Fronts) -> Figure:
    """A dot for every reported point, with the 95 % interval of its score and the preset's band; a line through either
    front, a ring around the two that are compared, and pale dots for the search's own trials.
    """
    prepare_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    for side in SIDES:
        colour, points = COLOURS[side], found.front(side)
        trials = found.searched[side]
        axes.plot([one.microjoules for one in trials], [one.score for one in trials], ".", color=colour, alpha=0.25)
        for point in found.reported[side]:
            band, interval, kept = point.band, point.interval, point in points
            alpha = 0.9 if kept else 0.35
            axes.plot([band.low, band.high], [point.score] * 2, linewidth=4, color=colour, alpha=0.15)
            axes.plot([point.microjoules] * 2, [interval.low, interval.high], linewidth=1.5, color=colour, alpha=alpha)
            axes.plot(point.microjoules, point.score, "o", markersize=5, color=colour, alpha=alpha)
        label = f"{side}: front of {len(found.reported[side])} reported points"
        steps = ([one.microjoules for one in points], [one.score for one in points])
        axes.step(*steps, where="post", color=colour, linewidth=1.0, label=label)
        if (compared := found.chosen(side)) is not None:
            axes.plot(compared.microjoules, compared.score, "o", markersize=12, fillstyle="none", color="black")
    if (best := found.best_dense) is not None:
        axes.axhline(best.interval.low, color="tab:gray", linestyle=":", linewidth=1.0)
    axes.set_xscale("log")
    axes.set_xlabel(f"microjoules per decision, {figure_text(found.preset.name)} (band: low to high)")
    axes.set_ylabel("normalised score (95 % over training seeds)")
    axes.set_title(figure_text(found.spec.title or found.spec.name), fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    return figure


def write_front(found: Fronts, path: Path) -> None:
    """Write :func:`front_figure` as a PNG.

    Raises:
        OSError: it cannot be written.
    """
    figure = front_figure(found)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

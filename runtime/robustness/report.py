"""A robustness sweep for people and programs: JSON values, tables on screen and in Markdown, curves as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dsf.runtime.robustness.levels import KINDS, Point, Sweep
from dsf.shell.files import replacing
from dsf.tasks import Task

UNDISTURBED = "undisturbed"
BAR_WIDTH = 20
"""Characters of the undisturbed score."""
PANEL_INCHES = (3.4, 2.6)
PANELS_PER_ROW = 4
DOTS_PER_INCH = 150


def summarise(sweep: Sweep, points: list[Point], name: str, digest: str) -> dict[str, Any]:
    """A sweep as JSON values with stable keys.

    Args:
        sweep: what stayed the same.
        points: what came out, the undisturbed one first.
        name: of the network file.
        digest: its SHA-256.
    """
    provenance = sweep.network.provenance
    return {
        "network": name,
        "sha256": digest,
        "task": sweep.task.name,
        "env_id": sweep.task.env_id,
        "dataset": provenance.get("dataset", {}).get("id"),
        "checkpoint": {key: provenance.get(key) for key in ("train_steps", "train_revision")},
        "backend": "fast",
        "mode": sweep.mode,
        "target_return": sweep.target_return,
        "seeds": list(sweep.seeds),
        "fault_seeds": list(sweep.fault_seeds),
        "chip": sweep.chip.name,
        "observation_scale": list(sweep.observation_scale),
        "score_label": sweep.task.score_label,
        "points": [_values(point, sweep.task) for point in points],
    }


def _values(point: Point, task: Task) -> dict[str, Any]:
    interval = point.interval
    return {
        "kind": point.kind,
        "level": point.level,
        "unit": "" if point.kind is None else KINDS[point.kind].unit,
        "return_mean": interval.mean,
        "return_interval_95": [interval.low, interval.high],
        "interval_over": point.interval_over,
        "score_mean": task.score(interval.mean),
        "score_interval_95": [task.score(interval.low), task.score(interval.high)],
        "returns": {str(seed): returns for seed, returns in point.returns.items()},
    }


def title(summary: dict[str, Any]) -> str:
    """What was run, in one line."""
    dataset, steps = summary["dataset"] or "unknown dataset", summary["checkpoint"]["train_steps"]
    seeds, faults = summary["seeds"], summary["fault_seeds"]
    return (
        f"{summary['network']} (sha256 {summary['sha256'][:12]}; {dataset}, "
        f"checkpoint after {'an unknown number of' if steps is None else f'{steps:,}'} steps) on {summary['env_id']}, "
        f"target return {summary['target_return']:.0f}, {summary['mode']} mode, reset seeds {seeds[0]} to {seeds[-1]}, "
        f"fault seeds {faults[0]} to {faults[-1]}, cores of {summary['chip']}"
    )


def print_table(summary: dict[str, Any], console: Console) -> None:
    """The sweep for a person, with a bar per level: a curve that lies on its side."""
    console.print(title(summary), soft_wrap=True)
    table = Table(caption=_caption(summary), caption_justify="left")
    for name in ("kind", "level", "unit"):
        table.add_column(name)
    for name in ("return, mean [95 %]", f"{summary['score_label']} score"):
        table.add_column(name, justify="right")
    table.add_column("")
    best, earlier = summary["points"][0]["score_mean"], ""
    for point in summary["points"]:
        name = point["kind"] or UNDISTURBED
        found = _shown(point["return_mean"], point["return_interval_95"])
        if name != earlier:
            table.add_section()
        table.add_row(
            name if name != earlier else "",
            _level(point),
            point["unit"],
            found,
            f"{point['score_mean']:.1f}",
            bar(point["score_mean"], best),
        )
        earlier = name
    console.print(table)


def bar(score: float, best: float) -> str:
    """A score's length next to the undisturbed one's; what is below a random policy's has none."""
    return "#" * round(BAR_WIDTH * max(score, 0.0) / best) if best > 0 else ""


def markdown(summary: dict[str, Any]) -> str:
    """The table in Markdown."""
    columns = ("kind", "level", "unit", "return, mean [95 %]", f"{summary['score_label']} score [95 %]")
    lines = [f"{title(summary)}.", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for point in summary["points"]:
        found = _shown(point["return_mean"], point["return_interval_95"])
        score = _shown(point["score_mean"], point["score_interval_95"])
        lines.append(f"| {point['kind'] or UNDISTURBED} | {_level(point)} | {point['unit']} | {found} | {score} |")
    return "\n".join([*lines, "", _caption(summary), ""])


def _shown(mean: float, interval: list[float]) -> str:
    """A mean with its interval."""
    return f"{mean:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"


def _level(point: dict[str, Any]) -> str:
    return "" if point["kind"] is None else f"{point['level']:g}"


def _caption(summary: dict[str, Any]) -> str:
    episodes, faults = len(summary["seeds"]), len(summary["fault_seeds"])
    return (
        f"{episodes} episodes per fault seed, {faults} fault seeds (action-latency and the undisturbed loop: one). "
        "Intervals: bootstrap over fault seeds for faults of the network, where there are several, else over episodes."
    )


def plot(summary: dict[str, Any], path: Path) -> None:
    """Write curves as PNG: one panel per kind, scores with intervals at evenly spaced levels, the first undisturbed."""
    from matplotlib.figure import Figure

    base, *points = summary["points"]
    kinds = list(dict.fromkeys(point["kind"] for point in points))
    columns = min(PANELS_PER_ROW, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(columns * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, kind in zip(panels, kinds):
        curve = [base, *(point for point in points if point["kind"] == kind)]
        places, (low, high) = range(len(curve)), zip(*(point["score_interval_95"] for point in curve))
        axes.fill_between(places, low, high, alpha=0.25)
        axes.plot(places, [point["score_mean"] for point in curve], marker="o")
        axes.set(title=kind, xlabel=curve[-1]["unit"])
        axes.set_xticks(places, [f"{point['level']:g}" for point in curve])
    for axes in panels[len(kinds) :]:
        axes.remove()
    figure.supylabel(f"{summary['score_label']} score")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)

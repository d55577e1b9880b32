"""A robustness sweep for people and programs: JSON values, tables on screen and in Markdown, curves as PNG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dsf.runtime.report.pictures import prepare_matplotlib
from dsf.runtime.robustness.levels import Point, Sweep
from dsf.shell.files import replacing
from dsf.tasks import ConfidenceInterval

UNDISTURBED = "undisturbed"
BAR_WIDTH = 20
"""Characters of the undisturbed score."""
PANEL_INCHES = (3.4, 2.6)
PANELS_PER_ROW = 4
DOTS_PER_INCH = 150


@dataclass(frozen=True)
class RobustnessReport:
    """A finished sweep.

    Attributes:
        sweep: what stayed the same.
        points: what came out, the undisturbed one first.
        name: of the network file.
        digest: its SHA-256.
    """

    sweep: Sweep
    points: list[Point]
    name: str
    digest: str

    @property
    def dataset(self) -> str | None:
        """Id of the data that the network was trained on, as its file says."""
        dataset = self.sweep.network.provenance.get("dataset")
        found: str | None = dataset.get("id") if isinstance(dataset, dict) else dataset
        return found

    @property
    def train_steps(self) -> int | None:
        """Optimizer steps behind the network, as its file says."""
        found: int | None = self.sweep.network.provenance.get("train_steps")
        return found

    @property
    def title(self) -> str:
        """What was run, in one line."""
        sweep, steps = self.sweep, "an unknown number of" if self.train_steps is None else f"{self.train_steps:,}"
        return (
            f"{self.name} (sha256 {self.digest[:12]}; {self.dataset or 'unknown dataset'}, "
            f"checkpoint after {steps} steps) on {sweep.task.world}, "
            f"target return {sweep.target_return:.0f}, {sweep.mode} mode, "
            f"reset seeds {sweep.seeds[0]} to {sweep.seeds[-1]}, "
            f"fault seeds {sweep.fault_seeds[0]} to {sweep.fault_seeds[-1]}, cores of {sweep.chip.name}"
        )

    @property
    def caption(self) -> str:
        """How much was run, and what the intervals are."""
        episodes, faults = len(self.sweep.seeds), len(self.sweep.fault_seeds)
        return (
            f"{episodes} episodes per fault seed, {faults} fault seeds (action-latency and the undisturbed loop: one). "
            "Intervals: bootstrap over fault seeds for faults of the network, where there are several, else over "
            "episodes."
        )

    @property
    def measure(self) -> str:
        """What :meth:`score` is in: data from another environment than the task's have no reference returns."""
        task = self.sweep.task
        if task.definition is not None and not task.reference:
            return "percent of the way from the lowest to the highest recorded return"
        return f"{task.score_label} score" if task.reference else "percent of the best recorded return"

    def score(self, point: Point) -> ConfidenceInterval:
        """A point's mean, in :attr:`measure`, with its interval."""
        interval, score = point.interval, self.sweep.task.score
        return ConfidenceInterval(score(interval.mean), score(interval.low), score(interval.high))

    def to_json(self) -> dict[str, Any]:
        """JSON values with stable keys."""
        sweep = self.sweep
        return {
            "network": self.name,
            "sha256": self.digest,
            "task": sweep.task.name,
            "env_id": sweep.task.env_id,
            "environment": sweep.task.world,
            "dataset": self.dataset,
            "checkpoint": {
                "train_steps": self.train_steps,
                "train_revision": sweep.network.provenance.get("train_revision"),
            },
            "backend": "fast",
            "mode": sweep.mode,
            "target_return": sweep.target_return,
            "seeds": list(sweep.seeds),
            "fault_seeds": list(sweep.fault_seeds),
            "chip": sweep.chip.name,
            "observation_scale": list(sweep.observation_scale),
            "score_label": sweep.task.score_label if sweep.task.reference else None,
            "points": [self._point_json(point) for point in self.points],
        }

    def _point_json(self, point: Point) -> dict[str, Any]:
        interval, score = point.interval, self.score(point)
        scored = bool(self.sweep.task.reference)
        return {
            "kind": point.kind,
            "level": point.level,
            "unit": point.unit,
            "return_mean": interval.mean,
            "return_interval_95": [interval.low, interval.high],
            "interval_over": point.interval_over,
            "score_mean": score.mean if scored else None,
            "score_interval_95": [score.low, score.high] if scored else None,
            "returns": {str(seed): returns for seed, returns in point.returns.items()},
        }


def print_table(report: RobustnessReport, console: Console) -> None:
    """The sweep for a person, with a bar per level: a curve that lies on its side."""
    console.print(report.title, soft_wrap=True, markup=False)
    table = Table(caption=report.caption, caption_justify="left")
    for name in ("kind", "level", "unit"):
        table.add_column(name)
    for name in ("return, mean [95 %]", report.measure):
        table.add_column(name, justify="right")
    table.add_column("")
    best, earlier = report.score(report.points[0]).mean, ""
    for point in report.points:
        name, score = point.kind or UNDISTURBED, report.score(point).mean
        if name != earlier:
            table.add_section()
        shown = "" if name == earlier else name
        table.add_row(shown, _level(point), point.unit, str(point.interval), f"{score:.1f}", bar(score, best))
        earlier = name
    console.print(table)


def bar(score: float, best: float) -> str:
    """A score's length next to the undisturbed one's; what is below a random policy's has none."""
    return "#" * round(BAR_WIDTH * max(score, 0.0) / best) if best > 0 else ""


def markdown(report: RobustnessReport) -> str:
    """The table in Markdown."""
    columns = ("kind", "level", "unit", "return, mean [95 %]", f"{report.measure} [95 %]")
    lines = [f"{report.title}.", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for point in report.points:
        level = f"{point.kind or UNDISTURBED} | {_level(point)} | {point.unit}"
        lines.append(f"| {level} | {point.interval} | {report.score(point)} |")
    return "\n".join([*lines, "", report.caption, ""])


def _level(point: Point) -> str:
    return "" if point.kind is None else f"{point.level:g}"


def plot(report: RobustnessReport, path: Path) -> None:
    """Write curves as PNG: one panel per kind, scores with intervals at evenly spaced levels, the first undisturbed."""
    prepare_matplotlib()
    from matplotlib.figure import Figure

    base, *points = report.points
    kinds = list(dict.fromkeys(point.kind for point in points))
    columns = min(PANELS_PER_ROW, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(columns * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, kind in zip(panels, kinds):
        curve = [base, *(point for point in points if point.kind == kind)]
        places, scores = range(len(curve)), [report.score(point) for point in curve]
        axes.fill_between(places, [score.low for score in scores], [score.high for score in scores], alpha=0.25)
        axes.plot(places, [score.mean for score in scores], marker="o")
        axes.set(title=kind, xlabel=curve[-1].unit)
        axes.set_xticks(places, [f"{point.level:g}" for point in curve])
    for axes in panels[len(kinds) :]:
        axes.remove()
    figure.supylabel(report.measure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)

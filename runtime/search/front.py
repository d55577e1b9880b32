"""Both fronts of a search as its report found them: which points win, what the published bounds say, and the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsf.hardware_models.dense import BreakEven, bounds_on
from dsf.hardware_models.preset import Preset
from dsf.hardware_models.weight_memory import FETCHES, WEIGHTS
from dsf.runtime.search.points import front
from dsf.runtime.search.results import Reported, collect, unpriced
from dsf.runtime.search.spec import SIDES, SearchSpec, Side
from dsf.runtime.sweeps.counts import KEPT, WHOLE_WINDOW, ZEROS_SKIPPED
from dsf.runtime.sweeps.store import Line
from dsf.runtime.sweeps.table import markdown_rows
from dsf.shell.plain_text import markdown_text

NONE = "-"
DENSE_WORDS = {
    KEPT: "keys and values kept (reading them is free here), one fetch for a step's tokens",
    WHOLE_WINDOW: "the whole window",
    ZEROS_SKIPPED: "keys and values kept (reading them is free here), on a machine that skips hidden values of zero",
}
RULE = (
    "The best dense point is the reported dense one with the highest mean score. Chosen of either side is its cheapest "
    "reported point whose mean score is at least the low end of the 95 % interval of that best point's."
)
"""How the two that are compared are chosen."""


@dataclass(frozen=True)
class Fronts:
    """A search's report.

    Attributes:
        spec: the search.
        preset: that prices it.
        reported: of either side, all that the report has trained with all its seeds.
        searched: the same of the search's own trials, for the picture.
        missing: reported points that lack training seeds.
    """

    spec: SearchSpec
    preset: Preset
    reported: dict[Side, list[Reported]]
    searched: dict[Side, list[Reported]]
    missing: list[str]

    @classmethod
    def of(cls, spec: SearchSpec, lines: Sequence[Line]) -> Fronts:
        """From a results store alone.

        Raises:
            UserError: a line of the search has no counts.
        """
        preset = spec.preset
        searched = collect(spec, lines, spec.seeds, spec.evaluation, preset)
        report = collect(spec, lines, spec.report.seeds, spec.report.evaluation, preset)
        return cls(spec, preset, _by_side(report.points), _by_side(searched.points), report.missing)

    @property
    def best_dense(self) -> Reported | None:
        """With the highest mean score; of equals the cheapest."""
        return max(self.reported["dense"], key=lambda point: (point.score, -point.microjoules), default=None)

    def chosen(self, side: Side) -> Reported | None:
        """See :data:`RULE`; None where no point scores so well."""
        if (best := self.best_dense) is None:
            return None
        enough = [point for point in self.reported[side] if point.score >= best.interval.low]
        return min(enough, key=lambda point: point.microjoules, default=None)

    def front(self, side: Side) -> list[Reported]:
        """Of the reported points, the cheapest first."""
        return front(self.reported[side])

    @property
    def bounds(self) -> list[BreakEven]:
        """The published verdicts on the chosen spiking point; none where there is none."""
        point = self.chosen("spiking")
        per_synapse, rate = (
            (None, None) if point is None else (point.mean("spikes_per_synapse"), point.mean("firing_rate"))
        )
        return [] if per_synapse is None or rate is None else bounds_on(per_synapse, rate)


def _by_side(points: Sequence[Reported]) -> dict[Side, list[Reported]]:
    return {side: [point for point in points if point.side == side] for side in SIDES}


def markdown(found: Fronts) -> str:
    """The whole report in words."""
    spec = found.spec
    title, notes = (" ".join(text.split()).replace("<", "&lt;") for text in (spec.title or spec.name, spec.notes))
    parts = [f"### {title}", *([notes] if notes else []), _protocol(found), _verdict(found)]
    if rows := [point for side in SIDES if (point := found.chosen(side)) is not None]:
        parts.append(_table(found, rows, "chosen"))
    if found.bounds:
        parts.append("\n".join(f"- {bound.verdict}" for bound in found.bounds))
    for side in SIDES:
        if points := found.front(side):
            parts += [f"The {side} front:", _table(found, points, f"{side} front")]
    beaten = {side: len(found.reported[side]) - len(found.front(side)) for side in SIDES}
    if any(beaten.values()):
        told = " and ".join(f"{number} {side}" for side, number in beaten.items() if number)
        parts.append(f"Reported, and beaten by another of their side: {told}.")
    if found.missing:
        parts.append(f"Left out, some training seeds have not run: {markdown_text('; '.join(found.missing))}.")
    return "\n\n".join(parts) + "\n"


def _protocol(found: Fronts) -> str:
    spec = found.spec
    report, price = spec.report, spec.price
    seeds, evaluation = report.seeds, report.evaluation
    points = [point for side in SIDES for point in found.reported[side]]
    free = unpriced(spec, points, found.preset)
    without = (
        f" Counted, and without a price there: {', '.join(name.replace('_', ' ') for name in free)}." if free else ""
    )
    trials = " and ".join(
        f"{sum(family.trials for family in spec.sides[side].values())} {side} trials "
        f"({', '.join(f'{markdown_text(name)} {family.trials}' for name, family in spec.sides[side].items())})"
        for side in SIDES
    )
    return (
        f"{markdown_text(spec.dataset)}; {trials}, searched with training seeds {_listed(spec.seeds)} and reset seeds "
        f"{_span(spec.evaluation.seeds)}; reported with training seeds {_listed(seeds)}: {evaluation.episodes} "
        f"episodes of each on reset seeds {_span(evaluation.seeds)}, last checkpoint. Scores: mean of the training "
        "seeds' means [95 % bootstrap over training seeds]. Microjoules per decision under "
        f"{found.preset.name} (grade {found.preset.grade}), low to high: spiking {FETCHES[price.fetch].title}, dense "
        f"with {DENSE_WORDS[price.dense]}; weights on both sides: {WEIGHTS[price.weights]}.{without}"
    )


def _verdict(found: Fronts) -> str:
    best, spiking, dense = found.best_dense, found.chosen("spiking"), found.chosen("dense")
    if best is None or dense is None:
        return "No dense point is reported yet: nothing can be said."
    limit = f"{best.interval.low:.1f}, the low end of {best.interval} ({markdown_text(best.name)})"
    if spiking is None:
        reached = max(found.reported["spiking"], key=lambda point: point.score, default=None)
        closest = "none is reported" if reached is None else f"the best one scores {reached.interval}"
        return f"{RULE} No spiking point reaches {limit}: {closest}."
    times = dense.microjoules / spiking.microjoules
    how = f"{times:.2f} times less" if times >= 1.0 else f"{1 / times:.2f} times more"
    return (
        f"{RULE} To reach is {limit}. The spiking one takes {how} than the dense one: {spiking.microjoules:.3g} uJ "
        f"against {dense.microjoules:.3g}."
    )


def _table(found: Fronts, points: Sequence[Reported], what: str) -> str:
    head = [what, "score", "uJ per decision", "low to high", "weight bytes fetched", "weight bytes kept", "events"]
    head += ["firing rate", "spikes per synapse and decision", "bits", "weights", "parameters"]
    rows = []
    for point in points:
        rate, per_synapse, tokens = (point.mean(name) for name in ("firing_rate", "spikes_per_synapse", "tokens"))
        rows.append(
            [
                f"{point.side}: {markdown_text(point.name)}",
                f"{point.interval} ({', '.join(f'{score:.1f}' for score in point.scores)})",
                f"{point.microjoules:.3g}",
                f"{point.band.low:.3g} to {point.band.high:.3g}",
                f"{point.per_decision(found.spec, 'weight_bytes'):,.0f}",
                f"{point.mean('weight_bytes'):,.0f}",
                f"{point.per_decision(found.spec, 'synaptic_events'):,.0f}" if rate is not None else NONE,
                NONE if rate is None else f"{rate:.1%}",
                NONE if per_synapse is None or tokens is None else f"{per_synapse * tokens:.3g}",
                f"{point.mean('bits'):g}",
                f"{point.mean('weights'):,.0f}",
                f"{point.mean('parameters'):,.0f}",
            ]
        )
    return markdown_rows(head, rows)


def _listed(seeds: Sequence[int]) -> str:
    *first, last = map(str, seeds)
    return f"{', '.join(first)} and {last}" if first else last


def _span(seeds: range) -> str:
    return f"{seeds[0]} to {seeds[-1]}"

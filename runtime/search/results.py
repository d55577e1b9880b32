"""From lines of results to points: the score and the price of what was trained with several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsf.hardware_models.energy import Band, priced
from dsf.hardware_models.preset import Preset
from dsf.runtime.search.spec import Params, SearchSpec, Side, described
from dsf.runtime.sweeps.counts import Counts
from dsf.runtime.sweeps.identity import resolve_cell
from dsf.runtime.sweeps.spec import Evaluation
from dsf.runtime.sweeps.store import Line
from dsf.runtime.sweeps.table import lines_by_place, result_of
from dsf.shell.errors import UserError
from dsf.shell.typed_values import read_record
from dsf.shell.units import MICROJOULE
from dsf.tasks import ConfidenceInterval
from dsf.tasks.aggregate_metrics import stratified_bootstrap


@dataclass(frozen=True)
class Reported:
    """A place in a family's space, trained with several seeds.

    Attributes:
        side, family, params: where it is.
        lines: results, in the order of the seeds.
        counts: of each.
        prices: microjoules per decision of each.
    """

    side: Side
    family: str
    params: tuple[tuple[str, Any], ...]
    lines: tuple[Line, ...]
    counts: tuple[Counts, ...]
    prices: tuple[Band, ...]

    @property
    def scores(self) -> list[float]:
        """Mean normalised score of each training seed."""
        return [float(line["score"]) for line in self.lines]

    @property
    def score(self) -> float:
        """Mean over the training seeds."""
        return statistics.mean(self.scores)

    @property
    def interval(self) -> ConfidenceInterval:
        """95 % of the mean, over training seeds."""
        return stratified_bootstrap([self.scores], trimmed=0.0)

    @property
    def microjoules(self) -> float:
        """Mean over the training seeds, at nominal prices."""
        return self.band.nominal

    @property
    def band(self) -> Band:
        """The same with the low and the high price."""
        low, nominal, high = zip(*((price.low, price.nominal, price.high) for price in self.prices))
        return Band(statistics.mean(low), statistics.mean(nominal), statistics.mean(high))

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.family}: {described(self.params)}"

    def mean(self, field: str) -> float | None:
        """Of a field of the counts; None where it has none."""
        found = [getattr(counts, field) for counts in self.counts]
        return None if None in found else statistics.mean(found)

    def per_decision(self, spec: SearchSpec, quantity: str) -> float:
        """Mean of a counted quantity."""
        return statistics.mean(counted(spec, self.side, one).get(quantity, 0.0) for one in self.counts)


def counted(spec: SearchSpec, side: Side, counts: Counts) -> Mapping[str, float]:
    """Quantities of a decision, under the search's schedule of the dense side; the spiking side has one."""
    if side == "dense":
        return counts.per_decision[spec.price.dense]
    (only,) = counts.per_decision.values()
    return only


def counts_of(line: Line) -> Counts:
    """What a line has counted.

    Raises:
        UserError: nothing, and why.
    """
    if line.get("counts") is None:
        reason = line["energy"].get("not_priced") or "it was made without counts"
        raise UserError(f"its energy is not known: {reason}")
    return read_record(Counts, line["counts"], "counts of a result", "remove the line")


def price_of(spec: SearchSpec, side: Side, counts: Counts, preset: Preset) -> Band:
    """Microjoules per decision."""
    joules = sum(priced(counted(spec, side, counts), preset).values(), Band())
    return Band(joules.low / MICROJOULE, joules.nominal / MICROJOULE, joules.high / MICROJOULE)


def unpriced(spec: SearchSpec, points: Iterable[Reported], preset: Preset) -> list[str]:
    """Quantities that were counted and have no price."""
    seen = {name for point in points for one in point.counts for name in counted(spec, point.side, one)}
    return sorted(seen - preset.energy_pj.keys() - preset.included.keys())


def point_of(spec: SearchSpec, family: str, params: Params, lines: Sequence[Line], preset: Preset) -> Reported:
    """A place with its results.

    Raises:
        UserError: one of them has no counts.
    """
    side = spec.side_of(family)
    counts = tuple(counts_of(line) for line in lines)
    prices = tuple(price_of(spec, side, one, preset) for one in counts)
    return Reported(side, family, tuple(params.items()), tuple(lines), counts, prices)


@dataclass(frozen=True)
class Collected:
    """What a store has of a search.

    Attributes:
        points: of which every training seed has run.
        missing: the others, with how many of the seeds have.
    """

    points: list[Reported]
    missing: list[str]


def collect(
    spec: SearchSpec, lines: Sequence[Line], seeds: Sequence[int], evaluation: Evaluation, preset: Preset
) -> Collected:
    """Every place that results with these seeds are of. A line counts where it is of this very search: of its dataset,
    settings, protocol and memory, whatever version of the code has made it.

    Raises:
        UserError: a line has no counts.
    """
    asked: dict[tuple[str, tuple[tuple[str, Any], ...]], None] = {}
    for line in lines:
        if line["dataset"] == spec.dataset and line.get("model") in spec.families and line["seed"] in seeds:
            names = spec.families[line["model"]].space
            if list(line.get("axes", {})) and set(line["axes"]) == set(names):
                asked[line["model"], tuple((name, line["axes"][name]) for name in names)] = None
    by_place, points, missing = lines_by_place(lines), [], []
    for family, items in asked:
        found = []
        for seed in seeds:
            try:
                cell = resolve_cell(spec.cell(family, dict(items), seed, evaluation))
            except UserError:  # of an earlier version of the file
                break
            if (result := result_of(cell, by_place)) is not None:
                found.append(result)
        if len(found) == len(seeds):
            points.append(point_of(spec, family, dict(items), found, preset))
        elif found:
            missing.append(f"{family}: {described(items)} ({len(found)} of {len(seeds)} training seeds)")
    return Collected(points, missing)

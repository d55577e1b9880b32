"""Seconds per decision from recorded spikes: every tick lasts as long as its busiest core or link, and the barrier.

A core's time is the sum of what it does, one after the other; a link passes one message at a time; cores and links work
side by side, and the tick ends for all of them at once. See :mod:`dsf.hardware_models.schedule` for the ticks.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsf.hardware_models.activity import Counts
from dsf.hardware_models.energy import Band
from dsf.hardware_models.mapping import NetworkMapping
from dsf.hardware_models.preset import Preset, worst_grade
from dsf.hardware_models.schedule import Spikes, TickCounts, count_ticks, tokens_of
from dsf.hardware_models.work import Schedule
from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.shell.units import NANOSECOND

LEVELS = ("low", "nominal", "high")
NOMINAL = LEVELS.index("nominal")
BATCH = 32
"""Decisions that are computed together."""
PERCENTILE = 99
HOPS = ("hops_east_west", "hops_north_south")
"""What takes links time, not cores."""
LINK, BARRIER = "link", "barrier"
"""Terms beside the quantities that take cores time."""
LINK_ASSUMPTION = "a link is taken to pass one message per hop's time: no bandwidth is published"


@dataclass(frozen=True)
class Floorline:
    """What a plot of run time against load needs (Yik et al. 2025): one entry per tick of the sampled decisions.

    Attributes:
        synaptic_events, messages: largest number in any core.
        seconds: the tick's nominal time.
        event_s, message_s: nominal time of one; None where the preset has none. No tick can be shorter than
            max(event_s * synaptic_events, message_s * messages) + floor_s.
        floor_s: the barrier.
    """

    synaptic_events: Counts
    messages: Counts
    seconds: FloatArray
    event_s: float | None
    message_s: float | None
    floor_s: float


@dataclass(frozen=True)
class Latency:
    """Time per decision under one preset.

    Attributes:
        preset: name; never print a second without it.
        grade: of the worst time in use.
        schedule: see :mod:`dsf.hardware_models.schedule`.
        decisions: that were sampled.
        ticks: per decision, mean.
        mean, percentile, largest: seconds per decision over the sample; the percentile is the 99th.
        terms: mean nominal seconds per decision by what binds: each tick's busiest core by quantity, or ``link`` where
            a link is slower, and ``barrier``. They add up to the mean.
        busiest_core: that binds for the longest time.
        busiest_share: of the mean, nominal.
        busiest_populations: on that core.
        busiest_link: with the most messages, in words; None where no message crosses a link.
        untimed: counts per decision that no time is known for, the host's and other chips' among them.
        idle_updates: per decision, updates in ticks in which a neuron's token is elsewhere in the pipeline; they are in
            the times, and in the activity that a mapping counts for this schedule.
        static_w: watts of all chips in use that do nothing; None where the preset has none.
        assumptions: what has to be said beside every figure.
        floorline: for a plot.
    """

    preset: str
    grade: str
    schedule: Schedule
    decisions: int
    ticks: float
    mean: Band
    percentile: Band
    largest: Band
    terms: dict[str, float]
    busiest_core: int
    busiest_share: float
    busiest_populations: tuple[str, ...]
    busiest_link: str | None
    untimed: dict[str, float]
    idle_updates: float
    static_w: Band | None
    assumptions: tuple[str, ...]
    floorline: Floorline

    @property
    def binding(self) -> tuple[str, float]:
        """The largest term and its share of the mean."""
        name = max(self.terms, key=self.terms.__getitem__)
        return name, self.terms[name] / self.mean.nominal if self.mean.nominal else 0.0

    def verdict(self, control_period_s: float) -> str:
        """Whether a task's control period leaves the time, in words. What is untimed comes on top."""
        share = f"99 % of the decisions take up to {self.percentile.nominal / control_period_s:.2%} of the period"
        if self.largest.high <= control_period_s:
            return f"real time: {share}"
        if self.largest.nominal <= control_period_s:
            return f"real time at nominal times only: {share}, at high ones {self.largest.high / control_period_s:.2%}"
        return f"not in real time: {share}, the slowest {self.largest.nominal / control_period_s:.2%}"

    def static_energy(self, control_period_s: float | None = None) -> Band | None:
        """Joules per decision of chips that do nothing, for the mean decision or for a whole control period.

        A chip that waits for the next period burns the latter.
        """
        if self.static_w is None:
            return None
        return _product(self.static_w, self.mean if control_period_s is None else Band(*[control_period_s] * 3))

    def to_json(self) -> dict[str, Any]:
        """JSON values, the floorline's ticks as lists."""
        points = self.floorline
        lists = {name: getattr(points, name).tolist() for name in ("synaptic_events", "messages", "seconds")}
        return {**dataclasses.asdict(self), "floorline": {**dataclasses.asdict(points), **lists}}

    def energy_delay(self, energy: Band) -> Band:
        """Joule seconds: an energy per decision, times the mean time of one."""
        return _product(energy, self.mean)


def _product(one: Band, other: Band) -> Band:
    return Band(one.low * other.low, one.nominal * other.nominal, one.high * other.high)


def barrier(preset: Preset, tiles: int) -> Band:
    """Seconds to end a tick, interpolated between the known numbers of tiles; nothing where none is known."""
    if not preset.barrier_ns:
        return Band()
    known, prices = list(preset.barrier_ns), list(preset.barrier_ns.values())
    levels = ([getattr(price, level) for price in prices] for level in LEVELS)
    return Band(*(float(np.interp(tiles, known, level)) * NANOSECOND for level in levels))


def estimate_latency(
    mapping: NetworkMapping, preset: Preset, decisions: Sequence[Spikes], schedule: Schedule = "pipelined"
) -> Latency:
    """Time every tick of some recorded decisions.

    Args:
        mapping: of the network that ran.
        preset: whose times count; what it has no time for is listed.
        decisions: each with the spikes of all its tokens.
        schedule: see :mod:`dsf.hardware_models.schedule`.

    Raises:
        UserError: the preset has no times, or nothing was recorded.
    """
    if not preset.time_ns:
        raise UserError(f"hardware preset '{preset.name}' has no times: choose one with time_ns, such as loihi1_fitted")
    if not decisions:
        raise UserError("latency: no decision was recorded; run at least one")
    clock = _Clock(mapping, preset)
    for batch in _batches(decisions):
        clock.add(count_ticks(mapping, batch, schedule))
    return clock.result(schedule)


def _batches(decisions: Sequence[Spikes]) -> Iterator[list[Spikes]]:
    """Decisions of the same length together; window mode's first windows of an episode are shorter."""
    for _, group in itertools.groupby(decisions, key=tokens_of):
        same = list(group)
        for start in range(0, len(same), BATCH):
            yield same[start : start + BATCH]


class _Clock:
    """Prices counts and adds them up."""

    def __init__(self, mapping: NetworkMapping, preset: Preset) -> None:
        self.mapping, self.preset = mapping, preset
        self.barrier = barrier(preset, mapping.tiles_in_use)
        self.seconds: list[FloatArray] = []  # (levels, decisions)
        self.ticks: list[int] = []
        self.terms: dict[str, float] = defaultdict(float)
        self.binding = np.zeros(len(mapping.seats))
        self.links = np.zeros(len(mapping.link_work[0]), np.int64)
        self.untimed: dict[str, int] = defaultdict(int)
        self.idle_updates = 0
        self.points: list[tuple[Counts, Counts, FloatArray]] = []

    def add(self, counts: TickCounts) -> None:
        """Some decisions."""
        levels = []
        for level in LEVELS:
            slowest = np.maximum(self._cores(counts, level).max(axis=-1), self._links(counts, level).max(axis=-1))
            levels.append(slowest + getattr(self.barrier, level))  # (decisions, ticks)
        self.seconds.append(np.array(levels).sum(axis=-1))
        self.ticks += [levels[NOMINAL].shape[1]] * len(levels[NOMINAL])
        self._attribute(counts, levels[NOMINAL].size)
        largest = (
            counts.cores.get(name, np.zeros((*levels[NOMINAL].shape, 1), np.int64)).max(axis=-1).ravel()
            for name in ("synaptic_events", "messages")
        )
        self.points.append((*largest, levels[NOMINAL].ravel()))
        self._list_untimed(counts)
        self.links += counts.links.sum(axis=(0, 1))
        self.idle_updates += counts.idle_updates

    def _price(self, quantity: str, level: str) -> float:
        """Seconds, 0 where no time is known."""
        price = self.preset.time_ns.get(quantity)
        return 0.0 if price is None else float(getattr(price, level)) * NANOSECOND

    def _cores(self, counts: TickCounts, level: str) -> FloatArray:
        """(decisions, ticks, cores) seconds."""
        timed = {name: values for name, values in counts.cores.items() if name not in HOPS}
        return sum((self._price(name, level) * values for name, values in timed.items()), start=np.zeros(()))

    def _links(self, counts: TickCounts, level: str) -> FloatArray:
        """(decisions, ticks, links) seconds; one idle link where there is none."""
        prices = np.array([self._price(link.quantity, level) for link in self.mapping.link_work[0]])
        return np.concatenate([counts.links * prices, np.zeros((*counts.links.shape[:-1], 1))], axis=-1)

    def _attribute(self, counts: TickCounts, ticks: int) -> None:
        """Nominal time by what binds in each tick."""
        cores, links = self._cores(counts, "nominal"), self._links(counts, "nominal").max(axis=-1)
        busiest, slowest = cores.argmax(axis=-1), cores.max(axis=-1)
        binds = slowest >= links
        self.binding += np.bincount(busiest[binds], weights=slowest[binds], minlength=len(self.binding))
        for name, values in counts.cores.items():
            if name in self.preset.time_ns and name not in HOPS:
                of_busiest = np.take_along_axis(values, busiest[..., None], axis=-1)[..., 0]
                self.terms[name] += self._price(name, "nominal") * float(of_busiest[binds].sum())
        self.terms[LINK] += float(links[~binds].sum())
        self.terms[BARRIER] += self.barrier.nominal * ticks

    def _list_untimed(self, counts: TickCounts) -> None:
        for name, values in counts.cores.items():
            if name not in self.preset.time_ns and name not in self.preset.included:
                self.untimed[name] += int(values.sum())
        for name, times in counts.host.items():
            self.untimed[f"{name} of the host"] += times
        self.untimed["messages to other chips"] += counts.off_chip

    def result(self, schedule: Schedule) -> Latency:
        """Latency of all decisions."""
        preset, mapping, decisions = self.preset, self.mapping, len(self.ticks)
        seconds, terms = np.concatenate(self.seconds, axis=1), {k: v / decisions for k, v in self.terms.items()}
        mean, busiest = Band(*seconds.mean(axis=1).tolist()), int(self.binding.argmax())
        static, chips = preset.static_w, mapping.placement.chips
        events, messages, times = (np.concatenate(values) for values in zip(*self.points))
        of_core = {name: price.nominal * NANOSECOND for name, price in preset.time_ns.items()}
        links = mapping.link_work[0]
        return Latency(
            preset=preset.name,
            grade=worst_grade({**preset.time_ns, **{str(tiles): price for tiles, price in preset.barrier_ns.items()}}),
            schedule=schedule,
            decisions=decisions,
            ticks=float(np.mean(self.ticks)),
            mean=mean,
            percentile=Band(*np.percentile(seconds, PERCENTILE, axis=1).tolist()),
            largest=Band(*seconds.max(axis=1).tolist()),
            terms={name: value for name, value in terms.items() if value},
            busiest_core=busiest,
            busiest_share=float(self.binding[busiest]) / decisions / mean.nominal if mean.nominal else 0.0,
            busiest_populations=tuple(dict.fromkeys(part.node for part in mapping.placement.cores[busiest].slices)),
            busiest_link=str(links[int(self.links.argmax())]) if links else None,
            untimed={name: count / decisions for name, count in self.untimed.items() if count},
            idle_updates=self.idle_updates / decisions,
            static_w=None if static is None else Band(*(getattr(static, level) * chips for level in LEVELS)),
            assumptions=(*mapping.assumptions, *([LINK_ASSUMPTION] if set(HOPS) & set(preset.time_ns) else [])),
            floorline=Floorline(
                events, messages, times, of_core.get("synaptic_events"), of_core.get("messages"), self.barrier.nominal
            ),
        )

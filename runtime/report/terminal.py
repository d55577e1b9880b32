"""A run for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsf.hardware_models import MappingFigures
from dsf.hardware_models.energy import Band
from dsf.hardware_models.layers import SHARES, LayerRow, by_part, together
from dsf.hardware_models.preset import GRADES
from dsf.hardware_models.weight_memory import FETCHES, USUAL, WeightMemory
from dsf.runtime.loop.real_time import QUANTILES, RealTimeFigures
from dsf.runtime.report.core_traffic import CoreTraffic
from dsf.runtime.report.hardware import HardwareFigures, real_time_verdict
from dsf.runtime.report.run_report import RunReport, SaturatedFeature
from dsf.shell.console import first_few
from dsf.shell.units import MICROJOULE, MICROSECOND, MILLISECOND, NANOSECOND
from dsf.tasks import Task

SHOWN_TERMS = 3
"""The largest ones of a sum; JSON holds all."""
LOAD_ROWS = ("busiest core: events, updates per tick", "busiest core, mean tick")
"""Without and with times."""
SHOWN_FEATURES = 3
"""Saturated features that are named; JSON holds all."""
BLIND_SHARE = 0.1
"""A feature that is out of range in more decisions than this is worth a note: a codec clips less than one in a hundred
of the values that it was fitted to, five standard deviations from their mean."""
COUNT_COLUMNS = ("events", "macs", "updates", "messages", "hops")
"""Counts of a layer that are shown, see :class:`~dsf.hardware_models.layers.LayerRow`."""
SHOWN_EDGES = 12
"""The busiest ones between cores; JSON holds all."""
TIME_ROWS = (
    "time per decision",
    "what binds",
    "busiest core",
    "real time",
    "without a time",
    "energy-delay product",
    "static energy while deciding",
)
"""Rows of a preset with times."""


def print_report(report: RunReport, console: Console) -> None:
    """All tables."""
    title = f"{escape(report.task.world)}, closed loop, target return {report.shown_target}"
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in run_rows(report).items():
        table.add_row(name, value)
    console.print(table)
    for note in saturation_notes(report.saturation):
        console.print(f"note: {note}", soft_wrap=True)
    console.print(_energy_table(report))
    for figures in _shown_by_layer(report.hardware):
        for by_layer in layer_tables(figures.preset.name, figures.layers):
            console.print(by_layer)
    cores = _cores_table(report)
    if cores is not None:
        console.print(cores)
    if report.comparison:
        console.print(_comparison_table(report))
    if report.core_traffic is not None:
        print_core_traffic(report.core_traffic, console)


def run_rows(report: RunReport) -> dict[str, str]:
    """The run's figures, by name."""
    result, episodes, interval, parity = report.result, report.episodes, report.interval, report.result.parity
    spread = f"[{interval.low:.1f}, {interval.high:.1f}]" if len(episodes) > 1 else ""
    spread += f" ({report.interval_note})" if report.interval_note else ""
    rows = {
        "backend, mode": f"{report.backend}, {report.mode}",
        "episodes (seeds)": f"{len(episodes)} ({episodes[0].seed}..{episodes[-1].seed})",
        "return, mean [95 %]": f"{interval.mean:.1f} {spread.strip()}",
        **_score_row(report),
        **({} if report.success is None else {"reached the goal": str(report.success)}),
        "decisions": f"{result.decisions}",
        "spikes per decision": f"{report.spikes_per_decision:,.0f}",
        "synaptic events per decision": f"{report.synaptic_events_per_decision:,.0f}",
        "firing rate (per LIF neuron and tick)": f"{result.activity.firing_rate:.2%}",
        "inputs beyond the codec's range": saturation_line(report.saturation),
        "decisions per second": f"{result.decisions_per_second:.0f}",
        "simulated ticks per second": f"{report.ticks_per_second:.0f}",
        **wall_rows(report),
        **_clock_rows(report.real_time),
        "spikes compared with the reference": f"{parity.compared_spikes:,}",
        "populations compared": f"{len(report.compared)} of {report.spiking_populations}",
        "mismatches (spikes, accumulators)": f"{parity.mismatches}, {parity.accumulator_mismatches}",
    }
    if not parity.compared_accumulators:
        rows |= dict.fromkeys(("populations compared", "mismatches (spikes, accumulators)"), "not checked")
    return rows


def wall_rows(report: RunReport) -> dict[str, str]:
    """Wall time of the loop, of the comparison, and of the whole run, by name."""
    rows = {"wall time: loop": report.result.seconds}
    if report.times.comparison is not None:
        rows["wall time: comparison"] = report.times.comparison
    rows["wall time: whole run"] = report.times.whole
    return {name: f"{seconds:.1f} s" if seconds >= 1.0 else f"{seconds:.2g} s" for name, seconds in rows.items()}


def saturation_line(features: Sequence[SaturatedFeature]) -> str:
    """The features that the codec clips most often, and the share of decisions in which it does."""
    if not features:
        return "none"
    return first_few([f"{feature.name} in {feature.share:.1%}" for feature in features], SHOWN_FEATURES)


def saturation_notes(features: Sequence[SaturatedFeature]) -> list[str]:
    """A line where a feature lies out of range so often that the network hardly sees it."""
    blind = [feature for feature in features if feature.share >= BLIND_SHARE]
    if not blind:
        return []
    return [
        f"{saturation_line(blind)} of the decisions, values lie beyond what the network was trained on and enter it as "
        "the end of their range: check units, offsets and the target return"
    ]


def _score_row(report: RunReport) -> dict[str, str]:
    """Nothing, for an environment without reference returns."""
    score = report.score(report.interval.mean)
    return {} if score is None else {f"{report.score_label} score": f"{score:.1f}"}


def _clock_rows(figures: RealTimeFigures | None) -> dict[str, str]:
    """Nothing, for a run as fast as it goes."""
    if figures is None:
        return {}

    def spread(milliseconds: Mapping[str, float]) -> str:
        return " / ".join(f"{milliseconds[name]:.2f}" for name in QUANTILES) + " ms"

    clock = figures.clock
    return {
        "control period": f"{clock.period_s / MILLISECOND:g} ms, on a miss {clock.on_miss}",
        "periods, deadline misses": f"{figures.periods}, {figures.deadline_misses}",
        "episodes stopped by a miss": f"{figures.safe_stops}",
        f"decision latency, {' / '.join(QUANTILES)}": spread(figures.decision_latency_ms),
        f"jitter of the period, {' / '.join(QUANTILES)}": spread(figures.jitter_ms),
    }


def print_core_traffic(traffic: CoreTraffic, console: Console) -> None:
    """The busiest edges between cores, and where Lava's processes would be."""
    table = Table(title=f"messages per decision between cores of {traffic.chip}", title_justify="left")
    for heading in ("from core", "to core", "spikes", "graded"):
        table.add_column(heading, justify="right")
    for edge in traffic.edges[:SHOWN_EDGES]:
        table.add_row(f"{edge.source}", f"{edge.target}", f"{edge.spikes:,.0f}", f"{edge.graded:,.0f}")
    table.caption = f"the {min(SHOWN_EDGES, len(traffic.edges))} busiest of {len(traffic.edges)} edges; --json has all"
    console.print(table)
    placed = {process: cores for process, cores in traffic.processes.items() if cores}
    lines = [f"{process}: {', '.join(map(str, cores))}" for process, cores in placed.items()]
    if lines:
        console.print("Lava processes and their cores:", "; ".join(lines), soft_wrap=True)


def _energy_table(report: RunReport) -> Table:
    grades = sorted({figures.energy.grade for figures in report.hardware})
    lines = ["; ".join(f"grade {grade}: {GRADES[grade]}" for grade in grades)]
    for figures in report.hardware:
        if figures.energy.unpriced:
            lines.append(f"{figures.preset.name} has no price for {_listed(figures.energy.unpriced)}")
    if any(figures.on_chip is None and "messages" in figures.energy.unpriced for figures in report.hardware):
        lines.append("messages of presets without a chip: one core per population")
    lines += memory_notes(report.hardware)
    for figures in report.hardware:
        static = figures.static_energy(report.task)
        if static is not None:
            burnt = f"{figures.preset.name} burns {microjoules(static)} of static energy per control period"
            lines.append(f"{burnt}, not included")
    table = Table(
        title="energy per decision: an estimate, counted events x published prices",
        title_justify="left",
        caption="\n".join(lines),
        caption_justify="left",
    )
    table.add_column("hardware preset", no_wrap=True)
    table.add_column("uJ", justify="right", no_wrap=True)
    table.add_column("low .. high", justify="right", no_wrap=True)
    table.add_column("grade")
    table.add_column("most of it")
    for figures in report.hardware:
        energy = figures.energy
        table.add_row(
            energy.preset,
            small(energy.nominal / MICROJOULE),
            f"{small(energy.low / MICROJOULE)} .. {small(energy.high / MICROJOULE)}",
            energy.grade,
            _shares({name: band.nominal for name, band in energy.terms.items()}, energy.nominal),
        )
    return table


def memory_notes(hardware: Sequence[HardwareFigures]) -> list[str]:
    """How weights were taken to be kept and fetched, and what works so; nothing of the usual way."""
    memories: dict[WeightMemory, list[str]] = {}
    for figures in hardware:
        memories.setdefault(figures.energy.memory, []).append(figures.preset.name)
    if set(memories) <= {USUAL}:
        return []
    notes = [f"{', '.join(names)}: {memory.described}" for memory, names in memories.items()]
    return notes + [FETCHES[fetch].cited for fetch in dict.fromkeys(memory.fetch for memory in memories)]


def small(value: float) -> str:
    """A number with two decimals, or with two digits where these would be lost."""
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def _shown_by_layer(hardware: Sequence[HardwareFigures]) -> list[HardwareFigures]:
    """Those with a chip, whose cores and hops differ; without any, the last one. JSON and HTML have all."""
    return [figures for figures in hardware if figures.on_chip is not None] or list(hardware[-1:])


def layer_tables(preset: str, layers: Sequence[LayerRow]) -> tuple[Table, Table]:
    """Sizes and counts, and what is spent on them: two tables, so that a narrow terminal holds them."""
    rows = by_part(layers)
    rows.append(together("all", rows))
    counts, spent = (
        Table(title=f"{title}, {preset}", title_justify="left", box=None, padding=(0, 1, 0, 0))
        for title in ("layer by layer, per decision", "uJ per decision, layer by layer")
    )
    columns = ("neurons", "synapses", "cores", "events", "MACs", "updates", "messages", "hops")
    for table, headings in ((counts, columns), (spent, ("rate", "spk/syn", *SHARES, "uJ"))):
        table.add_column("layer", no_wrap=True)
        for heading in headings:
            table.add_column(heading, justify="right")
    for row in rows:
        figures = (getattr(row, name) for name in ("neurons", "synapses", "cores", *COUNT_COLUMNS))
        counts.add_row(row.layer, *(f"{value:,.0f}" if value else "-" for value in figures))
        rates = ("-" if row.rate is None else f"{row.rate:.1%}", _decimals(row.spikes_per_synapse))
        joules = [row.joules[share] / MICROJOULE for share in SHARES]
        spent.add_row(row.layer, *rates, *(f"{value:.2f}" if value else "-" for value in joules), f"{sum(joules):.2f}")
    return counts, spent


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _listed(counts: dict[str, float]) -> str:
    return ", ".join(f"{count:,.0f} {_words(name)}" for name, count in counts.items())


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shares(terms: dict[str, float], total: float) -> str:
    """The largest terms of a sum as shares, the largest first."""
    largest = sorted(terms.items(), key=lambda item: -item[1])[:SHOWN_TERMS]
    return ", ".join(f"{value / total:.0%} {_words(name)}" for name, value in largest if total)


def _cores_table(report: RunReport) -> Table | None:
    """Cores and latency, a column for each preset with a chip; None where there is none."""
    placed = [(figures, figures.on_chip) for figures in report.hardware if figures.on_chip is not None]
    if not placed:
        return None
    notes = [note for _, chip in placed for note in chip.mapping.assumptions]
    notes += [note for _, chip in placed if chip.latency is not None for note in chip.latency.assumptions]
    notes += [f"{figures.preset.name}: {line}" for figures, chip in placed for line in chip.fit.lines()[1:]]
    table = Table(
        title="on the chip: a model of the busiest core, tick by tick",
        title_justify="left",
        caption="; ".join(dict.fromkeys(notes)),
        caption_justify="left",
    )
    table.add_column("figure")
    for figures, _ in placed:
        table.add_column(figures.preset.name)
    columns = [chip_rows(figures, report.task) for figures, _ in placed]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "-") for column in columns))
    return table


def chip_rows(figures: HardwareFigures, task: Task) -> dict[str, str]:
    """One preset's column: the mapping that was searched, and the naive one beside it; nothing without a chip."""
    chip = figures.on_chip
    if chip is None:
        return {}
    searched, naive, latency = chip.searched, chip.naive, chip.latency

    def load(found: MappingFigures) -> str:
        return f"{found.load:,.0f}" if latency is None else f"{found.load * NANOSECOND / MICROSECOND:.1f} us"

    name = chip.mapping.chip.name
    found = {
        "one chip": chip.fit.lines()[0],
        "cores in use, chips": f"{searched.cores} of {name}, {searched.chips}: {_spread_words(searched, naive)}",
        "messages per decision": f"{searched.messages:,.0f}, spikes and values (in order: {naive.messages:,.0f})",
        "hops per decision": f"{searched.hops:,.0f} (in order: {naive.hops:,.0f})",
        LOAD_ROWS[latency is not None]: f"{load(searched)} (in order: {load(naive)})",
    }
    if latency is None:
        return found | dict.fromkeys(TIME_ROWS, "no times known")
    low, nominal, high = (getattr(latency.mean, level) / MICROSECOND for level in ("low", "nominal", "high"))
    values = (
        f"{nominal:.0f} us ({low:.0f} .. {high:.0f}), {latency.ticks:.0f} ticks, grade {latency.grade}",
        _shares(latency.terms, latency.mean.nominal),
        f"{', '.join(latency.busiest_populations)} ({latency.busiest_share:.0%} of the time)",
        real_time_verdict(latency, task),
        _listed(latency.untimed) or "-",
        f"{latency.energy_delay(figures.energy.total).nominal:.2g} J s",
        microjoules(latency.static_energy()),
    )
    return found | dict(zip(TIME_ROWS, values, strict=True))


def _spread_words(searched: MappingFigures, naive: MappingFigures) -> str:
    """Why a network is on other cores than it needs."""
    if searched.cores == naive.cores:
        return f"in order: {naive.cores}"
    return f"spread out for a short tick (in order: {naive.cores}, which suffice)"


def microjoules(energy: Band | None) -> str:
    """An energy for a person."""
    return "not known" if energy is None else f"{energy.nominal / MICROJOULE:,.1f} uJ"


def _comparison_table(report: RunReport) -> Table:
    table = Table(
        title="the same seeds under every level",
        title_justify="left",
        caption=report.comparison_note,
        caption_justify="left",
    )
    table.add_column("seed", justify="right")
    for name in report.comparison:
        table.add_column(name, justify="right")
    table.add_column(report.backend, justify="right")
    for row, episode in enumerate(report.episodes):
        others = [f"{episodes[row].episode_return!r}" for episodes in report.comparison.values()]
        table.add_row(str(episode.seed), *others, f"{episode.episode_return!r}")
    return table

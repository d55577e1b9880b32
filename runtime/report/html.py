"""``dsf-sim-run --html``: the whole run on one page that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from dsf.export.network.network import Network
from dsf.export.proof.tables import holds
from dsf.hardware_models.layers import SHARES, LayerRow, together
from dsf.hardware_models.placement_search import core_loads
from dsf.hardware_models.preset import GRADES
from dsf.runtime.engines.parity import Spikes
from dsf.runtime.loop.tape import TapedEpisode
from dsf.runtime.report import figures
from dsf.runtime.report.hardware import HardwareFigures, replay_spikes
from dsf.runtime.report.run_report import RunReport
from dsf.runtime.report.sketch import sketch_episode
from dsf.runtime.report.terminal import chip_rows, memory_notes, saturation_notes, small, wall_rows
from dsf.shell.files import write_text
from dsf.shell.units import MICROJOULE

RASTER_DECISIONS = 40
"""Decisions whose spikes are drawn."""
FILM_WIDTH, FILM_HEIGHT = 960, 420

Row = Sequence[str]


@dataclass(frozen=True)
class Section:
    """A heading and what is under it, as HTML."""

    heading: str
    html: str


def write_html(path: Path, network: Network, report: RunReport) -> None:
    """Write the page.

    Args:
        path: of the file, written under a temporary name first.
        network: that ran.
        report: of the run, with tapes.
    """
    tape, task = report.result.tapes[0], report.task
    why_not = ""
    try:
        sketch = sketch_episode(task, tape.episode.seed, report.target_return, tape.actions)
    except Exception as error:  # of the environment, which runs once more: the page is worth more than its film
        sketch, why_not = None, f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    sections = [
        *_episode_sections(network, tape, report, filmed=sketch is not None, why_not=why_not),
        _saturation_section(report),
        Section("Firing rates", figure(figures.firing_rates(report.result.activity))),
        _energy_section(report),
        *(section for priced in report.hardware for section in _chip_sections(priced, report)),
        *_layer_sections(report.hardware),
        _ladder_section(network),
        Section("Wall time", table(("part", "time"), wall_rows(report).items(), numbers=1)),
        _provenance_section(network),
    ]
    page = Template((resources.files("dsf.runtime.report.page") / "page.html").read_text(encoding="utf-8"))
    text = page.substitute(
        title=escape(f"{task.world}, driven by integer spikes ({report.backend})"),
        subtitle=escape(_subtitle(report)),
        body=_tiles(report) + _notes(report) + "".join(f"<h2>{escape(s.heading)}</h2>\n{s.html}\n" for s in sections),
        sketch=json.dumps(None if sketch is None else sketch.to_json()),
    )
    write_text(path, text)


def table(head: Row, rows: Iterable[Row], numbers: int = 0, caption: str = "") -> str:
    """An HTML table whose last ``numbers`` columns are figures; cells are escaped."""
    first_number = len(head) - numbers

    def cells(tag: str, row: Row) -> str:
        kinds = (' class="number"' if index >= first_number else "" for index in range(len(row)))
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    below = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{below}<tr>{cells('th', head)}</tr>{body}</table>"


def figure(svg: str, caption: str = "") -> str:
    """A figure with its caption."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{below}</figure>"


def _subtitle(report: RunReport) -> str:
    seeds = [episode.seed for episode in report.episodes]
    return (
        f"{report.mode} mode, target return {report.shown_target}, {len(seeds)} episodes, reset seeds "
        f"{seeds[0]} to {seeds[-1]}; energies are estimates: counted events times published prices"
    )


def _tiles(report: RunReport) -> str:
    parity, interval = report.result.parity, report.interval
    found = parity.mismatches + parity.accumulator_mismatches
    tiles = [
        (f"{interval.mean:.0f}", _interval_words(report)),
        (f"{found} mismatches", f"{parity.compared_spikes:,} spike slots compared with the reference"),
        (f"{report.spikes_per_decision:,.0f}", "spikes per decision"),
        (f"{report.synaptic_events_per_decision:,.0f}", "synaptic events per decision"),
    ]
    for energy in (priced.energy for priced in report.hardware):
        label = f"per decision, {energy.preset}, grade {energy.grade}"
        tiles.append((f"{small(energy.nominal / MICROJOULE)} uJ", label))
    score = report.score(interval.mean)
    if score is not None:
        tiles.insert(1, (f"{score:.1f}", f"{report.score_label} score"))
    if report.success is not None:
        rate = report.success
        tiles.insert(
            1, (f"{rate.reached / rate.told:.1%}", f"reached the goal: {rate.reached} of {rate.told} episodes")
        )
    return f'<div class="tiles">{"".join(_tile(*tile) for tile in tiles)}</div>'


def _interval_words(report: RunReport) -> str:
    interval, note = report.interval, report.interval_note
    if len(report.episodes) == 1:
        return f"return ({note})"
    words = f"mean return [95 %: {interval.low:.0f}, {interval.high:.0f}]"
    return f"{words} ({note})" if note else words


def _notes(report: RunReport) -> str:
    """What a reader has to know."""
    return "".join(f"<p>note: {escape(note)}</p>\n" for note in report.notes)


def _tile(value: str, label: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _episode_sections(
    network: Network, tape: TapedEpisode, report: RunReport, filmed: bool, why_not: str
) -> Iterable[Section]:
    film = f'<canvas id="film" width="{FILM_WIDTH}" height="{FILM_HEIGHT}"></canvas>' if filmed else ""
    film += f"<p>{escape(f'There is no film: {why_not}')}</p>" if why_not else ""
    curve = figures.reward_curve(tape.rewards, report.target_return, report.task.control_period_s)
    yield Section(f"The episode of reset seed {tape.episode.seed}", film + figure(curve))
    levels = {name: [one.episode_return for one in level] for name, level in report.comparison.items()}
    levels[report.backend] = report.returns
    if len(levels) > 1 or len(report.episodes) > 1:
        caption = "; ".join(filter(None, ("the same reset seeds under every level", report.comparison_note)))
        yield Section("Returns", figure(figures.returns_by_level(levels), caption))
    spikes = [_present(token) for token in replay_spikes(network, report.mode, tape.graded[:RASTER_DECISIONS])]
    caption = f"every neuron's spikes in the first {len(spikes)} decisions, replayed on the reference"
    yield Section("Spikes", figure(figures.spike_raster(network, spikes), caption))


def _present(spikes: Spikes) -> Spikes:
    """The present token's (ticks, neurons); in window mode it is the last of all tokens."""
    return {name: values[:, -1] if values.ndim == 3 else values for name, values in spikes.items()}


def _saturation_section(report: RunReport) -> Section:
    """Which inputs the codec clipped."""
    heading, features = "Inputs beyond the range of the codec", report.saturation
    if not features:
        return Section(heading, "<p>None: every value lay within the range that the training data gave its input.</p>")
    rows = [(feature.name, f"{feature.decisions:,}", f"{feature.share:.1%}") for feature in features]
    caption = "the network sees the end of the range that its training data gave this input"
    notes = "".join(f"<p>{escape(note)}</p>" for note in saturation_notes(features))
    shown = table(("input", "decisions", "of all decisions"), rows, numbers=2, caption=caption)
    return Section(heading, notes + shown)


def _energy_section(report: RunReport) -> Section:
    energies = [priced.energy for priced in report.hardware]
    rows = []
    for priced in report.hardware:
        energy, static = priced.energy, priced.static_energy(report.task)
        unpriced = ", ".join(f"{count:,.0f} {name.replace('_', ' ')}" for name, count in energy.unpriced.items())
        band = f"{small(energy.low / MICROJOULE)} to {small(energy.high / MICROJOULE)}"
        burnt = "not known" if static is None else f"{static.nominal / MICROJOULE:,.1f}"
        rows.append((energy.preset, energy.grade, unpriced or "-", small(energy.nominal / MICROJOULE), band, burnt))
    grades = "; ".join(f"{grade}: {meaning}" for grade, meaning in GRADES.items())
    head = (
        "preset",
        "grade",
        "counted, but without a price (per decision)",
        "uJ per decision",
        "low to high",
        "static uJ per control period",
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in memory_notes(report.hardware))
    parts = [table(head, rows, numbers=3, caption=grades), notes, figure(figures.energy_bands(energies))]
    parts += [figure(figures.energy_by_layer(energy)) for energy in energies]
    return Section("Dynamic energy", "".join(parts))


def _chip_sections(hardware: HardwareFigures, report: RunReport) -> Iterable[Section]:
    """Cores, mesh and floorline of a preset with a chip."""
    chip = hardware.on_chip
    if chip is None:
        return
    rows = [*chip_rows(hardware, report.task).items()]
    rows += [("would help", line) for line in chip.fit.lines()[1:]]
    notes = chip.mapping.assumptions if chip.latency is None else chip.latency.assumptions
    rows += [("assumed", note) for note in notes]
    title = f"{chip.searched.cores} cores on {chip.searched.chips} {chip.mapping.chip.title}"
    parts = [table((title, ""), rows)]
    loads = core_loads(chip.mapping, report.result.counter, hardware.preset)
    unit = "ns" if hardware.preset.time_ns else "events and updates"
    parts.append(figure(figures.core_mesh(chip.mapping, loads, unit), "mean load of every core on its tile"))
    if chip.latency is not None:
        caption = (
            "one point per tick: it cannot lie below a line, the time of the most synaptic events (or messages sent) "
            "in any core, and the barrier; the nearer, the more that term binds"
        )
        parts.append(figure(figures.floorline(chip.latency.floorline), caption))
    yield Section(f"On the chip: {hardware.preset.name} (grade {hardware.preset.grade})", "".join(parts))


def _layer_sections(hardware: Sequence[HardwareFigures]) -> Iterable[Section]:
    """Sizes, counts and energy per decision, layer by layer; cores, messages and hops are those of a preset's chip."""
    counts = ("neurons", "synapses", "cores", "synaptic events", "MACs", "dynamic operations", "updates", "messages")
    heads = [*counts, "hops", "rate", "spikes per synapse", *(f"{share} uJ" for share in SHARES), "uJ"]
    for priced in hardware:
        rows = [_layer_cells(row) for row in (*priced.layers, together("all", priced.layers))]
        shown = table(("layer", "kind", *heads), rows, numbers=len(heads))
        yield Section(
            f"Layer by layer: {priced.preset.name} (grade {priced.energy.grade})", f'<div class="wide">{shown}</div>'
        )


def _layer_cells(row: LayerRow) -> Row:
    counts = (row.neurons, row.synapses, row.cores, row.events, row.macs, row.dynamic_operations, row.updates)
    shown = [f"{count:,.0f}" if count else "" for count in (*counts, row.messages, row.hops)]
    rate, met = row.rate, row.spikes_per_synapse
    shown += ["" if rate is None else f"{rate:.1%}", "" if met is None else f"{met:.2f}"]
    joules = [*row.joules.values(), sum(row.joules.values())]
    return (row.layer, row.kind, *shown, *(f"{value / MICROJOULE:.3f}" if value else "" for value in joules))


def _ladder_section(network: Network) -> Section:
    """The proofs that the network file carries."""
    rungs = network.verification.get("rungs", [])
    rows = [(str(rung.get("name", "")), holds(rung), str(rung.get("summary", ""))) for rung in rungs]
    return Section("Verification, as written by dsf-export", table(("rung", "holds", "figures"), rows))


def _provenance_section(network: Network) -> Section:
    rows = [(key, json.dumps(value, default=str)) for key, value in sorted(network.provenance.items())]
    return Section("Where the network comes from", table(("what", "value"), rows))

"""``dsf-sim-run --html``: the whole run on one page that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from dsf.export.network.network import Mode, Network
from dsf.hardware_models import EnergyEstimate
from dsf.hardware_models.layers import SHARES, LayerRow, together
from dsf.hardware_models.placement_search import core_loads
from dsf.hardware_models.preset import GRADES
from dsf.runtime.engines.parity import Spikes
from dsf.runtime.loop.closed_loop import LoopSettings
from dsf.runtime.loop.results import ClosedLoopResult
from dsf.runtime.loop.tape import TapedEpisode
from dsf.runtime.report import figures
from dsf.runtime.report.hardware import HardwareFigures, replay_spikes
from dsf.runtime.report.sketch import sketch_episode
from dsf.runtime.report.terminal import chip_rows
from dsf.shell.files import write_text
from dsf.tasks import Task

RASTER_DECISIONS = 40
"""Decisions whose spikes are drawn."""
FILM_WIDTH, FILM_HEIGHT = 960, 420
MICROJOULE = 1e-6

Row = Sequence[str]


@dataclass(frozen=True)
class Section:
    """A heading and what is under it, as HTML."""

    heading: str
    html: str


def write_html(
    path: Path,
    network: Network,
    settings: LoopSettings,
    mode: Mode,
    result: ClosedLoopResult,
    hardware: Sequence[HardwareFigures],
    summary: Mapping[str, Any],
) -> None:
    """Write the page.

    Args:
        path: of the file, written under a temporary name first.
        network: that ran.
        settings: of the run, with tapes.
        mode: stream or window.
        result: of the run.
        hardware: per preset.
        summary: the same run as :func:`dsf.runtime.report.terminal.summarise` gives it.
    """
    tape, task = result.tapes[0], settings.task
    sketch = sketch_episode(task, tape.episode.seed, settings.target_return, tape.actions)
    sections = [
        *_episode_sections(network, task, mode, tape, summary, filmed=sketch is not None),
        Section("Firing rates", figure(figures.firing_rates(result.activity))),
        *_energy_sections([priced.energy for priced in hardware], summary),
        *(section for priced in hardware for section in _chip_sections(priced, result, summary["energy"])),
        *_layer_sections(hardware),
        _ladder_section(network),
        _provenance_section(network),
    ]
    page = Template((resources.files("dsf.runtime.report.page") / "page.html").read_text())
    text = page.substitute(
        title=escape(f"{task.env_id}, driven by integer spikes ({summary['backend']})"),
        subtitle=escape(_subtitle(summary)),
        body=_tiles(summary, hardware) + "".join(f"<h2>{escape(s.heading)}</h2>\n{s.html}\n" for s in sections),
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


def _subtitle(summary: Mapping[str, Any]) -> str:
    seeds = [episode["seed"] for episode in summary["episodes"]]
    return (
        f"{summary['mode']} mode, target return {summary['target_return']:.0f}, {len(seeds)} episodes, reset seeds "
        f"{seeds[0]} to {seeds[-1]}; energies are estimates: counted events times published prices"
    )


def _tiles(summary: Mapping[str, Any], hardware: Sequence[HardwareFigures]) -> str:
    parity, (low, high) = summary["parity"], summary["return_interval_95"]
    found = parity["mismatches"] + parity["accumulator_mismatches"]
    tiles = [
        (f"{summary['return_mean']:.0f}", f"mean return [{low:.0f}, {high:.0f}]"),
        (f"{found} mismatches", f"{parity['compared_spikes']:,} spike slots compared with the reference"),
        (f"{summary['spikes_per_decision']:,.0f}", "spikes per decision"),
        (f"{summary['synaptic_events_per_decision']:,.0f}", "synaptic events per decision"),
        *(
            (f"{energy.nominal / MICROJOULE:.2f} uJ", f"per decision, {energy.preset}, grade {energy.grade}")
            for energy in (priced.energy for priced in hardware)
        ),
    ]
    if summary["score_mean"] is not None:
        tiles.insert(1, (f"{summary['score_mean']:.1f}", f"{summary['score_label']} score"))
    return f'<div class="tiles">{"".join(_tile(*tile) for tile in tiles)}</div>'


def _tile(value: str, label: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _episode_sections(
    network: Network, task: Task, mode: Mode, tape: TapedEpisode, summary: Mapping[str, Any], filmed: bool
) -> Iterable[Section]:
    film = f'<canvas id="film" width="{FILM_WIDTH}" height="{FILM_HEIGHT}"></canvas>' if filmed else ""
    curve = figures.reward_curve(tape.rewards, summary["target_return"], task.control_period_s)
    yield Section(f"The episode of reset seed {tape.episode.seed}", film + figure(curve))
    levels = {name: [episode["return"] for episode in level] for name, level in summary["comparison"].items()}
    levels[summary["backend"]] = [episode["return"] for episode in summary["episodes"]]
    if len(levels) > 1 or len(summary["episodes"]) > 1:
        yield Section("Returns", figure(figures.returns_by_level(levels), "the same reset seeds under every level"))
    spikes = [_present(token) for token in replay_spikes(network, mode, tape.graded[:RASTER_DECISIONS])]
    caption = f"every neuron's spikes in the first {len(spikes)} decisions, replayed on the reference"
    yield Section("Spikes", figure(figures.spike_raster(network, spikes), caption))


def _present(spikes: Spikes) -> Spikes:
    """The present token's (ticks, neurons); in window mode it is the last of all tokens."""
    return {name: values[:, -1] if values.ndim == 3 else values for name, values in spikes.items()}


def _energy_sections(energies: Sequence[EnergyEstimate], summary: Mapping[str, Any]) -> Iterable[Section]:
    burnt = {name: values["static_joules_per_control_period"] for name, values in summary["energy"].items()}
    rows = [
        (
            energy.preset,
            energy.grade,
            ", ".join(f"{count:,.0f} {name.replace('_', ' ')}" for name, count in energy.unpriced.items()) or "-",
            f"{energy.nominal / MICROJOULE:.2f}",
            f"{energy.low / MICROJOULE:.2f} to {energy.high / MICROJOULE:.2f}",
            "not known" if burnt[energy.preset] is None else f"{burnt[energy.preset]['nominal'] / MICROJOULE:,.1f}",
        )
        for energy in energies
    ]
    grades = "; ".join(f"{grade}: {meaning}" for grade, meaning in GRADES.items())
    head = (
        "preset",
        "grade",
        "counted, but without a price (per decision)",
        "uJ per decision",
        "low to high",
        "static uJ per control period",
    )
    parts = [table(head, rows, numbers=3, caption=grades), figure(figures.energy_bands(energies))]
    parts += [figure(figures.energy_by_layer(energy)) for energy in energies]
    yield Section("Dynamic energy", "".join(parts))


def _chip_sections(hardware: HardwareFigures, result: ClosedLoopResult, energy: Mapping[str, Any]) -> Iterable[Section]:
    """Cores, mesh and floorline of a preset with a chip."""
    chip = hardware.on_chip
    if chip is None:
        return
    values = energy[hardware.preset.name]
    rows = [*chip_rows(values["cores"], values.get("latency")).items()]
    rows += [("would help", line) for line in chip.fit.lines()[1:]]
    notes = chip.mapping.assumptions if chip.latency is None else chip.latency.assumptions
    rows += [("assumed", note) for note in notes]
    title = f"{chip.searched.cores} cores on {chip.searched.chips} {chip.mapping.chip.title}"
    parts = [table((title, ""), rows)]
    loads = core_loads(chip.mapping, result.counter, hardware.preset)
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
    heads = [
        *("neurons", "synapses", "cores", "synaptic events", "MACs", "dynamic operations", "updates", "messages"),
        *("hops", "rate", "spikes per synapse", *(f"{share} uJ" for share in SHARES), "uJ"),
    ]
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
    holds = {True: "yes", False: "NO", None: "-"}
    rows = [(str(r.get("name", "")), holds.get(r.get("passed"), "-"), str(r.get("summary", ""))) for r in rungs]
    return Section("Verification, as written by dsf-export", table(("rung", "holds", "figures"), rows))


def _provenance_section(network: Network) -> Section:
    rows = [(key, json.dumps(value, default=str)) for key, value in sorted(network.provenance.items())]
    return Section("Where the network comes from", table(("what", "value"), rows))

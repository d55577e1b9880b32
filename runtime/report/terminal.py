"""The closed-loop report: one record, printed as tables and written as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from dsf.export.network.network import Mode
from dsf.hardware_models.layers import SHARES, LayerRow, by_part, together
from dsf.hardware_models.preset import GRADES, NANOSECOND
from dsf.runtime.loop.closed_loop import LoopSettings
from dsf.runtime.loop.real_time import MILLISECOND, QUANTILES, timing_figures
from dsf.runtime.loop.results import ClosedLoopResult
from dsf.runtime.report.hardware import HardwareFigures
from dsf.tasks import Episode, mean_confidence_interval

MICROJOULE = MICROSECOND = 1e-6
SHOWN_TERMS = 3
"""The largest ones of a sum; JSON holds all."""
LOAD_ROWS = ("busiest core: events, updates per tick", "busiest core, mean tick")
"""Without and with times."""
COUNT_COLUMNS = ("events", "macs", "updates", "messages", "hops")
"""Of a layer, see :class:`~dsf.hardware_models.layers.LayerRow`."""
SHOWN_EDGES = 12
"""The busiest ones between cores; JSON holds all."""
TIME_ROWS = (
    *("time per decision", "what binds", "busiest core", "real time", "without a time"),
    *("energy-delay product", "static energy while deciding"),
)


def summarise(
    settings: LoopSettings,
    backend: str,
    mode: Mode,
    result: ClosedLoopResult,
    hardware: list[HardwareFigures],
    comparison: dict[str, list[Episode]],
) -> dict[str, Any]:
    """The run as JSON values with stable keys; scores are null where the environment has no reference."""
    interval = mean_confidence_interval([episode.episode_return for episode in result.episodes])
    task, activity = settings.task, result.activity
    score = task.score if task.reference else lambda _return: None
    return {
        "task": task.name,
        "env_id": task.env_id,
        "backend": backend,
        "mode": mode,
        "target_return": settings.target_return,
        "decisions": result.decisions,
        "episodes": [
            {
                "seed": episode.seed,
                "return": episode.episode_return,
                "score": score(episode.episode_return),
                "decisions": episode.decisions,
                "spikes": spikes,
                **({} if episode.success is None else {"success": episode.success, "shortest": episode.shortest}),
            }
            for episode, spikes in zip(result.episodes, result.episode_spikes)
        ],
        "return_mean": interval.mean,
        "return_interval_95": [interval.low, interval.high],
        "score_mean": score(interval.mean),
        "score_label": task.score_label if task.reference else None,
        "decisions_per_second": result.decisions_per_second,
        "ticks_per_second": result.ticks / result.seconds,
        "seconds": result.seconds,
        "spikes_per_decision": sum(result.episode_spikes) / result.decisions,
        "synaptic_events_per_decision": activity.per_decision("synaptic_events"),
        "firing_rate": activity.firing_rate,
        "energy": {figures.preset.name: figures.to_json(task) for figures in hardware},
        "parity": {
            "compared_spikes": result.parity.compared_spikes,
            "compared_accumulators": result.parity.compared_accumulators,
            "mismatches": result.parity.mismatches,
            "accumulator_mismatches": result.parity.accumulator_mismatches,
            "first_mismatch": result.parity.first_mismatch,
        },
        "real_time": None if settings.clock is None else timing_figures(settings.clock, result.timings),
        "comparison": {
            name: [{"seed": episode.seed, "return": episode.episode_return} for episode in episodes]
            for name, episodes in comparison.items()
        },
    }


def print_report(summary: dict[str, Any], console: Console) -> None:
    """The run for a person."""
    table = Table(
        title=f"{summary['env_id']}, closed loop, target return {summary['target_return']:.0f}", title_justify="left"
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    low, high = summary["return_interval_95"]
    parity = summary["parity"]
    episodes = summary["episodes"]
    interval = f"[{low:.1f}, {high:.1f}]" if len(episodes) > 1 else "(one episode)"
    rows = {
        "backend, mode": f"{summary['backend']}, {summary['mode']}",
        "episodes (seeds)": f"{len(episodes)} ({episodes[0]['seed']}..{episodes[-1]['seed']})",
        "return, mean [95 %]": f"{summary['return_mean']:.1f} {interval}",
        **_score_row(summary),
        "decisions": f"{summary['decisions']}",
        "spikes per decision": f"{summary['spikes_per_decision']:,.0f}",
        "synaptic events per decision": f"{summary['synaptic_events_per_decision']:,.0f}",
        "firing rate (per neuron and tick)": f"{summary['firing_rate']:.2%}",
        "decisions per second": f"{summary['decisions_per_second']:.0f}",
        "simulated ticks per second": f"{summary['ticks_per_second']:.0f}",
        "wall time": f"{summary['seconds']:.1f} s",
        **_clock_rows(summary["real_time"]),
        "spikes compared with the reference": f"{parity['compared_spikes']:,}",
        "populations compared": f"{len(parity['populations'])} of {parity['spiking_populations']}",
        "mismatches (spikes, accumulators)": f"{parity['mismatches']}, {parity['accumulator_mismatches']}",
    }
    if not parity["compared_accumulators"]:
        rows |= dict.fromkeys(("populations compared", "mismatches (spikes, accumulators)"), "not checked")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print(_energy_table(summary["energy"]))
    for preset in _presets_by_layer(summary["energy"]):
        for by_layer in layer_tables(preset, summary["energy"][preset]["layer_table"]):
            console.print(by_layer)
    cores = _cores_table(summary["energy"])
    if cores is not None:
        console.print(cores)
    if summary["comparison"]:
        console.print(_comparison_table(summary))
    if "core_traffic" in summary:
        print_core_traffic(summary["core_traffic"], console)


def _score_row(summary: dict[str, Any]) -> dict[str, str]:
    """Nothing, for an environment without reference returns."""
    label = summary["score_label"]
    return {} if label is None else {f"{label} score": f"{summary['score_mean']:.1f}"}


def _clock_rows(figures: dict[str, Any] | None) -> dict[str, str]:
    """Of a run in real time."""
    if figures is None:
        return {}

    def spread(milliseconds: dict[str, float]) -> str:
        return " / ".join(f"{milliseconds[name]:.2f}" for name in QUANTILES) + " ms"

    return {
        "control period": f"{figures['control_period_s'] / MILLISECOND:g} ms, on a miss {figures['on_deadline_miss']}",
        "periods, deadline misses": f"{figures['periods']}, {figures['deadline_misses']}",
        "episodes stopped by a miss": f"{figures['safe_stops']}",
        f"decision latency, {' / '.join(QUANTILES)}": spread(figures["decision_latency_ms"]),
        f"jitter of the period, {' / '.join(QUANTILES)}": spread(figures["jitter_ms"]),
    }


def print_core_traffic(traffic: dict[str, Any], console: Console) -> None:
    """The busiest edges between cores, and where Lava's processes would be."""
    edges = traffic["edges"]
    table = Table(title=f"messages per decision between cores of {traffic['chip']}", title_justify="left")
    for heading in ("from core", "to core", "spikes", "graded"):
        table.add_column(heading, justify="right")
    for edge in edges[:SHOWN_EDGES]:
        counts = (f"{edge[f'{kind}_per_decision']:,.0f}" for kind in ("spikes", "graded"))
        table.add_row(f"{edge['source']}", f"{edge['target']}", *counts)
    table.caption = f"the {min(SHOWN_EDGES, len(edges))} busiest of {len(edges)} edges; --json has all"
    console.print(table)
    placed = {process: cores for process, cores in traffic["processes"].items() if cores}
    lines = [f"{process}: {', '.join(map(str, cores))}" for process, cores in placed.items()]
    if lines:
        console.print("Lava processes and their cores:", "; ".join(lines), soft_wrap=True)


def _energy_table(energy: dict[str, Any]) -> Table:
    grades = sorted({values["grade"] for values in energy.values()})
    unpriced = (
        f"{preset} has no price for {_listed(values['unpriced_per_decision'])}"
        for preset, values in energy.items()
        if values["unpriced_per_decision"]
    )
    static = (
        f"{preset} burns {_microjoules(values['static_joules_per_control_period'])} of static energy per control "
        "period, not included"
        for preset, values in energy.items()
        if values["static_joules_per_control_period"]
    )
    table = Table(
        title="energy per decision: an estimate, counted events x published prices",
        title_justify="left",
        caption="\n".join(["; ".join(f"grade {grade}: {GRADES[grade]}" for grade in grades), *unpriced, *static]),
        caption_justify="left",
    )
    table.add_column("hardware preset", no_wrap=True)
    table.add_column("uJ", justify="right", no_wrap=True)
    table.add_column("low .. high", justify="right", no_wrap=True)
    table.add_column("grade")
    table.add_column("most of it")
    for preset, values in energy.items():
        table.add_row(
            preset,
            f"{values['joules_per_decision'] / MICROJOULE:.2f}",
            f"{values['low'] / MICROJOULE:.2f} .. {values['high'] / MICROJOULE:.2f}",
            values["grade"],
            _shares(values["terms"], values["joules_per_decision"]),
        )
    return table


def _presets_by_layer(energy: dict[str, Any]) -> list[str]:
    """Those with a chip, whose cores and hops differ; without any, the last one. JSON and HTML have all."""
    return [preset for preset, values in energy.items() if "cores" in values] or list(energy)[-1:]


def layer_tables(preset: str, layers: list[dict[str, Any]]) -> tuple[Table, Table]:
    """Sizes and counts, and what is spent on them: two tables, so that a narrow terminal holds them."""
    names = [field.name for field in dataclasses.fields(LayerRow)]
    rows = by_part(LayerRow(**{name: values[name] for name in names}) for values in layers)
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
    """Of a sum, the largest first."""
    largest = sorted(terms.items(), key=lambda item: -item[1])[:SHOWN_TERMS]
    return ", ".join(f"{value / total:.0%} {_words(name)}" for name, value in largest if total)


def _cores_table(energy: dict[str, Any]) -> Table | None:
    """Cores and latency, a column for each preset with a chip; None where there is none."""
    placed = {preset: values for preset, values in energy.items() if "cores" in values}
    if not placed:
        return None
    latencies = [values["latency"] for values in placed.values() if "latency" in values]
    notes = [note for values in placed.values() for note in values["cores"]["assumptions"]]
    notes += [note for latency in latencies for note in latency["assumptions"]]
    notes += [f"{preset}: {line}" for preset, values in placed.items() for line in values["cores"]["fit"][1:]]
    table = Table(
        title="on the chip: a model of the busiest core, tick by tick",
        title_justify="left",
        caption="; ".join(dict.fromkeys(notes)),
        caption_justify="left",
    )
    table.add_column("figure")
    for preset in placed:
        table.add_column(preset)
    columns = [chip_rows(values["cores"], values.get("latency")) for values in placed.values()]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "-") for column in columns))
    return table


def chip_rows(cores: dict[str, Any], latency: dict[str, Any] | None) -> dict[str, str]:
    """One preset's column: the mapping that was searched, and the naive one beside it."""
    searched, naive = cores["searched"], cores["in_order"]

    def load(figures: dict[str, Any]) -> str:
        return f"{figures['load']:,.0f}" if latency is None else f"{figures['load'] * NANOSECOND / MICROSECOND:.1f} us"

    found = {
        "one chip": cores["fit"][0],
        "cores, chips": f"{searched['cores']} of {cores['chip']}, {searched['chips']} (in order: {naive['cores']})",
        "messages per decision": f"{searched['messages']:,.0f} (in order: {naive['messages']:,.0f})",
        "hops per decision": f"{searched['hops']:,.0f} (in order: {naive['hops']:,.0f})",
        LOAD_ROWS[latency is not None]: f"{load(searched)} (in order: {load(naive)})",
    }
    if latency is None:
        return found | dict.fromkeys(TIME_ROWS, "no times known")
    mean = latency["mean"]
    low, nominal, high = (mean[level] / MICROSECOND for level in ("low", "nominal", "high"))
    values = (
        f"{nominal:.0f} us ({low:.0f} .. {high:.0f}), {latency['ticks']:.0f} ticks, grade {latency['grade']}",
        _shares(latency["terms"], mean["nominal"]),
        f"{', '.join(latency['busiest_populations'])} ({latency['busiest_share']:.0%} of the time)",
        latency["verdict"],
        _listed(latency["untimed"]) or "-",
        f"{latency['energy_delay_js']['nominal']:.2g} J s",
        _microjoules(latency["static_joules"]),
    )
    return found | dict(zip(TIME_ROWS, values, strict=True))


def _microjoules(band: dict[str, float] | None) -> str:
    return "not known" if band is None else f"{band['nominal'] / MICROJOULE:,.1f} uJ"


def _comparison_table(summary: dict[str, Any]) -> Table:
    table = Table(title="the same seeds under every level", title_justify="left")
    table.add_column("seed", justify="right")
    for name in summary["comparison"]:
        table.add_column(name, justify="right")
    table.add_column(summary["backend"], justify="right")
    for row, episode in enumerate(summary["episodes"]):
        others = [f"{episodes[row]['return']!r}" for episodes in summary["comparison"].values()]
        table.add_row(str(episode["seed"]), *others, f"{episode['return']!r}")
    return table

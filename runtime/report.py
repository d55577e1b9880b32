"""The closed-loop report: one record, printed as tables and written as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from dsf.hardware_models import EnergyEstimate
from dsf.hardware_models.preset import GRADES
from dsf.runtime.closed_loop import ClosedLoopResult
from dsf.runtime.fast_engine import Mode
from dsf.tasks import Episode, Task, mean_confidence_interval

MICROJOULE = 1e-6
SHOWN_EDGES = 12


def summarise(
    task: Task,
    backend: str,
    mode: Mode,
    target_return: float,
    result: ClosedLoopResult,
    energies: list[EnergyEstimate],
    comparison: dict[str, list[Episode]],
) -> dict[str, Any]:
    """The run as JSON values with stable keys."""
    interval = mean_confidence_interval([episode.episode_return for episode in result.episodes])
    activity = result.activity
    return {
        "task": task.name,
        "env_id": task.env_id,
        "backend": backend,
        "mode": mode,
        "target_return": target_return,
        "episodes": [
            {
                "seed": episode.seed,
                "return": episode.episode_return,
                "score": task.score(episode.episode_return),
                "decisions": episode.decisions,
                "spikes": spikes,
            }
            for episode, spikes in zip(result.episodes, result.episode_spikes)
        ],
        "return_mean": interval.mean,
        "return_interval_95": [interval.low, interval.high],
        "score_mean": task.score(interval.mean),
        "score_label": task.score_label,
        "decisions_per_second": result.decisions_per_second,
        "ticks_per_second": result.ticks / result.seconds,
        "seconds": result.seconds,
        "spikes_per_decision": sum(result.episode_spikes) / result.decisions,
        "synaptic_events_per_decision": activity.per_decision("synaptic_events"),
        "firing_rate": activity.firing_rate,
        "energy": {
            energy.preset: {
                "joules_per_decision": energy.nominal,
                "low": energy.low,
                "high": energy.high,
                "grade": energy.grade,
                "unpriced_per_decision": energy.unpriced,
                "layers": {layer.node: layer.nominal for layer in energy.layers},
            }
            for energy in energies
        },
        "parity": {
            "compared_spikes": result.parity.compared_spikes,
            "compared_accumulators": result.parity.compared_accumulators,
            "mismatches": result.parity.mismatches,
            "accumulator_mismatches": result.parity.accumulator_mismatches,
            "first_mismatch": result.parity.first_mismatch,
        },
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
        f"{summary['score_label']} score": f"{summary['score_mean']:.1f}",
        "decisions": f"{sum(episode['decisions'] for episode in episodes)}",
        "spikes per decision": f"{summary['spikes_per_decision']:,.0f}",
        "synaptic events per decision": f"{summary['synaptic_events_per_decision']:,.0f}",
        "firing rate (per neuron and tick)": f"{summary['firing_rate']:.2%}",
        "decisions per second": f"{summary['decisions_per_second']:.0f}",
        "simulated ticks per second": f"{summary['ticks_per_second']:.0f}",
        "wall time": f"{summary['seconds']:.1f} s",
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
    if summary["comparison"]:
        console.print(_comparison_table(summary))


def print_core_traffic(traffic: dict[str, Any], console: Console) -> None:
    """The busiest edges between cores, and where Lava's processes would be."""
    edges = traffic["edges"]
    table = Table(title=f"messages per decision between cores of {traffic['chip']}", title_justify="left")
    for heading in ("from core", "to core", "links", "spikes", "graded"):
        table.add_column(heading, justify="right")
    for edge in edges[:SHOWN_EDGES]:
        counts = (f"{edge[f'{kind}_per_decision']:,.0f}" for kind in ("spikes", "graded"))
        table.add_row(f"{edge['source']}", f"{edge['target']}", f"{edge['links']:,}", *counts)
    table.caption = f"the {min(SHOWN_EDGES, len(edges))} busiest of {len(edges)} edges; --json has all"
    console.print(table)
    placed = {process: cores for process, cores in traffic["processes"].items() if cores}
    lines = [f"{process}: {', '.join(map(str, cores))}" for process, cores in placed.items()]
    if lines:
        console.print("Lava processes and their cores:", "; ".join(lines), soft_wrap=True)


def _energy_table(energy: dict[str, Any]) -> Table:
    grades = sorted({values["grade"] for values in energy.values()})
    table = Table(
        title="energy per decision: an estimate, counted events x published prices",
        title_justify="left",
        caption="; ".join(f"grade {grade}: {GRADES[grade]}" for grade in grades),
        caption_justify="left",
    )
    table.add_column("hardware preset")
    table.add_column("uJ", justify="right")
    table.add_column("low .. high", justify="right")
    table.add_column("grade")
    table.add_column("counted, but without a price")
    for preset, values in energy.items():
        unpriced = values["unpriced_per_decision"].items()
        table.add_row(
            preset,
            f"{values['joules_per_decision'] / MICROJOULE:.2f}",
            f"{values['low'] / MICROJOULE:.2f} .. {values['high'] / MICROJOULE:.2f}",
            values["grade"],
            "\n".join(f"{count:,.0f} {name.replace('_', ' ')}" for name, count in unpriced) or "-",
        )
    return table


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

"""Figures of the HTML report, drawn by matplotlib into SVG text."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("agg")

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dsf.export.network.network import Network
from dsf.hardware_models import Activity, EnergyEstimate, NetworkMapping
from dsf.hardware_models.activity import QUANTITIES
from dsf.hardware_models.latency import Floorline
from dsf.runtime.engines.parity import Spikes
from dsf.shell.plain_text import figure_text
from dsf.shell.units import MICROJOULE, MICROSECOND

WIDTH_IN = 9.0
ROW_IN = 0.28
"""Height of one bar (inches)."""
STYLE = {
    "svg.hashsalt": "dsf",  # the same figure is the same text
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def svg(figure: Figure) -> str:
    """The figure as an <svg> element; the figure is closed."""
    text = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _figure(height: float, columns: int = 1) -> tuple[Figure, Any]:
    with plt.rc_context(STYLE):
        return plt.subplots(1, columns, figsize=(WIDTH_IN, height))


def reward_curve(rewards: npt.NDArray[np.float64], target_return: float, period_s: float) -> str:
    """Return so far over an episode, and the return asked for; over steps where the control period is not known."""
    figure, axes = _figure(2.6)
    timed = math.isfinite(period_s)
    moments = (period_s if timed else 1.0) * np.arange(1, len(rewards) + 1)
    axes.plot(moments, np.cumsum(rewards), label="earned")
    axes.axhline(target_return, color="0.5", linestyle="--", linewidth=1, label="asked for")
    axes.set(xlabel="simulated time (s)" if timed else "step", ylabel="return")
    axes.legend(frameon=False)
    return svg(figure)


def spike_raster(network: Network, spikes: Sequence[Spikes]) -> str:
    """Every neuron of every population over some decisions; a tick per column."""
    figure, axes = _figure(5.5)
    draw_spikes(axes, network, spikes)
    return svg(figure)


def draw_spikes(axes: Any, network: Network, spikes: Sequence[Spikes]) -> None:
    """:func:`spike_raster` into axes of a figure of one's own."""
    populations = list(spikes[0])
    image = np.concatenate([np.concatenate([token[name] for token in spikes]).T for name in populations])
    sizes = [spikes[0][name].shape[1] for name in populations]
    axes.imshow(image != 0, aspect="auto", cmap="Greys", interpolation="nearest", rasterized=True)
    edges = np.cumsum([0, *sizes])
    axes.set_yticks((edges[:-1] + edges[1:]) / 2, [*map(figure_text, populations)], fontsize=7)
    for edge in edges[1:-1]:
        axes.axhline(edge - 0.5, color="tab:blue", linewidth=0.4)
    decisions = np.arange(0, len(spikes), max(1, len(spikes) // 8))
    axes.set_xticks(decisions * network.ticks, decisions)
    axes.set_xlabel(f"decision ({network.ticks} ticks each)")
    axes.grid(False)


def firing_rates(activity: Activity) -> str:
    """Firing rates of every population that fires, per neuron and tick."""
    nodes = [node for node in activity.nodes if node.spikes or node.kind == "LIF"]
    figure, axes = _figure(ROW_IN * len(nodes) + 0.6)
    axes.barh(
        [figure_text(node.node) for node in nodes], [100 * activity.rate(node) for node in nodes], color="tab:blue"
    )
    axes.invert_yaxis()
    axes.set_xlabel("firing rate (%)")
    return svg(figure)


def energy_by_layer(energy: EnergyEstimate) -> str:
    """One bar per layer, split by what was priced."""
    names = [figure_text(layer.node) for layer in energy.layers]
    figure, axes = _figure(ROW_IN * len(names) + 0.8)
    left = np.zeros(len(names))
    for quantity in energy.terms:
        found = [layer.terms.get(quantity) for layer in energy.layers]
        width = np.array([0.0 if band is None else band.nominal / MICROJOULE for band in found])
        colour = plt.get_cmap("tab20")(list(QUANTITIES).index(quantity))
        axes.barh(names, width, left=left, color=colour, label=quantity.replace("_", " "))
        left += width
    axes.invert_yaxis()
    axes.set_xlabel(f"uJ per decision, preset {figure_text(energy.preset)} (grade {energy.grade})")
    axes.legend(frameon=False, fontsize=7)
    return svg(figure)


def energy_bands(energies: Sequence[EnergyEstimate]) -> str:
    """Low, nominal and high of every preset."""
    figure, axes = _figure(ROW_IN * len(energies) + 0.8)
    names = [f"{figure_text(energy.preset)} ({energy.grade})" for energy in energies]
    nominal = np.array([energy.nominal for energy in energies]) / MICROJOULE
    low = np.array([energy.low for energy in energies]) / MICROJOULE
    high = np.array([energy.high for energy in energies]) / MICROJOULE
    bars = [(nominal - low).tolist(), (high - nominal).tolist()]  # lists: of arrays of one number matplotlib warns
    axes.errorbar(nominal, names, xerr=bars, fmt="o", capsize=3)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="uJ per decision: low, nominal, high; grade in brackets")
    return svg(figure)


def returns_by_level(levels: dict[str, list[float]]) -> str:
    """A point per episode, a line per level."""
    figure, axes = _figure(0.5 * len(levels) + 0.8)
    for row, returns in enumerate(levels.values()):
        axes.plot(returns, np.full(len(returns), row), "o", alpha=0.6)
        axes.plot(np.mean(returns), row, "k|", markersize=16)
    axes.set_yticks(range(len(levels)), [*map(figure_text, levels)])
    axes.set(xlabel="return of an episode (bar: mean)", ylim=(len(levels) - 0.5, -0.5))
    return svg(figure)


def core_mesh(mapping: NetworkMapping, loads: npt.NDArray[np.float64], unit: str) -> str:
    """Every chip's tiles with the loads of their cores side by side; grey places are free."""
    chips, per_tile = mapping.placement.chips, mapping.chip.cores_per_tile.value or 1
    columns, rows = mapping.chip.tiles_x.value or 1, mapping.chip.tiles_y.value or 1
    side = math.ceil(math.sqrt(per_tile))
    image = np.full((chips, rows * side, columns * side), np.nan)
    taken: Counter[tuple[int, int, int]] = Counter()
    for core, (x, y), load in zip(mapping.placement.cores, mapping.tiles, loads):
        down, across = divmod(taken[core.chip, x, y], side)
        taken[core.chip, x, y] += 1
        image[core.chip, y * side + down, x * side + across] = load
    figure, axes = _figure(2.6, chips)
    shown = [axes] if chips == 1 else list(axes)
    for chip, panel in enumerate(shown):
        panel.set_facecolor("0.92")
        drawn = panel.imshow(image[chip], cmap="viridis", vmin=0, vmax=float(np.nanmax(image)), interpolation="nearest")
        panel.set_xticks(np.arange(columns) * side - 0.5, range(columns))
        panel.set_yticks(np.arange(rows) * side - 0.5, range(rows))
        panel.grid(True, color="white")
        panel.set_title(f"chip {chip}: tiles of {per_tile} cores", fontsize=9)
    figure.colorbar(drawn, ax=axes, label=f"load per tick ({unit})", shrink=0.7)
    return svg(figure)


def floorline(points: Floorline) -> str:
    """Time of every tick against the most synaptic events, and the most messages, in any core, each with the line that
    no tick can fall below.
    """
    figure, axes = _figure(3.0, 2)
    work = (
        ("synaptic events", points.synaptic_events, points.event_s),
        ("messages sent", points.messages, points.message_s),
    )
    for panel, (name, counts, each_s) in zip(axes, work):
        panel.plot(counts, points.seconds / MICROSECOND, ".", markersize=3, alpha=0.4, label="ticks", rasterized=True)
        if each_s is not None:
            most = np.linspace(0, max(int(counts.max()), 1))
            floor = (points.floor_s + most * each_s) / MICROSECOND
            panel.plot(most, floor, "k-", linewidth=1, label="their time and the barrier")
        panel.set(xlabel=f"most {name} of a core in a tick", ylabel="us per tick", ylim=(0, None))
        panel.legend(frameon=False)
    figure.tight_layout()
    return svg(figure)

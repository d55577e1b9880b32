"""What a run would cost on hardware: energy under every preset, and cores and latency where its chip is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import SPIKING_KINDS
from dsf.export.network.reference import WindowReference
from dsf.export.placement.chips import get_chip
from dsf.export.placement.placement import place
from dsf.hardware_models import (
    EnergyEstimate,
    Fit,
    Latency,
    MappingFigures,
    NetworkMapping,
    Preset,
    SpikeCounter,
    estimate_energy,
    estimate_latency,
    fit,
    map_in_order,
    measure_activity,
    measure_mapping,
    search_mapping,
)
from dsf.hardware_models.energy import Band
from dsf.hardware_models.latency import LEVELS
from dsf.hardware_models.layers import LayerRow, layer_rows
from dsf.hardware_models.weight_memory import USUAL, WeightMemory, Weights
from dsf.runtime.engines.parity import Spikes, reference_engine
from dsf.shell.arrays import Int64Array, IntArray
from dsf.tasks import Task

SAMPLED_DECISIONS = {"stream": 200, "window": 40}
"""Decisions of the first episode whose ticks are timed one by one."""
MAPPING_SEED = 0


@dataclass(frozen=True)
class OnChip:
    """A network on the cores of a preset's chip.

    Attributes:
        fit: whether one chip holds it, and if not, what would help.
        naive: figures of the placement in order.
        searched: figures of the mapping that counts.
        mapping: that one.
        latency: of it; None where the preset has no times.
    """

    fit: Fit
    naive: MappingFigures
    searched: MappingFigures
    mapping: NetworkMapping
    latency: Latency | None


@dataclass(frozen=True)
class HardwareFigures:
    """A run under one preset.

    Attributes:
        preset: whose prices count.
        energy: per decision; where there is a mapping, with its messages and hops, and with the updates of neurons that
            wait in the pipeline whose time ``on_chip.latency`` counts.
        on_chip: None where the preset names no chip.
        layers: the same run, node by node.
        weight_bytes: fetched per decision, whether they have a price of their own or not.
    """

    preset: Preset
    energy: EnergyEstimate
    on_chip: OnChip | None
    layers: list[LayerRow]
    weight_bytes: float

    @property
    def latency(self) -> Latency | None:
        """Time per decision on the mapping that counts; None where there is no chip, or no times of it."""
        return None if self.on_chip is None else self.on_chip.latency

    def static_energy(self, task: Task) -> Band | None:
        """Joules of all chips in use (without a mapping, of one) that do nothing for a control period."""
        watts, period = self.preset.static_w, task.control_period_s
        if watts is None or not math.isfinite(period):
            return None
        seconds = period * (1 if self.on_chip is None else self.on_chip.mapping.placement.chips)
        return Band(*(getattr(watts, level) * seconds for level in LEVELS))

    def to_json(self, task: Task) -> dict[str, Any]:
        """JSON values."""
        energy, chip, static = self.energy, self.on_chip, self.static_energy(task)
        found: dict[str, Any] = {
            "joules_per_decision": energy.nominal,
            "low": energy.low,
            "high": energy.high,
            "grade": energy.grade,
            "terms": {name: band.nominal for name, band in energy.terms.items()},
            "layers": {layer.node: layer.nominal for layer in energy.layers},
            "layer_table": [_layer_json(row) for row in self.layers],
            "unpriced_per_decision": energy.unpriced,
            "included": energy.included,
            "memory": dataclasses.asdict(energy.memory),
            "weight_bytes_per_decision": self.weight_bytes,
            "static_joules_per_control_period": None if static is None else dataclasses.asdict(static),
        }
        if chip is not None:
            found["cores"] = {
                "chip": chip.mapping.chip.name,
                "fit": chip.fit.lines(),
                "counted_on": "searched",
                "in_order": dataclasses.asdict(chip.naive),
                "searched": dataclasses.asdict(chip.searched),
                "assumptions": chip.mapping.assumptions,
            }
        if self.latency is not None:
            found["latency"] = _latency_json(self.latency, energy, task)
        return found


def _layer_json(row: LayerRow) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "rate": row.rate, "spikes_per_synapse": row.spikes_per_synapse}


def _latency_json(latency: Latency, energy: EnergyEstimate, task: Task) -> dict[str, Any]:
    """Without the ticks of the floorline."""
    values = {name: value for name, value in latency.to_json().items() if name != "floorline"}
    static = latency.static_energy()
    return {
        **values,
        "verdict": real_time_verdict(latency, task),
        "energy_delay_js": dataclasses.asdict(latency.energy_delay(energy.total)),
        "static_joules": None if static is None else dataclasses.asdict(static),
    }


def real_time_verdict(latency: Latency, task: Task) -> str:
    """Whether a task's control period leaves the time, in words; an environment need not state one."""
    if not math.isfinite(task.control_period_s):
        return f"not known: {task.env_id} states no control period"
    return latency.verdict(task.control_period_s)


def price_run(
    network: Network,
    mode: Mode,
    counter: SpikeCounter,
    tokens: IntArray,
    presets: Sequence[Preset],
    memory: WeightMemory = USUAL,
) -> list[HardwareFigures]:
    """A run under some presets.

    Args:
        network: that ran.
        mode: in which it ran.
        counter: of the whole run.
        tokens: (decisions, features) encoder integers of one episode from its start, for the latency.
        presets: to price it with.
        memory: how weights are kept and fetched. A chip's cores fetch event by event, whatever is asked for, and so
            does a preset in whose price of an event the fetch is.

    Raises:
        NetworkError: a single neuron exceeds a core of a preset's chip.
        UserError: rows are fetched token by token, and the counter does not know in which tokens neurons fired.
    """
    plain = measure_activity(counter, memory)
    by_event = measure_activity(counter, dataclasses.replace(memory, fetch="event"))
    decisions = replay_spikes(network, mode, tokens) if any(preset.time_ns for preset in presets) else []
    found = []
    for preset in presets:
        chip = None if preset.chip is None else _place(network, counter, preset, decisions, memory.weights)
        activity = by_event if "weight_bytes" in preset.included else plain
        if chip is not None:
            activity = chip.mapping.activity(counter, "pipelined")
        energy = estimate_energy(activity, preset)
        rows = layer_rows(network, activity, energy, None if chip is None else chip.mapping)
        found.append(HardwareFigures(preset, energy, chip, rows, activity.per_decision("weight_bytes")))
    return found


def _place(
    network: Network, counter: SpikeCounter, preset: Preset, decisions: Sequence[Spikes], weights: Weights
) -> OnChip:
    assert preset.chip is not None
    chip = get_chip(preset.chip)
    naive = map_in_order(network, chip, weights=weights)
    mapping = search_mapping(network, chip, counter, preset, seed=MAPPING_SEED, weights=weights)
    return OnChip(
        fit(network, chip),
        measure_mapping(naive, counter, preset),
        measure_mapping(mapping, counter, preset),
        mapping,
        estimate_latency(mapping, preset, decisions) if preset.time_ns else None,
    )


def require_cores(network: Network, presets: Sequence[Preset]) -> None:
    """Refuse before a run what :func:`price_run` would refuse after it.

    Raises:
        NetworkError: a single neuron exceeds a core of a preset's chip.
    """
    for name in dict.fromkeys(preset.chip for preset in presets if preset.chip is not None):
        place(network, get_chip(name))


def replay_spikes(network: Network, mode: Mode, tokens: IntArray) -> list[Spikes]:
    """Spikes of an episode's first decisions, on the reference: (ticks, neurons) per population, in window mode
    (ticks, tokens, neurons) of all tokens.
    """
    engine, found = reference_engine(network, mode), []
    firing = {node.name for node in network.nodes if isinstance(node, SPIKING_KINDS)}
    for graded in tokens[: SAMPLED_DECISIONS[mode]]:
        spikes: Spikes = {}

        def observe(name: str, values: Int64Array, spikes: Spikes = spikes) -> None:
            if name in firing:
                spikes[name] = values[..., 0, :]  # the only lane

        if isinstance(engine, WindowReference):
            engine.step_graded(graded[None], observe, whole=True)
        else:
            engine.step_graded(graded[None], observe)
        found.append(spikes)
    return found

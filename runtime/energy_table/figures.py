"""What ``dsf-bench energy-table`` works out: the paper's table by formula, dense rivals, savings under every preset."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dsf.export.network.network import Mode, Network
from dsf.export.network.reference import decode, encode
from dsf.hardware_models import (
    Activity,
    EnergyEstimate,
    Preset,
    SpikeCounter,
    estimate_energy,
    load_preset,
    measure_activity,
    preset_names,
)
from dsf.hardware_models.dense import (
    CACHED,
    WINDOW,
    BreakEven,
    DenseWeights,
    Rival,
    Schedule,
    break_even,
    decision_transformer,
    dense_equivalent,
    rival_transformer,
    rival_twin,
    rivals,
)
from dsf.hardware_models.paper_table import (
    PAPER_SAVING,
    Arithmetic,
    PaperRow,
    Rates,
    Sizes,
    paper_arithmetic,
    paper_rows,
)
from dsf.hardware_models.weight_memory import FETCHES, WEIGHTS, WeightMemory
from dsf.runtime.engines.interface import BackendName
from dsf.runtime.open_engine import open_engine
from dsf.tasks import Task
from dsf.tasks.lane import Lane, stack_tokens
from dsf.tasks.registry import described_task

OPPONENTS: dict[Mode, Schedule] = {"window": WINDOW, "stream": CACHED}
"""What a Decision Transformer does beside each mode of the spiking network."""
MEMORY_PRESETS = ("int8_45nm", "int8_45nm_1mb", "dense_7nm")
"""Those that price a byte of weights."""
FEWER_BITS = 4
"""Of dense rivals whose weights are packed: nobody has trained them here, it is what they would cost."""


@dataclass(frozen=True)
class Versus:
    """The spiking network against the int8 Decision Transformer of its size, under one preset.

    Attributes:
        preset: name.
        mode: of the spiking network; window faces a window, stream a cache.
        spiking: its energy.
        dense: the Decision Transformer's energy; None where the preset has no price for a multiply-accumulate.
    """

    preset: str
    mode: Mode
    spiking: EnergyEstimate
    dense: EnergyEstimate | None

    @property
    def saving(self) -> float | None:
        """Share of the dense energy that spikes save, at nominal prices; below 0 they cost more."""
        return None if self.dense is None else 1 - self.spiking.nominal / self.dense.nominal


@dataclass(frozen=True)
class Fetched:
    """One way to keep and fetch weights, of the spiking network in stream mode or of a dense rival.

    Attributes:
        name: for tables.
        activity: of a run, or of one decision.
    """

    name: str
    activity: Activity


@dataclass(frozen=True)
class EnergyTable:
    """All figures.

    Attributes:
        rows: the paper's table.
        arithmetic: prices behind the rows, by width.
        versus: savings, preset by preset.
        rivals: dense ways to a decision.
        verdicts: break-even bounds.
        counters: what the spiking network did, by mode.
        fetched: ways to keep and fetch weights.
    """

    rows: list[PaperRow]
    arithmetic: dict[str, Arithmetic]
    versus: list[Versus]
    rivals: list[Rival]
    verdicts: list[BreakEven]
    counters: dict[Mode, SpikeCounter]
    fetched: list[Fetched]

    @property
    def savings(self) -> dict[str, float]:
        """The headline: as printed, and by formula under the paper's model and at 8 bits, spiking against dense."""
        found = {"printed": PAPER_SAVING}
        dense, spiking = (next(row for row in self.rows if row.model == model) for model in ("DT", "PSSA"))
        for spiking_width, dense_width in (("fp32", "fp32"), ("int8", "int8"), ("fp32", "int8")):
            paid = spiking.microjoules(self.arithmetic[spiking_width])
            saved = dense.microjoules(self.arithmetic[dense_width])
            assert paid is not None and saved is not None
            found[f"PSSA {spiking_width} against DT {dense_width}"] = 1 - paid / saved
        return found


def count_decisions(network: Network, decisions: int, mode: Mode, backend: BackendName) -> SpikeCounter:
    """Spikes of a closed loop that goes on, episode after episode, until so many decisions are made.

    In stream mode also the tokens in which neurons fired: engines report the present token's spikes.
    """
    task: Task = described_task(network.task, network.provenance)
    target = task.target_returns[0] if network.target_return is None else network.target_return
    lane, waking = Lane(task), SpikeCounter(network)
    try:
        with open_engine(network, backend, mode=mode) as engine:
            engine.restart_counter()
            for seed in range(decisions):  # an episode lasts one decision or more
                lane.start(seed, target)
                engine.reset(0)
                while lane.running and engine.counter.decisions < decisions:
                    graded = encode(network.encoder, stack_tokens([lane], task).vector())
                    accumulators, spikes = engine.step_graded(graded)
                    if mode == "stream":
                        waking.wake(spikes)
                    lane.step(decode(network.readout, accumulators)[0])
                if engine.counter.decisions == decisions:
                    break
            counter = engine.counter
            counter.woken = waking.woken
            return counter
    finally:
        lane.close()


def work_out(network: Network, counters: dict[Mode, SpikeCounter], pssa: Rates, tssa: Rates) -> EnergyTable:
    """Everything, from what the network did in either mode."""
    activities = {mode: measure_activity(counter) for mode, counter in counters.items()}
    dense = rivals(network)
    versus = [
        _versus(load_preset(name), mode, activities[mode], dense) for name in preset_names() for mode in activities
    ]
    rows, verdicts = paper_rows(pssa, tssa), break_even(activities["stream"], network)
    fetched = ways_to_fetch(network, counters["stream"])
    return EnergyTable(rows, paper_arithmetic(), versus, dense, verdicts, counters, fetched)


def ways_to_fetch(network: Network, counter: SpikeCounter) -> list[Fetched]:
    """The network in stream mode under every schedule, and dense rivals that keep their keys and values."""
    found = [
        Fetched(
            f"spiking, {schedule.title}, {'packed' if weights == 'packed' else 'a byte each'}",
            measure_activity(counter, WeightMemory(weights, fetch)),
        )
        for weights in WEIGHTS
        for fetch, schedule in FETCHES.items()
    ]
    for sizes in (rival_transformer(network), rival_twin(network)):
        for packing in (None, DenseWeights(FEWER_BITS)):
            rival = decision_transformer(sizes, "int8", CACHED, packing)
            found.append(Fetched(rival.name, rival.activity))
    plain = dense_equivalent(network)
    return [*found, Fetched(plain.name, plain.activity)]


def _versus(preset: Preset, mode: Mode, activity: Activity, dense: list[Rival]) -> Versus:
    rival = next(rival for rival in dense if (rival.precision, rival.schedule) == ("int8", OPPONENTS[mode]))
    priced = "macs" in preset.energy_pj
    dense_estimate = estimate_energy(rival.activity, preset) if priced else None
    return Versus(preset.name, mode, estimate_energy(activity, preset), dense_estimate)


def as_values(table: EnergyTable) -> dict[str, Any]:
    """JSON values with stable keys."""
    presets = [preset for preset in map(load_preset, preset_names()) if "macs" in preset.energy_pj]
    return {
        "paper": {"sizes": dataclasses.asdict(Sizes()), "rows": [_row_values(row, table) for row in table.rows]},
        "savings": table.savings,
        "presets": [
            {
                "preset": versus.preset,
                "mode": versus.mode,
                "spiking": _band(versus.spiking),
                "spiking_unpriced": versus.spiking.unpriced,
                "dense_int8": None if versus.dense is None else _band(versus.dense),
                "saving": versus.saving,
            }
            for versus in table.versus
        ],
        "rivals": [_rival_values(rival, presets) for rival in table.rivals],
        "fetched": [_fetched_values(way) for way in table.fetched],
        "break_even": [{**dataclasses.asdict(bound), "verdict": bound.verdict} for bound in table.verdicts],
        "decisions": {mode: counter.decisions for mode, counter in table.counters.items()},
    }


def _row_values(row: PaperRow, table: EnergyTable) -> dict[str, Any]:
    parts = {part: dataclasses.asdict(operations) for part, operations in (row.parts or {}).items()}
    energy = {f"microjoules_{width}": row.microjoules(prices) for width, prices in table.arithmetic.items()}
    return {**dataclasses.asdict(row), "parts": parts, **energy}


def _fetched_values(way: Fetched) -> dict[str, Any]:
    energy = {name: _band(estimate_energy(way.activity, load_preset(name))) for name in MEMORY_PRESETS}
    memory = dataclasses.asdict(way.activity.memory)
    return {
        "name": way.name,
        "memory": memory,
        "weight_bytes": way.activity.per_decision("weight_bytes"),
        "energy": energy,
    }


def _rival_values(rival: Rival, presets: list[Preset]) -> dict[str, Any]:
    names = ("macs", "macs_fp32", "active_updates", "weight_bytes")
    counts = {name: rival.activity.per_decision(name) for name in names}
    energy = {preset.name: _band(estimate_energy(rival.activity, preset)) for preset in presets}
    return {"name": rival.name, **counts, "key_value_bytes": rival.key_value_bytes, "energy": energy}


def _band(energy: EnergyEstimate) -> dict[str, Any]:
    return {"low": energy.low, "nominal": energy.nominal, "high": energy.high, "grade": energy.grade}

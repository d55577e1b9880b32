"""What a sweep is asked for: a YAML file as typed dataclasses, its axes multiplied out into cells.

Settings are the options of ``dsf-train`` under their names on its command line, dotted and without the dashes in front
(``model.ticks``, ``learning-rate``). Where several places set one, the later of these wins: the sweep's ``settings``,
the dataset's, the model's, the axes, an ``include`` entry's.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dsf.hardware_models.weight_memory import WeightMemory
from dsf.shell.errors import UserError
from dsf.shell.plain_text import shown

Setting = bool | int | float | str | tuple[Any, ...]
Settings = dict[str, Setting]
EnergyRule = Literal["spiking", "decision-transformer", "mlp", "layers", "none"]
CellPrecision = Literal["fp32", "int8", "trained"]
"""What a rival is scored at."""
LAYER_PRICED = ("fcnet", "spikegpt", "spikebert", "strl", "twin")
"""Policies whose products between tokens the rule "layers" knows."""
MOST_CELLS = 5_000
"""Of one sweep: each is read by the parser of dsf-train before anything runs."""
SWEEP_NAME = re.compile(r"[\w .,+-]{1,100}")
"""Names stand between the signs of a comment in documents."""
DATASET, MODEL, SEED = "dataset", "model", "seed"
"""Axes that every sweep has."""
RESERVED = {
    "dataset": "datasets",
    "seed": "seeds",
    "eval-episodes": "evaluation.episodes",
    "eval-seed": "evaluation.seed",
    "eval-every": "evaluation.every",
    "threads": "dsf-bench sweep --cores-per-cell",
    "out": "dsf-bench sweep --out",
    "resume": "nothing: interrupted cells resume by themselves",
    "task": "a dataset that carries its task (dsf-data import --task FILE.yaml)",
}
"""Options of dsf-train that are no settings, and what sets them."""
ARCHITECTURE = ("policy", "preset", "model.", "rival.", "data.")
"""Options, and beginnings of options, that say what a model is: fine-tuning cannot change them, so a training starts
from one that has the same."""
FINE_TUNED = ("model.ticks", "model.learn-thresholds")
"""The exceptions."""
RESERVED_EXPORT = ("out", "target", "episodes", "most-episodes", "target-return", "dataset")
"""Options of dsf-export that the sweep sets, so that no method can."""


@dataclass(frozen=True)
class Evaluation:
    """The protocol of every cell. The declared target return is the task's first, or the setting ``eval-targets``."""

    episodes: int = 20
    """Closed-loop episodes per training seed."""
    seed: int = 8_000
    """Reset seed of the first of them, the same for every cell."""
    every: int = 0
    """Steps between two evaluations for the best checkpoint, reported beside the last; 0 leaves it out."""

    @property
    def seeds(self) -> range:
        """Reset seeds of the episodes."""
        return range(self.seed, self.seed + self.episodes)


@dataclass(frozen=True)
class Method:
    """One value of the model axis."""

    settings: Settings = field(default_factory=dict)
    """What makes the model, as options of dsf-train."""
    export: Settings | None = None
    """Options of dsf-export: the score is then that of the exported integers. Cells that only differ here share their
    training."""
    precision: CellPrecision = "fp32"
    """int8: the score is that of the trained rival at 8-bit integers, as by dsf-train evaluate. Cells that only differ
    here share their training. trained: of the integers that quantization-aware training has trained, at its bits."""
    energy: EnergyRule = "none"
    """How a decision is priced: spiking (counts of the exported network), decision-transformer or mlp (by the trained
    model's sizes), layers (of fcnet, spikegpt, spikebert, strl, twin: by what they do in a whole window), none."""
    start: str | None = None
    """Another model of the same file, from whose checkpoint (of the same dataset and seed) the training starts, as by
    dsf-train --init."""
    takes: tuple[str, ...] = ()
    """Where another model starts from this one: axes whose values this one has, too, beside those that say what a
    model is (:data:`ARCHITECTURE`). All others are the other's alone."""


@dataclass(frozen=True)
class Layout:
    """How the cells stand in their table: one axis as columns, all others but the seed as rows."""

    columns: str = DATASET
    """Axis."""
    baseline: str | None = None
    """Model that every other one is compared with."""


@dataclass(frozen=True)
class Cell:
    """One training seed of one place in the table.

    Attributes:
        dataset: D4RL name or Minari id.
        model: name of the method.
        seed: of the training.
        axes: the other axes' values, in the sweep's order; None where a search leaves an option out.
        settings: all options of dsf-train but the reserved ones.
        export: see :attr:`Method.export`.
        precision: see :attr:`Method.precision`.
        energy: see :attr:`Method.energy`.
        evaluation: the sweep's.
        counts: the sweep's.
        start: the training that this one starts from, as the cell of its model.
    """

    dataset: str
    model: str
    seed: int
    axes: tuple[tuple[str, Setting | None], ...]
    settings: tuple[tuple[str, Setting], ...]
    export: tuple[tuple[str, Setting], ...] | None
    precision: CellPrecision
    energy: EnergyRule
    evaluation: Evaluation
    counts: WeightMemory | None = None
    start: Cell | None = None

    def value(self, axis: str) -> Setting | None:
        """Place on an axis."""
        fixed: dict[str, Setting] = {DATASET: self.dataset, MODEL: self.model, SEED: self.seed}
        return fixed[axis] if axis in fixed else dict(self.axes).get(axis)

    @property
    def label(self) -> str:
        """For people."""
        return " ".join(
            [self.dataset, self.model, *(f"{name}={value}" for name, value in self.axes), f"seed {self.seed}"]
        )


@dataclass(frozen=True)
class SweepSpec:
    """A sweep: every dataset x model x seed x value of each further axis, plus ``include``, minus ``exclude``."""

    name: str
    """Name of the table."""
    datasets: dict[str, Settings]
    """Each with the settings that only it has; in the file a plain list will do."""
    models: dict[str, Method]
    """By name."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""
    title: str = ""
    """Headline of the table."""
    notes: str = ""
    """A paragraph below it: where the budget differs from the paper's, for example."""
    settings: Settings = field(default_factory=dict)
    """Settings of every cell."""
    axes: dict[str, list[Setting]] = field(default_factory=dict)
    """Options of dsf-train, each with its values."""
    include: tuple[dict[str, Any], ...] = ()
    """Further cells: dataset and model, a seed or all seeds, values of axes, and settings of their own."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Cells left out: all that have these values of axes."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    counts: WeightMemory | None = None
    """Keep what every cell counts per decision, with weights kept and fetched so, and not its prices alone."""
    table: Layout = field(default_factory=Layout)

    @property
    def row_axes(self) -> tuple[str, ...]:
        """Axes of the table's rows."""
        return tuple(axis for axis in (DATASET, MODEL, *self.axes) if axis != self.table.columns)

    def cells(self) -> list[Cell]:
        """All cells, each once: seeds outermost, so that a sweep that is cut short has whole seeds."""
        named = itertools.product(self.seeds, self.datasets, self.models)
        chosen = [dict(zip(self.axes, values)) for values in itertools.product(*self.axes.values())]
        product = [self.cell(*names, axes, {}) for names in named for axes in chosen]
        kept = [cell for cell in product if not any(_fits(cell, rule) for rule in self.exclude)]
        return list(dict.fromkeys([*kept, *self._included()]))

    def _included(self) -> Iterator[Cell]:
        for entry in self.include:
            seeds = [entry[SEED]] if SEED in entry else self.seeds
            axes = {axis: entry[axis] for axis in self.axes if axis in entry}
            for seed in seeds:
                yield self.cell(seed, entry[DATASET], entry[MODEL], axes, entry.get("settings", {}))

    def cell(
        self,
        seed: int,
        dataset: str,
        model: str,
        axes: Settings,
        extra: Settings,
        taken: Callable[[str], bool] | None = None,
    ) -> Cell:
        """The cell of one place.

        Args:
            seed: of the training.
            dataset: its name.
            model: its name.
            axes: values of the other axes.
            extra: settings that only it has.
            taken: of the axes, which it has; None: all.
        """
        method, start = self.models[model], None
        inherited: Settings = {}
        if method.start is not None:
            start = self._start(seed, dataset, method.start, axes)
            inherited = {name: value for name, value in start.settings if is_kept(name) or name in FINE_TUNED}
        its_axes = {name: value for name, value in axes.items() if taken is None or taken(name)}
        own = {**inherited, **method.settings, **its_axes, **extra}
        settings = {**self.settings, **self.datasets.get(dataset, {}), **own}
        export = None if method.export is None else tuple(method.export.items())
        places = tuple(sorted(settings.items()))
        scored = (export, method.precision, method.energy, self.evaluation, self.counts)
        return Cell(dataset, model, seed, tuple(its_axes.items()), places, *scored, start)

    def _start(self, seed: int, dataset: str, model: str, axes: Settings) -> Cell:
        """The training of a model that another one starts from, whose cell has these axes."""
        takes = self.models[model].takes
        cell = self.cell(seed, dataset, model, axes, {}, lambda name: is_kept(name) or name in takes)
        return replace(cell, export=None, precision="fp32", energy="none", counts=None)


def is_kept(option: str) -> bool:
    """Whether an option of dsf-train says what a model is, so that fine-tuning cannot change it."""
    named = option in ARCHITECTURE or option.startswith(tuple(name for name in ARCHITECTURE if name.endswith(".")))
    return named and option not in FINE_TUNED


def _fits(cell: Cell, rule: dict[str, Any]) -> bool:
    return all(cell.value(axis) == value for axis, value in rule.items())


def check_spec(spec: SweepSpec) -> None:
    """Refuse what cannot be multiplied out.

    Raises:
        UserError: naming the field; who read the file puts its name in front.
    """
    if not SWEEP_NAME.fullmatch(spec.name):
        raise UserError(f"name is {shown(spec.name)}: give 1 to 100 letters, digits, spaces, or any of _ . , + -")
    _check_count(spec)
    if not spec.datasets:
        raise UserError("datasets is empty: name at least one")
    if not spec.models:
        raise UserError("models is empty: name at least one")
    for name, method in spec.models.items():
        for option in RESERVED_EXPORT:
            if option in (method.export or {}):
                raise UserError(f"models.{name}.export cannot set {option}, the sweep does: drop it")
        if method.export is not None and method.precision != "fp32":
            raise UserError(f"models.{name} has both export and precision {method.precision}: drop one of them")
    check_starts(spec.models)
    if not spec.seeds or len(set(spec.seeds)) < len(spec.seeds):
        raise UserError(f"seeds is {list(spec.seeds)}: give each training seed once")
    if spec.evaluation.episodes < 1:
        raise UserError(f"evaluation.episodes is {spec.evaluation.episodes}: it must be at least 1")
    for axis, values in spec.axes.items():
        if axis in (DATASET, MODEL, SEED) or axis in RESERVED:
            raise UserError(f"axes cannot set {axis}: use {RESERVED.get(axis, axis + 's')}")
        if not values:
            raise UserError(f"axes.{axis} is empty: give its values, or drop it")
    known = (DATASET, MODEL, SEED, *spec.axes)
    for place, entries in (("include", spec.include), ("exclude", spec.exclude)):
        for index, entry in enumerate(entries):
            for name, value in entry.items():
                if name != "settings" and not isinstance(value, (bool, int, float, str)):
                    raise UserError(f"{place}[{index}].{name} is {shown(value)}: give one value")
            allowed = (*known, "settings") if place == "include" else known
            for name in entry.keys() - set(allowed):
                raise UserError(f"{place}[{index}].{name} is no axis of this sweep: use {', '.join(allowed)}")
    for index, entry in enumerate(spec.exclude):
        axes: dict[str, Any] = {DATASET: spec.datasets, MODEL: spec.models, SEED: spec.seeds, **spec.axes}
        for name, value in entry.items():
            if value not in axes[name]:
                raise UserError(
                    f"exclude[{index}].{name} is {shown(value)}: use one of {', '.join(map(str, axes[name]))}"
                )
    for index, entry in enumerate(spec.include):
        for name, choices in ((DATASET, spec.datasets), (MODEL, spec.models)):
            if entry.get(name) not in choices:
                raise UserError(f"include[{index}].{name} is {shown(entry.get(name))}: use one of {', '.join(choices)}")
    _check_layout(spec, known)


def check_starts(models: Mapping[str, Method]) -> None:
    """Refuse models that start from none that is there, or from themselves in the end.

    Raises:
        UserError: naming the model.
    """
    for name, method in models.items():
        if method.start is None:
            continue
        if "init" in method.settings:
            raise UserError(f"models.{name} has both start and the setting init: drop one of them")
        if method.start not in models:
            raise UserError(f"models.{name}.start is {shown(method.start)}: use one of {', '.join(models)}")
        seen, place = [name], method.start
        while models[place].start in models and place not in seen:
            seen.append(place)
            place = str(models[place].start)
        if place in seen:
            way = " -> ".join([*seen, place])
            raise UserError(f"models.{name}.start goes round in a circle ({way}): let one of them start from nothing")


def _check_count(spec: SweepSpec) -> None:
    """Count the cells before there are any."""
    product = math.prod(map(len, (spec.seeds, spec.datasets, spec.models, *spec.axes.values())))
    included = sum(1 if SEED in entry else len(spec.seeds) for entry in spec.include)
    for found, what in ((product + included, "cells"), (len(spec.exclude), "entries in exclude")):
        if found > MOST_CELLS:
            raise UserError(f"it has {found:,} {what}, limit {MOST_CELLS:,}: split it into several sweeps")


def _check_layout(spec: SweepSpec, known: tuple[str, ...]) -> None:
    for name in ("columns", "baseline"):
        value = getattr(spec.table, name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"table.{name} is {shown(value)}: give one name")
    if spec.table.columns not in known or spec.table.columns == SEED:
        choices = ", ".join(axis for axis in known if axis != SEED)
        raise UserError(f"table.columns is {spec.table.columns}: use one of {choices}")
    if spec.table.baseline is not None and spec.table.baseline not in spec.models:
        raise UserError(f"table.baseline is {spec.table.baseline}: use one of {', '.join(spec.models)}")

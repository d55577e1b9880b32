"""What a search is asked for: a YAML file as typed dataclasses, its trials as cells of a sweep.

Two objectives: the score up, microjoules per decision down. Either side has families, each of them a model of a sweep
and a space of options. A trial is a place in a family's space; with every training seed of the search it is a cell.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from dsf.export.options import ExportConfig
from dsf.hardware_models.preset import Preset, load_preset
from dsf.hardware_models.weight_memory import Fetch, WeightMemory, Weights
from dsf.runtime.sweeps.counts import KEPT, WHOLE_WINDOW, ZEROS_SKIPPED
from dsf.runtime.sweeps.identity import option_names, require_known_settings
from dsf.runtime.sweeps.spec import (
    RESERVED_EXPORT,
    SWEEP_NAME,
    Cell,
    EnergyRule,
    Evaluation,
    Method,
    Setting,
    Settings,
    SweepSpec,
    check_starts,
)
from dsf.shell.errors import UserError
from dsf.shell.plain_text import shown

Side = Literal["spiking", "dense"]
SIDES: tuple[Side, ...] = ("spiking", "dense")
Value = Setting | None
"""Of an option; None leaves the option out."""
Params = Mapping[str, Value]
"""A place in a family's space."""
EXPORT = "export."
"""What options of dsf-export begin with in a space."""
DENSE_ENERGY: dict[str, EnergyRule] = {"dt": "decision-transformer", "twin": "layers", "bc": "mlp"}
"""Policies of the dense side, and how a sweep prices them."""
DENSE_SCHEDULES = (KEPT, WHOLE_WINDOW, ZEROS_SKIPPED)
COMPARED = ("synaptic_events", "macs")
"""What a preset has to price, so that both sides have a price."""


@dataclass(frozen=True)
class Choices:
    """An option that has one of these values."""

    values: tuple[Value, ...]

    @property
    def first(self) -> Value:
        """Of the values."""
        return self.values[0]


@dataclass(frozen=True)
class Range:
    """A number between two others, both included: a whole one where all that is said of it is whole."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def whole(self) -> bool:
        """Whether it takes whole numbers only."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step) if value is not None)

    @property
    def first(self) -> Value:
        """The low end."""
        return self.low


@dataclass(frozen=True)
class Price:
    """What makes microjoules of counts."""

    preset: str = "int8_45nm"
    """Hardware preset that prices events and multiply-accumulates; one with a chip cannot compare."""
    weights: Weights = "packed"
    """How weights are kept, on both sides (docs/energy.md)."""
    fetch: Fetch = "token"
    """Whom a fetched row of the spiking side serves."""
    dense: str = KEPT
    """How a dense rival comes to a decision: cached (keys and values kept, one fetch for a step's tokens), window, or
    cached-skipping (hidden values of zero neither multiplied nor fetched for)."""

    @property
    def memory(self) -> WeightMemory:
        """How weights are kept and fetched."""
        return WeightMemory(self.weights, self.fetch)


@dataclass(frozen=True)
class Family:
    """Models that differ in the options of a space. How they are scored and priced is the side's: the spiking side by
    its exported integers, the dense side by the integers that it was trained through, or at 8 bits.
    """

    space: dict[str, Choices | Range]
    """Options of dsf-train, and with export. in front of dsf-export, that a trial chooses."""
    trials: int = 20
    """How many of them."""
    settings: Settings = field(default_factory=dict)
    """Of every trial."""
    export: Settings = field(default_factory=dict)
    """Options of dsf-export of every trial, on the spiking side."""
    start: str | None = None
    """Model of ``bases`` from whose checkpoint, of the same seed, a trial starts."""


@dataclass(frozen=True)
class Report:
    """What the chosen points are trained and scored with again."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds, none of the search's."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Its reset seeds are none of the search's either."""
    most: int = 6
    """Of a family: the points of its side's front that only this many of its points are."""


@dataclass(frozen=True)
class SearchSpec:
    """A search."""

    name: str
    dataset: str
    sides: dict[Side, dict[str, Family]]
    """Families by name."""
    seeds: tuple[int, ...] = (10,)
    """Training seeds of every trial."""
    evaluation: Evaluation = field(default_factory=lambda: Evaluation(episodes=10, seed=7_000))
    """Protocol of every trial."""
    report: Report = field(default_factory=Report)
    price: Price = field(default_factory=Price)
    title: str = ""
    """Headline."""
    notes: str = ""
    """A paragraph below it."""
    settings: Settings = field(default_factory=dict)
    """Of every training."""
    bases: dict[str, Method] = field(default_factory=dict)
    """Trainings that families start from; they are no trials."""
    batch: int = 4
    """Trials that are chosen at a time, from all that had finished before them: what is searched does not depend on how
    many workers share them."""
    seed: int = 0
    """Of the sampler."""

    @property
    def families(self) -> dict[str, Family]:
        """Of both sides."""
        return {name: family for side in SIDES for name, family in self.sides[side].items()}

    def side_of(self, family: str) -> Side:
        """Where a family stands."""
        return next(side for side in SIDES if family in self.sides[side])

    @property
    def preset(self) -> Preset:
        """Of the price."""
        return load_preset(self.price.preset)

    def cell(self, family: str, params: Params, seed: int, evaluation: Evaluation) -> Cell:
        """A trial, with one training seed."""
        given = {name: value for name, value in params.items() if value is not None}
        chosen = {name: value for name, value in given.items() if not name.startswith(EXPORT)}
        exported = {name.removeprefix(EXPORT): value for name, value in given.items() if name.startswith(EXPORT)}
        method = self._method(family, chosen, exported)
        sweep = SweepSpec(
            self.name,
            {self.dataset: {}},
            {**self.bases, family: method},
            settings=self.settings,
            evaluation=evaluation,
            counts=self.price.memory,
        )
        return replace(sweep.cell(seed, self.dataset, family, chosen, {}), axes=tuple(params.items()))

    def _method(self, name: str, chosen: Settings, exported: Settings) -> Method:
        family = self.families[name]
        if self.side_of(name) == "spiking":
            return Method(family.settings, {**family.export, **exported}, energy="spiking", start=family.start)
        trained = {**self.settings, **family.settings, **chosen}.get("qat-steps", 0)
        energy = DENSE_ENERGY[self.policy_of(name)]
        return Method(family.settings, None, "trained" if trained else "int8", energy, family.start)

    def policy_of(self, family: str) -> str:
        """The family's own, or that of what it starts from."""
        settings, start = self.families[family].settings, self.families[family].start
        while "policy" not in settings and start is not None:
            settings, start = self.bases[start].settings, self.bases[start].start
        return str({**self.settings, **settings}.get("policy", "dsformer"))

    def question(self, family: str) -> str:
        """Hash of all that a family's results depend on, and of how its trials are chosen."""
        asked = asdict(replace(self, title="", notes="", report=Report(), sides={}))
        mine = {**asdict(self.families[family]), "trials": None}
        return hashlib.sha256(json.dumps([asked, family, mine], sort_keys=True).encode()).hexdigest()[:16]


def check_search(spec: SearchSpec) -> None:
    """Refuse what cannot be searched.

    Raises:
        UserError: naming the field; who read the file puts its name in front.
    """
    if not SWEEP_NAME.fullmatch(spec.name):
        raise UserError(f"name is {shown(spec.name)}: give 1 to 100 letters, digits, spaces, or any of _ . , + -")
    for side, other in (("spiking", "dense"), ("dense", "spiking")):
        if not spec.sides.get(side):  # type: ignore[call-overload]
            raise UserError(f"sides.{side} has no family: a front means nothing beside none, give {other} a rival")
    _check_seeds(spec)
    for name, value in (("batch", spec.batch), ("report.most", spec.report.most)):
        if value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")
    preset = spec.preset
    if preset.chip is not None:
        raise UserError(
            f"price.preset is {preset.name}, which places a network on a chip: use one without, as int8_45nm"
        )
    if missing := [name for name in COMPARED if name not in preset.energy_pj]:
        raise UserError(
            f"price.preset is {preset.name}, which has no price for {missing[0]}: use another, as int8_45nm"
        )
    if spec.price.dense not in DENSE_SCHEDULES:
        raise UserError(f"price.dense is {shown(spec.price.dense)}: use one of {', '.join(DENSE_SCHEDULES)}")
    if spec.price.dense == ZEROS_SKIPPED and spec.price.weights != "packed":
        raise UserError(f"price.dense {ZEROS_SKIPPED} requires price.weights packed: use that, or cached")
    _check_families(spec)


def _check_seeds(spec: SearchSpec) -> None:
    """The search's seeds are none of the report's: what was chosen by them would look better than it is."""
    for place, seeds in (("seeds", spec.seeds), ("report.seeds", spec.report.seeds)):
        if not seeds or len(set(seeds)) < len(seeds):
            raise UserError(f"{place} is {list(seeds)}: give each training seed once")
    for place, evaluation in (("evaluation", spec.evaluation), ("report.evaluation", spec.report.evaluation)):
        if evaluation.episodes < 1:
            raise UserError(f"{place}.episodes is {evaluation.episodes}: it must be at least 1")
    if both := sorted({*spec.seeds} & {*spec.report.seeds}):
        raise UserError(f"seeds and report.seeds both have {both[0]}: what a seed has chosen, it cannot report")
    mine, theirs = spec.evaluation.seeds, spec.report.evaluation.seeds
    if both := sorted({*mine} & {*theirs}):
        raise UserError(
            f"evaluation and report.evaluation both have the reset seed {both[0]}: what an episode has chosen, it "
            "cannot report"
        )


def _check_families(spec: SearchSpec) -> None:
    names = [*spec.bases, *(name for side in SIDES for name in spec.sides[side])]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"{twice[0]} names two of bases and families: give each a name of its own")
    families = spec.families
    check_starts({**spec.bases, **{name: Method(one.settings, start=one.start) for name, one in families.items()}})
    options = option_names(ExportConfig)
    for side in SIDES:
        for name, family in spec.sides[side].items():
            place = f"sides.{side}.{name}"
            if family.trials < 1:
                raise UserError(f"{place}.trials is {family.trials}: it must be at least 1")
            if not family.space:
                raise UserError(f"{place}.space is empty: give options with their values")
            if family.start is not None and family.start not in spec.bases:
                raise UserError(f"{place}.start is {family.start}: use one of {', '.join(spec.bases) or 'bases'}")
            _check_side(spec, side, name, place)
            for option, values in family.space.items():
                _check_range(values, f"{place}.space.{option}")
            given = [*family.export, *(one.removeprefix(EXPORT) for one in family.space if one.startswith(EXPORT))]
            for option in given:
                if option not in options or option in RESERVED_EXPORT:
                    raise UserError(f"{place} cannot set {option} of dsf-export: dsf-export --help lists its options")
            try:
                require_known_settings([*family.settings, *(one for one in family.space if not one.startswith(EXPORT))])
            except UserError as error:
                raise UserError(f"{place}: {error}") from None


def _check_side(spec: SearchSpec, side: Side, name: str, place: str) -> None:
    policy, family = spec.policy_of(name), spec.sides[side][name]
    if "policy" in family.space:
        raise UserError(f"{place}.space cannot set policy: make a family of each")
    if side == "spiking" and policy != "dsformer":
        raise UserError(f"{place} has policy {policy}, which cannot become spikes: move it to sides.dense")
    if side == "dense" and policy not in DENSE_ENERGY:
        raise UserError(f"{place} has policy {policy}: use one of {', '.join(DENSE_ENERGY)}")
    if side == "dense" and (family.export or any(option.startswith(EXPORT) for option in family.space)):
        raise UserError(f"{place} cannot be exported: drop its options of dsf-export")


def _check_range(values: Choices | Range, place: str) -> None:
    if isinstance(values, Choices):
        if not values.values or len({*map(repr, values.values)}) < len(values.values):
            raise UserError(f"{place} is {shown(list(values.values))}: give each value once")
        return
    if not all(math.isfinite(value) for value in (values.low, values.high)) or not values.low < values.high:
        raise UserError(f"{place} goes from {values.low} to {values.high}: low must be below high")
    if values.log and (values.low <= 0 or values.step is not None):
        raise UserError(f"{place} is log: its low end must be above 0, and it has no step")
    if values.step is not None and not values.step > 0:
        raise UserError(f"{place}.step is {values.step}: it must be positive")


def described(params: Iterable[tuple[str, Value]]) -> str:
    """A place in a space, for people."""
    return ", ".join(f"{name} {'none' if value is None else value}" for name, value in params)

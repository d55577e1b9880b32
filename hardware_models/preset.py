"""Presets: prices per counted quantity, each with a band, a unit, a grade and a source. One YAML file each.

A file holds what one occurrence of a quantity costs, and nothing else: a quantity without a price is listed as unpriced
by whoever uses the preset, and a quantity whose cost is inside another's price is listed under ``included``.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from dsf.export.placement.chips import CHIPS
from dsf.hardware_models.activity import QUANTITIES
from dsf.shell.errors import UserError
from dsf.shell.file_values import read_yaml
from dsf.shell.plain_text import shown

GRADES = {
    "P": "read at its source",
    "Q": "quoted by a public note with table or page",
    "A": "abstract or press text",
    "D": "derived here",
}
"""From the best to the worst."""
MOST_TILES = 1 << 20
SUFFIXES = (".yaml", ".yml")
_FIELDS = ("title", "notes", "chip", "energy_pj", "time_ns", "barrier_ns", "static_w", "included")
_PRICE_FIELDS = ("low", "nominal", "high", "grade", "source")


@dataclass(frozen=True)
class Price:
    """What one occurrence costs, in the unit of the field that holds it."""

    low: float
    nominal: float
    high: float
    grade: str
    source: str


@dataclass(frozen=True)
class Preset:
    """A named, cited, graded set of prices.

    Attributes:
        name: of the shipped preset, or the stem of a user's file.
        title: for people.
        notes: what the figures are good for, and what they leave out.
        chip: name in :data:`dsf.export.placement.chips.CHIPS` on which networks are placed; None where there are no
            cores.
        energy_pj: picojoules per occurrence of a quantity.
        time_ns: nanoseconds per occurrence of a quantity on one core, or per hop of one link.
        barrier_ns: nanoseconds to end a tick, by the number of tiles in use; between two of them it is interpolated.
        static_w: watts of one chip that does nothing, or None.
        included: quantities without a price of their own, and where their cost is.
    """

    name: str
    title: str
    notes: str
    chip: str | None
    energy_pj: dict[str, Price]
    time_ns: dict[str, Price]
    barrier_ns: dict[int, Price]
    static_w: Price | None
    included: dict[str, str]

    @property
    def grade(self) -> str:
        """The worst grade among the prices of energy."""
        return worst_grade(self.energy_pj)

    @property
    def sources(self) -> list[str]:
        """Every source, once."""
        return list(dict.fromkeys(price.source for price in self.energy_pj.values()))


def worst_grade(prices: Mapping[str, Price]) -> str:
    """The worst grade among prices: a total is no better than that."""
    return max((price.grade for price in prices.values()), key=list(GRADES).index)


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    folder = resources.files("dsf.hardware_models.presets")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_preset(name: str) -> Preset:
    """Read a shipped preset, or a user's file: whatever ends with .yaml.

    Raises:
        UserError: no such preset or file, or it breaks the schema; the message names the field.
    """
    if name.endswith(SUFFIXES):
        path = Path(name)
        return parse_preset(path.stem, read_yaml(path, "hardware preset"), where=name)
    if name not in preset_names():
        raise UserError(
            f"unknown hardware preset '{name}': choose one of {', '.join(preset_names())}, or name a .yaml file"
        )
    text = (resources.files("dsf.hardware_models.presets") / f"{name}.yaml").read_text()
    return parse_preset(name, yaml.safe_load(text))


def load_presets(names: Sequence[str]) -> list[Preset]:
    """Several presets, see :func:`load_preset`.

    Raises:
        UserError: also where two have one name, because every report tells them apart by it.
    """
    found = [load_preset(name) for name in names]
    seen: dict[str, str] = {}
    for name, preset in zip(names, found):
        if preset.name in seen:
            raise UserError(
                f"hardware presets {seen[preset.name]} and {name} are both called '{preset.name}': "
                "rename one file, or name it once"
            )
        seen[preset.name] = name
    return found


def parse_preset(name: str, values: Any, where: str | None = None) -> Preset:
    """Check a preset's content.

    Args:
        name: of the preset.
        values: of the file.
        where: the file, for messages.

    Raises:
        UserError: a field is missing, unknown or out of range; the message names it.
    """
    parser = _Parser(where or name)
    fields = parser.mapping("the file", values, _FIELDS, optional=_FIELDS[2:])
    chip = fields.get("chip")
    parser.require(
        chip is None or _is_one_of(chip, CHIPS), f"chip {shown(chip)} is none of {', '.join(CHIPS)}: name one of them"
    )
    energy = parser.prices("energy_pj", fields.get("energy_pj"), tuple(QUANTITIES))
    parser.require(bool(energy), f"energy_pj prices nothing: give at least one of {', '.join(QUANTITIES)}")
    times = fields.get("time_ns")
    parser.require(not times or chip is not None, "time_ns requires chip, without which nothing is timed: add chip")
    parser.require(not fields.get("barrier_ns") or bool(times), "barrier_ns requires time_ns: add time_ns")
    static = fields.get("static_w")
    included = parser.mapping("included", fields.get("included") or {}, tuple(QUANTITIES), optional=tuple(QUANTITIES))
    timed = parser.prices("time_ns", times, tuple(QUANTITIES))
    for prices in (energy, timed):
        if "macs" in prices and not {"repeated_macs"} & {*prices, *included}:
            prices["repeated_macs"] = prices["macs"]  # the same product once more, unless the preset says otherwise
    for quantity in included:
        parser.require(quantity not in energy, f"'{quantity}' has a price and is included elsewhere: keep one of them")
    return Preset(
        name,
        title=parser.text("title", fields["title"]),
        notes=parser.text("notes", fields["notes"]),
        chip=chip,
        energy_pj=energy,
        time_ns=timed,
        barrier_ns=parser.barrier(fields.get("barrier_ns")),
        static_w=None if static is None else parser.price("static_w", static),
        included={quantity: parser.text(f"included {quantity}", where) for quantity, where in included.items()},
    )


def _is_one_of(value: Any, choices: Container[Any]) -> bool:
    """Whether a value from a file, a list maybe, is one of some words."""
    return isinstance(value, str) and value in choices


class _Parser:
    """Reads YAML values and names what is wrong with them, and how to mend it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            raise UserError(f"hardware preset '{self.name}': {' '.join(what.split())}")

    def mapping(self, what: str, values: Any, known: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
        self.require(isinstance(values, dict), f"{what} must be a mapping of {', '.join(known)}")
        for key in values:
            self.require(key in known, f"{what} has the unknown field '{key}': it may hold {', '.join(known)}")
        missing = [key for key in known if key not in values and key not in optional]
        self.require(not missing, f"{what} lacks {', '.join(missing)}: add what is missing")
        return dict(values)

    def text(self, what: str, value: Any) -> str:
        self.require(isinstance(value, str) and bool(value.strip()), f"{what} must be text: put it in quotes")
        return " ".join(str(value).split())

    def price(self, what: str, entry: Any) -> Price:
        fields = self.mapping(what, entry, _PRICE_FIELDS)
        low, nominal, high = (self.number(what, fields[key]) for key in ("low", "nominal", "high"))
        order = f"{what}: 0 <= low <= nominal <= high must hold: correct {low:g}, {nominal:g}, {high:g}"
        self.require(0 <= low <= nominal <= high, order)
        grade = fields["grade"]
        self.require(
            _is_one_of(grade, GRADES), f"{what}: grade {shown(grade)} is none of {', '.join(GRADES)}: choose one"
        )
        return Price(low, nominal, high, grade, self.text(f"{what}: source", fields["source"]))

    def number(self, what: str, value: Any) -> float:
        written = f"{what} holds {shown(value)}, which is no finite number: write one, such as 0.5 or 1.0e-3"
        self.require(isinstance(value, (int, float)) and not isinstance(value, bool), written)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        self.require(math.isfinite(number), written)
        return number

    def prices(self, what: str, values: Any, known: tuple[str, ...]) -> dict[str, Price]:
        entries = self.mapping(what, {} if values is None else values, known, optional=known)
        return {quantity: self.price(f"{what} {quantity}", entry) for quantity, entry in entries.items()}

    def barrier(self, values: Any) -> dict[int, Price]:
        entries = {} if values is None else values
        self.require(isinstance(entries, dict), "barrier_ns must be a mapping from numbers of tiles to prices")
        for tiles in entries:
            whole = isinstance(tiles, int) and not isinstance(tiles, bool)
            self.require(
                whole and 0 < tiles <= MOST_TILES, f"barrier_ns: '{tiles}' is no number of tiles: write 1 or more"
            )
        return {tiles: self.price(f"barrier_ns {tiles}", entries[tiles]) for tiles in sorted(entries)}

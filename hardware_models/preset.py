"""Presets: prices per counted quantity, each with a band, a source and a grade. One YAML file each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from dsf.hardware_models.activity import QUANTITIES
from dsf.tasks import UserError

GRADES = {
    "P": "read at its source",
    "Q": "quoted by a public note with table or page",
    "A": "abstract or press text",
    "D": "derived here",
}
PICOJOULE = 1e-12


@dataclass(frozen=True)
class Price:
    """Energy of one occurrence, in picojoules."""

    low: float
    nominal: float
    high: float
    source: str


@dataclass(frozen=True)
class Preset:
    """A named, cited, graded set of prices. A quantity without a price is reported as unpriced, never guessed."""

    name: str
    title: str
    grade: str
    source: str
    notes: str
    prices: dict[str, Price]


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    folder = resources.files("dsf.hardware_models.presets")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_preset(name: str) -> Preset:
    """Read a shipped preset.

    Raises:
        UserError: no such preset, or its file breaks the schema.
    """
    if name not in preset_names():
        raise UserError(f"unknown hardware preset '{name}': choose one of {', '.join(preset_names())}")
    text = (resources.files("dsf.hardware_models.presets") / f"{name}.yaml").read_text()
    return parse_preset(name, yaml.safe_load(text))


def parse_preset(name: str, values: Any) -> Preset:
    """Check a preset's content.

    Raises:
        UserError: a field is missing, unknown or out of range; the message names it.
    """

    def require(condition: bool, what: str) -> None:
        if not condition:
            raise UserError(f"hardware preset '{name}': {what}")

    require(isinstance(values, dict), "must be a mapping")
    wanted = {"title", "grade", "source", "notes", "prices_pj"}
    require(set(values) == wanted, f"fields must be {', '.join(sorted(wanted))}")
    require(values["grade"] in GRADES, f"grade '{values['grade']}' is none of {', '.join(GRADES)}")
    prices = {}
    for quantity, entry in values["prices_pj"].items():
        require(quantity in QUANTITIES, f"'{quantity}' is no counted quantity ({', '.join(QUANTITIES)})")
        require(set(entry) == {"low", "nominal", "high", "source"}, f"{quantity} needs low, nominal, high and source")
        price = Price(float(entry["low"]), float(entry["nominal"]), float(entry["high"]), str(entry["source"]))
        require(0 <= price.low <= price.nominal <= price.high, f"{quantity}: 0 <= low <= nominal <= high must hold")
        prices[quantity] = price
    return Preset(name, values["title"], values["grade"], values["source"], values["notes"], prices)

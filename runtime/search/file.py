"""Files of searches: YAML into :class:`~dsf.runtime.search.spec.SearchSpec`, every mistake as one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsf.hardware_models.weight_memory import FETCHES, WEIGHTS
from dsf.runtime.search.spec import (
    SIDES,
    Choices,
    Family,
    Price,
    Range,
    Report,
    SearchSpec,
    Value,
    check_search,
)
from dsf.runtime.sweeps.fields import (
    evaluation_of,
    fields_of,
    mapping_of,
    method_of,
    seeds_of,
    setting_of,
    settings_of,
    text_of,
    whole_of,
)
from dsf.runtime.sweeps.file import path_meant, shipped
from dsf.shell.errors import UserError
from dsf.shell.file_values import read_yaml
from dsf.shell.plain_text import plain, shown

SPECS = "dsf.runtime.search.specs"


def shipped_searches() -> list[str]:
    """Names of the searches in the package."""
    return shipped(SPECS)


def search_path(name: str) -> Path:
    """The file that a user means: a path, or a shipped search's name.

    Raises:
        UserError: it is neither.
    """
    return path_meant(name, "search", SPECS)


def read_search(path: Path) -> SearchSpec:
    """Read and check a search.

    Raises:
        UserError: it cannot be read, or a field is wrong; the message names file, field and remedy.
    """
    values = read_yaml(path, "search")
    try:
        spec = _spec(values)
        check_search(spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return spec


def _spec(values: Any) -> SearchSpec:
    fields = fields_of(values, SearchSpec, "")
    for name in ("name", "dataset", "sides"):
        if name not in fields:
            raise UserError(f"{name} is missing: add it")
    for name in ("name", "dataset", "title", "notes"):
        if name in fields:
            fields[name] = text_of(fields[name], name)
    sides = dict(mapping_of(fields["sides"] or {}, "sides"))
    for side in sides:
        if side not in SIDES:
            raise UserError(f"sides.{plain(str(side))} is no side: use {' and '.join(SIDES)}")
    fields["sides"] = {
        side: {
            str(name): _family(own, f"sides.{side}.{name}")
            for name, own in mapping_of(sides.get(side) or {}, f"sides.{side}")
        }
        for side in SIDES
    }
    fields["bases"] = {
        str(name): method_of(own, f"bases.{name}") for name, own in mapping_of(fields.get("bases") or {}, "bases")
    }
    fields["settings"] = settings_of(fields.get("settings", {}), "settings")
    for name in ("batch", "seed"):
        if name in fields:
            fields[name] = whole_of(fields[name], name)
    for name, read in (("seeds", seeds_of), ("evaluation", evaluation_of), ("price", _price), ("report", _report)):
        if name in fields:
            fields[name] = read(fields[name], name)
    return SearchSpec(**fields)


def _family(values: Any, place: str) -> Family:
    fields = fields_of(values or {}, Family, f"{place}.")
    for name in ("settings", "export"):
        fields[name] = settings_of(fields.get(name, {}), f"{place}.{name}")
    if "trials" in fields:
        fields["trials"] = whole_of(fields["trials"], f"{place}.trials")
    if fields.get("start") is not None:
        fields["start"] = text_of(fields["start"], f"{place}.start")
    space = mapping_of(fields.get("space") or {}, f"{place}.space")
    fields["space"] = {str(name): _values(own, f"{place}.space.{name}") for name, own in space}
    return Family(**fields)


def _values(values: Any, place: str) -> Choices | Range:
    """The values of one option: a list, or the ends of a range."""
    if isinstance(values, list):
        return Choices(tuple(_value(value, place) for value in values))
    if not isinstance(values, dict):
        raise UserError(f"{place} is {shown(values)}: give a list of values, or low and high")
    fields = fields_of(values, Range, f"{place}.")
    for name in ("low", "high"):
        if name not in fields:
            raise UserError(f"{place}.{name} is missing: give low and high, or a list of values")
    for name in ("low", "high", "step"):
        if name in fields and (isinstance(fields[name], bool) or not isinstance(fields[name], (int, float))):
            raise UserError(f"{place}.{name} is {shown(fields[name])}: it must be a number")
    if not isinstance(fields.get("log", False), bool):
        raise UserError(f"{place}.log is {shown(fields['log'])}: it is true or false")
    return Range(**fields)


def _value(value: Any, place: str) -> Value:
    if value is None:
        return None
    found = setting_of(value, place)
    if isinstance(found, tuple):
        raise UserError(f"{place} has {shown(value)}: a value is a number, a word or null, which leaves the option out")
    return found


def _price(values: Any, place: str) -> Price:
    fields = fields_of(values, Price, f"{place}.")
    for name, known in (("weights", WEIGHTS), ("fetch", FETCHES)):
        if name in fields and fields[name] not in [*known]:
            raise UserError(f"{place}.{name} is {shown(fields[name])}: use one of {', '.join(known)}")
    for name in ("preset", "dense"):
        if name in fields:
            fields[name] = text_of(fields[name], f"{place}.{name}")
    return Price(**fields)


def _report(values: Any, place: str) -> Report:
    fields = fields_of(values, Report, f"{place}.")
    for name, read in (("seeds", seeds_of), ("evaluation", evaluation_of), ("most", whole_of)):
        if name in fields:
            fields[name] = read(fields[name], f"{place}.{name}")
    return Report(**fields)

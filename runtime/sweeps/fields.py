"""Fields of the files of sweeps and searches: YAML values into typed ones, every mistake as one line with its field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, get_args

from dsf.hardware_models.weight_memory import FETCHES, WEIGHTS, WeightMemory
from dsf.runtime.sweeps.spec import CellPrecision, EnergyRule, Evaluation, Method, Setting, Settings
from dsf.shell.errors import UserError
from dsf.shell.plain_text import plain, shown
from dsf.shell.typed_values import LARGEST_WHOLE


def method_of(values: Any, place: str) -> Method:
    """A model of a sweep."""
    fields = fields_of(values or {}, Method, f"{place}.")
    fields["settings"] = settings_of(fields.get("settings", {}), f"{place}.settings")
    if fields.get("export") is not None:
        fields["export"] = settings_of(fields["export"], f"{place}.export")
    for name, kind in (("precision", CellPrecision), ("energy", EnergyRule)):
        known = get_args(kind)
        if name in fields and fields[name] not in known:
            raise UserError(f"{place}.{name} is {shown(fields[name])}: use one of {', '.join(known)}")
    if not isinstance(fields.get("start", ""), (str, type(None))):
        raise UserError(f"{place}.start is {shown(fields['start'])}: name a model")
    fields["takes"] = tuple(
        text_of(name, f"{place}.takes") for name in list_of(fields.get("takes", []), f"{place}.takes")
    )
    return Method(**fields)


def evaluation_of(values: Any, place: str) -> Evaluation:
    """The protocol of a sweep's cells."""
    own = fields_of(values, Evaluation, f"{place}.")
    return Evaluation(**{name: whole_of(value, f"{place}.{name}") for name, value in own.items()})


def seeds_of(values: Any, place: str) -> tuple[int, ...]:
    """Training seeds."""
    return tuple(whole_of(seed, place) for seed in list_of(values, place))


def memory_of(values: Any, place: str) -> WeightMemory:
    """How weights are kept and fetched."""
    own = fields_of(values, WeightMemory, f"{place}.")
    for name, known in (("weights", WEIGHTS), ("fetch", FETCHES)):
        if name in own and own[name] not in [*known]:
            raise UserError(f"{place}.{name} is {shown(own[name])}: use one of {', '.join(known)}")
    return WeightMemory(**own)


def fields_of(values: Any, kind: type[Any], place: str) -> dict[str, Any]:
    """The fields of a dataclass that a mapping names."""
    known = [item.name for item in dataclasses.fields(kind)]
    found = dict(mapping_of(values, place.rstrip(".") or "the file"))
    for name in found:
        if name not in known:
            raise UserError(f"{place}{plain(str(name))} is no field: use {', '.join(known)}")
    return found


def mapping_of(values: Any, place: str) -> Iterable[tuple[Any, Any]]:
    """The items of a mapping."""
    if not isinstance(values, dict):
        raise UserError(f"{place} is {shown(values)}: it must be a mapping of names to values")
    return values.items()


def list_of(values: Any, place: str) -> list[Any]:
    """A list."""
    if not isinstance(values, list):
        raise UserError(f"{place} is {shown(values)}: it must be a list, such as [0, 1]")
    return values


def settings_of(values: Any, place: str) -> Settings:
    """Options with their values."""
    return {str(name): setting_of(value, f"{place}.{name}") for name, value in mapping_of(values or {}, place)}


def setting_of(value: Any, place: str) -> Setting:
    """The value of an option."""
    if isinstance(value, list):
        return tuple(setting_of(item, place) for item in value)
    if not isinstance(value, (bool, int, float, str)):
        raise UserError(f"{place} is {shown(value)}: give a number, a word or a list")
    return value


def text_of(value: Any, place: str) -> str:
    """A text; numbers will do."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UserError(f"{place} is {shown(value)}: it must be text")
    return str(value)


def whole_of(value: Any, place: str) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_WHOLE:
        raise UserError(f"{place} is {shown(value)}: it must be a whole number, 0 or more")
    return value

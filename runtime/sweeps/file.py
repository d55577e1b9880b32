"""Sweep files: YAML into :class:`~dsf.runtime.sweeps.spec.SweepSpec`, every mistake as one line with file and field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from dsf.runtime.sweeps.spec import EnergyRule, Evaluation, Layout, Method, Setting, Settings, SweepSpec, check_spec
from dsf.shell.errors import UserError
from dsf.shell.file_values import read_yaml
from dsf.shell.plain_text import plain, shown
from dsf.shell.typed_values import LARGEST_WHOLE
from dsf.train.config.rivals import EvaluationPrecision

SUFFIX = ".yaml"


def shipped_sweeps() -> list[str]:
    """Names of the sweeps in the package."""
    places = resources.files("dsf.runtime.sweeps.specs").iterdir()
    return sorted(place.name.removesuffix(SUFFIX) for place in places if place.name.endswith(SUFFIX))


def sweep_path(name: str) -> Path:
    """The file that a user means: a path, or a shipped sweep's name.

    Raises:
        UserError: it is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if name in shipped_sweeps():
        return Path(str(resources.files("dsf.runtime.sweeps.specs") / f"{name}{SUFFIX}"))
    raise UserError(f"there is no sweep {name}: give a YAML file or one of {', '.join(shipped_sweeps())}")


def read_sweep(path: Path) -> SweepSpec:
    """Read and check a sweep.

    Raises:
        UserError: it cannot be read, or a field is wrong; the message names file, field and remedy.
    """
    values = read_yaml(path, "sweep")
    try:
        spec = _spec(values)
        check_spec(spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return spec


def _spec(values: Any) -> SweepSpec:
    fields = _fields(values, SweepSpec, "")
    for name in ("name", "datasets", "models"):
        if name not in fields:
            raise UserError(f"{name} is missing: add it")
    datasets = fields["datasets"]
    if isinstance(datasets, list):
        datasets = {str(name): {} for name in datasets}
    fields["datasets"] = {name: _settings(own, f"datasets.{name}") for name, own in _mapping(datasets, "datasets")}
    fields["models"] = {str(name): _method(own, f"models.{name}") for name, own in _mapping(fields["models"], "models")}
    fields["settings"] = _settings(fields.get("settings", {}), "settings")
    axes = _mapping(fields.get("axes") or {}, "axes")
    fields["axes"] = {
        str(name): [_setting(value, f"axes.{name}") for value in _listed(values_of, f"axes.{name}")]
        for name, values_of in axes
    }
    seeds = tuple(_listed(fields.get("seeds", [0, 1, 2]), "seeds"))
    fields["seeds"] = tuple(_whole(seed, "seeds") for seed in seeds)
    for name in ("include", "exclude"):
        entries = enumerate(_listed(fields.get(name) or [], name))
        fields[name] = tuple(_entry(entry, f"{name}[{index}]") for index, entry in entries)
    if "evaluation" in fields:
        own = _fields(fields["evaluation"], Evaluation, "evaluation.")
        fields["evaluation"] = Evaluation(**{key: _whole(value, f"evaluation.{key}") for key, value in own.items()})
    if "table" in fields:
        fields["table"] = Layout(**_fields(fields["table"], Layout, "table."))
    for name in ("name", "title", "notes"):
        fields[name] = _text(fields.get(name, ""), name)
    return SweepSpec(**fields)


def _entry(values: Any, place: str) -> dict[str, Any]:
    """One entry of include or exclude."""
    entry = dict(_mapping(values, place))
    if "settings" in entry:
        entry["settings"] = _settings(entry["settings"], f"{place}.settings")
    return entry


def _method(values: Any, place: str) -> Method:
    fields = _fields(values or {}, Method, f"{place}.")
    fields["settings"] = _settings(fields.get("settings", {}), f"{place}.settings")
    if fields.get("export") is not None:
        fields["export"] = _settings(fields["export"], f"{place}.export")
    for name, kind in (("precision", EvaluationPrecision), ("energy", EnergyRule)):
        known = get_args(kind)
        if name in fields and fields[name] not in known:
            raise UserError(f"{place}.{name} is {shown(fields[name])}: use one of {', '.join(known)}")
    return Method(**fields)


def _fields(values: Any, kind: type[Any], place: str) -> dict[str, Any]:
    """The fields of a dataclass that a mapping names."""
    known = [item.name for item in dataclasses.fields(kind)]
    found = dict(_mapping(values, place.rstrip(".") or "the file"))
    for name in found:
        if name not in known:
            raise UserError(f"{place}{plain(str(name))} is no field: use {', '.join(known)}")
    return found


def _mapping(values: Any, place: str) -> Iterable[tuple[Any, Any]]:
    if not isinstance(values, dict):
        raise UserError(f"{place} is {shown(values)}: it must be a mapping of names to values")
    return values.items()


def _listed(values: Any, place: str) -> list[Any]:
    if not isinstance(values, list):
        raise UserError(f"{place} is {shown(values)}: it must be a list, such as [0, 1]")
    return values


def _settings(values: Any, place: str) -> Settings:
    return {str(name): _setting(value, f"{place}.{name}") for name, value in _mapping(values or {}, place)}


def _setting(value: Any, place: str) -> Setting:
    if isinstance(value, list):
        return tuple(_setting(item, place) for item in value)
    if not isinstance(value, (bool, int, float, str)):
        raise UserError(f"{place} is {shown(value)}: give a number, a word or a list")
    return value


def _text(value: Any, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UserError(f"{place} is {shown(value)}: it must be text")
    return str(value)


def _whole(value: Any, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_WHOLE:
        raise UserError(f"{place} is {shown(value)}: it must be a whole number, 0 or more")
    return value

"""Sweep files: YAML into :class:`~dsf.runtime.sweeps.spec.SweepSpec`, every mistake as one line with file and field."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from dsf.runtime.sweeps.fields import (
    evaluation_of,
    fields_of,
    list_of,
    mapping_of,
    memory_of,
    method_of,
    seeds_of,
    setting_of,
    settings_of,
    text_of,
)
from dsf.runtime.sweeps.spec import Layout, SweepSpec, check_spec
from dsf.shell.errors import UserError
from dsf.shell.file_values import read_yaml

SUFFIX = ".yaml"


SPECS = "dsf.runtime.sweeps.specs"


def shipped_sweeps() -> list[str]:
    """Names of the sweeps in the package."""
    return shipped(SPECS)


def sweep_path(name: str) -> Path:
    """The file that a user means: a path, or a shipped sweep's name.

    Raises:
        UserError: it is neither.
    """
    return path_meant(name, "sweep", SPECS)


def shipped(package: str) -> list[str]:
    """Names of the YAML files in a package."""
    places = resources.files(package).iterdir()
    return sorted(place.name.removesuffix(SUFFIX) for place in places if place.name.endswith(SUFFIX))


def path_meant(name: str, what: str, package: str) -> Path:
    """A path, or the file of that name in a package.

    Raises:
        UserError: it is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if name in shipped(package):
        return Path(str(resources.files(package) / f"{name}{SUFFIX}"))
    raise UserError(f"there is no {what} {name}: give a YAML file or one of {', '.join(shipped(package))}")


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
    fields = fields_of(values, SweepSpec, "")
    for name in ("name", "datasets", "models"):
        if name not in fields:
            raise UserError(f"{name} is missing: add it")
    datasets = fields["datasets"]
    if isinstance(datasets, list):
        datasets = {str(name): {} for name in datasets}
    fields["datasets"] = {name: settings_of(own, f"datasets.{name}") for name, own in mapping_of(datasets, "datasets")}
    fields["models"] = {
        str(name): method_of(own, f"models.{name}") for name, own in mapping_of(fields["models"], "models")
    }
    fields["settings"] = settings_of(fields.get("settings", {}), "settings")
    axes = mapping_of(fields.get("axes") or {}, "axes")
    fields["axes"] = {
        str(name): [setting_of(value, f"axes.{name}") for value in list_of(values_of, f"axes.{name}")]
        for name, values_of in axes
    }
    fields["seeds"] = seeds_of(fields.get("seeds", [0, 1, 2]), "seeds")
    for name in ("include", "exclude"):
        entries = enumerate(list_of(fields.get(name) or [], name))
        fields[name] = tuple(_entry(entry, f"{name}[{index}]") for index, entry in entries)
    if "evaluation" in fields:
        fields["evaluation"] = evaluation_of(fields["evaluation"], "evaluation")
    if fields.get("counts") is not None:
        fields["counts"] = memory_of(fields["counts"], "counts")
    if "table" in fields:
        fields["table"] = Layout(**fields_of(fields["table"], Layout, "table."))
    for name in ("name", "title", "notes"):
        fields[name] = text_of(fields.get(name, ""), name)
    return SweepSpec(**fields)


def _entry(values: Any, place: str) -> dict[str, Any]:
    """One entry of include or exclude."""
    entry = dict(mapping_of(values, place))
    if "settings" in entry:
        entry["settings"] = settings_of(entry["settings"], f"{place}.settings")
    return entry

"""dsf: from an offline dataset to closed-loop robot control on simulated neuromorphic cores.

The names below are the public surface. Each is imported when it is first used: ``import dsf`` costs nothing and needs
neither torch nor Lava.

    from dsf import ExportConfig, SimRunConfig, TrainConfig, export_policy, simulate, train_policy

    train_policy(TrainConfig("hopper-medium", out=Path("runs/hopper")))        # torch
    export_policy(ExportConfig(Path("runs/hopper"), out=Path("net.dsf.h5")))   # torch
    report = simulate(SimRunConfig(Path("net.dsf.h5"), backend="fast")).report
    print(report.interval.mean, report.figures("int8_45nm").energy.nominal)

``read_network``, ``IntegerPolicy`` and ``open_engine`` are for a loop of your own; ``measure_activity``,
``estimate_energy`` and ``load_preset`` price what an engine has counted.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsf.export.exported import ExportedNetwork as ExportedNetwork
    from dsf.export.exporting import export as export_policy  # noqa: F401
    from dsf.export.network.file import read_network as read_network
    from dsf.export.network.file import write_network as write_network
    from dsf.export.network.network import Network as Network
    from dsf.export.network.reference import IntegerPolicy as IntegerPolicy
    from dsf.export.options import ExportConfig as ExportConfig
    from dsf.hardware_models.activity import Activity as Activity
    from dsf.hardware_models.activity import measure_activity as measure_activity
    from dsf.hardware_models.energy import EnergyEstimate as EnergyEstimate
    from dsf.hardware_models.energy import estimate_energy as estimate_energy
    from dsf.hardware_models.preset import load_preset as load_preset
    from dsf.hardware_models.preset import preset_names as preset_names
    from dsf.runtime.engines.interface import Engine as Engine
    from dsf.runtime.open_engine import open_engine as open_engine
    from dsf.runtime.options import SimRunConfig as SimRunConfig
    from dsf.runtime.report.run_report import RunReport as RunReport
    from dsf.runtime.simulate import Run as Run
    from dsf.runtime.simulate import simulate as simulate
    from dsf.shell.errors import CommandFailed as CommandFailed
    from dsf.shell.errors import UserError as UserError
    from dsf.tasks import get_task as get_task
    from dsf.train.config.training import TrainConfig as TrainConfig
    from dsf.train.data.dataset import load_dataset as load_dataset
    from dsf.train.trained_run import TrainedRun as TrainedRun
    from dsf.train.training import train as train_policy  # noqa: F401

NEEDS_TORCH = ("export_policy", "train_policy")
"""Names whose use needs the train extra; they are imported without it."""
_HOMES = {
    "Activity": "hardware_models.activity",
    "CommandFailed": "shell.errors",
    "EnergyEstimate": "hardware_models.energy",
    "Engine": "runtime.engines.interface",
    "ExportConfig": "export.options",
    "ExportedNetwork": "export.exported",
    "IntegerPolicy": "export.network.reference",
    "Network": "export.network.network",
    "Run": "runtime.simulate",
    "RunReport": "runtime.report.run_report",
    "SimRunConfig": "runtime.options",
    "TrainConfig": "train.config.training",
    "TrainedRun": "train.trained_run",
    "UserError": "shell.errors",
    "estimate_energy": "hardware_models.energy",
    "export_policy": "export.exporting:export",
    "get_task": "tasks",
    "load_dataset": "train.data.dataset",
    "load_preset": "hardware_models.preset",
    "measure_activity": "hardware_models.activity",
    "open_engine": "runtime.open_engine",
    "preset_names": "hardware_models.preset",
    "read_network": "export.network.file",
    "simulate": "runtime.simulate",
    "train_policy": "train.training:train",
    "write_network": "export.network.file",
}
"""Where each name lives, with its name there where that differs: ``dsf.train`` and ``dsf.export`` are rooms."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dsf' has no attribute {name!r}")
    module, _, own = _HOMES[name].partition(":")
    found = getattr(importlib.import_module(f"dsf.{module}"), own or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, and the rooms that are imported."""
    return sorted({*globals(), *_HOMES})

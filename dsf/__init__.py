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

from typing import TYPE_CHECKING

from dsf.shell.public_names import public_names

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

PUBLIC = {
    "Activity": "dsf.hardware_models.activity",
    "CommandFailed": "dsf.shell.errors",
    "EnergyEstimate": "dsf.hardware_models.energy",
    "Engine": "dsf.runtime.engines.interface",
    "ExportConfig": "dsf.export.options",
    "ExportedNetwork": "dsf.export.exported",
    "IntegerPolicy": "dsf.export.network.reference",
    "Network": "dsf.export.network.network",
    "Run": "dsf.runtime.simulate",
    "RunReport": "dsf.runtime.report.run_report",
    "SimRunConfig": "dsf.runtime.options",
    "TrainConfig": "dsf.train.config.training",
    "TrainedRun": "dsf.train.trained_run",
    "UserError": "dsf.shell.errors",
    "estimate_energy": "dsf.hardware_models.energy",
    "export_policy": "dsf.export.exporting:export",
    "get_task": "dsf.tasks",
    "load_dataset": "dsf.train.data.dataset",
    "load_preset": "dsf.hardware_models.preset",
    "measure_activity": "dsf.hardware_models.activity",
    "open_engine": "dsf.runtime.open_engine",
    "preset_names": "dsf.hardware_models.preset",
    "read_network": "dsf.export.network.file",
    "simulate": "dsf.runtime.simulate",
    "train_policy": "dsf.train.training:train",
    "write_network": "dsf.export.network.file",
}
"""Where each name lives. ``dsf.train`` and ``dsf.export`` are rooms, so their functions have other names here."""

__all__ = list(PUBLIC)

if not TYPE_CHECKING:
    __getattr__ = public_names(__name__, PUBLIC)


def __dir__() -> list[str]:
    """The public names beside what is loaded."""
    return sorted({*globals(), *PUBLIC})

"""Hardware models: what a run did (Activity), and what published figures say it costs (presets). No torch."""

from dsf.hardware_models.activity import Activity, NodeActivity, SpikeCounter, measure_activity
from dsf.hardware_models.energy import Band, EnergyEstimate, LayerEnergy, estimate_energy
from dsf.hardware_models.preset import Preset, Price, load_preset, preset_names

__all__ = [
    "Activity",
    "Band",
    "EnergyEstimate",
    "LayerEnergy",
    "NodeActivity",
    "Preset",
    "Price",
    "SpikeCounter",
    "estimate_energy",
    "load_preset",
    "measure_activity",
    "preset_names",
]

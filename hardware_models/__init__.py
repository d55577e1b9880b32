"""Hardware models: what a run did (Activity), and what published figures say it costs (presets). No torch."""

from dsf.hardware_models.activity import Activity, NodeActivity, SpikeCounter, measure_activity
from dsf.hardware_models.energy import Band, EnergyEstimate, LayerEnergy, estimate_energy
from dsf.hardware_models.fit import Fit, fit
from dsf.hardware_models.latency import Floorline, Latency, estimate_latency
from dsf.hardware_models.mapping import NetworkMapping, map_in_order
from dsf.hardware_models.placement_search import MappingFigures, measure_mapping, search_mapping, search_places
from dsf.hardware_models.preset import Preset, Price, load_preset, preset_names

__all__ = [
    "Activity",
    "Band",
    "EnergyEstimate",
    "Fit",
    "Floorline",
    "Latency",
    "LayerEnergy",
    "MappingFigures",
    "NetworkMapping",
    "NodeActivity",
    "Preset",
    "Price",
    "SpikeCounter",
    "estimate_energy",
    "estimate_latency",
    "fit",
    "load_preset",
    "map_in_order",
    "measure_activity",
    "measure_mapping",
    "preset_names",
    "search_mapping",
    "search_places",
]

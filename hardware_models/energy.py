"""Energy of a run under a preset: counts times prices, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from dsf.hardware_models.activity import QUANTITIES, Activity, NodeActivity
from dsf.hardware_models.preset import PICOJOULE, Preset


@dataclass(frozen=True)
class LayerEnergy:
    """Energy of one node per decision, in joules."""

    node: str
    low: float
    nominal: float
    high: float


@dataclass(frozen=True)
class EnergyEstimate:
    """Energy per decision under one preset.

    Attributes:
        preset: name of the preset; never print a joule without it.
        grade: quality of the preset's sources, see :data:`~dsf.hardware_models.preset.GRADES`.
        layers: energy by node, nodes without priced work left out.
        unpriced: counts per decision that the preset has no price for.
    """

    preset: str
    grade: str
    layers: tuple[LayerEnergy, ...]
    unpriced: dict[str, float]

    @property
    def nominal(self) -> float:
        """Joules per decision."""
        return sum(layer.nominal for layer in self.layers)

    @property
    def low(self) -> float:
        """Lower end of the band, joules per decision."""
        return sum(layer.low for layer in self.layers)

    @property
    def high(self) -> float:
        """Upper end of the band, joules per decision."""
        return sum(layer.high for layer in self.layers)


def estimate_energy(activity: Activity, preset: Preset) -> EnergyEstimate:
    """Price an activity record. Linear in every count, so layers add up to the total."""
    layers = tuple(layer for node in activity.nodes if (layer := _layer(node, activity, preset)) is not None)
    unpriced = {
        quantity: activity.per_decision(quantity)
        for quantity in QUANTITIES
        if quantity not in preset.prices and activity.total(quantity) > 0
    }
    return EnergyEstimate(preset.name, preset.grade, layers, unpriced)


def _layer(node: NodeActivity, activity: Activity, preset: Preset) -> LayerEnergy | None:
    low = nominal = high = 0.0
    for quantity, price in preset.prices.items():
        joules = getattr(node, quantity) / max(activity.decisions, 1) * PICOJOULE
        low, nominal, high = low + joules * price.low, nominal + joules * price.nominal, high + joules * price.high
    return LayerEnergy(node.node, low, nominal, high) if high > 0 else None

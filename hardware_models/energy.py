"""Energy of a run under a preset: counts times prices, layer by layer and term by term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsf.hardware_models.activity import QUANTITIES, Activity, NodeActivity
from dsf.hardware_models.preset import Preset
from dsf.hardware_models.weight_memory import USUAL, WeightMemory
from dsf.shell.units import PICOJOULE


@dataclass(frozen=True)
class Band:
    """An energy (joules) or a time (seconds) at the low, nominal and high price."""

    low: float = 0.0
    nominal: float = 0.0
    high: float = 0.0

    def __add__(self, other: Band) -> Band:
        return Band(self.low + other.low, self.nominal + other.nominal, self.high + other.high)


@dataclass(frozen=True)
class LayerEnergy:
    """Energy of one node per decision, by priced quantity."""

    node: str
    terms: dict[str, Band]

    @property
    def total(self) -> Band:
        """All terms."""
        return sum(self.terms.values(), Band())

    @property
    def nominal(self) -> float:
        """Joules per decision."""
        return self.total.nominal


@dataclass(frozen=True)
class EnergyEstimate:
    """Dynamic energy per decision under one preset.

    Attributes:
        preset: name of the preset; never print a joule without it.
        grade: of the worst price in use, see :data:`~dsf.hardware_models.preset.GRADES`.
        layers: energy by node, nodes without priced work left out.
        unpriced: counts per decision that the preset has no price for.
        included: quantities that were counted and whose cost is inside another's price, and where.
        memory: how weights are taken to be kept and fetched.
    """

    preset: str
    grade: str
    layers: tuple[LayerEnergy, ...]
    unpriced: dict[str, float]
    included: dict[str, str]
    memory: WeightMemory = USUAL

    @property
    def total(self) -> Band:
        """All layers."""
        return sum((layer.total for layer in self.layers), Band())

    @property
    def nominal(self) -> float:
        """Joules per decision."""
        return self.total.nominal

    @property
    def low(self) -> float:
        """Lower end of the band, joules per decision."""
        return self.total.low

    @property
    def high(self) -> float:
        """Upper end of the band, joules per decision."""
        return self.total.high

    @property
    def terms(self) -> dict[str, Band]:
        """The same energy by priced quantity."""
        found: dict[str, Band] = {}
        for layer in self.layers:
            for quantity, band in layer.terms.items():
                found[quantity] = found.get(quantity, Band()) + band
        return found


def estimate_energy(activity: Activity, preset: Preset) -> EnergyEstimate:
    """Price an activity record. Linear in every count, so layers add up to the total."""
    layers = tuple(layer for node in activity.nodes if (layer := _layer(node, activity, preset)).terms)
    counted = [quantity for quantity in QUANTITIES if activity.total(quantity) > 0]
    unpriced = {
        quantity: activity.per_decision(quantity)
        for quantity in counted
        if quantity not in preset.energy_pj and quantity not in preset.included
    }
    included = {quantity: where for quantity, where in preset.included.items() if quantity in counted}
    return EnergyEstimate(preset.name, preset.grade, layers, unpriced, included, activity.memory)


def _layer(node: NodeActivity, activity: Activity, preset: Preset) -> LayerEnergy:
    counts = {quantity: getattr(node, quantity) / max(activity.decisions, 1) for quantity in preset.energy_pj}
    return LayerEnergy(node.node, priced(counts, preset))


def priced(counts: Mapping[str, float], preset: Preset) -> dict[str, Band]:
    """What quantities cost (joules), those left out that are zero or have no price."""
    terms = {}
    for quantity, price in preset.energy_pj.items():
        joules = counts.get(quantity, 0.0) * PICOJOULE
        if joules:
            terms[quantity] = Band(joules * price.low, joules * price.nominal, joules * price.high)
    return terms

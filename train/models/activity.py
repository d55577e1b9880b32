"""Firing rates and synaptic events of a float model: what training logs, warns about, and can be made to pay for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsf.train.config.levers import PenaltyCounts, PenaltyOver
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.neurons import LIF

SILENT_RATE = 0.005
"""A population that fires less (spikes per neuron and tick) is reported as silent."""
SATURATED_RATE = 0.95
"""A population that fires more is reported as saturated: it hardly says anything."""
FETCH_PJ_PER_BYTE = 3.5
"""What fetching a byte of weights costs: the nominal price of the preset int8_45nm (a test compares)."""
UPDATE_PJ = 7.7
"""What a neuron's update with something to do costs there. Idle updates are free here, as at the preset's low end: a
penalty can only press what can be saved."""


@dataclass
class FiringStatistics:
    """What one forward pass did.

    Attributes:
        rates: spikes per neuron and tick of each population, by module path.
        events: synaptic events per token of each Linear that reads spikes (spikes times fan-out), by module path.
        capacity: the events per token if every neuron fired at every tick.
        used: share of each population's neurons that fire at any tick of a token.
        fetches: weights per token that each Linear behind spikes needs, where a row that is fetched once serves all
            ticks of the token: of every neuron that fires at any of them, its weights that are not zero.
        fetchable: the fetches per token if every neuron fired.
        updates: updates per token with something to do of each population: a current, a bias or a membrane.
        slots: the updates per token of all neurons and ticks.
    """

    rates: dict[str, Tensor] = field(default_factory=dict)
    events: dict[str, Tensor] = field(default_factory=dict)
    capacity: float = 0.0
    used: dict[str, Tensor] = field(default_factory=dict)
    fetches: dict[str, Tensor] = field(default_factory=dict)
    fetchable: float = 0.0
    updates: dict[str, Tensor] = field(default_factory=dict)
    slots: float = 0.0

    @property
    def events_per_token(self) -> Tensor:
        """All Linears' synaptic events for one token: in stream mode, for one decision."""
        return torch.stack(list(self.events.values())).sum()

    @property
    def events_share(self) -> Tensor:
        """Events as a share of ``capacity``, 0 to 1: what ``--rate-penalty`` multiplies."""
        return self.events_per_token / self.capacity

    @property
    def fetches_per_token(self) -> Tensor:
        """All Linears' weights fetched for one token."""
        return torch.stack(list(self.fetches.values())).sum()

    def cost_share(self, weight_bits: int) -> Tensor:
        """What fetches and updates cost, as a share of the most possible, 0 to 1: both at int8_45nm's prices."""
        per_weight = FETCH_PJ_PER_BYTE * weight_bits / 8
        cost = per_weight * self.fetches_per_token + UPDATE_PJ * torch.stack(list(self.updates.values())).sum()
        return cost / (per_weight * self.fetchable + UPDATE_PJ * self.slots)

    def penalised(self, counts: PenaltyCounts, over: PenaltyOver, weight_bits: int) -> Tensor:
        """The share, 0 to 1, that ``--rate-penalty`` multiplies; see its companions in
        :class:`~dsf.train.config.training.TrainConfig`.
        """
        if over == "layers":
            return torch.stack(list((self.rates if counts == "events" else self.used).values())).mean()
        return self.events_share if counts == "events" else self.cost_share(weight_bits)

    def unusual(self) -> list[str]:
        """Silent and saturated populations, each with its rate."""
        rates = {name: float(rate) for name, rate in self.rates.items()}
        silent = [f"{name} is silent ({rate:.2%})" for name, rate in rates.items() if rate < SILENT_RATE]
        full = [f"{name} is saturated ({rate:.2%})" for name, rate in rates.items() if rate > SATURATED_RATE]
        return silent + full

    def as_metrics(self) -> dict[str, float]:
        """Plain numbers for metrics.jsonl."""
        rates = {f"rate/{name}": float(rate) for name, rate in self.rates.items()}
        events = {"events_per_token": float(self.events_per_token)} if self.events else {}
        fetches = {"fetches_per_token": float(self.fetches_per_token)} if self.fetches else {}
        return {**events, **fetches, **rates}


@contextmanager
def record_activity(model: DecisionModel, by_token: bool = True) -> Iterator[FiringStatistics]:
    """Record the activity of the forward pass made inside; all of it keeps its gradients.

    Populations are the LIF modules; events and fetches are counted at the Linears that spikes feed.

    Args:
        model: to watch.
        by_token: record what a token's ticks do together, too: ``used``, ``fetches`` and ``updates``.
    """
    activity, handles = FiringStatistics(), []
    for name, module in model.named_modules():
        if isinstance(module, LIF):
            handles.append(module.register_forward_hook(_rate_hook(activity, name)))
            if by_token:
                handles.append(module.register_forward_hook(_update_hook(activity, name, model.may_idle(name))))
        elif isinstance(module, nn.Linear) and model.counts_events(name):
            handles.append(module.register_forward_hook(_event_hook(activity, name)))
            if by_token:
                handles.append(module.register_forward_hook(_fetch_hook(activity, name)))
    try:
        yield activity
    finally:
        for handle in handles:
            handle.remove()


def fired_in_token(spikes: Tensor) -> Tensor:
    """1 where a neuron fires at any tick of its token, else 0: (rows, neurons) in float32 from (ticks, rows, neurons).

    The gradient is that of the maximum, in equal shares to all ticks that hold it: each spike of a neuron that fires
    twice gets a half, each tick of a silent one 1 / ticks. The exact any, 1 - prod(1 - s), would give a neuron that
    fires twice none at all, so that nothing would ever silence it.
    """
    return spikes.amax(dim=0).float()


def busy_updates(current: Tensor, spikes: Tensor, remembers: bool) -> Tensor:
    """Updates with something to do, as a share of all: neurons without bias, (ticks, rows, neurons) each.

    An update is busy where its current is not 0, or where an earlier one of the token has left a membrane (which no
    spike has reset since). The gradient is that of the currents' magnitudes, each divided by itself where it is above
    1: of n coincidences that make a current, each gets 1 / n.

    Args:
        current: of the neurons.
        spikes: that they fire.
        remembers: whether a membrane outlives its tick.
    """
    with torch.no_grad():
        busy, left = current != 0, torch.zeros_like(current[0], dtype=torch.bool)
        for tick, fired in enumerate(spikes != 0):
            busy[tick] |= left
            left = busy[tick] & ~fired & remembers
    magnitude = current.float().abs()
    passing = (magnitude / magnitude.detach().clamp(min=1.0)).mean()
    return busy.float().mean() + passing - passing.detach()


def _rate_hook(activity: FiringStatistics, name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, spikes: Tensor) -> None:
        activity.rates[name] = spikes.float().mean()

    return hook


def _update_hook(activity: FiringStatistics, name: str, may_idle: bool) -> Any:
    def hook(module: LIF, inputs: tuple[Tensor, ...], spikes: Tensor) -> None:
        slots = len(spikes) * spikes.shape[-1]
        busy = busy_updates(inputs[0], spikes, module.constants.decay > 0.0) if may_idle else spikes.new_ones(())
        activity.used[name] = fired_in_token(spikes).mean()
        activity.updates[name] = busy.float() * slots
        activity.slots += slots

    return hook


def _event_hook(activity: FiringStatistics, name: str) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        spikes = inputs[0]  # (ticks, rows, inputs)
        synapses = len(spikes) * module.in_features * module.out_features
        activity.events[name] = spikes.float().mean() * synapses
        activity.capacity += synapses

    return hook


def _fetch_hook(activity: FiringStatistics, name: str) -> Any:
    def hook(module: nn.Linear, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        held = (module.weight.detach() != 0).sum(dim=0).float()  # of each input's row, as memory has it
        activity.fetches[name] = fired_in_token(inputs[0]).mean(dim=0) @ held
        activity.fetchable += float(held.sum())

    return hook

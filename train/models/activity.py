"""Firing rates and synaptic events of a float model: what training logs, warns about, and can be made to pay for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.neurons import LIF

SILENT_RATE = 0.005
"""A population that fires less (spikes per neuron and tick) is reported as silent."""
SATURATED_RATE = 0.95
"""A population that fires more is reported as saturated: it hardly says anything."""


@dataclass
class FiringStatistics:
    """What one forward pass did.

    Attributes:
        rates: spikes per neuron and tick of each population, by module path.
        events: synaptic events per token of each Linear that reads spikes (spikes times fan-out), by module path.
        capacity: the events per token if every neuron fired at every tick.
    """

    rates: dict[str, Tensor] = field(default_factory=dict)
    events: dict[str, Tensor] = field(default_factory=dict)
    capacity: float = 0.0

    @property
    def events_per_token(self) -> Tensor:
        """All Linears' synaptic events for one token: in stream mode, for one decision."""
        return torch.stack(list(self.events.values())).sum()

    @property
    def events_share(self) -> Tensor:
        """Events as a share of ``capacity``, 0 to 1: what ``--rate-penalty`` multiplies."""
        return self.events_per_token / self.capacity

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
        return {**events, **rates}


@contextmanager
def record_activity(model: DecisionModel) -> Iterator[FiringStatistics]:
    """Record the activity of the forward pass made inside; rates and events keep their gradients.

    Populations are the LIF modules; events are counted at the Linears that spikes feed.
    """
    activity, handles = FiringStatistics(), []
    for name, module in model.named_modules():
        if isinstance(module, LIF):
            handles.append(module.register_forward_hook(_rate_hook(activity, name)))
        elif isinstance(module, nn.Linear) and model.counts_events(name):
            handles.append(module.register_forward_hook(_event_hook(activity, name)))
    try:
        yield activity
    finally:
        for handle in handles:
            handle.remove()


def _rate_hook(activity: FiringStatistics, name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, spikes: Tensor) -> None:
        activity.rates[name] = spikes.float().mean()

    return hook


def _event_hook(activity: FiringStatistics, name: str) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        spikes = inputs[0]  # (ticks, rows, inputs)
        synapses = len(spikes) * module.in_features * module.out_features
        activity.events[name] = spikes.float().mean() * synapses
        activity.capacity += synapses

    return hook

"""What a rival's layers do in a window, counted by hand beside it."""

from __future__ import annotations

import pytest
import torch
from rival_models import CONTEXT, FEATURES, SMALL, small_model

from dsf.runtime.sweep_energy import layer_counts
from dsf.train.activity import record_activity

PAIRS = CONTEXT * (CONTEXT + 1) // 2
ACTIONS = 3


def test_fourier_controllers_layers_are_counted() -> None:
    model = small_model("fcnet")
    assert model.rival is not None
    width, hidden = model.rival.sizes
    blocks = SMALL.blocks * (2 * width * hidden * CONTEXT + PAIRS * width)
    head = width * width + width * ACTIONS
    activity = layer_counts(model, 0.0, "int8")
    assert activity.total("macs") == FEATURES * width * CONTEXT + blocks + head
    weights = FEATURES * width + SMALL.blocks * 2 * width * hidden + head
    assert activity.total("weight_bytes") == weights
    wide = layer_counts(model, 0.0, "fp32")
    assert wide.total("macs_fp32") == activity.total("macs") and wide.total("weight_bytes") == 4 * weights


@pytest.mark.parametrize("kind", ["spikegpt", "spikebert"])
def test_spiking_rivals_pay_for_events_and_updates(kind: str) -> None:
    model = small_model(kind)  # type: ignore[arg-type]
    assert model.rival is not None
    width, hidden = model.rival.sizes
    with torch.no_grad(), record_activity(model) as recorded:
        model(torch.ones(1, CONTEXT, FEATURES), torch.ones(1, CONTEXT, dtype=torch.bool))
    events = float(recorded.events_per_token) if recorded.events else 0.0
    activity = layer_counts(model, events, "int8")
    assert activity.total("synaptic_events") == round(events * CONTEXT)
    embedding, head = FEATURES * width * CONTEXT, width * ACTIONS
    if kind == "spikebert":
        assert activity.total("macs") == embedding + head  # all else is behind spikes
        assert activity.total("dynamic_operations") == 2 * SMALL.blocks * PAIRS * width * SMALL.ticks
        neurons = width + SMALL.blocks * (6 * width + hidden)
        assert activity.total("active_updates") == neurons * SMALL.ticks * CONTEXT
    else:
        blocks = SMALL.blocks * ((5 * width * width + 2 * width * hidden) * CONTEXT + PAIRS * width)
        assert activity.total("macs") == embedding + blocks + head and not events
        assert activity.total("active_updates") == SMALL.blocks * 2 * width * CONTEXT

"""What a rival's layers do in a window, counted by hand beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from dsf.hardware_models.dense import CACHED, WINDOW, decision_transformer
from dsf.runtime.sweeps.energy import layer_counts, transformer_sizes
from dsf.testing.rival_models import CONTEXT, FEATURES, SMALL, small_model
from dsf.train.models.activity import record_activity

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


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_strl_pays_for_its_float_layers_and_for_every_pair_that_it_sees(
    attention: Literal["causal", "bidirectional"],
) -> None:
    model = small_model("strl")
    assert model.rival is not None
    ticks, (width, hidden) = model.ticks, model.rival.sizes
    assert ticks != SMALL.ticks
    model.rival = replace(model.rival, strl=replace(model.rival.strl, attention=attention))
    with torch.no_grad(), record_activity(model) as recorded:
        model(torch.ones(1, CONTEXT, FEATURES), torch.ones(1, CONTEXT, dtype=torch.bool))
    events = float(recorded.events_per_token)
    activity = layer_counts(model, events, "fp32")
    assert activity.ticks == ticks and activity.total("synaptic_events") == round(events * CONTEXT)
    # Q, K and V, and the MLP's first layer, read floats once per token; its second layer reads spikes.
    blocks = SMALL.blocks * (3 * width * width + width * hidden) * CONTEXT
    assert activity.total("macs_fp32") == FEATURES * width * CONTEXT + blocks + width * ACTIONS
    pairs = PAIRS if attention == "causal" else CONTEXT**2
    assert activity.total("dynamic_operations") == 2 * SMALL.blocks * pairs * width * ticks
    scores = model.rival.heads * CONTEXT**2
    assert activity.total("active_updates") == SMALL.blocks * ticks * ((4 * width + hidden) * CONTEXT + scores)


@pytest.mark.parametrize("width", ["int8", "fp32"])
def test_the_twins_layers_are_what_its_sizes_say_and_its_cache_computes_one_token(
    width: Literal["int8", "fp32"],
) -> None:
    model = small_model("twin")
    sizes = transformer_sizes(model)
    window, cached = (decision_transformer(sizes, width, schedule).activity for schedule in (WINDOW, CACHED))
    layers = layer_counts(model, 0.0, width)
    products = "macs_fp32" if width == "fp32" else "macs"
    for quantity in (products, "weight_bytes"):
        assert window.total(quantity) == layers.total(quantity)
    assert cached.total("weight_bytes") == layers.total("weight_bytes")
    head, pairs = sizes.width * sizes.actions, 2 * sizes.width * sizes.blocks
    each = (layers.total(products) - head - pairs * PAIRS) // CONTEXT
    assert cached.total(products) == each + head + pairs * CONTEXT

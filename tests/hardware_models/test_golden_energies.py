"""Energies of three tiny networks under every preset, worked out by hand.

All have width 2, one block, an MLP of 4, 2 features and 3 actions. How often everything happened is derived in
``COUNTS`` from the spikes in ``SPIKES``; the energies in ``PICOJOULES`` are these counts times the published prices.
"""

from __future__ import annotations

from typing import Any

import pytest

from dsf.hardware_models import SpikeCounter, estimate_energy, load_preset, measure_activity, preset_names
from dsf.testing.random_networks import random_network

SIZES: dict[str, dict[str, Any]] = {
    "pssa": {"attention": "pssa", "ticks": 1, "window": 2, "context": 2},
    "tssa": {"attention": "tssa", "ticks": 2, "context": 3},
    "sdsa1": {"attention": "sdsa1", "ticks": 1, "context": 2},
}
TOKENS = {"pssa": 1, "tssa": 2, "sdsa1": 1}
"""Tokens of the one decision: TSSA's is on a window of two."""

SPIKES: dict[str, dict[str, list[int]]] = {
    # Neurons of query, key and value follow each other in qkv_lif.
    "pssa": {
        "attention.input_lif": [1, 0],
        "attention.qkv_lif": [1, 0, 1, 0, 0, 0],
        "attention.coincidence": [0, 1],
        "attention.attention_lif": [1, 0],
        "mlp.input_lif": [1, 1],
        "mlp.hidden_lif": [1, 1, 1, 0],
    },
    "tssa": {
        "attention.input_lif": [3, 0],
        "attention.qkv_lif": [2, 0, 1, 0, 0, 1],
        "attention.attention_lif": [2, 0],
        "mlp.input_lif": [0, 1],
        "mlp.hidden_lif": [1, 1, 0, 0],
    },
    "sdsa1": {
        "attention.input_lif": [1, 1],
        "attention.qkv_lif": [1, 0, 1, 0, 1, 0],
        "attention.coincidence": [1, 0],
        "attention.attention_lif": [1, 1],
        "attention.gated": [1, 0],
        "mlp.input_lif": [0, 0],
        "mlp.hidden_lif": [1, 0, 0, 0],
    },
}
IDLE = {
    "pssa": {"attention.qkv_lif": 1, "attention.attention_lif": 1},
    "tssa": {"attention.attention_lif": 6},
    "sdsa1": {},
}
"""Updates with nothing to do."""

COUNTS = {
    "pssa": {
        "synaptic_events": 1 * 6 + 1 * 2 + 2 * 4 + 3 * 2,
        "active_updates": 14 + 6,  # 16 neurons but 2, and three residuals of 2
        "inactive_updates": 2,
        "spikes": 10,
        "messages": 1 + 2 * 2 + 1 + 1 + 2 + 3,  # query, key and value go to the gate and to the window
        "graded_messages": 2 + 2 * 2 + 2 + 2 * 2 + 2,  # encoder, two residuals with two readers each, window, readout
        "dynamic_operations": 2 + 1 * 2,  # the gate's ANDs; one query spike looks back on two tokens
        "macs": 2 * 2 + 3 * 2,
        "weight_bytes": 22 + 10,
        "host_transfers": 2 + 3,
    },
    "tssa": {
        "synaptic_events": 3 * 6 + 2 * 2 + 1 * 4 + 2 * 2,
        "active_updates": 58 + 24,  # 16 neurons on 2 tokens of 2 ticks but 6, and three residuals
        "inactive_updates": 6,
        "spikes": 12,
        "messages": 3 + 4 + 2 + 1 + 2,
        "graded_messages": 4 * (2 + 2 * 2 + 2 + 2 * 2) + 2,
        "dynamic_operations": (2 + 2 * 4) * 3,  # query spikes, and every neuron and tick, on a reach of three
        "macs": 2 * 4 + 3 * 2,
        "repeated_macs": 2 * 4,  # both tokens' second tick
        "weight_bytes": 30 + 22,
        "host_transfers": 2 * 2 + 3,
    },
    "sdsa1": {
        "synaptic_events": 2 * 6 + 1 * 2 + 0 * 4 + 1 * 2,
        "active_updates": 16 + 6,
        "inactive_updates": 0,
        "spikes": 10,
        "messages": 2 + 3 * 2 + 1 + 2 + 1 + 0 + 1,  # query, key and value go to both gates
        "graded_messages": 2 + 2 * 2 + 2 + 2 * 2 + 2,
        "dynamic_operations": 2 + 2 + 2 * 2,  # two gates; the count of two neurons on a reach of two
        "macs": 2 * 2 + 3 * 2,
        "weight_bytes": 16 + 10,
        "host_transfers": 2 + 3,
    },
}

PICOJOULES = {
    "paper_45nm": {"pssa": 69.4, "tssa": 118.4, "sdsa1": 67.6},
    "int8_45nm": {"pssa": 285.82, "tssa": 872.8, "sdsa1": 265.4},
    "int8_45nm_1mb": {"pssa": 573.82, "tssa": 1340.8, "sdsa1": 499.4},  # a byte costs 9 pJ more than above
    "dense_7nm": {"pssa": 36.384, "tssa": 59.124, "sdsa1": 29.562},
    "loihi1_davies2018": {"pssa": 2263.6, "tssa": 7682.4, "sdsa1": 2181.7},
    "loihi1_fitted": {"pssa": 4364.4, "tssa": 9505.4, "sdsa1": 4305.6},
    "loihi2_derived": {"pssa": 2272.4, "tssa": 7694.4, "sdsa1": 2188.1},
    "truenorth": {"pssa": 50.6, "tssa": 69.0, "sdsa1": 36.8},
    "odin": {"pssa": 185.46, "tssa": 252.9, "sdsa1": 134.88},
    "spinnaker1": {"pssa": 864_600.0, "tssa": 2_687_000.0, "sdsa1": 784_800.0},
    "spinnaker2": {"pssa": 58_080.0, "tssa": 206_220.0, "sdsa1": 55_380.0},
    "cpu": {"pssa": 498_800.0, "tssa": 1_462_000.0, "sdsa1": 481_600.0},
    "gpu": {"pssa": 17_400.0, "tssa": 51_000.0, "sdsa1": 16_800.0},
    "arm": {"pssa": 52_200.0, "tssa": 153_000.0, "sdsa1": 50_400.0},
}


def counter_of(kind: str) -> SpikeCounter:
    """One decision of a tiny network, with the spikes above."""
    network = random_network(0, width=2, blocks=1, features=2, **SIZES[kind])
    counter = SpikeCounter(network)
    counter.decisions, counter.tokens = 1, TOKENS[kind]
    for name, fired in SPIKES[kind].items():
        counter.fired[f"blocks.0.{name}"][:] = fired
    for active in counter.active.values():
        active[:] = counter.tokens * network.ticks
    for name, idle in IDLE[kind].items():
        for _ in range(idle):
            active = counter.active[f"blocks.0.{name}"]
            active[active.argmax()] -= 1
    return counter


@pytest.mark.parametrize("kind", SIZES)
def test_counts(kind: str) -> None:
    activity = measure_activity(counter_of(kind))
    assert {quantity: activity.total(quantity) for quantity in COUNTS[kind]} == COUNTS[kind]


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("preset", preset_names())
def test_energies(preset: str, kind: str) -> None:
    energy = estimate_energy(measure_activity(counter_of(kind)), load_preset(preset))
    assert energy.nominal * 1e12 == pytest.approx(PICOJOULES[preset][kind], rel=1e-9)
    assert sum(band.nominal for band in energy.terms.values()) == pytest.approx(energy.nominal)

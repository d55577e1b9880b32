"""Dense rivals against counts worked out by hand."""

from __future__ import annotations

import pytest

from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import Readout, Synapses
from dsf.hardware_models import SpikeCounter, estimate_energy, load_preset, measure_activity
from dsf.hardware_models.dense import (
    CACHED,
    CACHED_SINGLY,
    SCHEDULES,
    WINDOW,
    BreakEven,
    Perceptron,
    Precision,
    TransformerSizes,
    break_even,
    decision_transformer,
    dense_equivalent,
    dense_ticks,
    perceptron,
    rival_transformer,
    rivals,
)
from dsf.runtime.artifacts import network_path
from dsf.testing.narrowed import node_of
from dsf.testing.random_networks import random_network

TINY = TransformerSizes(observations=2, actions=1, width=4, blocks=2, context=2, mlp_hidden=12)
"""Matrices: embedding 4 x 4, per block 4 x 16 and 6 x 16, head 4."""


def test_the_rival_of_the_shipped_network_has_as_many_weights() -> None:
    network = read_network(network_path())
    matrices = sum(node.weights.size for node in network.nodes if isinstance(node, (Synapses, Readout)))
    rival = rival_transformer(network)
    assert rival == TransformerSizes(observations=11, actions=3)
    assert rival.weights == matrices == 15 * 128 + 3 * 12 * 128**2 + 128 * 3


def test_a_window_computes_every_token_and_fetches_once() -> None:
    """6 tokens: 21 pairs under the causal mask."""
    rival = decision_transformer(TINY, "fp32", WINDOW)
    activity = rival.activity
    assert TINY.weights == 16 + 2 * (64 + 96) + 4
    assert activity.total("macs_fp32") == 2 * 16 + 2 * (6 * (64 + 96) + 2 * 21 * 4) + 4
    assert (activity.total("macs"), activity.tokens) == (0, 6)
    assert activity.total("weight_bytes") == 4 * TINY.weights
    assert rival.key_value_bytes == 4 * 2 * 6 * 4 * 2


def test_a_cache_computes_one_step() -> None:
    """3 tokens that see 4, 5 and 6: 15 pairs. Token by token, blocks are fetched three times, keys and values too."""
    together, singly = (decision_transformer(TINY, "int8", schedule) for schedule in (CACHED, CACHED_SINGLY))
    for rival in (together, singly):
        assert rival.activity.total("macs") == 16 + 2 * (3 * (64 + 96) + 2 * 15 * 4) + 4
        assert rival.activity.total("macs_fp32") == 0
    assert together.activity.total("weight_bytes") == TINY.weights
    assert singly.activity.total("weight_bytes") == 16 + 3 * 2 * (64 + 96) + 4
    assert (together.key_value_bytes, singly.key_value_bytes) == (2 * 6 * 4 * 2, 3 * 2 * 6 * 4 * 2)


def test_an_mlp_is_its_matrices_once() -> None:
    cases: tuple[tuple[Precision, int, str], ...] = (("fp32", 4, "macs_fp32"), ("int8", 1, "macs"))
    for precision, bytes_each, counted in cases:
        activity = perceptron(Perceptron(observations=5, actions=3, width=7), precision).activity
        assert activity.total(counted) == 5 * 7 + 7 * 7 + 7 * 3
        assert activity.total("weight_bytes") == bytes_each * (5 * 7 + 7 * 7 + 7 * 3)
        assert (activity.decisions, activity.tokens) == (1, 1)


@pytest.mark.parametrize("attention", ["pssa", "tssa", "sdsa1", "none"])
def test_a_dense_network_computes_every_synapse(attention: str) -> None:
    network = random_network(0, blocks=1, width=12, ticks=4, window=3, context=8, attention=attention)
    matrices = [node.weights.size for node in network.of_kind(Synapses)]
    products = {"pssa": 12 + 3 * 12, "tssa": 2 * 8 * 12, "sdsa1": 12 + 8 * 12 + 12, "none": 0}[attention]
    ticks, equivalent = dense_ticks(network).activity, dense_equivalent(network).activity
    readout = network.readout.weights.size
    assert ticks.total("macs") == matrices[0] + 4 * (sum(matrices[1:]) + products) + readout
    assert equivalent.total("macs") == sum(matrices) + products + readout
    assert ticks.total("weight_bytes") == equivalent.total("weight_bytes") == sum(matrices) + readout
    measured = measure_activity(one_token(network))
    assert ticks.total("active_updates") == measured.total("neuron_updates")
    assert equivalent.total("active_updates") == 0


def one_token(network: Network) -> SpikeCounter:
    counter = SpikeCounter(network)
    counter.decisions = counter.tokens = 1
    return counter


def test_spiking_every_synapse_in_every_tick_is_what_the_dense_machine_does() -> None:
    """A run in which everything fires: as many events as the dense machine has products behind spikes."""
    network = random_network(0, blocks=1, attention="none")
    counter = one_token(network)
    for fired in counter.fired.values():
        fired[:] = network.ticks
    embed, readout = node_of(network, "embed", Synapses).weights.size, network.readout.weights.size
    dense = dense_ticks(network).activity
    assert measure_activity(counter).total("synaptic_events") == dense.total("macs") - embed - readout


def test_every_preset_prices_a_rival_or_says_what_it_has_no_price_for() -> None:
    network = random_network(0, blocks=1)
    found = rivals(network)
    assert len(found) == 2 * len(SCHEDULES) + 2 == len({rival.name for rival in found})
    for rival in found:
        counted = "macs_fp32" if rival.precision == "fp32" else "macs"
        for name in ("paper_45nm", "int8_45nm", "dense_7nm", "cpu"):
            estimate = estimate_energy(rival.activity, load_preset(name))
            assert estimate.nominal > 0 and counted not in estimate.unpriced
        assert counted in estimate_energy(rival.activity, load_preset("loihi1_fitted")).unpriced


def test_int8_costs_what_the_tables_say() -> None:
    """0.3 pJ per product and 3.5 pJ per byte at 45 nm."""
    rival = decision_transformer(TINY, "int8", CACHED)
    estimate = estimate_energy(rival.activity, load_preset("int8_45nm"))
    assert estimate.nominal == pytest.approx((0.3 * rival.activity.total("macs") + 3.5 * TINY.weights) * 1e-12)


def test_break_even_counts_events_per_synapse_and_token() -> None:
    network = random_network(0, blocks=1, attention="none", width=12)
    counter = one_token(network)
    counter.tokens = 2
    counter.fired["blocks.0.mlp.input_lif"][:6] = 3  # 18 spikes to 24 neurons: 432 of 576 synapses, in two tokens
    first, second, third = break_even(measure_activity(counter), network)
    assert first.value == second.value == 18 * 24 / 576 / 2
    assert third.value == 18 / ((12 + 24) * 4 * 2)
    assert "0.375 spikes per synapse and inference, bound 1.72" in first.verdict and "can win" in first.verdict
    assert "within: it depends" in second.verdict and "spikes lose" in third.verdict


def test_at_its_bound_a_run_has_not_won() -> None:
    assert "lose" in BreakEven("s", "q", 1.0, 1.0, 1.0).verdict


def test_the_rival_takes_its_sizes_from_the_network() -> None:
    network = random_network(0, blocks=2, width=12, mlp_ratio=2, context=5, attention="none", features=6)
    assert rival_transformer(network) == TransformerSizes(2, 3, width=12, blocks=2, context=5, mlp_hidden=24)

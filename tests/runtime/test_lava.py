"""Lava against the reference: every population, every tick, zero mismatches, for both models of every block."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_network, random_tokens

from dsf.export.file import read_network
from dsf.export.network import Network
from dsf.export.nodes import LIF, NetworkError
from dsf.export.reference import encode
from dsf.runtime.artifacts import network_path
from dsf.runtime.closed_loop import run_closed_loop
from dsf.runtime.engine import LavaModel, ReferenceBackend, open_engine
from dsf.runtime.lava_layout import split_network
from dsf.runtime.parity import Parity, ParityCheck
from dsf.tasks import get_task

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 11), reason="Lava is frozen on Python 3.10")

RANDOM_NETWORKS = 20
TOKENS = 10
TRAINED_DECISIONS = 200
MODELS: tuple[LavaModel, ...] = ("fused", "expanded")


def compare(network: Network, model: LavaModel, tokens: np.ndarray, resets: set[int]) -> Parity:
    """Feed (count, 1, features) tokens to Lava and the reference, with episode starts at ``resets``."""
    check = ParityCheck(network)
    with open_engine(network, "lava", model) as engine:
        for index, token in enumerate(tokens):
            if index in resets:
                engine.reset(0)
                check.reset()
            check.check(token, *engine.step_graded(token))
    return check.result


def network_of(number: int) -> Network:
    """A small random network; the sizes, ticks, windows, widths and bits vary with the number."""
    generator = np.random.default_rng(number)
    return random_network(
        number,
        bits=int(generator.integers(2, 9)),
        width=int(generator.integers(1, 24)),
        blocks=int(generator.integers(1, 4)),
        ticks=int(generator.integers(1, 7)),
        window=int(generator.integers(1, 6)),
        input_bits=int(generator.integers(4, 11)),
    )


@pytest.mark.parametrize("number", range(RANDOM_NETWORKS))
@pytest.mark.parametrize("model", MODELS)
def test_random_networks_match_spike_by_spike(number: int, model: LavaModel) -> None:
    network = network_of(number)
    result = compare(network, model, random_tokens(network, TOKENS, 1, seed=number), resets={4})
    neurons = sum(node.size for node in network.nodes if type(node).__name__ in ("LIF", "Gate"))
    assert result.compared_spikes == TOKENS * network.ticks * neurons
    assert result.exact, result


@pytest.mark.parametrize("model", MODELS)
def test_trained_network_matches_over_200_closed_loop_decisions(model: LavaModel) -> None:
    network, task = read_network(network_path()), get_task("hopper")
    tokens: list[np.ndarray] = []

    class Recording(ReferenceBackend):
        def step_graded(self, graded: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            tokens.append(graded)
            return super().step_graded(graded)

    run_closed_loop(task, Recording(network), range(1), task.target_returns[0], parity_decisions=0)
    assert len(tokens) >= TRAINED_DECISIONS
    result = compare(network, model, np.stack(tokens[:TRAINED_DECISIONS]), resets=set())
    neurons = sum(node.size for node in network.nodes if type(node).__name__ in ("LIF", "Gate"))
    assert result.compared_spikes == TRAINED_DECISIONS * network.ticks * neurons
    assert result.exact, result


def test_parity_check_sees_a_single_flipped_spike() -> None:
    network = random_network(0)
    check, engine = ParityCheck(network), ReferenceBackend(network)
    token = random_tokens(network, 1, 1, seed=0)[0]
    accumulators, spikes = engine.step_graded(token)
    name = next(network.of_kind(LIF)).name
    spikes[name] = spikes[name].copy()
    spikes[name][0, 0] ^= 1
    check.check(token, accumulators + np.array([[0, 1, 0]]), spikes)
    assert (check.result.mismatches, check.result.accumulator_mismatches) == (1, 1)
    assert name in check.result.first_mismatch and not check.result.exact
    del spikes[name]
    assert ParityCheck(network).check(token, accumulators, spikes) is None


def test_networks_wired_in_another_way_are_refused() -> None:
    network = random_network(0, blocks=1)
    cut = "residual.0.attention"  # without its shortcut
    nodes = [
        dataclasses.replace(node, sources=node.sources[1:]) if node.name == cut else node for node in network.nodes
    ]
    split_network(network)
    with pytest.raises(NetworkError, match="another network"):
        split_network(dataclasses.replace(network, nodes=tuple(nodes)))


def test_values_that_are_not_finite_are_refused() -> None:
    network = random_network(0)
    with pytest.raises(NetworkError, match="not finite"):
        encode(network.encoder, np.full((1, network.encoder.size), np.nan))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 70))
def test_raster_packing_round_trip(seed: int, ticks: int, neurons: int) -> None:
    from dsf.runtime.lava_layout import pack_raster, raster_words, unpack_raster

    spikes = np.random.default_rng(seed).random((ticks, neurons)) < 0.5
    words = pack_raster(spikes)
    assert len(words) == raster_words(ticks, neurons)
    assert np.array_equal(unpack_raster(words, ticks, neurons), spikes)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 4096))
def test_fused_neurons_are_the_reference_neurons_even_at_the_rails(seed: int, decay: int) -> None:
    from dsf.export.reference import fire
    from dsf.runtime.lava_arithmetic import Neurons

    generator = np.random.default_rng(seed)
    size = 30
    node = LIF("x", "y", generator.integers(1, 2**17, size), generator.integers(-4095, 4096, size), 7, decay)
    currents = generator.integers(-(2**17), 2**17, (6, 1, size)) // generator.integers(1, 2000, size)
    neurons = Neurons(node)
    assert np.array_equal(np.stack([neurons.step(current[0]) for current in currents]), fire(node, currents)[:, 0])

"""Reference = fast engine = ONNX Runtime, spike by spike: trained and random, every attention, both modes."""

from __future__ import annotations

import numpy as np
import pytest

from dsf.export.network.file import read_network
from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import SPIKING_KINDS
from dsf.export.targets.onnx_engine import OnnxEngine, OnnxWindowEngine
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.runtime.engines.parity import Parity, Spikes, reference_engine
from dsf.testing.random_networks import KINDS, random_network, random_tokens
from dsf.testing.spike_tally import TALLY

TRAINED = "trained"
LANES, RESTARTED = 4, 1
BEYOND = 4
"""Decisions after a window is full."""


def network_of(name: str) -> Network:
    """The shipped network, or a random one of middling size."""
    if name == TRAINED:
        return read_network(network_path())
    return random_network(7, width=48, heads=2, blocks=2, context=8, window=5, **KINDS[name])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["stream", "window"])
@pytest.mark.parametrize("name", [TRAINED, *KINDS])
def test_every_spike_is_the_same_in_all_engines(name: str, mode: Mode) -> None:
    network = network_of(name)
    spiking = {node.name for node in network.nodes if isinstance(node, SPIKING_KINDS)}
    reference, fast = reference_engine(network, mode, LANES), FastEngine(network, LANES, mode, record=True)
    onnx = (OnnxEngine if mode == "stream" else OnnxWindowEngine)(network, LANES)
    parities = {"fast engine": Parity(), "ONNX Runtime": Parity()}
    for step, token in enumerate(random_tokens(network, network.context + BEYOND, LANES, seed=1)):
        if step == network.context // 2:
            for engine in (reference, fast, onnx):
                engine.reset(RESTARTED)
        truth: Spikes = {}
        found: Spikes = {}
        answer = reference.step_graded(token, truth.__setitem__)
        assert np.array_equal(fast.step_graded(token), answer)
        assert np.array_equal(onnx.step_graded(token, found.__setitem__), answer)
        expected = {population: truth[population] for population in spiking}
        recorded = {population: spikes.swapaxes(0, 1) for population, spikes in fast.spikes.items()}
        parities["fast engine"].compare(step, expected, recorded)
        parities["ONNX Runtime"].compare(step, expected, found)
    for engine_name, parity in parities.items():
        TALLY.add(engine_name, parity.compared_spikes, parity.mismatches)
        assert parity.compared_spikes > 0 and parity.exact, (engine_name, parity)

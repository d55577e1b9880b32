"""The fast engine against the reference: every spike, every accumulator, every kind of network."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.network.file import read_network
from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import LIF, SPIKING_KINDS, NetworkError, Node, Synapses
from dsf.export.network.reference import ReferenceEngine, WindowReference, encode
from dsf.export.proof.rungs import random_entering
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines import fast_engine
from dsf.runtime.engines.adapters import FastLoopEngine, ReferenceLoopEngine
from dsf.runtime.engines.errors import BackendUnavailable
from dsf.runtime.engines.fast_engine import CHUNK_ELEMENTS, CHUNK_SLOTS, PAD, FastEngine, SparseForm
from dsf.shell.arrays import FloatArray, Int64Array
from dsf.testing.narrowed import node_of
from dsf.testing.random_networks import exportable, random_network, random_tokens, sparser
from dsf.testing.spike_tally import TALLY
from dsf.train.config.training import AttentionKind

EPISODE_ENDS = 0.15
"""How often a lane starts a new episode in these tests."""


OTHER_BUILDS = {
    "no compression of bytes": ("-mno-avx512vbmi2",),
    "AVX-512 without words": ("-mno-avx512bw",),
    "AVX2": ("-mno-avx512f",),
    "no vectors to speak of": ("-march=x86-64",),
}
"""Flags that take away what the C code asks for, of the processors that have it."""
BUILDS = {"as this processor likes it": (), **(OTHER_BUILDS if platform.machine() == "x86_64" else {})}
MAX_THRESHOLD, MAX_BIAS = 2**17 - 1, 4095


@pytest.fixture(params=list(BUILDS.values()), ids=list(BUILDS))
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The engine, compiled for another processor."""
    monkeypatch.setattr(fast_engine, "SOURCE", dataclasses.replace(fast_engine.SOURCE, flags=request.param))
    fast_engine._library.cache_clear()
    yield
    fast_engine._library.cache_clear()


def with_extreme_neurons(network: Network, generator: np.random.Generator) -> Network:
    """The same network with neurons that never fire and neurons that always do: few, half or all of a population."""

    def extreme(node: LIF) -> LIF:
        drawn, share = generator.random(node.size), generator.choice([0.0, 0.1, 0.5, 1.0])
        silent, saturated = drawn < share / 2, drawn > 1 - share * generator.choice([0.5, 1.0])
        return dataclasses.replace(
            node,
            threshold=np.where(silent, MAX_THRESHOLD, np.where(saturated, 1, node.threshold)),
            bias_mantissa=np.where(saturated, MAX_BIAS, np.where(silent, 0, node.bias_mantissa)),
            bias_exponent=4 if saturated.any() else node.bias_exponent,
        )

    nodes = [extreme(node) if isinstance(node, LIF) else node for node in network.nodes]
    return dataclasses.replace(network, nodes=tuple(nodes))


def compare(network: Network, lanes: int, mode: Mode, decisions: int, seed: int, sparse: SparseForm = "quicker") -> int:
    """Random tokens and resets through both; returns the spike slots compared."""
    truth = (ReferenceEngine if mode == "stream" else WindowReference)(network, lanes)
    fast = FastEngine(network, lanes, mode, record=True, sparse=sparse)
    generator = np.random.default_rng(seed)
    compared = 0
    for _ in range(decisions):
        for lane in np.flatnonzero(generator.random(lanes) < EPISODE_ENDS):
            truth.reset(lane)
            fast.reset(lane)
        tokens = random_entering(network, (lanes,), generator)
        expected: dict[str, Int64Array] = {}
        assert np.array_equal(truth.step_graded(tokens, expected.__setitem__), fast.step_graded(tokens))
        for name, spikes in fast.spikes.items():
            assert np.array_equal(expected[name].swapaxes(0, 1), spikes), name
            compared += spikes.size
    TALLY.add("fast engine", compared)
    return compared


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(sizes=exportable(largest_width=48), bits=st.integers(2, 8), lanes=st.integers(1, 5), windowed=st.booleans())
def test_every_spike_equals_the_reference(sizes: dict[str, Any], bits: int, lanes: int, windowed: bool) -> None:
    network = random_network(bits=bits, **sizes)
    mode: Mode = "window" if windowed else "stream"
    assert compare(network, lanes, mode, sizes["context"] + 3, sizes["seed"]) > 0


@pytest.mark.parametrize("attention", ["pssa", "tssa", "sssa", "sdsa1", "sdsa3"])
@pytest.mark.parametrize("mode", ["stream", "window"])
def test_more_lanes_than_are_computed_together(attention: Any, mode: Mode) -> None:
    network = random_network(3, width=PAD + 1, attention=attention, blocks=1)
    assert compare(network, CHUNK_ELEMENTS + 7, mode, 6, seed=1) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_every_way_to_add_up_gives_the_same(build: None, seed: int) -> None:
    """Silent, saturated and other populations, one decay or many, any number of ticks, rows that fill tiles and rows
    that do not.
    """
    generator = np.random.default_rng(seed)
    sizes: dict[str, Any] = {
        "width": int(generator.integers(1, 200)),
        "blocks": 1,
        "ticks": seed % 8 + 1,
        "context": int(generator.integers(1, 6)),
        "decay": float(generator.choice([0.0, 0.25, 0.375, 0.5])),
        "attention": generator.choice(["pssa", "sdsa1", "tssa"]),
    }
    sizes["learn_decays"] = seed % 2 == 1 and sizes["decay"] > 0.0
    network = with_extreme_neurons(random_network(seed, **sizes | {"window": min(3, sizes["context"])}), generator)
    mode: Mode = "window" if seed % 3 == 0 else "stream"
    assert compare(network, int(generator.choice([1, 2, 19, CHUNK_ELEMENTS + 3])), mode, 5, seed) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_weights_without_zeros_give_the_same(seed: int) -> None:
    """Rows that fill pieces and chunks and rows that do not, matrices and neurons without a weight, every exponent."""
    generator = np.random.default_rng(seed)
    sizes: dict[str, Any] = {
        "width": int(generator.integers(1, 200)),
        "blocks": 1,
        "ticks": seed % 8 + 1,
        "context": int(generator.integers(1, 6)),
        "attention": generator.choice(["pssa", "sdsa1", "tssa"]),
    }
    network = random_network(seed, int(generator.integers(2, 9)), **sizes | {"window": min(3, sizes["context"])})
    network = with_extreme_neurons(sparser(network, float(generator.choice([0.7, 0.9, 0.99, 1.0]))), generator)
    lanes, mode = int(generator.choice([1, 3, 19])), generator.choice(["stream", "window"])
    for form in get_args(SparseForm):
        assert compare(network, lanes, mode, 4, seed, form) > 0


def test_largest_sparse_weights_at_once() -> None:
    """All inputs fire; the kept weights are the largest, of both signs."""
    network = random_network(5, width=128, blocks=1)
    weights = np.zeros_like(node_of(network, "blocks.0.mlp.contract", Synapses).weights)
    weights[::2, ::4], weights[1::2, 3::4] = 127, -127
    network = with_weights(network, "blocks.0.mlp.contract", weights)
    assert compare(network, 2, "stream", 5, seed=3, sparse="chunks") > 0
    index = [node.name for node in network.nodes].index("blocks.0.mlp.contract")
    taken = FastEngine(network, sparse="chunks")._nodes[index].chunk_count
    pieces, neurons, kept = 2, 128, 128 // 4
    assert taken in (0, pieces * neurons // PAD * kept // CHUNK_SLOTS)  # none where the processor takes tiles
    assert bool(taken) == bool(fast_engine._library().dsf_takes_chunks())


@pytest.mark.slow
def test_the_shipped_network_in_a_batch(build: None) -> None:
    network = read_network(network_path())
    assert compare(network, 20, "stream", 12, seed=0) > 0
    assert compare(network, 2, "window", 3, seed=1) > 0
    assert compare(sparser(network, 0.9), 5, "stream", 3, seed=2) > 0


def test_rows_of_weights_longer_than_one_block_and_wider_than_one_tile() -> None:
    """More than 256 inputs, whose sums would leave 16 bits, and more ticks than one pattern holds."""
    network = random_network(5, width=150, blocks=1, ticks=7)
    assert node_of(network, "blocks.0.mlp.contract", Synapses).weights.shape[1] > 256
    assert compare(network, 2, "stream", 4, seed=2) > 0


def test_all_inputs_at_once_with_the_largest_weights() -> None:
    """The worst case of the 16-bit sums: 256 spikes on weights of 127, of both signs."""
    network = random_network(5, width=128, blocks=1)
    weights = np.full_like(node_of(network, "blocks.0.mlp.contract", Synapses).weights, 127)
    weights[::2] = -127
    assert compare(with_weights(network, "blocks.0.mlp.contract", weights), 1, "stream", 5, seed=3) > 0


def with_weights(network: Network, name: str, weights: np.ndarray) -> Network:
    """The same network with other weights behind neurons that always fire."""
    changed: list[Node] = []
    for node in network.nodes:
        if node.name == name and isinstance(node, Synapses):
            node = dataclasses.replace(node, weights=weights, exponent=-8)
        if node.name == "blocks.0.mlp.hidden_lif" and isinstance(node, LIF):
            node = dataclasses.replace(
                node,
                threshold=np.ones_like(node.threshold),
                bias_mantissa=np.full_like(node.bias_mantissa, 4095),
                bias_exponent=4,
            )
        changed.append(node)
    return dataclasses.replace(network, nodes=tuple(changed))


def test_vectors_are_encoded_as_the_reference_does() -> None:
    network = random_network(1)
    fast, generator = FastEngine(network, lanes=3), np.random.default_rng(0)
    ties = network.encoder.offset + network.encoder.step * (
        generator.integers(-200, 200, (50, 3, network.encoder.size)) + 0.5
    )
    for vectors in [*ties, *generator.normal(size=(50, 3, network.encoder.size)) * 5]:
        fast.step(vectors)
        assert np.array_equal(fast.graded, encode(network.encoder, vectors))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_changes_nothing(bad: float) -> None:
    network = random_network(1)
    fast, other = FastEngine(network), FastEngine(network)
    vector: FloatArray = np.full((1, network.encoder.size), 0.3)
    fast.step(vector), other.step(vector)
    broken = vector.copy()
    broken[0, 2] = bad
    with pytest.raises(NetworkError, match="not finite"):
        fast.step(broken)
    assert np.array_equal(fast.step(vector * 2.0), other.step(vector * 2.0)) and fast.tokens == 2


@pytest.mark.parametrize("mode", ["stream", "window"])
@pytest.mark.parametrize("attention", ["pssa", "tssa", "sdsa1"])
@pytest.mark.parametrize("width", [12, 40])
def test_counts_are_those_of_the_reference(build: None, attention: AttentionKind, mode: Mode, width: int) -> None:
    """Spikes and active updates of every neuron."""
    network = random_network(2, attention=attention, width=width)
    fast, reference = FastLoopEngine(network, mode), ReferenceLoopEngine(network, mode)
    for token in random_tokens(network, 10, 1, seed=4):
        fast.step_graded(token), reference.step_graded(token)
    counted, truth = fast.counter, reference.counter
    assert (counted.decisions, counted.tokens) == (truth.decisions, truth.tokens)
    for name, fired in truth.fired.items():
        assert np.array_equal(counted.fired[name], fired), name
    for name, active in truth.active.items():
        assert np.array_equal(counted.active[name], active), name
    slots = truth.tokens * network.ticks
    assert sum(truth.spikes.values()) > 0
    assert any((active < slots).any() for active in truth.active.values())
    assert any((active == slots).all() for active in truth.active.values())  # a tile whose neurons all have a bias
    fast.restart_counter()
    assert not any(values.any() for values in (*fast.counter.fired.values(), *fast.counter.active.values()))


def test_without_recording_nothing_else_changes() -> None:
    network = random_network(2)
    recording, plain = FastEngine(network, record=True), FastEngine(network)
    token = np.arange(network.encoder.size)[None]
    assert np.array_equal(recording.step_graded(token), plain.step_graded(token)) and not plain.spikes
    assert set(recording.spikes) == {node.name for node in network.nodes if isinstance(node, SPIKING_KINDS)}


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fast_engine._library.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(
        BackendUnavailable, match=r"needs a C compiler: no C compiler 'no-such-compiler'.*--backend reference"
    ):
        FastEngine(random_network(0))
    fast_engine._library.cache_clear()

"""The reference engine against a slow definition, tick by tick and neuron by neuron; stream against window."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_network, random_tokens

from dsf.export.network import LIF, Gate, Network, Readout, Residual, Synapses, Window
from dsf.export.reference import ReferenceEngine, WindowReference


def slow_decisions(network: Network, tokens: np.ndarray) -> tuple[list[list[int]], dict[str, list[list[list[int]]]]]:
    """Plain Python integers, one neuron at a time, straight from the node docstrings. (tokens, features) in."""
    history: dict[str, list[list[list[int]]]] = {}
    answers, spikes = [], {}
    for token in tokens.tolist():
        graded = [q << s for q, s in zip(token, network.encoder.shift.tolist())]
        values: dict[str, list[list[int]]] = {"encoder": [graded] * network.ticks}
        for node in network.nodes[1:]:
            if isinstance(node, Readout):
                answers.append(_slow_readout(node, values[node.source]))
                continue
            if isinstance(node, Synapses):
                out = [
                    [_shift(sum(w * s for w, s in zip(row, tick)), node.exponent) for row in node.weights.tolist()]
                    for tick in values[node.source]
                ]
            elif isinstance(node, Residual):
                out = [
                    [sum(values[source][t][n] for source in node.sources) + int(node.bias[n]) for n in range(node.size)]
                    for t in range(network.ticks)
                ]
            elif isinstance(node, LIF):
                out = _slow_lif(node, values[node.source])
            elif isinstance(node, Gate):
                out = [
                    [tick[node.first + n] & tick[node.second + n] for n in range(node.size)]
                    for tick in values[node.source]
                ]
            else:
                assert isinstance(node, Window)
                past = [values[node.gate], *history.get(node.name, [])][: len(node.weights)]
                history[node.name] = past
                out = [
                    [
                        values[node.query][t][node.first + n]
                        * sum(int(w) * p[t][n] for w, p in zip(node.weights, past))
                        for n in range(node.size)
                    ]
                    for t in range(network.ticks)
                ]
            values[node.name] = out
            if isinstance(node, (LIF, Gate)):
                spikes.setdefault(node.name, []).append(out)
    return answers, spikes


def _shift(value: int, exponent: int) -> int:
    return value << exponent if exponent >= 0 else value >> -exponent


def _slow_lif(node: LIF, currents: list[list[int]]) -> list[list[int]]:
    membrane, spikes = [0] * node.size, []
    for current in currents:
        fired = []
        for n in range(node.size):
            leaked = abs(membrane[n]) * (4096 - node.decay) // 4096 * (1 if membrane[n] > 0 else -1)
            value = leaked + 64 * current[n] + (int(node.bias_mantissa[n]) << node.bias_exponent)
            value = max(-(2**23) + 1, min(2**23 - 1, value))
            fired.append(int(value > 64 * int(node.threshold[n])))
            membrane[n] = 0 if fired[-1] else value
        spikes.append(fired)
    return spikes


def _slow_readout(node: Readout, residual: list[list[int]]) -> list[int]:
    half = 1 << node.shift >> 1
    graded = [(sum(tick[m] for tick in residual) + half) >> node.shift for m in range(node.weights.shape[1])]
    return [sum(w * g for w, g in zip(row, graded)) + int(b) for row, b in zip(node.weights.tolist(), node.bias)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    bits=st.integers(2, 8),
    width=st.integers(1, 6),
    blocks=st.integers(1, 2),
    ticks=st.integers(1, 8),
    window=st.integers(1, 5),
    decay=st.sampled_from([0.25, 0.5, 0.875, 0.0]),
)
def test_reference_is_the_docstrings(seed: int, bits: int, decay: float, **sizes: int) -> None:
    network = random_network(seed, bits, decay=decay, **sizes)
    tokens = random_tokens(network, 7, 1, seed)
    engine, observed = ReferenceEngine(network), {}

    def observe(name: str, values: np.ndarray) -> None:
        if isinstance(network[name], (LIF, Gate)):
            observed.setdefault(name, []).append(values[:, 0].tolist())

    answers = [engine.step_graded(token, observe)[0].tolist() for token in tokens]
    assert (answers, observed) == slow_decisions(network, tokens[:, 0])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    width=st.integers(1, 8),
    blocks=st.integers(1, 3),
    window=st.integers(1, 4),
    ticks=st.integers(1, 4),
    spare=st.integers(0, 3),
)
def test_stream_equals_window_when_the_context_covers_the_field(
    seed: int, width: int, blocks: int, window: int, ticks: int, spare: int
) -> None:
    context = 1 + blocks * (window - 1) + spare
    network = random_network(seed, width=width, blocks=blocks, window=window, ticks=ticks, context=context)
    assert network.stream_is_exact
    stream, windowed = ReferenceEngine(network), WindowReference(network)
    for token in random_tokens(network, 2 * context + 3, 1, seed):
        assert np.array_equal(stream.step_graded(token), windowed.step_graded(token))


def test_a_field_longer_than_the_context_is_another_policy() -> None:
    network = random_network(4, width=16, blocks=3, window=4, context=5)
    assert not network.stream_is_exact
    stream, windowed = ReferenceEngine(network), WindowReference(network)
    tokens = random_tokens(network, 30, 1, seed=4)
    assert any(not np.array_equal(stream.step_graded(token), windowed.step_graded(token)) for token in tokens)


def test_lanes_are_independent_and_reset_alone() -> None:
    network = random_network(1)
    tokens = random_tokens(network, 6, 3, seed=1)
    together, alone = ReferenceEngine(network, lanes=3), [ReferenceEngine(network) for _ in range(3)]
    for step, token in enumerate(tokens):
        if step == 3:
            together.reset(1)
            alone[1].reset(0)
        answers = together.step_graded(token)
        for lane, engine in enumerate(alone):
            assert np.array_equal(answers[lane], engine.step_graded(token[lane : lane + 1])[0])

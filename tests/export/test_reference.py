"""The reference engine against a slow definition, tick by tick and neuron by neuron; stream against window."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    HOST_KINDS,
    LIF,
    SPIKING_KINDS,
    And,
    Count,
    Gate,
    HistoryNode,
    NetworkError,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
)
from dsf.export.network.reference import ReferenceEngine, WindowReference, fire, integer_product, replay_window
from dsf.testing.random_networks import exportable, random_network, random_tokens
from dsf.train.config.training import AttentionKind


def slow_decisions(
    network: Network, tokens: np.ndarray, replayed: bool = False
) -> tuple[list[list[int]], dict[str, list[list[list[int]]]]]:
    """Plain Python integers, one neuron at a time, straight from the node docstrings. (tokens, features) in.

    ``replayed``: the tokens are a window, so each has its place; in a stream all take the last one.
    """
    history: dict[str, list[list[list[int]]]] = {}
    answers: list[list[int]] = []
    spikes: dict[str, list[list[list[int]]]] = {}
    for index, token in enumerate(tokens.tolist()):
        place = network.context - (len(tokens) - index if replayed else 1)
        graded = [q << s for q, s in zip(token, network.encoder.shift.tolist())]
        values: dict[str, list[list[int]]] = {network.encoder.name: [graded] * network.ticks}
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
            elif isinstance(node, And):
                out = [
                    [query[node.first + n] & tick[n] for n in range(node.size)]
                    for query, tick in zip(values[node.query], values[node.source])
                ]
            else:
                assert not isinstance(node, HOST_KINDS)  # it is the first one
                past = [values[node.remembered], *history.get(node.name, [])][: node.reach]
                history[node.name] = past
                out = [
                    [_slow_current(node, values, past, place, t, n) for n in range(node.size)]
                    for t in range(network.ticks)
                ]
            values[node.name] = out
            if isinstance(node, SPIKING_KINDS):
                spikes.setdefault(node.name, []).append(out)
    return answers, spikes


def _slow_current(
    node: HistoryNode, values: dict[str, list[list[int]]], past: list[list[list[int]]], place: int, t: int, n: int
) -> int:
    """One neuron's current at one tick, from what its remembered population fired in the last tokens."""
    if isinstance(node, Count):
        return node.gain * sum(spikes[t][n] for spikes in past)
    if isinstance(node, Outer):
        channels = node.size // node.heads
        head = range(n // channels * channels, (n // channels + 1) * channels)
        ticks = range(len(past[0])) if node.all_ticks else [t]
        query, total = values[node.source], 0
        for spikes in past:
            score = sum(query[u][node.query + m] * spikes[u][node.key + m] for u in ticks for m in head)
            total += score * spikes[t][node.value + n]
        return node.gain * total
    weights = node.weights[place] if isinstance(node, PlacedWindow) else node.weights
    total = sum(int(weight) * spikes[t][n] for weight, spikes in zip(weights, past))
    return values[node.query][t][node.first + n] * total


def _shift(value: int, exponent: int) -> int:
    return value << exponent if exponent >= 0 else value >> -exponent


def _slow_lif(node: LIF, currents: list[list[int]]) -> list[list[int]]:
    membrane, spikes = [0] * node.size, []
    for current in currents:
        fired = []
        for n in range(node.size):
            leaked = abs(membrane[n]) * (4096 - int(node.decays[n])) // 4096 * (1 if membrane[n] > 0 else -1)
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


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(sizes=exportable(largest_width=6, largest_context=6), bits=st.integers(2, 8))
def test_reference_is_the_docstrings(sizes: dict[str, Any], bits: int) -> None:
    network = random_network(bits=bits, **sizes)
    tokens = random_tokens(network, 7, 1, sizes["seed"])
    engine = ReferenceEngine(network)
    observed: dict[str, Any] = {}

    def observe(name: str, values: np.ndarray) -> None:
        if isinstance(network[name], SPIKING_KINDS):
            observed.setdefault(name, []).append(values[:, 0].tolist())

    answers = [engine.step_graded(token, observe)[0].tolist() for token in tokens]
    assert (answers, observed) == slow_decisions(network, tokens[:, 0])


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(sizes=exportable(largest_width=6, largest_context=6), bits=st.integers(2, 8), data=st.data())
def test_windows_that_are_replayed_are_the_docstrings(sizes: dict[str, Any], bits: int, data: st.DataObject) -> None:
    """Every token of a window that is replayed whole, and the decisions of lanes that started at different times."""
    network = random_network(bits=bits, **sizes)
    length = data.draw(st.integers(1, network.context))
    window = random_tokens(network, length, 2, sizes["seed"])
    observed: dict[str, Any] = {}

    def observe(name: str, values: np.ndarray) -> None:
        if isinstance(network[name], SPIKING_KINDS):
            observed[name] = values[:, :, 1].swapaxes(0, 1).tolist()

    answers = replay_window(network, window, observe=observe)
    assert (answers[:, 1].tolist(), observed) == slow_decisions(network, window[:, 1], replayed=True)
    engine, tokens = WindowReference(network, lanes=2), random_tokens(network, length + 3, 2, sizes["seed"])
    for step, token in enumerate(tokens):
        if step == 2:
            engine.reset(1)
        found = engine.step_graded(token)
        for lane, start in ((0, 0), (1, 2 if step >= 2 else 0)):
            seen = tokens[max(start, step + 1 - network.context) : step + 1, lane]
            assert found[lane].tolist() == slow_decisions(network, seen, replayed=True)[0][-1]


@pytest.mark.parametrize("weight_type", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("value_type", [np.int8, np.int16, np.int64])
def test_products_are_exact_on_both_sides_of_float32(value_type: Any, weight_type: Any) -> None:
    """Sums of extreme values, odd ones too, of as few terms as float32 holds and of more."""
    least, most = np.iinfo(value_type).min, np.iinfo(value_type).max
    values = np.array([max(least, -(1 << 17)), min(most, (1 << 17) - 1), 1], value_type)
    weights = np.array([np.iinfo(weight_type).min, np.iinfo(weight_type).max, 1, 127], weight_type)
    for terms in (1, 7, 129, 1101):
        rows = np.resize(values, (2, 3, terms))
        columns = np.resize(weights, (5, terms))
        expected = rows.astype(object) @ columns.T.astype(object)
        found = integer_product(rows, columns)
        assert found.dtype == np.int64 and found.tolist() == expected.tolist()
    assert integer_product(np.zeros((2, 0, 3), value_type), weights[None, :3]).shape == (2, 0, 1)


def test_currents_of_any_width_are_added_in_64_bits_and_left_alone() -> None:
    node = LIF("lif", "x", np.array([70_000], np.int32), np.array([5], np.int16), 0, 0)
    currents = np.full((6, 1, 1), 20_000)
    fired = [fire(node, currents.astype(kind)).ravel().tolist() for kind in (np.int64, np.int32, np.int16)]
    assert fired == [[0, 0, 0, 1, 0, 0]] * 3 and (currents == 20_000).all()


def test_a_window_longer_than_the_context_is_refused() -> None:
    network = random_network(0, context=4)
    with pytest.raises(NetworkError, match="5 tokens, the network's context is 4"):
        replay_window(network, random_tokens(network, 5, 1, 0))


@pytest.mark.parametrize("attention", [kind for kind in get_args(AttentionKind) if kind != "pssa"])
def test_rules_over_the_whole_context_stream_exactly_with_one_block_only(attention: AttentionKind) -> None:
    for blocks in (1, 2):
        network = random_network(3, attention=attention, blocks=blocks, context=5)
        stream, windowed = ReferenceEngine(network), WindowReference(network)
        tokens = random_tokens(network, 15, 1, seed=3)
        same = all(np.array_equal(stream.step_graded(token), windowed.step_graded(token)) for token in tokens)
        assert same == network.stream_is_exact == (blocks == 1 or attention == "none")


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

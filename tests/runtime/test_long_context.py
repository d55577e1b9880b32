"""A context of 100 tokens, a whole maze: stream mode stays exact, and a decision costs what the first ones cost."""

from __future__ import annotations

import time

import numpy as np

from dsf.export.network.network import Mode, Network
from dsf.export.network.reference import ReferenceEngine
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.testing.random_networks import random_network, random_tokens

CONTEXT, BLOCKS = 100, 3
LATE, SAMPLE = 5_000, 300


def maze_network() -> Network:
    """Discrete, 4 features of a maze and more; three PSSA blocks that look back on 34 tokens each."""
    window = 1 + (CONTEXT - 1) // BLOCKS
    return random_network(2, width=16, blocks=BLOCKS, context=CONTEXT, window=window, discrete=True)


def test_stream_is_exact_over_a_hundred_tokens() -> None:
    network = maze_network()
    assert network.receptive_field == network.context == CONTEXT and network.stream_is_exact
    engines = (ReferenceEngine(network, 1), FastEngine(network, 1, "stream"), FastEngine(network, 1, "window"))
    found = [
        [engine.step_graded(token).copy() for token in random_tokens(network, 2 * CONTEXT, 1, seed=0)]
        for engine in engines
    ]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    assert len(np.unique(np.argmax(found[0], axis=-1))) > 1


def quickest(network: Network, mode: Mode, skip: int) -> float:
    """Seconds of the quickest decision among SAMPLE, after ``skip`` of them."""
    engine, tokens = FastEngine(network, 1, mode), random_tokens(network, SAMPLE, 1, seed=1)
    for index in range(skip):
        engine.step_graded(tokens[index % SAMPLE])
    spent = []
    for token in tokens:
        started = time.perf_counter()
        engine.step_graded(token)
        spent.append(time.perf_counter() - started)
    return min(spent)


def test_a_late_decision_costs_what_an_early_one_costs() -> None:
    network = maze_network()
    early, late = quickest(network, "stream", CONTEXT), quickest(network, "stream", LATE)
    assert late < 2 * early
    assert quickest(network, "window", CONTEXT) > 5 * late  # which replays all hundred tokens

"""Weights by width, without zeros, fetched event by event or token by token: by hand, and by a loop over spikes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dsf.export.network.network import Network
from dsf.export.network.nodes import Encoder, Readout, Synapses
from dsf.export.placement.chips import LOIHI_2
from dsf.hardware_models import SpikeCounter, estimate_energy, load_preset, map_in_order, measure_activity, preset_names
from dsf.hardware_models.dense import (
    CACHED,
    CACHED_SINGLY,
    WINDOW,
    DenseWeights,
    TransformerSizes,
    break_even,
    decision_transformer,
    dense_equivalent,
    dense_ticks,
)
from dsf.hardware_models.layers import layer_rows, together
from dsf.hardware_models.schedule import count_ticks
from dsf.hardware_models.weight_memory import (
    COMPRESSED_ROWS,
    DENSE_ROWS,
    FETCHES,
    MARKED_ROWS,
    USUAL,
    WEIGHTS,
    Fetch,
    WeightMemory,
    Weights,
    evenly_packed,
    packed,
)
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.shell.errors import UserError
from dsf.testing.chain_network import CHIP, chain_network
from dsf.testing.narrowed import node_of
from dsf.testing.random_networks import random_network, random_tokens

MEMORIES = [WeightMemory(weights, fetch) for weights in WEIGHTS for fetch in FETCHES]
PACKED = WeightMemory("packed")


def matrix(targets: int, *rows: Sequence[int]) -> npt.NDArray[np.int8]:
    """(targets, inputs) from the weights of every input, zeros behind them left out."""
    found = np.zeros((targets, len(rows)), np.int8)
    for index, row in enumerate(rows):
        found[: len(row), index] = row
    return found


def test_four_bits_are_half_a_byte_and_seven_are_stored_as_eight() -> None:
    """Rows of 4 weights: 4 x 4 bits are 2 bytes; 4 x 8 are 4; 3 x 4 = 12 bits begin the next row at a whole byte."""
    assert packed(matrix(4, [7, 1, -7, 3], [1, 1, 1, 1])).row_bytes.tolist() == [2, 2]
    assert packed(matrix(4, [60, 1, -7, 3], [1, 1, 1, 1])).bits == 8
    assert packed(matrix(3, [7, 1, -7])).row_bytes.tolist() == [2]
    assert packed(matrix(4, [7, 1, -7, 3])).format == DENSE_ROWS


def test_compressed_rows_by_hand() -> None:
    """16 targets, 1 and 2 weights of 8 bits. A row says where it starts (3 weights in all: 2 bits) and how many it
    keeps (0 to 16: 5 bits); a kept weight says its target (4 bits): 7 + 12 = 19 bits and 7 + 24 = 31, 3 and 4 bytes.
    Marked, the rows take 2 + 16 + 8 and 2 + 16 + 16 bits, 4 and 5 bytes; dense 16 each.
    """
    stored = packed(matrix(16, [100], [-100, 5]))
    assert (stored.format, stored.bits, stored.synapses) == (COMPRESSED_ROWS, 8, 3)
    assert (stored.kept.tolist(), stored.row_bytes.tolist(), stored.total_bytes) == ([1, 2], [3, 4], 7)


def test_marked_rows_by_hand() -> None:
    """8 targets, half of them kept twice: start 4 bits (8 weights), 8 marks, 4 x 8: 44 bits are 6 bytes. Compressed
    4 + 4 + 4 x (3 + 8) = 52 bits are 7, dense 8.
    """
    stored = packed(matrix(8, [100, 1, 1, 1], [1, 1, 1, 1]))
    assert (stored.format, stored.row_bytes.tolist()) == (MARKED_ROWS, [6, 6])


def test_a_row_without_weights_costs_its_header_and_a_matrix_of_sizes_is_spread_evenly() -> None:
    assert packed(matrix(16, [100], [])).row_bytes.tolist() == [3, 1]  # 1 + 5 + 12 bits, 1 + 5 bits
    half = evenly_packed(inputs=3, targets=16, bits=8, share=5 / 48)
    assert half.kept.tolist() == [2, 2, 1] and half.format == COMPRESSED_ROWS
    assert evenly_packed(3, 16, 4, 1.0).row_bytes.tolist() == [8, 8, 8]
    for bits, share in ((0, 1.0), (8, 1.5), (33, 0.5)):
        with pytest.raises(UserError, match="bits are 1 to 32, a share is 0 to 1"):
            evenly_packed(3, 16, bits, share)


def pruned_chain() -> Network:
    """The chain of tests/testing/chain_network.py with 5 of the 9 weights of S, of 4 bits: rows of 3, 2 and 0."""
    network, weights = chain_network(), matrix(3, [7, -7, 1], [2, 3], [])
    pruned_s = dataclasses.replace(node_of(network, "S", Synapses), weights=weights)
    return dataclasses.replace(network, nodes=tuple(pruned_s if node.name == "S" else node for node in network.nodes))


def chain_counter(network: Network) -> SpikeCounter:
    """Two decisions of two ticks. Token 1: A0 and A1 fire in both ticks. Token 2: A0 fires in the first, A2 in both."""
    counter = SpikeCounter(network)
    for ticks in ([[1, 1, 0], [1, 1, 0]], [[1, 0, 1], [0, 0, 1]]):
        spikes = {"A": np.array(ticks)[:, None]}
        counter.add(spikes)
        counter.wake(spikes)
    return counter


@pytest.mark.parametrize(
    ("weights", "fetch", "events", "fetched"),
    [
        ("bytes", "event", 7 * 3, 7 * 3),  # A0 fires 3 times, A1 and A2 twice each
        ("bytes", "token", 7 * 3, 4 * 3),  # A0 in two tokens, A1 and A2 in one each
        ("packed", "event", 3 * 3 + 2 * 2, 7 * 2),  # dense rows of 12 bits are the cheapest: 2 bytes each
        ("packed", "token", 3 * 3 + 2 * 2, 4 * 2),
    ],
)
def test_a_chain_by_hand(weights: Weights, fetch: Fetch, events: int, fetched: int) -> None:
    """Marked rows would take 3 + 3 + 12, 3 + 3 + 8 and 6 bits: 3, 2 and 1 bytes, as many as dense rows take."""
    network = pruned_chain()
    activity = measure_activity(chain_counter(network), WeightMemory(weights, fetch))
    nodes = {node.node: node for node in activity.nodes}
    assert (nodes["S"].synaptic_events, nodes["S"].weight_bytes) == (events, fetched)
    # The embedding's six weights and the readout's, all 1: 2 bits packed, rows of 3 and of 2 weights, a byte each.
    embed, readout = (2 * 1, 3 * 1) if weights == "packed" else (6, 6)
    assert nodes["embed"].weight_bytes == embed * (4 if fetch == "event" else 2) and nodes["embed"].macs == 12
    assert nodes["readout"].weight_bytes == readout * 2 and nodes["readout"].macs == 12
    total = fetched + nodes["embed"].weight_bytes + nodes["readout"].weight_bytes
    for preset, price in (("int8_45nm", 3.5), ("int8_45nm_1mb", 12.5), ("dense_7nm", 1.06)):
        estimate = estimate_energy(activity, load_preset(preset))
        assert estimate.terms["weight_bytes"].nominal == pytest.approx(total * price * 1e-12 / 2)
        assert estimate.memory == WeightMemory(weights, fetch)


@pytest.mark.parametrize("preset", ["loihi1_davies2018", "loihi1_fitted", "loihi2_derived"])
def test_a_chip_meets_the_synapses_that_exist(preset: str) -> None:
    """A0, A1 and A2 have 3, 2 and no synapses; a core has the targets of its neurons."""
    network, prices = pruned_chain(), load_preset(preset)
    counter = chain_counter(network)
    every, existing = map_in_order(network, CHIP), map_in_order(network, CHIP, weights="packed")
    assert every.activity(counter).total("synaptic_events") == 7 * 3
    activity = existing.activity(counter)
    assert activity.total("synaptic_events") == 3 * 3 + 2 * 2 and activity.memory == PACKED
    # r1[0] is on core 4 and r1[1, 2] on core 5: A0 reaches one and two of them, A1 one and one.
    assert existing.core_activity(counter)["synaptic_events"].tolist() == [0, 0, 0, 0, 3 + 2, 6 + 2, 0]
    terms = estimate_energy(activity, prices).terms
    price = prices.energy_pj["synaptic_events"].nominal
    assert terms["synaptic_events"].nominal == pytest.approx(13 * price * 1e-12 / 2)
    assert {name: band for name, band in terms.items() if name != "synaptic_events"} == {
        name: band
        for name, band in estimate_energy(every.activity(counter), prices).terms.items()
        if name != "synaptic_events"
    }


def pruned(network: Network, share: float, seed: int = 0) -> Network:
    """The network with a share of the weights behind spikes and of the readout left."""
    generator = np.random.default_rng(seed)

    def cut(node: Any) -> Any:
        if not isinstance(node, (Synapses, Readout)):
            return node
        return dataclasses.replace(node, weights=node.weights * (generator.random(node.weights.shape) < share))

    return dataclasses.replace(network, nodes=tuple(cut(node) for node in network.nodes))


def watched(network: Network, tokens: int = 6) -> tuple[SpikeCounter, list[dict[str, npt.NDArray[Any]]]]:
    """What random tokens make it fire: counted, and every token's spikes (ticks, neurons)."""
    engine, waking, seen = ReferenceLoopEngine(network), SpikeCounter(network), []
    for token in random_tokens(network, tokens, 1, seed=1):
        spikes = engine.step_graded(token)[1]
        seen.append({name: values.copy() for name, values in spikes.items()})
        waking.wake(spikes)
    counter = engine.counter
    counter.woken = waking.woken
    return counter, seen


def bits_of_row(form: str, row: list[int], start: int, bits: int) -> int:
    """A row's bits, written down weight by weight."""
    targets, found = len(row), 0
    if form == COMPRESSED_ROWS:
        found += start + len(f"{targets:b}")
    elif form == MARKED_ROWS:
        found += start
    for weight in row:
        found += 1 if form == MARKED_ROWS else 0
        if form == DENSE_ROWS:
            found += bits
        elif weight != 0:
            found += bits + (len(f"{targets - 1:b}") if form == COMPRESSED_ROWS and targets > 1 else 0)
    return found


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_a_loop_over_spikes_fetches_as_much(share: float) -> None:
    """Every token, tick, neuron and weight, one after the other."""
    network = pruned(random_network(0, blocks=1, width=12), share)
    counter, seen = watched(network)
    formats = set()
    for memory in MEMORIES:
        counted = {node.node: node for node in measure_activity(counter, memory).nodes}
        for node in network.of_kind(Synapses):
            if isinstance(network[node.source], Encoder):
                continue
            stored = memory.stored(node.weights)
            formats.add(stored.format)
            rows = node.weights.T.tolist()
            start = len(f"{sum(weight != 0 for row in rows for weight in row):b}")
            events = fetched = 0
            for spikes in seen:
                here: set[int] = set()
                for tick in spikes[node.source]:
                    for neuron in np.flatnonzero(tick).tolist():
                        row = rows[neuron]
                        zeros_count = memory.weights == "bytes"
                        events += sum(zeros_count or weight != 0 for weight in row)
                        if memory.fetch == "token" and neuron in here:
                            continue
                        here.add(neuron)
                        bits = 8 * len(row) if zeros_count else bits_of_row(stored.format, row, start, stored.bits)
                        fetched += (bits + 7) // 8
            assert (counted[node.name].synaptic_events, counted[node.name].weight_bytes) == (events, fetched)
    expected = {1.0: {DENSE_ROWS}, 0.5: {MARKED_ROWS}, 0.1: {COMPRESSED_ROWS, MARKED_ROWS}}[share]
    assert formats <= expected | {WEIGHTS["bytes"]} and len(formats) >= 2


@pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: f"{memory.weights}-{memory.fetch}")
@pytest.mark.parametrize("name", ["int8_45nm", "int8_45nm_1mb", "dense_7nm", "odin"])
def test_layers_add_up_under_every_schedule(memory: WeightMemory, name: str) -> None:
    network = pruned(random_network(0, blocks=1, width=12), 0.5)
    counter, _ = watched(network)
    activity, preset = measure_activity(counter, memory), load_preset(name)
    estimate = estimate_energy(activity, preset)
    rows = layer_rows(network, activity, estimate)
    assert sum(together("all", rows).joules.values()) == pytest.approx(estimate.nominal)
    assert sum(layer.nominal for layer in estimate.layers) == pytest.approx(estimate.nominal)
    synapses = sum(np.count_nonzero(row) for node in network.of_kind(Synapses) for row in node.weights)
    if memory.weights == "packed":
        assert sum(row.synapses for row in rows) == synapses + np.count_nonzero(network.readout.weights)
    assert 0 <= break_even(activity, network)[0].value <= network.ticks


def test_schedules_agree_where_they_must() -> None:
    """A token's fetches are at most its events', and at least a tick's share; everything but bytes is the same. With
    one tick, or weights of full width without zeros, there is nothing to save.
    """
    network = pruned(random_network(0, blocks=1, width=12), 0.5)
    counter, _ = watched(network)
    for weights in WEIGHTS:
        event, token = (measure_activity(counter, WeightMemory(weights, fetch)) for fetch in ("event", "token"))
        assert token.total("weight_bytes") < event.total("weight_bytes") <= network.ticks * token.total("weight_bytes")
        for one, other in zip(event.nodes, token.nodes):
            assert dataclasses.replace(one, weight_bytes=0) == dataclasses.replace(other, weight_bytes=0)
    single, _ = watched(random_network(0, blocks=1, width=12, ticks=1))
    assert measure_activity(single, WeightMemory("bytes", "token")).nodes == measure_activity(single).nodes
    whole = random_network(0, width=2, blocks=1, features=2)
    assert all(node.weights.all() for node in whole.of_kind(Synapses))
    full, _ = watched(whole)
    assert measure_activity(full, PACKED).nodes == measure_activity(full, USUAL).nodes


@pytest.mark.parametrize("weights", WEIGHTS)
def test_cores_add_up_and_count_as_layers_do(weights: Weights) -> None:
    """One core per population splits no row, so the bytes are the same, too."""
    network = pruned(random_network(0, blocks=1, width=12), 0.3)
    counter, _ = watched(network)
    mapping = map_in_order(network, LOIHI_2, weights=weights)
    placed, plain = mapping.activity(counter), measure_activity(counter, WeightMemory(weights))
    for quantity in ("synaptic_events", "weight_bytes", "macs", "repeated_macs"):
        assert placed.total(quantity) == plain.total(quantity) == int(mapping.core_activity(counter)[quantity].sum())


def test_ticks_add_up_to_the_synapses_that_exist() -> None:
    """What times every tick counts as what prices the run does."""
    network = pruned(random_network(0, blocks=1, width=12), 0.3)
    counter, seen = watched(network)
    mapping = map_in_order(network, LOIHI_2, weights="packed")
    ticks = count_ticks(mapping, seen, "pipelined").cores
    expected = mapping.activity(counter).total("synaptic_events")
    assert int(ticks["synaptic_events"].sum()) == expected > 0
    every = count_ticks(map_in_order(network, LOIHI_2), seen, "pipelined").cores
    assert int(every["synaptic_events"].sum()) > expected


@pytest.mark.parametrize("name", preset_names())
def test_packing_never_costs_more(name: str) -> None:
    preset = load_preset(name)
    counter, _ = watched(pruned(random_network(0, blocks=1, width=12), 0.5))
    usual, less = (estimate_energy(measure_activity(counter, memory), preset) for memory in (USUAL, PACKED))
    assert less.nominal <= usual.nominal


def test_tokens_that_nobody_counted_are_refused_in_one_line() -> None:
    network = chain_network()
    counter = chain_counter(network)
    counter.merge(chain_counter(network))
    with pytest.raises(UserError, match="needs the tokens in which every neuron fired, which were not counted: count"):
        measure_activity(counter, WeightMemory(fetch="token"))
    assert measure_activity(counter).total("synaptic_events") == 2 * 21


TINY = TransformerSizes(observations=2, actions=1, width=4, blocks=2, context=2, mlp_hidden=12)
TWIN = dataclasses.replace(TINY, tokens_per_step=1)


def test_a_twin_with_kept_keys_and_values_computes_one_token() -> None:
    """It sees 2 tokens: 2 pairs; its window is 2 tokens, 3 pairs."""
    cached, window = (decision_transformer(TWIN, "int8", schedule) for schedule in (CACHED, WINDOW))
    assert cached.activity.total("macs") == 16 + 2 * (64 + 96 + 2 * 2 * 4) + 4
    assert window.activity.total("macs") == 2 * 16 + 2 * (2 * (64 + 96) + 2 * 3 * 4) + 4
    assert cached.activity.total("weight_bytes") == window.activity.total("weight_bytes") == TWIN.weights
    assert (cached.activity.tokens, window.activity.tokens, cached.key_value_bytes) == (1, 2, 2 * 2 * 4 * 2)
    assert cached.name == "dense twin, int8, key-value cache, one token per step"
    singly = decision_transformer(TWIN, "int8", CACHED_SINGLY)
    assert singly.activity == cached.activity and singly.key_value_bytes == cached.key_value_bytes


def test_dense_weights_of_four_bits() -> None:
    """Rows of 4, 12 and 1 weights take 2, 6 and 1 bytes: 4 x 2, per block 4 x 6 + 4 x 2 and 4 x 6 + 12 x 2, 4 x 1."""
    whole = decision_transformer(TINY, "int8", CACHED)
    packed_rival = decision_transformer(TINY, "int8", CACHED, DenseWeights(4))
    assert packed_rival.activity.total("weight_bytes") == 8 + 2 * (32 + 48) + 4
    assert packed_rival.activity.total("macs") == whole.activity.total("macs")
    assert packed_rival.name.endswith("a step's tokens together, 4 bits") and packed_rival.activity.memory == PACKED
    singly = decision_transformer(TINY, "int8", CACHED_SINGLY, DenseWeights(4))
    assert singly.activity.total("weight_bytes") == 8 + 3 * 2 * (32 + 48) + 4
    eight = decision_transformer(TINY, "int8", CACHED, DenseWeights(8))
    assert eight.activity.nodes == whole.activity.nodes


def test_pruned_dense_weights_and_silent_hidden_values() -> None:
    """A quarter of the MLP's weights: rows of 3 among 12 targets and 12 kept in all take 4 + 12 + 3 x 8 = 40 bits
    marked, 5 bytes; rows of 1 among 4 take 4 + 3 + 2 + 8 = 17 compressed or 4 + 4 + 8 = 16 marked, 2 bytes. Half of the
    hidden values are zero: half of the second matrix's products and rows.
    """
    kept = {"embedding": 1.0, "blocks.0.attention": 1.0, "blocks.1.attention": 1.0, "head": 1.0}
    kept |= {"blocks.0.mlp": 0.25, "blocks.1.mlp": 0.25}
    nodes = {
        node.node: node
        for node in decision_transformer(TWIN, "int8", CACHED, DenseWeights(8, kept, 0.5)).activity.nodes
    }
    assert nodes["blocks.0.mlp"].weight_bytes == 4 * 5 + 12 * 2 // 2 and nodes["blocks.0.mlp"].macs == 12 + 12 // 2
    assert nodes["blocks.0.attention"].weight_bytes == nodes["blocks.0.attention"].macs == 64
    # Three tokens that share a fetch may differ in what is zero: 3 x 0.2 of the rows; products are each token's own.
    together_ = decision_transformer(TINY, "int8", CACHED, DenseWeights(8, active=0.2)).activity.nodes
    mlp = next(node for node in together_ if node.node == "blocks.0.mlp")
    assert (mlp.weight_bytes, mlp.macs) == (48 + round(0.6 * 48), 3 * 48 + round(3 * 0.2 * 48))


def test_wrong_dense_weights_are_refused_in_one_line() -> None:
    for values in ({"bits": 0}, {"kept": 1.5}, {"kept": {"head": -0.1}}, {"active": 2.0}):
        with pytest.raises(UserError, match="shares are 0 to 1, bits 1 to 32"):
            DenseWeights(**values)
    with pytest.raises(UserError, match="no share for 'embedding', only for head: add it"):
        decision_transformer(TINY, "int8", CACHED, DenseWeights(8, {"head": 0.5}))


def test_the_network_without_spikes_is_packed_as_the_spiking_one() -> None:
    network = pruned(random_network(0, blocks=1, width=12), 0.3)
    matrices = [node for node in network.nodes if isinstance(node, (Synapses, Readout))]
    stored = [PACKED.stored(node.weights) for node in matrices]
    for rival in (dense_ticks(network, PACKED), dense_equivalent(network, PACKED)):
        assert rival.activity.total("weight_bytes") == sum(matrix.total_bytes for matrix in stored)
    found = {node.node: node for node in dense_equivalent(network, PACKED).activity.nodes}
    assert found["embed"].macs == np.count_nonzero(node_of(network, "embed", Synapses).weights)

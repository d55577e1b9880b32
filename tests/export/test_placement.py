"""Placement against a count that knows only the nodes' equations: who reads whom, neuron by neuron."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    LIF,
    UNPLACED_KINDS,
    And,
    Gate,
    NetworkError,
    Node,
    Outer,
    PlacedWindow,
    Synapses,
    Window,
)
from dsf.export.network.sparse import is_sparse
from dsf.export.placement.chips import CHIPS, LOIHI_1, LOIHI_2, Chip, Figure, Grade, stored_weight_bits
from dsf.export.placement.placement import LIMITED_QUANTITIES, Placement, place, tile_position
from dsf.runtime.artifacts import network_path
from dsf.testing.random_networks import exportable, random_network, sparser

Reading = tuple[int, str, int, int, bool]
"""Which of a population's inputs it is, source, neuron of the source, stored bits of the weight, and whether its matrix
is sparse."""


def has_core(node: Node) -> bool:
    return not isinstance(node, UNPLACED_KINDS)


def readings(network: Network, node: Node, neuron: int) -> list[Reading]:
    """What one neuron reads, from the equations in dsf.export.network.nodes."""
    if isinstance(node, Gate):
        return [(0, node.source, node.first + neuron, 2, False), (1, node.source, node.second + neuron, 2, False)]
    if isinstance(node, (Window, PlacedWindow)):
        return [(0, node.query, node.first + neuron, 2, False), (1, node.gate, neuron, 2, False)]
    if isinstance(node, And):
        return [(0, node.query, node.first + neuron, 2, False), (1, node.source, neuron, 2, False)]
    if isinstance(node, Outer):
        per_head = node.size // node.heads
        channels = range(neuron // per_head * per_head, (neuron // per_head + 1) * per_head)
        found = [(0, node.source, node.query + channel, 2, False) for channel in channels]
        found += [(1, node.source, node.key + channel, 2, False) for channel in channels]
        return [*found, (2, node.source, node.value + neuron, 2, False)]
    found = []
    for index, name in enumerate(node.sources):
        source = network[name]
        if isinstance(source, Synapses):
            bits = stored_weight_bits(source.weights)
            sparse, row = is_sparse(source.weights), source.weights[neuron]
            found += [
                (index, source.source, channel, bits, sparse)
                for channel, weight in enumerate(row.tolist())
                if weight or not sparse
            ]
        else:
            found.append((index, name, neuron, 2, False))
    return found


def count_by_hand(network: Network, chip: Chip, placement: Placement) -> list[dict[str, int]]:
    """What every core holds, from the slices alone."""
    inputs: list[dict[Any, int]] = [defaultdict(int) for _ in placement.cores]  # (population, reading) -> synapses
    outputs: dict[tuple[str, int], set[Any]] = defaultdict(set)  # neuron -> destinations
    thresholds: list[set[int]] = [set() for _ in placement.cores]
    decays: list[set[int]] = [set() for _ in placement.cores]
    home = {}
    for core in placement.cores:
        for part in core.slices:
            node = network[part.node]
            for neuron in range(part.first, part.first + part.count):
                home[node.name, neuron] = core.index
                for reading in readings(network, node, neuron):
                    key = (node.name, part.count, *reading)
                    inputs[core.index][key] += 1
                    outputs[reading[1], reading[2]].add((core.index, node.name, reading[0]))
                if isinstance(node, LIF):
                    thresholds[core.index].add(int(node.threshold[neuron]))
                    own = node.decay[neuron] if isinstance(node.decay, np.ndarray) else node.decay
                    decays[core.index].add(int(own))
    residual = network[network.readout.source]
    for neuron in range(residual.size):
        outputs[residual.name, neuron].add("host")
    counts = [
        {
            "synapse_bits": sum(row_bits(chip, synapses, key[-2], key[-1], key[1]) for key, synapses in axons.items()),
            "input_axons": len(axons),
            "output_axons": 0,
            "thresholds": len(values),
            "decays": len(leaks),
        }
        for axons, values, leaks in zip(inputs, thresholds, decays)
    ]
    for neuron_key, destinations in outputs.items():
        if neuron_key in home:
            counts[home[neuron_key]]["output_axons"] += len(destinations)
    return counts


def row_bits(chip: Chip, synapses: int, bits: int, sparse: bool, neurons: int) -> int:
    """An axon's: of a sparse matrix, each weight says which of the core's neurons it is for, or the row has zeros."""
    if not sparse:
        return chip.row_bits(synapses, bits)
    places = math.ceil(math.log2(neurons))
    return min(chip.row_bits(neurons, bits), chip.row_bits(synapses, bits + places))


def covered(network: Network, placement: Placement) -> dict[str, list[int]]:
    """Neurons of each population in the order of the cores."""
    found: dict[str, list[int]] = {node.name: [] for node in network.nodes if has_core(node)}
    for core in placement.cores:
        for part in core.slices:
            found[part.node] += range(part.first, part.first + part.count)
    return found


@st.composite
def small_chips(draw: Any) -> Chip:
    """Loihi 1 or 2 with cores so small that tiny networks have to be split, by whichever limit binds."""
    limits = {
        "neurons": draw(st.sampled_from([1, 3, 8, 1024, None])),
        "synapse_bits": draw(st.sampled_from([64 * 60, 64 * 200, None])),
        "input_axons": draw(st.sampled_from([40, 60, 4096, None])),
        "output_axons": draw(st.sampled_from([100, 4096, None])),
        "thresholds": draw(st.sampled_from([1, 2, 8, None])),
        "decays": draw(st.sampled_from([1, 3, 32, None])),
    }
    grade: dict[str, Grade | None] = {name: None if limit is None else "inferred" for name, limit in limits.items()}
    figures: dict[str, Any] = {
        f"{name}_per_core": Figure(limit, grade[name], "a test's own") for name, limit in limits.items()
    }
    return dataclasses.replace(
        draw(st.sampled_from([LOIHI_1, LOIHI_2])), cores=Figure(16, "inferred", "own"), **figures
    )


WITHIN_HEADS = {"attention": "tssa", "heads": 2, "width": 12, "blocks": 1}
EIGHT_NEURONS = dataclasses.replace(
    LOIHI_2, cores=Figure(16, "inferred", "own"), neurons_per_core=Figure(8, "inferred", "own")
)
"""A core's end lies within a head of 6 channels."""


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(exportable(), small_chips(), st.booleans(), st.sampled_from([0.0, 0.8, 0.97]))
@example(WITHIN_HEADS, EIGHT_NEURONS, False, 0.0)
@example(WITHIN_HEADS, EIGHT_NEURONS, False, 0.8)
def test_placement_is_exact(sizes: dict[str, Any], chip: Chip, share_cores: bool, zeros: float) -> None:
    """Every neuron once and in order, no core beyond a limit, and every count as by hand."""
    network = sparser(random_network(**sizes), zeros)
    try:
        placement = place(network, chip, share_cores)
    except NetworkError as error:
        assert "one neuron needs" in str(error)  # its own test is below
        return
    assert covered(network, placement) == {node.name: [*range(node.size)] for node in network.nodes if has_core(node)}
    neurons = {node.name: 0 for node in network.nodes if has_core(node)}
    for part in placement.assignment():
        assert placement.cores_of(part["node"])[0] <= part["core"] and part["first"] == neurons[part["node"]]
        neurons[part["node"]] += part["count"]
    assert neurons == {name: network[name].size for name in neurons}
    for core, counts in zip(placement.cores, count_by_hand(network, chip, placement)):
        for name in LIMITED_QUANTITIES:
            limit = getattr(chip, f"{name}_per_core").value
            used = counts.get(name, sum(part.count for part in core.slices))
            assert getattr(core, name) == used, name
            assert limit is None or used <= limit, name
            assert core.fractions[name] == (None if limit is None else used / limit)
        assert share_cores or len({part.node for part in core.slices}) == 1
        assert core.chip == core.index // 16
    assert placement == place(network, chip, share_cores)


@settings(max_examples=25, deadline=None)
@given(exportable(), small_chips(), st.sampled_from([0.0, 0.8]))
def test_routes_are_the_output_axons(sizes: dict[str, Any], chip: Chip, zeros: float) -> None:
    """Links between populations, and those to the host, are all output axons; hops exist where the mesh does."""
    network = sparser(random_network(**sizes), zeros)
    chip = dataclasses.replace(chip, synapse_bits_per_core=LOIHI_2.synapse_bits_per_core, **unlimited_axons())
    placement = place(network, chip)
    to_host = network[network.readout.source].size
    assert sum(route.links for route in placement.routes) + to_host == placement.total("output_axons")
    for route in placement.routes:
        assert 0 <= route.off_chip <= route.links
        known = chip.tiles_x.value is not None and route.off_chip < route.links
        assert (route.mean_hops is not None) == (route.most_hops is not None) == known
        if route.mean_hops is not None and route.most_hops is not None:
            assert 0 <= route.mean_hops <= route.most_hops <= 8 + 4 - 2


def unlimited_axons() -> dict[str, Any]:
    return {name: Figure(None, None, "none") for name in ("input_axons_per_core", "output_axons_per_core")}


def test_one_neuron_that_no_core_can_hold() -> None:
    network = random_network(0, blocks=1)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"input_axons_per_core": Figure(5, "inferred", "own")}, "input axons of 5"),
        ({"synapse_bits_per_core": Figure(100, "inferred", "own")}, "synapse bits of 100"),
    )
    for limits, expected in cases:
        with pytest.raises(NetworkError, match=f"'residual.1': one neuron needs .*{expected} of a core of Loihi 1"):
            place(network, dataclasses.replace(LOIHI_1, **limits))


def test_mesh() -> None:
    """The cores of a chip fill its 8 x 4 tiles, 4 to a tile, and consecutive tiles are neighbours."""
    positions = [tile_position(LOIHI_1, core) for core in range(128)]
    tiles = [position for position in positions[::4] if position is not None]
    assert sorted(tiles) == [(column, row) for column in range(8) for row in range(4)]
    assert positions == [tile for tile in tiles for _ in range(4)]
    assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a, b in itertools.pairwise(tiles))
    assert tile_position(LOIHI_1, 128) == positions[0]
    assert tile_position(LOIHI_2, 0) is None


def test_a_sparse_network_takes_the_memory_of_the_synapses_that_exist() -> None:
    """Of the shipped network's blocks, a fifth of the weights, each with its place among 128 neurons or fewer."""
    network = read_network(network_path())
    dense, sparse = (place(pruned, LOIHI_2).total("synapse_bits") for pruned in (network, sparser(network, 0.8)))
    weights = sum(node.weights.size for node in network.of_kind(Synapses))
    assert sparse < dense - 8 * weights + round(0.2 * weights) * (8 + 10)
    assert place(sparser(network, 0.8), LOIHI_1).total("synapse_bits") < place(network, LOIHI_1).total("synapse_bits")


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_the_shipped_network(chip: Chip) -> None:
    network = read_network(network_path())
    own, shared = place(network, chip), place(network, chip, share_cores=True)
    populations = [node for node in network.nodes if has_core(node)]
    assert len(own.cores) >= len(populations)
    assert len(shared.cores) <= len(own.cores)
    for placement in (own, shared):
        for name in ("neurons", "synapse_bits"):
            limit = getattr(chip, f"{name}_per_core").value
            assert len(placement.cores) >= math.ceil(placement.total(name) / limit)
        assert placement.total("neurons") == sum(node.size for node in populations)
        assert placement.chips == math.ceil(len(placement.cores) / 128)
        assert placement.busiest.fullest[1] == max(core.fullest[1] for core in placement.cores) <= 1
        assert json.loads(json.dumps(placement.to_json()))["total_cores"] == len(placement.cores)


def test_thresholds_are_what_fills_loihi_1() -> None:
    """A core has 8 thresholds, the export gives neurons their own: without that limit the network is far smaller."""
    network = read_network(network_path())
    free = dataclasses.replace(LOIHI_1, thresholds_per_core=Figure(None, None, "lifted"))
    assert place(network, LOIHI_1).busiest.fullest == ("thresholds", 1.0)
    assert place(network, LOIHI_1).chips > place(network, free).chips

"""Mappings: every message and hop by hand and by brute force, conservation, and a search that never makes it worse."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import SPIKING_KINDS, NetworkError
from dsf.export.placement.chips import CHIPS, LOIHI_1, LOIHI_2, Chip, Figure
from dsf.export.placement.connections import connections
from dsf.export.placement.placement import LIMITED_QUANTITIES
from dsf.hardware_models import (
    NetworkMapping,
    SpikeCounter,
    estimate_energy,
    fit,
    load_preset,
    map_in_order,
    measure_activity,
    measure_mapping,
    search_mapping,
    search_places,
)
from dsf.hardware_models.activity import QUANTITIES
from dsf.hardware_models.mesh import Link, hops, route, with_mesh
from dsf.hardware_models.work import HOST, Delay, longest_delay, stages
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.shell.errors import UserError
from dsf.testing.chain_network import CHIP, TICKS, chain_network
from dsf.testing.random_networks import exportable, random_network, random_tokens

HOPS = ("hops_east_west", "hops_north_south")
ROUTED = ("messages", "graded_messages", *HOPS)
"""What depends on the placement; everything else is as without one."""


def random_counter(network: Network, seed: int = 0) -> SpikeCounter:
    """Spikes that no engine fired: every neuron its own number of them."""
    generator, counter = np.random.default_rng(seed), SpikeCounter(network)
    counter.decisions, counter.tokens = 3, 7
    for counts in (*counter.fired.values(), *counter.active.values()):
        counts[:] = generator.integers(0, counter.tokens * network.ticks + 1, len(counts))
    return counter


def chain_counter() -> SpikeCounter:
    """Five decisions of the hand-counted network."""
    counter = SpikeCounter(chain_network())
    counter.decisions = counter.tokens = 5
    counter.fired["A"][:] = 3, 1, 2
    counter.active["A"][:] = 4, 5, 6
    return counter


@st.composite
def small_chips(draw: Any) -> Chip:
    """Few neurons per core and few cores per chip, so that layers and networks are split."""
    neurons, cores = draw(st.sampled_from([3, 8, 1024])), draw(st.sampled_from([4, 16, 128]))
    limits: dict[str, Any] = {
        "neurons_per_core": Figure(neurons, "inferred", "own"),
        "cores": Figure(cores, "inferred", "own"),
    }
    return dataclasses.replace(LOIHI_2, **limits)


def test_counts_by_hand() -> None:
    """The placement is drawn in tests/testing/chain_network.py; 5 decisions of 2 ticks."""
    mapping, counter, slots = map_in_order(chain_network(), CHIP), chain_counter(), 5 * TICKS
    assert mapping.tiles == ((0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1))
    activity = {node.node: node for node in mapping.activity(counter).nodes}
    # A[0] fires 3 times, A[1, 2] 3 times; each spike goes to both cores of r1.
    assert activity["A"].messages == 6 * 2
    assert activity["A"].hops_east_west == 3 * (1 + 2) + 3 * (1 + 2)
    assert activity["A"].hops_north_south == 3 * (1 + 1) + 3 * 0
    # Every value of r0 goes to A and to r1, one to one: cores 0 -> 2 and 4, cores 1 -> 3 and 5.
    assert activity["r0"].graded_messages == 3 * 2 * slots
    assert activity["r0"].hops_east_west == ((2 + 1) + 2 * (1 + 1)) * slots
    assert activity["r0"].hops_north_south == ((0 + 1) + 2 * (1 + 1)) * slots
    # The host sends both features to both cores of r0 and gets 3 sums per decision; its way crosses no link.
    assert activity["encoder"].graded_messages == 2 * 2 * slots
    assert activity["readout"].graded_messages == 3 * 5
    assert activity["encoder"].hops_east_west == activity["r1"].graded_messages == activity["r1"].hops_east_west == 0
    cores = {name: counts.tolist() for name, counts in mapping.core_activity(counter).items()}
    assert cores["synaptic_events"] == [0, 0, 0, 0, 6, 12, 0]
    assert cores["macs"] == [10, 20, 0, 0, 0, 0, 2 * 3 * 5]
    assert cores["repeated_macs"] == [10 * (TICKS - 1), 20 * (TICKS - 1), 0, 0, 0, 0, 0]
    assert cores["spikes"] == [0, 0, 3, 3, 0, 0, 0]
    assert cores["messages"] == [0, 0, 6, 6, 0, 0, 0]
    assert cores["active_updates"] == [10, 20, 4, 11, 10, 20, 0]
    assert cores["inactive_updates"] == [0, 0, 6, 9, 0, 0, 0]
    assert cores["graded_messages"] == [20, 40, 0, 0, 5, 10, 40]
    assert cores["host_transfers"] == [0, 0, 0, 0, 0, 0, 2 * 5 + 2 * 5]


def test_whoever_waits_in_the_pipeline_is_updated() -> None:
    """Three populations of three neurons, two ticks beside a token's own two, five decisions: 90 updates more."""
    mapping, counter = map_in_order(chain_network(), CHIP), chain_counter()
    activity, plain = mapping.activity(counter, "pipelined"), mapping.activity(counter)
    updates = {node.node: node.inactive_updates for node in activity.nodes}
    assert (updates["r0"], updates["A"], updates["r1"]) == (30, 30 - 15 + 30, 30)
    others = [name for name in QUANTITIES if name != "inactive_updates"]
    assert all(activity.total(name) == plain.total(name) for name in others)
    cores = mapping.core_activity(counter, "pipelined")["inactive_updates"].tolist()
    assert cores == [10, 20, 6 + 10, 9 + 20, 10, 20, 0] and sum(cores) == activity.total("inactive_updates")
    more, fewer = (estimate_energy(counts, load_preset("loihi1_fitted")).nominal for counts in (activity, plain))
    assert more - fewer == pytest.approx(90 / 5 * 51.2e-12)


def test_links_by_hand() -> None:
    """First along x, then along y; 3 spikes of A[0], 3 of A[1, 2], 10 values of each neuron of r0."""
    loads = map_in_order(chain_network(), CHIP).link_messages(chain_counter())
    expected = {
        ((2, 0), (1, 0)): 3 + 3,
        ((1, 0), (1, 1)): 3 + 10,
        ((1, 0), (0, 0)): 3 + 20,
        ((0, 0), (0, 1)): 3 + 20,
        ((2, 1), (1, 1)): 3 + 3,
        ((1, 1), (0, 1)): 3,
        ((0, 0), (1, 0)): 10 + 10,
        ((1, 0), (2, 0)): 10 + 20,
        ((2, 0), (2, 1)): 20,
    }
    assert loads == {Link(0, *ends): messages for ends, messages in expected.items()}


def test_other_chips_are_counted_and_have_no_hops() -> None:
    """With 4 cores per chip, r1 is on the second: A's 12 messages leave the first, and one of two values of r0."""
    chip = dataclasses.replace(CHIP, cores=Figure(4, "inferred", "own"))
    mapping, counter = map_in_order(chain_network(), chip), chain_counter()
    assert mapping.off_chip_messages(counter) == {"r0": 30, "A": 12}
    activity = mapping.activity(counter)
    assert activity.total("messages") == 12
    assert [activity.total(name) for name in HOPS] == [(2 + 2 * 1) * 10, 2 * 10]
    assert measure_mapping(mapping, counter).off_chip == 42 / 5


def by_brute_force(mapping: NetworkMapping, counter: SpikeCounter) -> dict[tuple[str, int], dict[str, int]]:
    """Messages and hops of every population's neurons on every core, neuron by neuron."""
    network, cores = mapping.network, mapping.placement.cores
    homes, readers = {}, defaultdict[tuple[str, int], set[int]](set)
    for core in cores:
        for part in core.slices:
            for neuron in range(part.first, part.first + part.count):
                homes[part.node, neuron] = core.index
                for connection in connections(network, network[part.node]):
                    for read in connection.read_by(neuron, 1):
                        for source in range(read.start, read.stop):
                            readers[connection.source, source].add(core.index)
    found = defaultdict[tuple[str, int], dict[str, int]](lambda: defaultdict(int))
    for (name, neuron), targets in readers.items():
        home, spiking = homes.get((name, neuron), HOST), isinstance(network[name], SPIKING_KINDS)
        sent = int(counter.fired[name][neuron]) if spiking else counter.tokens * network.ticks
        counts = found[name, home]
        counts["messages" if spiking else "graded_messages"] += sent * len(targets)
        for target in targets:
            if home != HOST and cores[home].chip == cores[target].chip:
                (x, y), (to_x, to_y) = mapping.tiles[home], mapping.tiles[target]
                counts["hops_east_west"] += sent * abs(x - to_x)
                counts["hops_north_south"] += sent * abs(y - to_y)
    last = network.readout.source
    for core in cores:
        for part in core.slices:
            if part.node == last:
                found[last, core.index]["graded_messages"] += part.count * counter.decisions
    return found


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(exportable(), small_chips(), st.booleans(), st.integers(0, 9))
def test_counts_are_exact_and_conserved(sizes: dict[str, Any], chip: Chip, share_cores: bool, seed: int) -> None:
    """Routed counts by brute force; sums over cores are sums over layers; the rest is as without a placement."""
    network = random_network(**sizes)
    mapping, counter = map_in_order(network, chip, share_cores), random_counter(network, seed)
    mapping = search_places(mapping, counter, seed)
    activity, plain, cores = mapping.activity(counter), measure_activity(counter), mapping.core_activity(counter)
    assert set(cores) <= set(QUANTITIES)
    for quantity in QUANTITIES:
        assert activity.total(quantity) == (int(cores[quantity].sum()) if quantity in cores else 0), quantity
    unrouted = [name for name in QUANTITIES if name not in ROUTED]
    for node, expected in zip(activity.nodes, plain.nodes):
        assert [getattr(node, name) for name in unrouted] == [getattr(expected, name) for name in unrouted]
    found = by_brute_force(mapping, counter)
    for quantity in ROUTED:
        expected_cores = np.zeros(len(mapping.seats) + 1, np.int64)
        for (_, home), counts in found.items():
            expected_cores[home] += counts[quantity]
        assert np.all(cores.get(quantity, 0) == expected_cores), quantity
    assert sum(mapping.link_messages(counter).values()) == sum(activity.total(name) for name in HOPS)


def test_routes() -> None:
    links = [*route(2, (1, 3), (3, 2))]
    assert links == [Link(2, (1, 3), (2, 3)), Link(2, (2, 3), (3, 3)), Link(2, (3, 3), (3, 2))]
    assert [link.quantity for link in links] == ["hops_east_west"] * 2 + ["hops_north_south"]
    assert hops((1, 3), (3, 2)) == (2, 1)
    assert [*route(0, (1, 1), (1, 1))] == []


def test_an_assumed_mesh_says_so() -> None:
    network = chain_network()
    assert map_in_order(network, LOIHI_1).assumptions == []
    (line,) = map_in_order(network, LOIHI_2).assumptions
    assert "8 x 4 tiles of 4 cores" in line and "none is published for Loihi 2" in line
    mesh = with_mesh(LOIHI_2)
    assert (mesh.tiles_x.value, mesh.tiles_x.grade, LOIHI_2.tiles_x.value) == (8, "inferred", None)
    with pytest.raises(UserError, match="chip 'loihi2' has 129 cores and its mesh 128 places"):
        with_mesh(dataclasses.replace(LOIHI_2, cores=Figure(129, "inferred", "own")))


def test_stages() -> None:
    """A tick per message: the chain has three populations; scores over all ticks wait for the token's last one."""
    assert stages(chain_network()) == {"encoder": 0, "r0": 1, "A": 2, "r1": 3}
    depths = {}
    for attention in ("pssa", "sssa", "tssa"):
        network = random_network(0, blocks=2, attention=attention, ticks=4)
        depths[attention] = stages(network)[network.readout.source]
    assert depths["pssa"] == 1 + 2 * 9  # input, qkv, gate, window, attention, residual, input, hidden, residual
    assert depths["sssa"] == 1 + 2 * 8  # no gate
    assert depths["tssa"] == depths["sssa"] + 2 * 3


def test_two_cores_cannot_have_one_place() -> None:
    mapping = map_in_order(chain_network(), CHIP)
    with pytest.raises(NetworkError, match="two cores have the same place"):
        dataclasses.replace(mapping, seats=(0, 0, 2, 3, 4, 5))


def spikes_of(network: Network) -> SpikeCounter:
    """A run of the fast engine on random tokens."""
    engine = FastEngine(network)
    for token in random_tokens(network, 10, 1, seed=0):
        engine.step_graded(token)
    return engine.counter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "preset"), [(128, "loihi1_fitted"), (128, "loihi2_derived"), (256, "loihi2_derived")]
)
def test_search_is_never_worse(width: int, preset: str) -> None:
    """Neither in load nor, for the same cores, in hops; within every limit. The shipped network, and a wider one."""
    wider: dict[str, Any] = {"width": 256, "blocks": 3, "window": 7, "context": 20, "features": 15, "mlp_ratio": 4}
    network = read_network(network_path()) if width == 128 else random_network(0, **wider)
    counter, prices = spikes_of(network), load_preset(preset)
    naive = map_in_order(network, CHIPS[str(prices.chip)])
    searched, moved = search_mapping(network, naive.chip, counter, prices), search_places(naive, counter)
    in_order = dataclasses.replace(searched, seats=tuple(core.index % 128 for core in searched.placement.cores))
    before, after, places, ordered = (
        measure_mapping(mapping, counter, prices) for mapping in (naive, searched, moved, in_order)
    )
    assert after.load < before.load and after.chips == before.chips
    assert places.hops < before.hops and places.load == before.load and places.tiles <= before.tiles
    assert after.hops < ordered.hops and after.tiles <= ordered.tiles and after.load == ordered.load
    for core in searched.placement.cores:
        assert all(share is None or share <= 1 for share in core.fractions.values())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_mapping() -> None:
    network = random_network(0, width=24, blocks=2)
    counter = random_counter(network)
    one, same = (search_mapping(network, LOIHI_2, counter, seed=3) for _ in range(2))
    assert (one.seats, one.placement) == (same.seats, same.placement)


def test_load_without_a_preset_is_events_and_updates() -> None:
    figures = measure_mapping(map_in_order(chain_network(), CHIP), chain_counter())
    assert (figures.load, figures.busiest, figures.cores, figures.tiles) == ((12 + 20) / 10, 5, 6, 6)
    assert (figures.hops, figures.messages, figures.link) == (144 / 5, (12 + 60 + 40 + 15) / 5, 30 / 5)


def test_searching_a_network_that_rests() -> None:
    """No spike, no traffic between spiking populations: the search ends, and the cores still hold everything."""
    network = random_network(0, blocks=1)
    searched = search_mapping(network, LOIHI_2, SpikeCounter(network))
    assert {part.node for core in searched.placement.cores for part in core.slices} == {
        part.node for core in map_in_order(network, LOIHI_2).placement.cores for part in core.slices
    }


def test_a_message_that_cannot_be_held_back_long_enough() -> None:
    """TSSA: a residual waits for input, qkv, scores (all T ticks: T - 1 more) and the attention LIF: T + 3 ticks."""
    assert longest_delay(chain_network()) == Delay("r0", "r1", 1)
    network = random_network(0, blocks=1, attention="tssa", ticks=4)
    assert longest_delay(network) == Delay("residual.0", "residual.0.attention", 4 + 3)
    assert longest_delay(random_network(0, blocks=1, attention="sssa", ticks=4)).ticks == 4
    assert longest_delay(read_network(network_path())).ticks == 5
    exact, short = (dataclasses.replace(LOIHI_2, delay_ticks=Figure(ticks, "inferred", "own")) for ticks in (7, 4))
    assert fit(network, exact).fits and fit(network, LOIHI_2).fits
    found = fit(network, short)
    assert not found.fits and found.needed <= found.cores
    (line,) = found.lines()
    assert "has to be held back for 7 ticks, 3 more than the 4 of Loihi 2: train with fewer ticks" in line
    both = dataclasses.replace(found, needed=200, needed_chips=2)
    assert [text.split(":")[0] for text in both.lines()[:2]] == ["does not fit"] * 2


def test_fit_says_what_would_help() -> None:
    network = read_network(network_path())
    assert fit(network, LOIHI_2).lines() == ["fits: 28 of 128 cores on 1 chip(s) of Loihi 2 suffice"]
    found = fit(network, LOIHI_1)
    lines = found.lines()
    assert not found.fits and fit(network, LOIHI_1, chips=found.needed_chips).fits
    assert lines[0].startswith(f"does not fit: {found.needed} of 128 cores on 1 chip(s) of Loihi 1, 2.8 times")
    assert lines[1].startswith("thresholds per core: without this limit") and "--no-per-channel" in lines[1]
    assert lines[-1] == f"populations that share cores: {found.shared} cores would do"
    assert [*found.without] == sorted(found.without, key=lambda name: found.without[name]) and set(
        found.without
    ) <= set(LIMITED_QUANTITIES)

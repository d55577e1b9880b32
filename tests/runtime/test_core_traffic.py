"""Messages between cores: the placement's links, weighted by what neurons fired; and Lava's graph is that graph."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import assert_refused, lava_runs_here
from random_networks import random_network, random_tokens
from training_runs import run_here

from dsf.export.chips import Figure, get_chip
from dsf.export.connections import connections
from dsf.export.file import write_network
from dsf.export.network import Network
from dsf.export.nodes import SPIKING_KINDS, NetworkError, Synapses
from dsf.export.placement import Placement, place
from dsf.runtime.cli import main
from dsf.runtime.core_traffic import CoreMap, count_traffic
from dsf.runtime.engine import ReferenceBackend
from dsf.runtime.probes import spiking_populations
from dsf.runtime.spike_file import SpikeRecorder
from dsf.tasks.console import CommandFailed

KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"positional_bias": "full"},
    *({"attention": name} for name in ("tssa", "sssa", "sdsa1", "sdsa3", "none")),
)
NEURONS_PER_CORE = 5
"""So that every population of the networks below is split."""


def placed(**sizes: Any) -> tuple[Network, Placement]:
    """A small network, split over many cores."""
    network = random_network(0, width=12, blocks=2, ticks=2, heads=2, **sizes)
    few = Figure(NEURONS_PER_CORE, "inferred", "a test's own")
    placement = place(network, dataclasses.replace(get_chip("loihi2"), neurons_per_core=few), share_cores=True)
    kept = {"chip": placement.chip, "assignment": placement.assignment()}
    return network.with_verification({"placement": kept}), placement


@pytest.mark.parametrize("sizes", KINDS)
def test_links_are_the_placements(sizes: dict[str, Any]) -> None:
    network, placement = placed(**sizes)
    fired = {name: np.ones(network[name].size, np.int64) for name in spiking_populations(network)}
    edges = CoreMap.of(network).edges(network, fired, graded=1)
    assert len(placement.cores) > 20
    assert sum(edge.links for edge in edges) == sum(route.links for route in placement.routes)
    assert all(edge.links == edge.spikes + edge.graded for edge in edges)


def test_messages_are_those_of_every_neuron() -> None:
    network, placement = placed()
    recorder = SpikeRecorder(ReferenceBackend(network), spiking_populations(network))
    for token in random_tokens(network, 4, 1, seed=0):
        recorder.step_graded(token)
    cores = {
        (part.node, part.first + neuron): core.index
        for core in placement.cores
        for part in core.slices
        for neuron in range(part.count)
    }
    spikes: Counter[tuple[int, int]] = Counter()
    for node in network.nodes:
        for connection in connections(network, node):
            reads = {
                (sender, cores[node.name, neuron])
                for neuron in range(node.size)
                for sender in range(*connection.read_by(neuron, 1).indices(network[connection.source].size))
            }
            if isinstance(network[connection.source], SPIKING_KINDS):
                raster = recorder.raster(connection.source)
                for sender, core in reads:
                    spikes[cores[connection.source, sender], core] += int(raster[..., sender].sum())
    edges = count_traffic(CoreMap.of(network), recorder)
    assert {(edge.source, edge.target): edge.spikes for edge in edges if edge.spikes} == +spikes
    assert {edge.graded % (4 * network.ticks) for edge in edges} == {0}


@pytest.mark.skipif(not lava_runs_here(), reason="Lava is frozen on Python 3.10")
@pytest.mark.parametrize("sizes", KINDS)
def test_lavas_processes_are_connected_as_the_placed_network(
    sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsf.runtime import lava_graph
    from dsf.runtime.lava_engine import LavaEngine
    from dsf.runtime.lava_graph import lava_edges, network_edges, process_cores

    network, placement = placed(**sizes)
    engine, cores = LavaEngine(network, "expanded"), CoreMap.of(network)
    engine.blocks[0].compile(engine.supervisor.run_config)
    assert lava_edges(engine) == network_edges(engine) != set()
    found = process_cores(engine, cores)
    assert {core for held in found.values() for core in held} == {core.index for core in placement.cores}
    assert found["block.0.raster"] == found["block.0.source"] == found["block.1.sink"] == ()
    hidden = network["blocks.1.mlp.hidden_lif"]
    assert found["block.1.hidden_lif"] == found["block.1.expand"] == tuple(sorted(cores.cores_of(hidden.name)))
    assert isinstance(network["blocks.1.mlp.expand"], Synapses)
    monkeypatch.setattr(lava_graph, "network_edges", lambda _: {("encoder", "readout")})
    with pytest.raises(CommandFailed, match=r"not connected as the placed network is: .*\('encoder', 'readout'\)"):
        process_cores(engine, cores)
    fused = process_cores(LavaEngine(network, "fused"), cores)
    assert set(fused) == {"block.0", "block.1"} and set(sum(fused.values(), ())) == set(sum(found.values(), ()))


def test_core_traffic_of_a_closed_loop(tmp_path: Path) -> None:
    network, _ = placed(features=15)
    write_network(network, tmp_path / "net.dsf.h5")
    arguments = (str(tmp_path / "net.dsf.h5"), "--backend", "fast", "--no-compare", "--core-traffic")
    result = run_here(main, "dsf-sim-run", *arguments, "--json", str(tmp_path / "out.json"))
    assert result.returncode == 0, result.stderr
    assert "messages per decision between cores of loihi2" in result.stdout
    traffic = json.loads((tmp_path / "out.json").read_text())["core_traffic"]
    assert traffic["chip"] == "loihi2" and traffic["processes"] == {}
    busiest = [edge["spikes_per_decision"] + edge["graded_per_decision"] for edge in traffic["edges"]]
    assert busiest == sorted(busiest, reverse=True) and busiest[0] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--mode", "window"), "--core-traffic counts in stream mode only"), (("--probe", "*"), "drop --probe")],
)
def test_refusals(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    write_network(placed(features=15)[0], tmp_path / "net.dsf.h5")
    command = (str(tmp_path / "net.dsf.h5"), "--backend", "fast", "--no-compare", "--core-traffic")
    assert_refused(run_here(main, "dsf-sim-run", *command, *arguments), words)


def test_a_network_without_placement_is_refused() -> None:
    with pytest.raises(NetworkError, match="says nothing about cores; export it again"):
        CoreMap.of(random_network(0))

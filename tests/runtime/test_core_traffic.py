"""Messages between cores, neuron by neuron; and Lava's graph of processes is the graph of the placed network."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dsf.export.network.file import write_network
from dsf.export.network.nodes import HOST_KINDS, SPIKING_KINDS, Synapses
from dsf.export.placement.chips import Figure, get_chip
from dsf.export.placement.connections import connections
from dsf.export.placement.placement import place
from dsf.hardware_models.mapping import NetworkMapping, in_order
from dsf.hardware_models.mesh import with_mesh
from dsf.runtime.cli import main
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.runtime.report.core_traffic import core_edges
from dsf.shell.errors import CommandFailed
from dsf.testing.lava import lava_runs_here
from dsf.testing.random_networks import random_network, random_tokens, sparser
from dsf.testing.training_runs import run_here

KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"positional_bias": "full"},
    {"positional_bias": "full", "embed_norm": "layernorm", "input_bits": 0},
    *({"attention": name} for name in ("tssa", "sssa", "sdsa1", "sdsa3", "none")),
    {"zeros": 0.85},
)
NEURONS_PER_CORE = 5
"""So that every population of the networks below is split."""


def placed(zeros: float = 0.0, **sizes: Any) -> NetworkMapping:
    """A small network, split over many cores, with such a share of its weights set to 0."""
    network = sparser(random_network(0, width=12, blocks=2, ticks=2, heads=2, **sizes), zeros)
    few = Figure(NEURONS_PER_CORE, "inferred", "a test's own")
    chip = with_mesh(dataclasses.replace(get_chip("loihi2"), neurons_per_core=few))
    return in_order(network, chip, place(network, chip, share_cores=True))


@pytest.mark.parametrize("sizes", KINDS)
def test_messages_are_those_of_every_neuron(sizes: dict[str, Any]) -> None:
    """One per spike (or tick, of values) and core with a neuron that reads it."""
    mapping, decisions = placed(**sizes), 4
    network, engine = mapping.network, ReferenceLoopEngine(mapping.network)
    for token in random_tokens(network, decisions, 1, seed=0):
        engine.step_graded(token)
    cores = {
        (part.node, part.first + neuron): core.index
        for core in mapping.placement.cores
        for part in core.slices
        for neuron in range(part.count)
    }
    readers: dict[tuple[str, int], set[int]] = {}
    for node in network.nodes:
        for connection in connections(network, node):
            for neuron in range(node.size):
                for read in connection.read_by(neuron, 1):
                    for sender in range(read.start, read.stop):
                        readers.setdefault((connection.source, sender), set()).add(cores[node.name, neuron])
    spikes: Counter[tuple[int, int]] = Counter()
    graded: Counter[tuple[int, int]] = Counter()
    for (name, sender), targets in readers.items():
        for target in targets if not isinstance(network[name], HOST_KINDS) else ():
            edge = cores[name, sender], target
            if isinstance(network[name], SPIKING_KINDS):
                spikes[edge] += int(engine.counter.fired[name][sender])
            else:
                graded[edge] += network.ticks * decisions
    found = core_edges(mapping, engine.counter)
    assert {(counted.source, counted.target) for counted in found} == {*spikes, *graded}
    for counted in found:
        ends = counted.source, counted.target
        assert counted.spikes == spikes[ends] / decisions
        assert counted.graded == graded[ends] / decisions
    activity = mapping.activity(engine.counter)
    assert activity.total("messages") == spikes.total() > 0


@pytest.mark.slow
@pytest.mark.skipif(not lava_runs_here(), reason="Lava is frozen on Python 3.10")
@pytest.mark.parametrize("sizes", KINDS)
def test_lavas_processes_are_connected_as_the_placed_network(
    sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsf.runtime.lava_backend import graph
    from dsf.runtime.lava_backend.engine import LavaEngine
    from dsf.runtime.lava_backend.graph import lava_edges, network_edges, process_cores

    mapping = placed(**sizes)
    network, placement = mapping.network, mapping.placement
    engine = LavaEngine(network, "expanded")
    engine.blocks[0].compile(engine.supervisor.run_config)
    assert lava_edges(engine) == network_edges(engine) != set()
    found = process_cores(engine, placement)
    assert {core for held in found.values() for core in held} == {core.index for core in placement.cores}
    assert found["block.0.raster"] == found["block.0.source"] == found["block.1.sink"] == ()
    hidden = network["blocks.1.mlp.hidden_lif"]
    assert found["block.1.hidden_lif"] == found["block.1.expand"] == tuple(sorted(placement.cores_of(hidden.name)))
    assert isinstance(network["blocks.1.mlp.expand"], Synapses)
    monkeypatch.setattr(graph, "network_edges", lambda _: {("encoder", "readout")})
    with pytest.raises(CommandFailed, match=r"not connected as the placed network is: .*\('encoder', 'readout'\)"):
        process_cores(engine, placement)
    fused = process_cores(LavaEngine(network, "fused"), placement)
    assert set(fused) == {"block.0", "block.1"} and set(sum(fused.values(), ())) == set(sum(found.values(), ()))


def test_core_traffic_of_a_closed_loop(tmp_path: Path) -> None:
    write_network(random_network(0, features=15), tmp_path / "net.dsf.h5")
    arguments = (str(tmp_path / "net.dsf.h5"), "--backend", "fast", "--no-compare", "--core-traffic")
    result = run_here(main, "dsf-sim-run", *arguments, "--json", str(tmp_path / "out.json"))
    assert result.returncode == 0, result.stderr
    assert "busiest of" in result.stdout
    traffic = json.loads((tmp_path / "out.json").read_text())["core_traffic"]
    assert traffic["chip"] == "loihi2" and traffic["processes"] == {}
    busiest = [edge["spikes_per_decision"] + edge["graded_per_decision"] for edge in traffic["edges"]]
    assert busiest == sorted(busiest, reverse=True) and busiest[0] > 0

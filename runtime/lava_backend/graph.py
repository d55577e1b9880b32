"""Lava's process graph in terms of the network's nodes: what a process computes, on which cores, and what it reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsf.export.network.nodes import Node, Synapses
from dsf.export.placement.connections import connections
from dsf.export.placement.placement import Placement
from dsf.runtime.lava_backend.engine import LavaEngine
from dsf.runtime.lava_backend.stages.stage import Stage
from dsf.shell.errors import CommandFailed

START_PORT = "start_in"
Computes = dict[Any, tuple[Node, ...]]
"""Per Lava process, the nodes that it computes."""


def process_cores(engine: LavaEngine, placement: Placement) -> dict[str, tuple[int, ...]]:
    """The cores that hold a process's neurons and synapses; none for what runs on the host, and for reports.

    Synapses are on the cores of the population that reads them.

    Raises:
        CommandFailed: the processes of the expanded network are not connected as the placed populations are.
    """
    network = engine.network
    if engine.expanded and (wrong := lava_edges(engine) ^ network_edges(engine)):
        raise CommandFailed(f"Lava's processes are not connected as the placed network is: {sorted(wrong)}")
    readers = {source: node.name for node in network.nodes for source in node.sources}
    populations = {node.name: readers[node.name] if isinstance(node, Synapses) else node.name for node in network.nodes}
    return {
        process: tuple(sorted({core for node in nodes for core in placement.cores_of(populations[node.name])}))
        for process, _, nodes in _processes(engine)
    }


def lava_edges(engine: LavaEngine) -> set[tuple[str, str]]:
    """Which unit reads which in a started expanded network; a unit is one or more nodes, see :func:`units`."""
    computes: Computes = {process: nodes for _, process, nodes in _processes(engine)}
    unit, edges = units(engine), set()
    for process, computed in computes.items():
        if computed and not isinstance(computed[0], Synapses):
            edges |= {(unit[computed[0].name], unit[reader.name]) for reader in _readers(process, computes)}
    return {(source, target) for source, target in edges if source != target}


def network_edges(engine: LavaEngine) -> set[tuple[str, str]]:
    """The same of the network that was placed: what its cores would send each other."""
    network, unit = engine.network, units(engine)
    read = [(connection.source, node.name) for node in network.nodes for connection in connections(network, node)]
    read.append((network.readout.source, network.readout.name))
    return {(unit[source], unit[target]) for source, target in read if unit[source] != unit[target]}


def units(engine: LavaEngine) -> dict[str, str]:
    """Per node, the unit that it is part of: gate and history run in one process."""
    found = {node.name: node.name for node in engine.network.nodes}
    for stage in engine.stages:
        attention = stage.block.attention
        if attention is not None and attention.gate is not None:
            found[attention.gate.name] = attention.history.name
    return found


def _processes(engine: LavaEngine) -> Iterator[tuple[str, Any, tuple[Node, ...]]]:
    """Name, process, and the nodes that it computes: none where it only reports."""
    for index, (stage, block) in enumerate(zip(engine.stages, engine.blocks)):
        nodes = _nodes_by_process(stage)
        if engine.expanded:
            for name in block.procs.member_names:
                yield f"block.{index}.{name}", getattr(block.procs, name), nodes.get(name, ())
        else:
            yield f"block.{index}", block, sum(nodes.values(), ())


def _readers(process: Any, computes: Computes) -> list[Node]:
    """The populations that read a process, directly or through synapses; start flags are no messages of neurons."""
    found: list[Node] = []
    for port in process.out_ports:
        for target in port.get_dst_ports():
            if target.name == START_PORT:
                continue
            nodes = computes.get(target.process, ())  # none at an outer port that leads nowhere
            through = nodes and isinstance(nodes[0], Synapses)
            found += _readers(target.process, computes) if through else nodes[:1]
    return found


def _nodes_by_process(stage: Stage) -> dict[str, tuple[Node, ...]]:
    """What :class:`~dsf.runtime.lava_backend.processes.block.ExpandedBlock`'s processes compute, by their names."""
    attention, mlp = stage.block.attention, stage.block.mlp
    found: dict[str, tuple[Node, ...]] = {}
    if stage.embedding is not None:
        first = stage.embedding
        found |= {"source": (first.encoder,), "entering": (first.residual,)}
        found |= {} if first.synapses is None else {"embed": (first.synapses,)}
        found |= {} if first.fine is None else {"embed_fine": (first.fine,)}
    if attention is not None:
        gate = () if attention.gate is None else (attention.gate,)
        found |= {"input_lif": (attention.input_lif,), "qkv": (attention.qkv,), "qkv_lif": (attention.qkv_lif,)}
        found |= {"history": (*gate, attention.history), "attention_lif": (attention.attention_lif,)}
        found |= {} if attention.gated is None else {"gated": (attention.gated,)}
        found |= {"project": (attention.project,), "middle": (attention.output,)}
    found |= {"mlp_lif": (mlp.input_lif,), "expand": (mlp.expand,), "hidden_lif": (mlp.hidden_lif,)}
    found |= {"contract": (mlp.contract,), "output": (mlp.output,)}
    if stage.readout is not None:
        found |= dict.fromkeys(("total", "head", "sink"), (stage.readout,))
    return found

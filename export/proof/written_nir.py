"""NIR files as they lie on the disk: every array, and what a forward-Euler reader makes of them, tick by tick."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import nir
import numpy as np

from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, NetworkError
from dsf.export.network.reference import ReferenceEngine
from dsf.export.proof.rungs import Rung
from dsf.export.targets.nir_graph import DT, build_nir
from dsf.shell.arrays import FloatArray, Int64Array, IntArray
from dsf.shell.errors import UNREADABLE, UserError
from dsf.shell.file_values import parse_json, read_bytes
from dsf.shell.hdf5_reading import ReadLimits, open_image, require_self_contained
from dsf.shell.plain_text import plain, shown
from dsf.train.quantization.integers import MEMBRANE_FRACTION_BITS

ARRAYS = ("weight", "bias", "tau", "r", "v_leak", "v_threshold", "v_reset")
"""Fields of the NIR nodes that dsf writes."""

LIMITS = ReadLimits(objects=1 << 16, numbers=1 << 24, expanded=1 << 32, ratio=100)
"""Of a file: every weight of a network takes eight bytes here."""
REMEDY = "export it again"
DRAWN = ("Input", "Output", "Linear", "Affine", "LIF", "IF")
"""NIR nodes that dsf writes."""

Values = dict[str, Int64Array]


def compare_nir(path: Path, network: Network, tokens: IntArray) -> Rung:
    """A NIR file against the network's graph, array by array, and against the reference wherever it claims exactness.

    Args:
        path: of the file.
        network: that it should be a part of.
        tokens: (steps, lanes, features) encoder integers.

    Raises:
        NetworkError: the file is no NIR graph of dsf-export.
    """
    graph, listed = read_graph(path)
    planned, _ = build_nir(network, partial=True, source_digest="")
    different = [name for name in {**planned.nodes, **graph.nodes} if not _same(planned, graph, name)]
    exact = [name for name in (node.name for node in network.nodes) if _is_exact(planned, name, listed)]
    compared, wrong = 0, 0
    if not different and set(planned.edges) == set(graph.edges):
        compared, wrong = _run(graph, network, tokens, exact)
    else:
        different = different or ["edges"]
    summary = (
        f"{len(planned.nodes)} NIR nodes read back, {len(different)} differ; {compared:,} values of {len(exact)} nodes "
        f"not listed as inexact in an Euler reader, {wrong} differ"
    )
    details = {"nodes": len(planned.nodes), "different": different, "compared": compared, "mismatches": wrong}
    return Rung("L2 reference = NIR file, node by node", not different and wrong == 0, summary, details)


def read_graph(path: Path) -> tuple[nir.NIRGraph, list[str]]:
    """A NIR file of dsf-export, and what it lists as inexact.

    Raises:
        NetworkError: it is missing, damaged, or somebody else's.
    """
    try:
        content = read_bytes(path, "NIR graph", LIMITS.expanded)
        with open_image(content) as file:
            require_self_contained(file, len(content), LIMITS, REMEDY)
            _require_drawn(file["node"])
        graph = nir.read(io.BytesIO(content))
        listed = parse_json(graph.metadata["inexact"], "metadata: inexact")
        if not isinstance(listed, list) or not all(isinstance(line, str) for line in listed):
            raise UserError(f"metadata: inexact is {shown(listed)}, expected a list of texts: {REMEDY}")
    except UserError as error:
        raise NetworkError(f"{path}: {error}") from None
    except UNREADABLE as error:
        told = plain(" ".join(str(error).split())) or type(error).__name__
        raise NetworkError(f"cannot read {path} as a NIR graph of dsf-export ({told}): {REMEDY}") from None
    return graph, listed


def _require_drawn(root: h5py.Group) -> None:
    """Refuse kinds of nodes that dsf does not write, before a reader makes anything of them.

    Raises:
        UserError: naming the node.
    """
    for name, node in root["nodes"].items():
        kind = node["type"].asstr()[()]
        if kind not in DRAWN:
            raise UserError(f"its node {shown(name)} is {shown(kind)}, which dsf-export does not write: {REMEDY}")


def _same(planned: nir.NIRGraph, found: nir.NIRGraph, name: str) -> bool:
    """Whether both graphs have this node, with equal arrays."""
    one, other = planned.nodes.get(name), found.nodes.get(name)
    if type(one) is not type(other):
        return False
    return all(np.array_equal(getattr(one, field, 0), getattr(other, field, 0)) for field in ARRAYS)


def _is_exact(graph: nir.NIRGraph, name: str, listed: list[str]) -> bool:
    drawn = graph.nodes.get(name)
    return drawn is not None and not isinstance(drawn, nir.Input) and not any(f"'{name}'" in line for line in listed)


def _run(graph: nir.NIRGraph, network: Network, tokens: IntArray, exact: list[str]) -> tuple[int, int]:
    """Values compared, and those that differ, of each node alone: it gets what the reference has at its sources."""
    engine, compared, wrong = ReferenceEngine(network, tokens.shape[1]), 0, 0
    for token in tokens:
        values: Values = {}
        engine.step_graded(token, values.__setitem__)
        for name in exact:
            arrived, node = currents_of(graph, name, values), graph.nodes[name]
            is_lif = isinstance(network[name], LIF)
            found = euler(node, arrived) if is_lif else mapped(node, arrived) - _bias_of_readers(graph, network, name)
            compared += found.size
            wrong += int(np.count_nonzero(found != values[name]))
    return compared, wrong


def _bias_of_readers(graph: nir.NIRGraph, network: Network, name: str) -> FloatArray | float:
    """What the graph's synapses add for the one population that reads them, in synaptic units."""
    readers = [node for node in network.nodes if name in node.sources]
    drawn = len(readers) == 1 and isinstance(graph.nodes.get(readers[0].name), (nir.LIF, nir.IF))
    if drawn and isinstance(readers[0], LIF):
        return readers[0].bias / (1 << MEMBRANE_FRACTION_BITS)
    return 0.0


def currents_of(graph: nir.NIRGraph, name: str, values: Values) -> FloatArray:
    """What arrives at a node from the reference's values; a neuron's current comes through the affine map before it."""
    total: FloatArray = np.zeros(())
    spiking = isinstance(graph.nodes[name], (nir.LIF, nir.IF))
    for source, target in graph.edges:
        if target == name:
            node = graph.nodes[source]
            through = spiking and isinstance(node, (nir.Linear, nir.Affine))
            total = total + (mapped(node, currents_of(graph, source, values)) if through else values[source])
    return total


def mapped(node: nir.Linear | nir.Affine, values: FloatArray) -> FloatArray:
    """An affine map of (..., inputs)."""
    result: FloatArray = values @ node.weight.T + (node.bias if isinstance(node, nir.Affine) else 0.0)
    return result


def euler(node: nir.LIF | nir.IF, currents: FloatArray) -> FloatArray:
    """Spikes (ticks, lanes, neurons) by the step that :mod:`dsf.export.targets.nir_graph` documents."""
    keep, gain = (1 - DT / node.tau, node.r * DT / node.tau) if isinstance(node, nir.LIF) else (1.0, node.r * DT)
    membrane, spikes = np.zeros_like(currents[0]), np.empty_like(currents)
    for tick, current in enumerate(currents):
        membrane = keep * membrane + gain * current
        spikes[tick] = membrane > node.v_threshold
        membrane = np.where(spikes[tick] == 1, node.v_reset, membrane)
    return spikes

"""NIR: what is written, what is refused, and that an Euler reader of the file fires the reference's spikes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import nir
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsf.export.conversion.fold import fold
from dsf.export.conversion.quantize import quantize
from dsf.export.network.file import file_digest, write_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, NODE_KINDS, Encoder, NetworkError, Node, Readout, Residual, Synapses
from dsf.export.network.reference import ReferenceEngine, fire
from dsf.export.targets.nir_graph import DT, REASONS, build_nir, inexact_parts, leak_is_exact, write_nir
from dsf.shell.errors import UserError
from dsf.testing.random_networks import exportable, random_model, random_network, random_tokens
from dsf.train.config.training import AttentionKind

ARRAYS = ("weight", "bias", "tau", "r", "v_leak", "v_threshold", "v_reset")
Values = dict[str, np.ndarray]


def reread(network: Network, path: Path) -> nir.NIRGraph:
    write_nir(network, path, partial=True)
    return nir.read(path)


def replaced(network: Network, **changes: Node | tuple[Node, ...]) -> Network:
    """The network with nodes exchanged for others, by name ('__' stands for '.')."""
    nodes: list[Node] = []
    for node in network.nodes:
        new = changes.get(node.name.replace(".", "__"), node)
        nodes += new if isinstance(new, tuple) else [new]
    return dataclasses.replace(network, nodes=tuple(nodes))


def reference_values(network: Network, seed: int, tokens: int = 4, lanes: int = 3) -> list[Values]:
    """What every node gives in each token of a stream: (ticks, lanes, neurons)."""
    engine, seen = ReferenceEngine(network, lanes), []
    for token in random_tokens(network, tokens, lanes, seed):
        values: Values = {}
        engine.step_graded(token, values.__setitem__)
        seen.append(values)
    return seen


def euler(node: nir.LIF | nir.IF, currents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spikes and membranes before their reset, (ticks, lanes, neurons), by the step that nir_graph documents."""
    keep, gain = (1 - DT / node.tau, node.r * DT / node.tau) if isinstance(node, nir.LIF) else (1.0, node.r * DT)
    v, spikes, membranes = np.zeros_like(currents[0]), np.empty_like(currents), np.empty_like(currents)
    for tick, current in enumerate(currents):
        v = keep * v + gain * current
        membranes[tick], spikes[tick] = v, v > node.v_threshold
        v = np.where(spikes[tick] == 1, node.v_reset, v)
    return spikes, membranes


def currents_of(graph: nir.NIRGraph, name: str, values: Values) -> np.ndarray:
    """What arrives at a node, from the reference's values; a neuron's current is its affine source's, bias included."""
    total: Any = 0.0
    for source, target in graph.edges:
        if target == name:
            node = graph.nodes[source]
            if isinstance(node, (nir.Linear, nir.Affine)) and isinstance(graph.nodes[name], (nir.LIF, nir.IF)):
                total = total + mapped(node, currents_of(graph, source, values))
            else:
                total = total + values[source].astype(np.float64)
    return np.asarray(total)


def mapped(node: nir.Linear | nir.Affine, values: np.ndarray) -> np.ndarray:
    return values @ node.weight.T + (node.bias if isinstance(node, nir.Affine) else 0.0)


def assert_same_graph(graph: nir.NIRGraph, again: nir.NIRGraph) -> None:
    assert set(graph.edges) == set(again.edges) and len(graph.edges) == len(again.edges)
    assert graph.nodes.keys() == again.nodes.keys()
    assert graph.metadata == again.metadata
    for name, node in graph.nodes.items():
        other = again.nodes[name]
        assert type(node) is type(other)
        assert [np.array_equal(a, b) for a, b in zip(node.input_type.values(), other.input_type.values())] == [True]
        for field in ARRAYS:
            if hasattr(node, field):
                assert getattr(other, field).dtype == np.float64
                assert np.array_equal(getattr(node, field), getattr(other, field)), (name, field)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=exportable(), bits=st.integers(2, 8))
def test_round_trip_gives_back_the_graph(tmp_path: Path, sizes: dict[str, Any], bits: int) -> None:
    network = random_network(bits=bits, **sizes)
    graph, _ = build_nir(network, partial=True)
    assert_same_graph(graph, reread(network, tmp_path / "x.nir"))


@pytest.mark.parametrize("attention", get_args(AttentionKind))
def test_every_node_is_drawn_or_listed(attention: AttentionKind, tmp_path: Path) -> None:
    network = random_network(5, attention=attention, positional_bias="full", heads=2)
    graph, omitted = build_nir(network, partial=True)
    assert_same_graph(graph, reread(network, tmp_path / "x.nir"))
    assert json.loads(nir.read(tmp_path / "x.nir").metadata["omitted"]) == omitted
    drawn = {name for name, node in graph.nodes.items() if not isinstance(node, (nir.Input, nir.Output))}
    for node in network.nodes:
        lines = [line for line in omitted if f"'{node.name}'" in line]
        assert (node.name in drawn) == (type(node) not in REASONS) == (lines == [])
        assert lines == [] or lines == [f"{type(node).__name__} '{node.name}': {REASONS[type(node)]}"]
        if node.name in drawn:
            sources = {source for source, target in graph.edges if target == node.name}
            assert sources == set(node.sources)
    assert "reset" in omitted[-1] and len(omitted) == sum(type(node) in REASONS for node in network.nodes) + 1


def test_a_kind_is_said_or_has_a_reason() -> None:
    assert set(NODE_KINDS.values()) - set(REASONS) == {Synapses, Residual, LIF}


def test_inputs_and_outputs_are_named_after_the_populations_that_are_cut() -> None:
    network = random_network(0, blocks=1)
    graph, _ = build_nir(network, partial=True)
    qkv = "blocks.0.attention.qkv_lif"
    assert set(graph.inputs) == {"encoder", "blocks.0.attention.window"}
    assert set(graph.outputs) == {f"{qkv}.out", "residual.1.out"}
    assert (qkv, f"{qkv}.out") in graph.edges


def test_metadata_says_where_it_comes_from(tmp_path: Path) -> None:
    network = dataclasses.replace(random_network(2), provenance={"dataset": {"id": "d"}, "bits": 8})
    network = network.with_verification({"rungs": [{"name": "L2 overflow", "passed": True}]})
    write_network(network, tmp_path / "x.dsf.h5")
    found = reread(network, tmp_path / "x.nir").metadata
    assert found["source_sha256"] == file_digest(tmp_path / "x.dsf.h5")
    assert (found["dt"], found["ticks"], found["context"], found["task"]) == (DT, 4, 8, "hopper")
    assert json.loads(found["inexact"]) == inexact_parts(network)
    assert json.loads(found["verification"]) == network.verification
    assert json.loads(found["provenance"]) == network.provenance
    assert json.loads(found["dataset"]) == {"id": "d"}
    write_nir(network, tmp_path / "y.nir", partial=True, source_digest="abc")
    assert nir.read(tmp_path / "y.nir").metadata["source_sha256"] == "abc"


def test_without_partial_the_refusal_names_kinds_and_counts(tmp_path: Path) -> None:
    with pytest.raises(
        NetworkError, match=r"1 Encoder, 2 Gate, 2 Window, 1 Readout, nor the reset .*--partial"
    ) as found:
        write_nir(random_network(0), tmp_path / "x.nir")
    assert "\n" not in str(found.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written(tmp_path: Path) -> None:
    network = random_network(0, blocks=1)
    with pytest.raises(UserError, match="does not exist"):
        write_nir(network, tmp_path / "nowhere" / "x.nir", partial=True)
    embed = network["embed"]
    assert isinstance(embed, Synapses)
    ends = (dataclasses.replace(network.encoder, name="a/b"), dataclasses.replace(embed, source="a/b"))
    slashed = dataclasses.replace(network, nodes=(*ends, *network.nodes[2:]))
    with pytest.raises(NetworkError, match="'a/b'"):
        write_nir(slashed, tmp_path / "x.nir", partial=True)
    (tmp_path / "x.nir").write_text("older")
    with pytest.raises(NetworkError):
        write_nir(network, tmp_path / "x.nir")
    assert [path.name for path in tmp_path.iterdir()] == ["x.nir"]
    assert (tmp_path / "x.nir").read_text() == "older"


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=exportable(), bits=st.integers(2, 8), whole=st.booleans())
def test_an_euler_reader_gives_the_reference_values(
    tmp_path: Path, sizes: dict[str, Any], bits: int, whole: bool
) -> None:
    """Every node of the re-read file, from the reference's values at its sources: equal unless listed as inexact."""
    seed = sizes.pop("seed")
    network = quantize(fold(random_model(seed, **sizes)), "hopper", bits, whole_biases=whole)
    graph = reread(network, tmp_path / "x.nir")
    for values in reference_values(network, seed):
        for node in network.nodes:
            if type(node) in REASONS:
                continue
            found, arrived = graph.nodes[node.name], currents_of(graph, node.name, values)
            if isinstance(node, LIF):
                spikes, membranes = euler(found, arrived)
                if leak_is_exact(node, network.ticks):
                    assert np.array_equal(spikes, values[node.name])
                else:
                    assert_only_rounding_differs(node, spikes, membranes, values[node.name])
                continue
            bias = next((lif.bias / 64 for lif in network.of_kind(LIF) if lif.source == node.name), 0.0)
            wanted = values[node.name] + (bias if isinstance(node, Synapses) else 0.0)
            rounded = mapped(found, arrived) - wanted
            assert (rounded >= 0).all() and (rounded < 1).all()
            assert isinstance(node, (Residual, Synapses))
            if isinstance(node, Residual) or node.exponent >= 0:
                assert not rounded.any()


def assert_only_rounding_differs(node: LIF, spikes: np.ndarray, membranes: np.ndarray, wanted: np.ndarray) -> None:
    """Where a neuron first differs within a token, its membrane is within the sum of all roundings of the threshold."""
    differs = spikes != wanted
    first = differs & (np.cumsum(differs, axis=0) == 1)
    distance = np.abs(membranes - node.threshold)
    assert (distance <= 1 / 64 * 4096 / node.decays)[first].all()


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    ticks=st.integers(1, 8),
    decays=st.lists(st.sampled_from([512, 1024, 2048, 3072, 3584, 4096]), min_size=1, max_size=3),
    exponent=st.integers(0, 7),
)
def test_leaks_that_are_called_exact_round_nothing(seed: int, ticks: int, decays: list[int], exponent: int) -> None:
    """The integer membrane leaves no remainder, whatever the currents, and the float one fires the same spikes; with
    one decay for all neurons or one for each.
    """
    generator = np.random.default_rng(seed)
    size, lanes = 6, 50
    decay = decays[0] if len(decays) == 1 else np.resize(np.array(decays, np.int16), size)
    keep = 4096 - np.asarray(decay, np.int64)
    mantissa = generator.integers(-40, 41, size).astype(np.int16)
    node = LIF("n", "s", generator.integers(1, 40, size, np.int32), mantissa, exponent, decay)
    if not leak_is_exact(node, ticks):
        return
    currents = generator.integers(-60, 61, (ticks, lanes, size))
    taus, gains = DT * 4096 / node.decays, 4096 / node.decays
    graph_node = nir.LIF(taus, gains, np.zeros(size), np.zeros(size))
    graph_node.v_threshold = node.threshold.astype(np.float64)
    spikes, membranes = euler(graph_node, currents + node.bias / 64)
    assert np.array_equal(spikes, fire(node, currents))
    fixed = membranes * 64
    assert np.array_equal(fixed, np.rint(fixed))
    assert not (fixed[:-1].astype(np.int64) * keep % 4096).any()


@pytest.mark.parametrize(("decay", "ticks", "whole"), [(0.25, 4, True), (0.25, 5, True), (0.875, 8, False)])
def test_whole_biases_keep_a_quarter_exactly_for_four_ticks(decay: float, ticks: int, whole: bool) -> None:
    """Elsewhere the chip's truncation of the leak may flip a spike: about one in 200,000 at the longest memory."""
    flips, spikes = 0, 0
    for seed in range(4):
        network = quantize(fold(random_model(seed, width=24, ticks=ticks, decay=decay)), "hopper", whole_biases=whole)
        graph, _ = build_nir(network, partial=True)
        assert {leak_is_exact(node, ticks) for node in network.of_kind(LIF)} == {(decay, ticks) == (0.25, 4)}
        for values in reference_values(network, 0, tokens=40, lanes=8):
            for node in network.of_kind(LIF):
                found, _ = euler(graph.nodes[node.name], currents_of(graph, node.name, values))
                flips, spikes = flips + int((found != values[node.name]).sum()), spikes + int(values[node.name].sum())
    assert spikes > 500_000 and flips < spikes / 50_000
    if (decay, ticks) == (0.25, 4):
        assert flips == 0
    if decay == 0.875:
        assert flips > 0  # so the list of inexact parts is needed


def test_biases_that_no_synapses_can_take_over(tmp_path: Path) -> None:
    """A LIF with a bias on the residual, and two on the same synapses: each bias gets an affine map of its own."""
    network = random_network(1, blocks=1)
    stage, lif = network["blocks.0.mlp.expand"], network["blocks.0.mlp.hidden_lif"]
    reader = network["blocks.0.mlp.input_lif"]
    assert isinstance(lif, LIF) and isinstance(reader, LIF) and isinstance(stage, Synapses)
    network = replaced(
        network,
        blocks__0__mlp__input_lif=dataclasses.replace(reader, bias_mantissa=reader.bias_mantissa + np.int16(9)),
        blocks__0__mlp__hidden_lif=(lif, dataclasses.replace(lif, name="twin")),
    )
    graph = reread(network, tmp_path / "x.nir")
    assert isinstance(graph.nodes[stage.name], nir.Linear)
    for name in ("twin", lif.name, reader.name):
        assert (f"{name}.bias", name) in graph.edges
        assert np.array_equal(graph.nodes[f"{name}.bias"].bias, network[name].bias / 64)  # type: ignore[union-attr]
    assert ("twin", "twin.out") in graph.edges  # nobody reads it


def test_no_leak_is_an_integrator_and_a_doubled_source_is_left_out(tmp_path: Path) -> None:
    network = random_network(1, blocks=1)
    last, lif = network["residual.1"], network["blocks.0.mlp.hidden_lif"]
    assert isinstance(last, Residual) and isinstance(lif, LIF)
    network = replaced(
        network,
        blocks__0__mlp__hidden_lif=dataclasses.replace(lif, decay=0),
        residual__1=dataclasses.replace(last, sources=last.sources + last.sources[:1]),
    )
    graph = reread(network, tmp_path / "x.nir")
    assert "residual.1" not in graph.nodes and "'residual.1': adds a source twice" in graph.metadata["omitted"]
    found = graph.nodes[lif.name]
    assert isinstance(found, nir.IF)
    values = reference_values(network, 0)[0]
    assert np.array_equal(euler(found, currents_of(graph, lif.name, values))[0], values[lif.name])


def test_encoder_and_readout_alone_are_cut_around() -> None:
    """The smallest network: no LIF, so no reset to speak of."""
    network = random_network(0)
    kept = [node for node in network.nodes if isinstance(node, Encoder) or node.name in ("embed", "residual.0")]
    small = dataclasses.replace(network, nodes=(*kept, dataclasses.replace(network.readout, source="residual.0")))
    graph, omitted = build_nir(small, partial=True)
    assert set(graph.nodes) == {"encoder", "embed", "residual.0", "residual.0.out"}
    assert [line.split(" ")[0] for line in omitted] == [Encoder.__name__, Readout.__name__]

"""An embedding on the host: its order of operations, its integers in every engine, files, proofs, what is counted."""

from __future__ import annotations

import dataclasses
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dsf.export.conversion.calibrate import calibrate
from dsf.export.conversion.fold import fold
from dsf.export.conversion.quantize import quantize
from dsf.export.inspect import inspect_network, print_network
from dsf.export.network.bounds import OverflowPossible, compute_bounds, require_no_overflow
from dsf.export.network.difference import compare_networks
from dsf.export.network.file import read_network, write_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import NODE_KINDS, HostEmbedding, NetworkError, Residual, Synapses
from dsf.export.network.reference import ReferenceEngine, WindowReference, encode, entering, saturated
from dsf.export.placement.chips import LOIHI_2
from dsf.export.placement.placement import Slice
from dsf.export.proof.levels import HostComparison
from dsf.export.proof.rungs import prove_network, random_proof_tokens, random_vectors
from dsf.export.proof.verify import prove_levels
from dsf.export.targets.nir_graph import build_nir
from dsf.export.targets.onnx_engine import OnnxEngine
from dsf.export.targets.onnx_graph import build_stream
from dsf.export.targets.torch_module import IntegerNetwork
from dsf.hardware_models import estimate_energy, load_preset, measure_activity
from dsf.hardware_models.dense import dense_ticks, rival_transformer
from dsf.hardware_models.layers import by_part, layer_rows
from dsf.hardware_models.mapping import map_in_order
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.runtime.robustness.network_faults import dead_cores, silenced_nodes
from dsf.shell.errors import UserError
from dsf.testing.narrowed import node_of
from dsf.testing.random_networks import exportable, random_coded, random_model, random_network
from dsf.train.quantization.host_embedding import NormedEmbedding
from dsf.train.quantization.rounding import QuantizationConfig

PAPER: dict[str, Any] = {"embed_norm": "layernorm", "input_bits": 0, "positional_bias": "full"}
EXAMPLE = HostEmbedding(
    name="host_embedding",
    offset=np.array([0.1, -3.0]),
    step=np.array([0.7, 2.0]),
    input_bits=0,
    matrix=np.array([[0.3, -1.1], [0.25, 0.7], [-0.9, 0.05]]),
    linear_bias=np.array([0.07, -0.3, 0.11]),
    norm_gain=np.array([0.5, 0.45, 0.6]),
    norm_bias=np.array([0.01, -0.2, 0.3]),
    epsilon=1e-5,
    unit=np.full(3, 0.5 / 1024),
    bits=14,
)

KNOWN_VALUES = [
    ["-0x1.438c186071b13p-1", "0x1.47a414a611e23p-2", "0x1.82148401d8ee4p-2"],
    ["-0x1.61c28f170153ep-1", "0x1.5e7f4121791b8p-5", "0x1.a283baee521fep-1"],
    ["0x1.3b5594a5cbcdep-2", "-0x1.aae8cddcd81f4p-1", "0x1.9338fce104c54p-1"],
]
KNOWN_INTEGERS = [[-1294, 655, 772], [735, 251, -1123], [631, -1708, 1613]]


def host_of(network: Network) -> HostEmbedding:
    return node_of(network, "host_embedding", HostEmbedding)


def slow_values(node: HostEmbedding, vector: list[float]) -> list[float]:
    """The docstring's equation up to the unit, in Python's floats: IEEE float64, one operation after the other."""
    z = []
    for x, offset, step in zip(vector, node.offset.tolist(), node.step.tolist()):
        value = (struct.unpack("f", struct.pack("f", x))[0] - offset) / step
        if node.input_bits:
            limit = 2 ** (node.input_bits - 1) - 1
            value = float(min(max(round(value), -limit), limit))
        z.append(value)
    y = []
    for row, total in zip(node.matrix.tolist(), node.linear_bias.tolist()):
        for weight, value in zip(row, z):
            total = total + weight * value
        y.append(total)
    total = y[0]
    for value in y[1:]:
        total = total + value
    mean = total / len(y)
    c = [value - mean for value in y]
    total = c[0] * c[0]
    for value in c[1:]:
        total = total + value * value
    deviation = math.sqrt(total / len(y) + node.epsilon)
    normed = zip(c, node.norm_gain.tolist(), node.norm_bias.tolist())
    return [value / deviation * gain + bias for value, gain, bias in normed]


def slow_integers(node: HostEmbedding, vector: list[float]) -> list[int]:
    scaled = [value / unit for value, unit in zip(slow_values(node, vector), node.unit.tolist())]
    return [max(-node.limit, min(node.limit, round(value))) for value in scaled]  # round() is half to even, too


@pytest.mark.parametrize("input_bits", [0, 8])
@pytest.mark.parametrize("width", [1, 2, 12, 128, 200])
def test_every_bit_is_that_of_the_slow_loop(width: int, input_bits: int) -> None:
    """Widths beyond the blocks in which numpy's own sums add pairwise; any number of rows at once gives the same."""
    network = random_network(width, width=width, blocks=1, embed_norm="layernorm", input_bits=input_bits)
    node = host_of(network)
    vectors = random_vectors(node, (9,), np.random.default_rng(width))
    together = encode(node, vectors)
    for vector, integers in zip(vectors, together):
        assert slow_integers(node, vector.tolist()) == integers.tolist() == encode(node, vector[None])[0].tolist()
        z = (vector.astype(np.float32).astype(np.float64) - node.offset) / node.step
        if not input_bits:
            assert node.embedding(z[None])[0].tobytes() == np.array(slow_values(node, vector.tolist())).tobytes()
    assert np.array_equal(encode(node, vectors.reshape(3, 3, -1)).reshape(9, -1), together)


def test_known_bits() -> None:
    """Worked out once; another machine or library must find the same."""
    z = np.array([[0.3, 0.9], [-1.25, 2.0], [0.0, 0.0]])
    found = EXAMPLE.embedding(z)
    assert [[value.hex() for value in row] for row in found.tolist()] == KNOWN_VALUES
    vectors = np.array([[0.31, -1.2], [100.0, 7.0], [0.1, -3.0]])
    assert encode(EXAMPLE, vectors).tolist() == KNOWN_INTEGERS


def test_what_is_infinite_in_float32_is_refused_and_no_feature_is_clipped() -> None:
    for value in (math.nan, math.inf, 1e39):
        with pytest.raises(NetworkError, match="not finite"):
            encode(EXAMPLE, np.array([[value, 0.0]]))
        with pytest.raises((NetworkError, UserError), match=r"not finite|too large"):
            FastEngine(random_network(0, **PAPER)).step(np.full((1, 6), value))
    assert not saturated(EXAMPLE, np.array([[1e30, -1e30]])).any()
    assert np.isinf(EXAMPLE.reach).all()
    quantized = dataclasses.replace(EXAMPLE, input_bits=8)
    assert saturated(quantized, np.array([[0.1 + 128 * 0.7, -3.0]])).tolist() == [[True, False]]
    assert quantized.reach.tolist() == [127 * 0.7, 127 * 2.0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), width=st.integers(1, 40), spread=st.floats(1e-3, 1e6))
def test_no_input_leaves_the_bits_that_the_exporter_chose(seed: int, width: int, spread: float) -> None:
    node = host_of(random_network(seed, width=width, blocks=1, embed_norm="layernorm", input_bits=0))
    generator = np.random.default_rng(seed)
    vectors = node.offset + node.step * spread * generator.normal(size=(50, node.features)) ** 3
    largest = np.abs(node.embedding((vectors - node.offset) / node.step) / node.unit).max()
    assert largest <= node.limit
    assert np.abs(encode(node, vectors)).max() <= largest + 0.5


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"offset": np.zeros(3)}, "offset has shape"),
    ({"norm_gain": np.ones(2)}, "norm_gain has shape"),
    ({"matrix": np.full((3, 2), np.nan)}, "matrix is not finite"),
    ({"matrix": np.ones(2)}, "matrix has shape"),
    ({"step": np.array([1.0, 0.0])}, "step is not positive"),
    ({"unit": np.array([1.0, -1.0, 1.0])}, "unit is not positive"),
    ({"epsilon": 0.0}, "epsilon is 0.0"),
    ({"input_bits": 1}, "input_bits is 1"),
    ({"bits": 25}, "bits is 25"),
]


@pytest.mark.parametrize(("changes", "words"), BROKEN)
def test_a_node_that_breaks_its_rules_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(NetworkError, match=f"'host_embedding': {words}") as refusal:
        dataclasses.replace(EXAMPLE, **changes)
    assert "\n" not in str(refusal.value)


def test_only_a_residual_reads_it() -> None:
    network = random_network(0, blocks=1, **PAPER)
    first = node_of(network, "residual.0", Residual)
    reads = Synapses("embed", "host_embedding", np.ones((12, 12), np.int8), 0)
    nodes = (network.nodes[0], reads, dataclasses.replace(first, sources=("embed",)), *network.nodes[2:])
    with pytest.raises(NetworkError, match="source 'host_embedding' is a HostEmbedding"):
        dataclasses.replace(network, nodes=nodes)


def test_the_proof_counts_what_the_host_sends() -> None:
    network = random_network(0, blocks=1, **PAPER)
    (bound,) = [bound for bound in compute_bounds(network) if bound.node == "residual.0"]
    assert bound.largest == host_of(network).limit
    loud = dataclasses.replace(host_of(network), bits=20)
    with pytest.raises(OverflowPossible, match="could overflow"):
        require_no_overflow(dataclasses.replace(network, nodes=(loud, *network.nodes[1:])))


@pytest.mark.parametrize("attention", ["pssa", "tssa", "none"])
def test_every_engine_from_float_tokens(attention: Any) -> None:
    """Reference, fast engine, ONNX Runtime and torch, from token vectors: accumulators and actions of both modes."""
    network = random_network(4, width=24, heads=2, context=5, **{**PAPER, "attention": attention})
    vectors = random_vectors(host_of(network), (12, 2), np.random.default_rng(0))
    for windowed in (False, True):
        truth = WindowReference(network, 2) if windowed else ReferenceEngine(network, 2)
        fast = FastEngine(network, 2, "window" if windowed else "stream")
        onnx = None if windowed else OnnxEngine(network, 2)
        for vector in vectors:
            expected = truth.step(vector)
            assert np.array_equal(fast.step(vector), expected) and np.array_equal(
                fast.graded, encode(network.encoder, vector)
            )
            assert onnx is None or np.array_equal(onnx.step(vector), expected)
    engine, module = WindowReference(network), IntegerNetwork(network)
    for step, vector in enumerate(vectors[:, :1]):
        window = torch.from_numpy(vectors[max(0, step - 4) : step + 1, 0])[None]
        wanted = np.tanh(network.readout.scale * engine.step(vector))[0]
        assert np.allclose(module(window)[0, -1].numpy(), wanted, rtol=1e-12, atol=1e-15)
    assert all(rung.passed is not False for rung in prove_network(network, random_proof_tokens(network, 40, 0)))


def test_absent_tokens_need_not_be_finite() -> None:
    network = random_network(4, context=5, **PAPER)
    vectors = torch.from_numpy(random_vectors(host_of(network), (1, 3), np.random.default_rng(0)))
    padded = torch.cat([torch.full((1, 2, 6), torch.nan, dtype=torch.float64), vectors], dim=1)
    module, exists = IntegerNetwork(network), torch.tensor([[False, False, True, True, True]])
    assert torch.equal(module(padded, exists)[:, -1], module(vectors)[:, -1])


def test_the_ladder_covers_the_embedding() -> None:
    model = random_model(2, width=16, **PAPER)
    folded = fold(model)
    assert isinstance(folded.embed, NormedEmbedding)
    network, tokens = quantize(folded, "hopper"), random_coded(folded, 6, seed=0).swapaxes(0, 1)
    fold_rung, host_rung, integer_rung = prove_levels(model, folded, network, tokens)
    assert fold_rung.passed and host_rung.passed and integer_rung.details["spike_agreement_overall"] > 0.97
    assert (
        host_rung.name == "L1 folded float -> host embedding"
        and host_rung.details["values"] == tokens[..., 0].size * 16
    )
    other = dataclasses.replace(folded, embed=dataclasses.replace(folded.embed, gain=folded.embed.gain * 1.001))
    assert [rung.passed for rung in prove_levels(model, other, network, tokens)][:2] == [False, False]
    comparison = HostComparison(host_of(network))
    comparison.add(folded.embed(tokens), entering(network.encoder, tokens) + 1)
    assert comparison.rung().passed is False


def test_the_file_keeps_every_bit_and_older_versions_refuse_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_network(1, **PAPER)
    write_network(network, tmp_path / "a.dsf.h5")
    found = read_network(tmp_path / "a.dsf.h5")
    assert compare_networks(network, found) == []
    for field in dataclasses.fields(HostEmbedding):
        mine, theirs = (getattr(host_of(each), field.name) for each in (network, found))
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes() and type(mine) is type(theirs), field.name
    monkeypatch.delitem(NODE_KINDS, "HostEmbedding")  # as a dsf that does not know it
    with pytest.raises(NetworkError, match="unknown node kind 'HostEmbedding': it needs a newer dsf"):
        read_network(tmp_path / "a.dsf.h5")


def test_a_network_without_one_has_no_trace_of_it(tmp_path: Path) -> None:
    write_network(random_network(1), tmp_path / "b.dsf.h5")
    assert b"HostEmbedding" not in (tmp_path / "b.dsf.h5").read_bytes()


def test_targets_say_what_they_leave_out() -> None:
    network = random_network(1, **PAPER)
    with pytest.raises(NetworkError, match="cannot hold the host embedding"):
        build_stream(network)
    model = build_stream(network, encoder=False)
    assert model.graph.input[0].name == "graded" and "host embedding" in model.graph.doc_string
    with pytest.raises(NetworkError, match="NIR cannot say 1 HostEmbedding"):
        build_nir(network)
    _, omitted = build_nir(network, partial=True)
    assert omitted[0].startswith("HostEmbedding 'host_embedding': computes embedding and LayerNorm on the host")


def test_second_synapses_have_nothing_to_do_here() -> None:
    folded = fold(random_model(1, **PAPER))
    with pytest.raises(UserError, match="--embed-synapses 2 requires an embedding of synapses"):
        quantize(folded, "hopper", config=QuantizationConfig(8, embed_synapses=2))


def test_one_unit_per_channel() -> None:
    folded = fold(random_model(1, **PAPER))
    calibration = calibrate(folded, random_coded(folded, 3, seed=0))
    network = quantize(
        folded, "hopper", config=QuantizationConfig(8, residual_scales="channel"), calibration=calibration
    )
    assert len(set(host_of(network).unit.tolist())) > 1
    lif = node_of(network, "blocks.0.attention.input_lif", object)
    assert np.array_equal(host_of(network).unit, folded.threshold / lif.threshold)  # type: ignore[attr-defined]


def test_its_work_is_counted_beside_the_chips_and_priced_or_listed() -> None:
    """Seven features into twelve channels, windows of one and two tokens: every figure by hand.

    The host embeds each token once, and sends three: the window keeps its integers.
    """
    network = random_network(0, features=7, width=12, **PAPER)
    engine = ReferenceLoopEngine(network, "window")
    for token in random_proof_tokens(network, 2, 0)[:2, :1]:
        engine.step_graded(token)
    activity = measure_activity(engine.counter)
    assert (activity.decisions, activity.tokens) == (2, 3)
    host = activity.nodes[0]
    assert (host.node, host.kind) == ("host_embedding", "HostEmbedding")
    assert host.macs_fp32 == 2 * (7 * 12 + 2 * 12) and host.host_bytes == 2 * 8 * (7 * 12 + 4 * 12)
    assert host.host_operations == 2 * 6 * 12 and host.host_transfers == 3 * 12
    assert host.graded_messages == 3 * 12 * network.ticks and host.macs == host.synaptic_events == 0
    mapping = map_in_order(network, LOIHI_2)
    mapped = mapping.activity(engine.counter).nodes[0]
    assert (mapped.macs_fp32, mapped.host_bytes, mapped.host_operations, mapped.host_transfers) == (
        host.macs_fp32,
        host.host_bytes,
        host.host_operations,
        host.host_transfers,
    )
    priced, unpriced = (load_preset(name) for name in ("paper_45nm", "loihi2_derived"))
    energy = estimate_energy(activity, priced)
    assert energy.layers[0].terms["macs_fp32"].nominal == pytest.approx(host.macs_fp32 / 2 * 4.6e-12)
    assert {"host_operations", "host_bytes"} <= set(energy.unpriced)
    assert {"macs_fp32", "host_operations", "host_bytes"} <= set(estimate_energy(activity, unpriced).unpriced)
    first, second = by_part(layer_rows(network, activity, energy))[:2]
    assert (first.layer, first.neurons, first.macs) == ("host embedding", 0, 7 * 12 + 2 * 12)
    assert (second.layer, second.neurons, second.macs) == ("embedding", 12, 0)
    assert rival_transformer(network).observations == 7 - 3 - 1
    assert dense_ticks(network).activity.nodes[0].macs_fp32 == 7 * 12 + 2 * 12


def test_networks_without_one_count_as_before() -> None:
    network = random_network(0)
    engine = ReferenceLoopEngine(network)
    engine.step_graded(random_proof_tokens(network, 1, 0)[0, :1])
    activity = measure_activity(engine.counter)
    assert activity.total("host_operations") == activity.total("host_bytes") == activity.total("macs_fp32") == 0
    assert "macs_fp32" not in estimate_energy(activity, load_preset("loihi2_derived")).unpriced


def test_inspect_names_it() -> None:
    network, console = random_network(0, **PAPER), Console(width=200, record=True)
    print_network(network, console, LOIHI_2)
    text = console.export_text()
    assert "HostEmbedding" in text and "on the host: 6 floats -> LayerNorm -> 16 bits" in text
    assert "host embedding and readout run on the host" in text
    described = inspect_network(network)["nodes"][0]
    assert described["shape"] == [12] and described["cores"] is described["fan_in"] is None


def test_a_dead_core_silences_its_channels_and_no_other() -> None:
    network = random_network(0, width=12, blocks=1, **PAPER)
    changed = silenced_nodes(network, [Slice("residual.0", 4, 4)])
    faulty = dataclasses.replace(network, nodes=tuple(changed.get(node.name, node) for node in network.nodes))
    dead, alive = (encode(each.encoder, np.ones((1, 6)))[0] for each in (faulty, network))
    assert not dead[4:8].any() and alive[4:8].any()
    assert np.array_equal(np.delete(dead, range(4, 8)), np.delete(alive, range(4, 8)))
    faults = dead_cores(network, count=3, seed=1, chip=LOIHI_2)
    assert require_no_overflow(faults)


@settings(max_examples=25, deadline=None)
@given(sizes=exportable())
def test_both_kinds_of_embedding_are_drawn_and_encode_any_shape(sizes: dict[str, Any]) -> None:
    network = random_network(**sizes)
    assert isinstance(network.encoder, HostEmbedding) == (sizes["embed_norm"] == "layernorm")
    shape = (2, 3, network.encoder.features)
    assert encode(network.encoder, np.zeros(shape)).shape == (2, 3, network.encoder.size)

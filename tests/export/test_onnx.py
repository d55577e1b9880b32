"""ONNX graphs: bit-identical to the reference engine, integers only, valid, and readable by whoever opens the file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from dsf.export.conversion.fold import fold
from dsf.export.conversion.folded import FoldedEngine
from dsf.export.conversion.quantize import quantize
from dsf.export.network.bounds import require_no_overflow
from dsf.export.network.file import file_digest, write_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    LIF,
    SPIKING_KINDS,
    Encoder,
    HostEmbedding,
    NetworkError,
    Node,
    Readout,
    Residual,
    Synapses,
)
from dsf.export.network.reference import ReferenceEngine, WindowReference, decode, replay_window
from dsf.export.proof.rungs import random_proof_tokens
from dsf.export.proof.rungs import random_vectors as host_vectors
from dsf.export.proof.written import compare_written
from dsf.export.targets.onnx_engine import OnnxEngine, OnnxWindowEngine, open_session
from dsf.export.targets.onnx_float import build_float, write_onnx_float
from dsf.export.targets.onnx_graph import build_stream, build_window, write_onnx
from dsf.export.targets.onnx_rules import check
from dsf.export.targets.options import TargetOptions
from dsf.export.write import write_target
from dsf.testing.narrowed import node_of
from dsf.testing.random_networks import exportable, random_coded, random_model, random_network, random_tokens, sparser
from dsf.testing.spike_tally import TALLY
from dsf.train.config.training import AttentionKind

Engine = ReferenceEngine | WindowReference | OnnxEngine | OnnxWindowEngine
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def random_vectors(network: Network, count: int, lanes: int, seed: int) -> np.ndarray:
    """(count, lanes, features) tokens around the encoder's range, some beyond it, some halfway between integers."""
    encoder = network.encoder
    if isinstance(encoder, HostEmbedding):
        return host_vectors(encoder, (count, lanes), np.random.default_rng(seed))
    halves = np.random.default_rng(seed).integers(-3 * encoder.limit, 3 * encoder.limit, (count, lanes, encoder.size))
    return encoder.offset + encoder.step * (halves / 2)


def decided(engine: Engine, token: np.ndarray, graded: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Accumulators, and the spikes of every population."""
    spikes: dict[str, np.ndarray] = {}

    def observe(name: str, values: np.ndarray) -> None:
        if isinstance(engine.network[name], SPIKING_KINDS):
            spikes[name] = values

    return (engine.step_graded if graded else engine.step)(token, observe), spikes


def assert_same(reference: Engine, engine: Engine, token: np.ndarray, graded: bool) -> None:
    """One decision, spike by spike."""
    (expected, fired), (found, found_fired) = (decided(each, token, graded) for each in (reference, engine))
    assert found.dtype == expected.dtype and np.array_equal(found, expected)
    assert list(found_fired) == list(fired) and fired
    for name in fired:
        assert np.array_equal(found_fired[name], fired[name]), name
    TALLY.add("ONNX Runtime", sum(spikes.size for spikes in fired.values()))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(sizes=exportable(), bits=st.integers(2, 8))
def test_a_stream_is_the_reference_engine(sizes: dict[str, Any], bits: int) -> None:
    """Both kinds of input take turns, and one lane starts anew."""
    network = random_network(bits=bits, **sizes)
    reference, engine = ReferenceEngine(network, lanes=2), OnnxEngine(network, lanes=2)
    count = network.context + 2
    vectors, graded = random_vectors(network, count, 2, sizes["seed"]), random_tokens(network, count, 2, sizes["seed"])
    for step in range(count):
        if step == 2:
            reference.reset(1)
            engine.reset(1)
        assert_same(reference, engine, graded[step] if step % 2 else vectors[step], graded=bool(step % 2))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(sizes=exportable(), bits=st.integers(2, 8), graded=st.booleans())
def test_a_window_is_the_window_reference(sizes: dict[str, Any], bits: int, graded: bool) -> None:
    network = random_network(bits=bits, **sizes)
    reference, engine = WindowReference(network, lanes=2), OnnxWindowEngine(network, lanes=2)
    tokens = (random_tokens if graded else random_vectors)(network, network.context + 2, 2, sizes["seed"])
    for step, token in enumerate(tokens):
        if step == 2:
            reference.reset(1)
            engine.reset(1)
        assert_same(reference, engine, token, graded)


@pytest.mark.parametrize("attention", get_args(AttentionKind))
def test_every_attention_in_both_modes_over_a_longer_episode(attention: AttentionKind) -> None:
    """Larger than the random sizes, with a past that matters at every place of the window."""
    network = random_network(3, attention=attention, positional_bias="full", heads=2, width=24, context=6, window=5)
    for reference, engine in ((ReferenceEngine, OnnxEngine), (WindowReference, OnnxWindowEngine)):
        expected, found = reference(network, lanes=8), engine(network, lanes=8)
        for token in random_vectors(network, 15, 8, 1):
            assert_same(expected, found, token, graded=False)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(sizes=exportable(), bits=st.integers(2, 8), data=st.data())
def test_every_token_of_a_window_is_the_replay(sizes: dict[str, Any], bits: int, data: st.DataObject) -> None:
    network, context = random_network(bits=bits, **sizes), sizes["context"]
    starts = data.draw(st.lists(st.integers(0, context - 1), min_size=3, max_size=3))
    exists = (np.arange(context)[:, None] >= np.array(starts)).astype(np.uint8)
    tokens, fired = random_tokens(network, context, 3, sizes["seed"]), {}
    answers = replay_window(network, tokens, exists.astype(np.int64), lambda name, values: fired.update({name: values}))
    session = open_session(build_window(network, encoder=False, spikes=True))
    outputs = run(session, {"graded": tokens.astype(np.int32), "exists": exists})
    assert np.array_equal(outputs["accumulators"], answers[-1])
    populations = [node.name for node in network.nodes if isinstance(node, SPIKING_KINDS)]
    assert sorted(outputs) == sorted(["accumulators", "actions", *(f"spikes.{name}" for name in populations)])
    for name in populations:
        assert np.array_equal(outputs[f"spikes.{name}"], fired[name]), name


def run(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs by name."""
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds)))


@st.composite
def extreme(draw: Any) -> Network:
    """A tiny network whose shifts, leak and readout reach further than quantized ones, up to where the proof fails."""
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    ticks, decay = draw(st.integers(1, 6)), draw(st.integers(1, 4096))
    down, shift = draw(st.integers(-8, 0)), draw(st.integers(0, 12))
    own = draw(st.booleans())
    with_neurons, most = draw(st.booleans()), min(4095, 128 * decay)  # a small decay piles biases up

    def attempt(exponent: int) -> Network:
        top = min(1 << max(exponent + 5, 2), (1 << 17) - 1)
        nodes: list[Node] = [
            Encoder("encoder", np.zeros(3), np.ones(3), generator.integers(0, 3, 3), 4),
            Synapses("embed", "encoder", generator.integers(-2, 3, (5, 3)).astype(np.int8), exponent),
            Residual("residual.0", ("embed",), generator.integers(-9, 10, 5).astype(np.int32)),
        ]
        if with_neurons:
            threshold, mantissa = (
                generator.integers(1, top, 5),
                generator.integers(-most, most, 5),
            )
            decays = generator.integers(0, 4097, 5).astype(np.int16) if own else decay
            nodes += [
                LIF("lif", "residual.0", threshold.astype(np.int32), mantissa.astype(np.int16), 2, decays),
                Synapses("project", "lif", generator.integers(-127, 128, (5, 5)).astype(np.int8), down),
                Residual("residual.1", ("residual.0", "project"), generator.integers(-99, 100, 5).astype(np.int32)),
            ]
        weights, bias = generator.integers(-3, 4, (2, 5)).astype(np.int8), generator.integers(-99, 100, 2)
        nodes.append(Readout("readout", nodes[-1].name, weights, bias.astype(np.int32), shift, np.full(2, 0.01)))
        return Network("hopper", ticks, 1, tuple(nodes))

    for exponent in range(15, -16, -1):
        network = attempt(exponent)
        try:
            require_no_overflow(network)
        except NetworkError:
            continue
        return network
    raise AssertionError("no exponent is small enough")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(network=extreme(), seed=st.integers(0, 2**31))
def test_extreme_shifts_and_leaks_are_exact(network: Network, seed: int) -> None:
    """Negative sums shifted right, any decay, products beyond 32 bits, residuals that never change over the ticks."""
    for reference, engine in ((ReferenceEngine, OnnxEngine), (WindowReference, OnnxWindowEngine)):
        expected, found = reference(network, lanes=8), engine(network, lanes=8)
        token = random_tokens(network, 1, 8, seed)[0]
        (answers, fired), (got, got_fired) = decided(expected, token, True), decided(found, token, True)
        assert np.array_equal(answers, got) and fired.keys() == got_fired.keys()
        assert all(np.array_equal(fired[name], got_fired[name]) for name in fired)


def test_the_encoder_rounds_halves_to_even_and_clips() -> None:
    network = random_network(2, input_bits=4)
    plain = dataclasses.replace(network.encoder, offset=np.zeros(6), step=np.ones(6))
    network = dataclasses.replace(network, nodes=(plain, *network.nodes[1:]))
    for vector, integers in (
        ([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], [0, 2, 2, 0, -2, -2]),
        ([6.5, 7.5, 1e300, -6.5, -7.6, -1e300], [6, 7, 7, -6, -7, -7]),
    ):
        found = OnnxEngine(network).step(np.array([vector]))
        assert np.array_equal(found, ReferenceEngine(network).step_graded(np.array([integers])))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [OnnxEngine, OnnxWindowEngine])
def test_values_that_are_not_finite_are_refused(kind: type[OnnxEngine], value: float) -> None:
    with pytest.raises(NetworkError, match="not finite"):
        kind(random_network(0)).step(np.full((1, 6), value))


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_graph_answers_a_token_that_is_not_finite_with_nan(value: float, discrete: bool) -> None:
    """In its lane only, and not where a window's token does not exist."""
    network, folded = random_network(0, discrete=discrete), fold(random_model(0, discrete=discrete))
    vectors = random_vectors(network, network.context, 3, 0)
    vectors[3, 1, 2], vectors[0, 2, 0] = value, value
    exists = np.ones((network.context, 3), np.uint8)
    exists[0, 2] = 0
    graphs_of_windows = build_window(network), build_float(folded), build_float(folded, dtype=np.float64)
    found = [run(open_session(model), {"tokens": vectors, "exists": exists}) for model in graphs_of_windows]
    session = open_session(build_stream(network))
    feeds = {"token": vectors[3]}
    for entry in session.get_inputs()[1:]:
        feeds[entry.name] = np.zeros([3 if axis == "lanes" else axis for axis in entry.shape], np.uint8)
    for outputs in (*found, run(session, feeds)):
        assert np.isnan(outputs["actions"]).all(axis=1).tolist() == [False, True, False]
        assert np.isfinite(outputs["actions"][[0, 2]]).all()


def test_a_window_takes_one_kind_of_input() -> None:
    engine = OnnxWindowEngine(random_network(0))
    engine.step(np.zeros((1, 6)))
    with pytest.raises(NetworkError, match="cannot mix"):
        engine.step_graded(np.zeros((1, 6), np.int64))


def graphs(attention: AttentionKind, encoder: bool = True) -> Iterator[tuple[Network, onnx.ModelProto]]:
    """Both modes, with every spiking population as an output."""
    network = random_network(7, attention=attention, positional_bias="full", heads=2, context=4)
    for mode in (build_stream, build_window):
        yield network, mode(network, encoder=encoder, spikes=True)


@pytest.mark.parametrize("attention", get_args(AttentionKind))
def test_all_is_integer_between_encoder_and_accumulators(attention: AttentionKind) -> None:
    for encoder, expected in ((True, ["Cast", "Cast", "Sub", "Div", "Round", "Clip", "Cast"]), (False, [])):
        for _, model in graphs(attention, encoder):
            inferred = check(model).graph
            types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.input, *inferred.value_info)}
            types |= {value.name: value.type.tensor_type.elem_type for value in inferred.output}
            types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
            decoding, floating = {"accumulators"}, []
            for node in inferred.node:
                if decoding.intersection(node.input) or node.output[0].startswith("finite/"):
                    decoding.update(node.output)
                elif any(types[name] in FLOATS for name in (*node.input, *node.output)):
                    floating.append(node.op_type)
            assert floating == expected
            assert decoding.intersection(output.name for output in inferred.output) == {"accumulators", "actions"}
            assert {entry.domain for entry in model.opset_import} == {""}


@pytest.mark.parametrize("attention", get_args(AttentionKind))
def test_inputs_and_outputs_say_what_they_are(attention: AttentionKind) -> None:
    for network, model in graphs(attention):
        window = model.graph.name == "dsf_window"
        ticks, context, features = network.ticks, network.context, network.encoder.size
        found = {value.name: described(value) for value in (*model.graph.input, *model.graph.output)}
        expected: dict[str, Any] = {
            "accumulators": (TensorProto.INT32, ["lanes", network.readout.size]),
            "actions": (TensorProto.DOUBLE, ["lanes", network.readout.size]),
        }
        if window:
            expected["tokens"] = (TensorProto.DOUBLE, [context, "lanes", features])
            expected["exists"] = (TensorProto.UINT8, [context, "lanes"])
        else:
            expected["token"] = (TensorProto.DOUBLE, ["lanes", features])
            for history in network.with_history:
                kept = [history.reach - 1, ticks, "lanes", network[history.remembered].size]
                expected |= {f"{side}.{history.name}": (TensorProto.UINT8, kept) for side in ("state", "next")}
        for node in network.nodes:
            if isinstance(node, SPIKING_KINDS):
                shape = [ticks, *([context] if window else []), "lanes", node.size]
                expected[f"spikes.{node.name}"] = (TensorProto.UINT8, shape)
        assert found == expected
        assert all(value.doc_string for value in (*model.graph.input, *model.graph.output))


def described(value: onnx.ValueInfoProto) -> tuple[int, list[int | str]]:
    """Element type and dimensions."""
    dimensions = value.type.tensor_type.shape.dim
    return value.type.tensor_type.elem_type, [axis.dim_param or axis.dim_value for axis in dimensions]


@pytest.mark.slow
def test_sparse_weights_are_put_together_from_those_that_exist(tmp_path: Path) -> None:
    """In both modes, in onnx's own evaluator, and from a file of less than half the size."""
    dense = random_network(3, width=72, blocks=1, context=3, window=2)
    network = sparser(dense, 0.9)
    silent = dataclasses.replace(node_of(network, "embed", Synapses), weights=np.zeros((72, 6), np.int8))
    nodes = tuple(silent if node.name == "embed" else node for node in network.nodes)
    for tried in (network, dataclasses.replace(network, nodes=nodes)):
        for reference, engine in ((ReferenceEngine, OnnxEngine), (WindowReference, OnnxWindowEngine)):
            expected, found = reference(tried, lanes=3), engine(tried, lanes=3)
            for token in random_vectors(tried, 6, 3, 1):
                assert_same(expected, found, token, graded=False)
    token, states = random_tokens(network, 1, 1, 0)[0].astype(np.int32), OnnxEngine(network).states
    model = build_stream(network, encoder=False)
    assert {"ScatterElements", "CumSum"} <= {node.op_type for node in model.graph.node}
    (found_alone,) = ReferenceEvaluator(model).run(["accumulators"], {"graded": token, **states})
    assert np.array_equal(found_alone, ReferenceEngine(network).step_graded(token))
    sizes = []
    for index, written in enumerate((dense, network)):
        path = tmp_path / f"{index}.onnx"
        write_target("onnx", written, None, path, TargetOptions())
        rungs = compare_written("onnx", path, written, None, random_proof_tokens(written, 8, seed=0))
        assert all(rung.passed for rung in rungs)
        matrices = sum(node.weights.size for node in written.nodes if isinstance(node, (Synapses, Readout)))
        held = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
        sizes.append(sum(array.nbytes for array in held if array.dtype in (np.int8, np.uint8)) / matrices)
    assert sizes[0] > 0.99 and sizes[1] < 0.25


@pytest.mark.parametrize("attention", get_args(AttentionKind))
def test_another_runtime_computes_the_same(attention: AttentionKind) -> None:
    """Onnx's own evaluator, in numpy: the graph means what the standard says, not what one runtime makes of it."""
    for network, model in graphs(attention):
        window, lanes = model.graph.name == "dsf_window", 2
        vectors = random_vectors(network, network.context, lanes, 1)
        feeds: dict[str, np.ndarray] = {"token": vectors[0]}
        if window:
            feeds = {"tokens": vectors, "exists": np.array([[0, 1], [0, 1], [1, 1], [1, 1]], np.uint8)}
        generator = np.random.default_rng(3)
        for value in model.graph.input:
            if value.name.startswith("state."):
                shape = [lanes if axis == "lanes" else int(axis) for axis in described(value)[1]]
                feeds[value.name] = generator.integers(0, 2, shape).astype(np.uint8)
        found = ReferenceEvaluator(model).run(None, feeds)
        for (name, expected), value in zip(run(open_session(model), feeds).items(), found):
            close = np.allclose(value, expected, rtol=1e-14) if name == "actions" else np.array_equal(value, expected)
            assert close and value.dtype == expected.dtype, name


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("window", [False, True])
def test_the_file_runs_and_says_where_it_comes_from(tmp_path: Path, window: bool, discrete: bool) -> None:
    network = dataclasses.replace(random_network(4, discrete=discrete), target_return=12.5)
    network = dataclasses.replace(network, provenance={"dataset": {"id": "d", "sha256": "0"}, "bits": 8})
    network = network.with_verification({"ladder": [{"passed": True}]})
    source, path = tmp_path / "network.dsf.h5", tmp_path / "network.onnx"
    write_network(network, source)
    write_onnx(network, path, window=window, source=source)
    assert sorted(tmp_path.iterdir()) == [source, path]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["source_sha256"] == file_digest(source)
    assert (metadata["task"], metadata["mode"]) == ("hopper", "window" if window else "stream")
    assert json.loads(metadata["target_return"]) == 12.5
    assert json.loads(metadata["verification"]) == network.verification
    assert json.loads(metadata["provenance"]) == network.provenance
    assert json.loads(metadata["dataset"]) == {"id": "d", "sha256": "0"}
    assert onnx.load(path).producer_name == "dsf" and onnx.load(path).producer_version
    vectors = random_vectors(network, network.context, 1, 0)
    feeds = {"tokens": vectors, "exists": np.ones((network.context, 1), np.uint8)} if window else {"token": vectors[0]}
    for value in session.get_inputs():
        if value.name.startswith("state."):
            feeds[value.name] = np.zeros([1 if axis == "lanes" else axis for axis in value.shape], np.uint8)
    reference: ReferenceEngine | WindowReference = WindowReference(network) if window else ReferenceEngine(network)
    answers = [reference.step(vector) for vector in (vectors if window else vectors[:1])][-1]
    outputs = run(session, feeds)
    assert np.array_equal(outputs["accumulators"], answers)
    assert np.allclose(outputs["actions"], decode(network.readout, answers), rtol=1e-14, atol=0)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    network = random_network(0)
    loud = [dataclasses.replace(node, exponent=15) if isinstance(node, Synapses) else node for node in network.nodes]
    with pytest.raises(NetworkError, match="could overflow"):
        write_onnx(dataclasses.replace(network, nodes=tuple(loud)), tmp_path / "network.onnx")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_onnx(network, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_weights_are_bytes_and_are_stored_once_for_all_ticks() -> None:
    sizes = []
    for ticks in (1, 8):
        network = random_network(5, width=32, ticks=ticks)
        tensors = [numpy_helper.to_array(tensor) for tensor in build_stream(network).graph.initializer]
        weights = [node.weights.size for node in network.nodes if isinstance(node, (Synapses, Readout))]
        assert sum(tensor.size for tensor in tensors if tensor.dtype == np.int8) == sum(weights)
        sizes.append(sum(tensor.nbytes for tensor in tensors))
        assert sizes[-1] < sum(weights) + 8 * sum(node.size for node in network.nodes)
    assert abs(sizes[0] - sizes[1]) < 200


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(sizes=exportable(), data=st.data())
def test_the_float_graph_is_the_folded_engine(sizes: dict[str, Any], data: st.DataObject) -> None:
    folded, context = fold(random_model(**sizes)), sizes["context"]
    length, fired = data.draw(st.integers(1, context)), {}
    graded = random_coded(folded, 3, sizes["seed"])
    graded = graded.astype(np.int32) if folded.codec.bits else graded
    exists = np.repeat(np.arange(context)[:, None] >= context - length, 3, axis=1).astype(np.uint8)
    engine = FoldedEngine(folded, lambda name, _, spikes: fired.update({name: spikes}))
    expected = engine.decide(graded[context - length :])[-1]
    model = build_float(folded, dtype=np.float64, encoder=False, spikes=True)
    check(model)
    outputs = run(open_session(model), {"graded": graded, "exists": exists})
    assert np.allclose(outputs["actions"], expected, rtol=0, atol=1e-9)
    assert {name for name in outputs if name != "actions"} == {f"spikes.{name}" for name in fired}
    for name, spikes in fired.items():
        assert np.array_equal(outputs[f"spikes.{name}"][:, context - length :], spikes), name


@pytest.mark.parametrize("attention", get_args(AttentionKind))
def test_the_float32_graph_reads_raw_tokens(attention: AttentionKind) -> None:
    """Rounding may flip a spike next to its threshold: lanes whose spikes agree are compared, and nearly all are."""
    folded = fold(random_model(1, attention=attention, heads=2, input_bits=6))
    generator, fired, lanes = np.random.default_rng(0), {}, 20
    tokens = folded.codec.offset + 60 * folded.codec.step * generator.uniform(-1, 1, (folded.context, lanes, 6))
    engine = FoldedEngine(folded, lambda name, _, spikes: fired.update({name: spikes}))
    expected = engine.decide(folded.codec.encode(tokens))[-1]
    model = build_float(folded, spikes=True)
    check(model)
    outputs = run(open_session(model), {"tokens": tokens, "exists": np.ones((folded.context, lanes), np.uint8)})
    assert outputs["actions"].dtype == np.float32
    same = np.ones(lanes, bool)
    for name, spikes in fired.items():
        same &= (outputs[f"spikes.{name}"] == spikes).all(axis=(0, 1, 3))
    assert same.sum() >= lanes - 2
    assert np.allclose(outputs["actions"][same], expected[same], rtol=0, atol=1e-4)


def test_the_float_file_runs(tmp_path: Path) -> None:
    folded, path = fold(random_model(6, discrete=True)), tmp_path / "float.onnx"
    network = quantize(folded, "hopper", provenance={"dataset": {"id": "d"}}).with_verification({"rungs": []})
    write_onnx_float(folded, network, path)
    assert list(tmp_path.iterdir()) == [path]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["task"], metadata["mode"]) == ("hopper", "float window")
    assert json.loads(metadata["dataset"]) == {"id": "d"} and json.loads(metadata["verification"]) == {"rungs": []}
    tokens = np.random.default_rng(2).normal(folded.codec.offset, 1.0, (folded.context, 4, 6))
    outputs = run(session, {"tokens": tokens, "exists": np.ones((folded.context, 4), np.uint8)})
    expected = FoldedEngine(folded).decide(folded.codec.encode(tokens))[-1]
    assert np.allclose(outputs["actions"], expected, rtol=0, atol=1e-4)

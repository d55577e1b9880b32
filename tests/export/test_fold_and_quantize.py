"""L0 -> L1 is exact, L1 -> L2 follows the scale rules, and nothing can overflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import exportable, random_model, random_network, random_tokens

from dsf.export.bounds import Interval, prove, require_no_overflow
from dsf.export.fold import fold
from dsf.export.levels import FoldComparison, run_folded, run_reference, run_torch
from dsf.export.network import Network
from dsf.export.nodes import LIF, NetworkError, Residual, Synapses
from dsf.export.quantize import quantize
from dsf.export.reference import ReferenceEngine, decode
from dsf.export.verify import Recorder, spread_windows
from dsf.tasks import Token, UserError
from dsf.train.config import ModelConfig, export_obstacles
from dsf.train.model import DSFormer
from dsf.train.policy import TorchPolicy
from dsf.train.quantization import Scales, bias_parts, count_integers, largest_threshold_for_bias


@settings(max_examples=100, deadline=None)
@given(sizes=exportable(largest_width=16, largest_blocks=3))
def test_fold_is_exact(sizes: dict[str, Any]) -> None:
    model = random_model(**sizes)
    limit, context = model.codec.limit, sizes["context"]
    tokens = np.random.default_rng(sizes["seed"]).integers(-limit, limit + 1, (5, context, 6)).astype(np.int32)
    rung = FoldComparison().add(*run_torch(model, tokens), *run_folded(fold(model), tokens)).rung()
    assert rung.passed, rung.summary
    populations = 3 if sizes["attention"] == "none" else 8
    per_slot = sizes["ticks"] * sizes["blocks"] * sizes["width"] * populations
    assert rung.details["compared_spikes"] == 5 * context * per_slot


def test_random_networks_are_alive() -> None:
    """The property tests would prove little on silent networks."""
    model = random_model(0)
    tokens = random_tokens(random_network(0), 8, 20, seed=1).swapaxes(0, 1).astype(np.int32)
    _, spikes = run_torch(model, tokens)
    rates = {name: float(values.mean()) for name, values in spikes.items()}
    assert all(0.02 < rate < 0.98 for rate in rates.values()), rates


@settings(max_examples=100, deadline=None)
@given(sizes=exportable(), bits=st.integers(2, 8))
def test_no_run_leaves_the_proven_bounds(sizes: dict[str, Any], bits: int) -> None:
    network = random_network(bits=bits, **sizes)
    require_no_overflow(network)
    limits = {bound.node: bound.largest for bound in prove(network) if bound.quantity in ("shifted sum", "residual")}
    currents = {bound.node: bound.largest for bound in prove(network) if bound.quantity == "current"}
    limits |= {node.source: currents[node.name] for node in network.of_kind(LIF)}
    largest = dict.fromkeys(limits, 0)

    def observe(name: str, values: np.ndarray) -> None:
        if name in largest:
            largest[name] = max(largest[name], int(np.abs(values).max()))

    engine = ReferenceEngine(network, lanes=4)
    for token in random_tokens(network, 6, 4, sizes["seed"]):
        engine.step_graded(token, observe)
    assert all(largest[name] <= limits[name] for name in limits)


def test_integers_follow_the_float_network_ever_closer_with_more_bits() -> None:
    folded = fold(random_model(5, width=32))
    tokens = random_tokens(random_network(5, width=32), 8, 32, seed=2).swapaxes(0, 1).astype(np.int32)
    _, truth, _ = run_folded(folded, tokens)
    agreement = []
    for bits in (2, 4, 8):
        _, spikes = run_reference(quantize(folded, "hopper", bits), tokens)
        agreement.append(np.mean([np.mean(spikes[name] == truth[name]) for name in truth]))
    assert agreement[0] < agreement[1] < agreement[2] and agreement[2] > 0.97


def test_scale_rules() -> None:
    """Own scales in front of a LIF use the whole range; residual writers share one unit times a power of two."""
    model = random_model(2, width=16)
    folded, network = fold(model), random_network(2, width=16)
    qkv, lif = network["blocks.0.attention.qkv"], network["blocks.0.attention.qkv_lif"]
    assert isinstance(qkv, Synapses) and isinstance(lif, LIF)
    scale = (model.config.threshold / lif.threshold * 2.0**qkv.exponent)[:, None]
    assert (np.abs(qkv.weights * scale - folded.blocks[0].attention.qkv.weight) <= scale / 2 + 1e-9).all()
    scales = Scales(8, model.config.threshold, 1, lif.decay)
    capped = lif.threshold == largest_threshold_for_bias(folded.blocks[0].attention.qkv.bias, scales)
    assert np.abs(qkv.weights)[~capped].max(axis=1).min() > 120 and capped.mean() < 0.2
    entry = network["blocks.0.attention.input_lif"]
    assert isinstance(entry, LIF)
    unit = model.config.threshold / int(entry.threshold[0])
    for name, affine in (("embed", folded.embed), ("blocks.1.mlp.contract", folded.blocks[1].contract)):
        synapses = network[name]
        assert isinstance(synapses, Synapses)
        step = unit * 2.0**synapses.exponent * (2.0**network.encoder.shift if name == "embed" else 1.0)
        assert (np.abs(synapses.weights * step - affine.weight) <= step / 2 + 1e-12).all()


def test_bias_parts_keep_thirteen_bits() -> None:
    bias = np.array([0.0, -700.3, 12.25])
    mantissa, exponent = bias_parts(bias, "x")
    assert np.abs(mantissa).max() <= 4095
    assert np.abs(mantissa * 2.0**exponent / 64 - bias).max() <= 2.0**exponent / 128
    with pytest.raises(UserError, match="folded bias"):
        bias_parts(np.array([1e6]), "x")


def test_overflow_is_found_and_named() -> None:
    network = random_network(0)
    nodes = [
        Residual(node.name, node.sources, np.full(node.size, 2**20, np.int32)) if node.name == "residual.1" else node
        for node in network.nodes
    ]
    broken = Network(network.task, network.ticks, network.context, tuple(nodes))
    with pytest.raises(NetworkError, match=r"node 'blocks.1.attention.input_lif' could overflow: its current"):
        require_no_overflow(broken)


def test_partial_sums_that_cancel_are_still_bounded() -> None:
    """Two equal terms of opposite sign end at zero, but the accumulator passes through the first one."""
    values = Interval(np.array([30_000, 30_000]), np.array([30_000, 30_000]))
    assert values.times(np.array([[127, -127]])).largest == 127 * 30_000


def test_recorder_keeps_what_running_lanes_saw() -> None:
    """A lane whose episode has ended goes on seeing tokens; they are no part of it."""
    recorder = Recorder(TorchPolicy(random_model(0), lanes=2))
    observations = np.random.default_rng(0).normal(size=(9, 2, 2))
    for observation in observations:
        recorder.act(Token(observation, np.zeros((2, 3)), np.zeros(2)))
    recorder.cut([3, 9])
    assert [len(tokens) for tokens in recorder.episodes] == [3, 9]
    expected = recorder.codec.encode(np.pad(observations[:, 1], ((0, 0), (0, 4))))
    assert np.array_equal(recorder.episodes[1], expected)


def test_windows_are_spread_evenly_and_cross_no_episode() -> None:
    episodes = [np.full((3, 1), 50) + np.arange(3)[:, None], 100 + np.arange(9)[:, None], np.arange(5)[:, None]]
    windows = spread_windows(episodes, length=4, count=8)
    assert windows.shape == (8, 4, 1) and (np.diff(windows[:, :, 0], axis=1) == 1).all()
    assert windows[:, 0, 0].tolist() == [100, 101, 102, 103, 104, 105, 0, 1]
    assert spread_windows(episodes[:1], length=4, count=2).shape == (2, 3, 1)


@pytest.mark.parametrize(("name", "value", "words"), [("bits", 9, "--bits"), ("bits", 1, "--bits")])
def test_bits_out_of_range(name: str, value: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        quantize(fold(random_model(0)), "hopper", **{name: value})


def test_decay_that_loihi_cannot_say() -> None:
    with pytest.raises(UserError, match=r"decay 0\.3"):
        quantize(fold(random_model(0, decay=0.3)), "hopper")


def test_layernorm_is_refused_with_field_and_way_out(model: torch.nn.Module) -> None:
    model.embed_norm = torch.nn.LayerNorm(12)
    with pytest.raises(UserError, match=r"embed_norm is a LayerNorm.*--model.embed-norm ptbn"):
        fold(model)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"norm": "tdln"},
            r"model\.norm is tdln: blocks\.0\.attention\.qkv_norm.*cannot become spikes.*--model\.norm ptbn",
        ),
        (
            {"embed_norm": "layernorm"},
            r"embed_norm is a LayerNorm.* cannot become spikes; use --model\.embed-norm ptbn",
        ),
    ],
)
def test_what_cannot_be_exported_is_named_before_and_after_training(fields: dict[str, Any], words: str) -> None:
    model = random_model(0, **fields)
    (obstacle,) = export_obstacles(model.config)
    with pytest.raises(UserError, match=words) as refusal:
        fold(model)
    assert str(refusal.value) == f"cannot export: {obstacle}"


def test_several_obstacles_are_refused_in_one_line(model: DSFormer) -> None:
    assert export_obstacles(model.config) == []
    config = ModelConfig(norm="tdln", embed_norm="layernorm", attention="none")
    broken = DSFormer(config, model.codec, 2)
    with pytest.raises(UserError, match=r"model\.norm is tdln: blocks\.0\.mlp\.expand_norm.*; model\.embed_norm"):
        fold(broken)


@pytest.mark.parametrize("scale", [1.0, 1 / 64, 1 / 8, 0.3, 2.5])
def test_the_scale_of_a_count_becomes_a_ratio_of_integers(scale: float) -> None:
    found = count_integers(scale, largest=1000, scales=Scales(8, 0.5, 64, 3072))
    assert found.gain / found.threshold_units == pytest.approx(scale / 0.5, rel=1e-9)
    assert count_integers(0.123456, 10, Scales(8, 0.5, 64, 3072)).gain > 1


def test_integer_choices_are_the_largest_accumulators() -> None:
    network = random_network(1, discrete=True)
    assert network.readout.head == "choice" and len(set(network.readout.scale)) == 1
    accumulators = np.random.default_rng(0).integers(-9, 10, (50, 3))
    assert np.array_equal(decode(network.readout, accumulators).argmax(axis=1), accumulators.argmax(axis=1))

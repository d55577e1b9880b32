"""L0 -> L1 is exact, L1 -> L2 follows the scale rules, and nothing can overflow."""

from __future__ import annotations

import dataclasses
import warnings
from threading import Event
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.conversion.fold import fold
from dsf.export.conversion.quantize import quantize
from dsf.export.network.bounds import Interval, compute_bounds, require_no_overflow
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Count, NetworkError, Outer, Readout, Residual, Synapses
from dsf.export.network.reference import ReferenceEngine, decode, replay_window
from dsf.export.proof.levels import FoldComparison, IntegerComparison, in_float64, run_folded, run_reference, run_torch
from dsf.export.proof.rungs import ProofStopped, compare_stream, prove_network, random_proof_tokens
from dsf.export.proof.verify import PROOF_SEQUENCES, Recorder, prove_run, spread_windows
from dsf.shell.errors import UserError
from dsf.tasks import Token
from dsf.testing.fold import compare_fold
from dsf.testing.narrowed import node_of, present
from dsf.testing.random_networks import exportable, random_coded, random_model, random_network, random_tokens
from dsf.train.config.training import AttentionKind, ModelConfig, export_obstacles
from dsf.train.evaluation.torch_policy import TorchPolicy
from dsf.train.models.dsformer import DSFormer
from dsf.train.quantization.integers import MEMBRANE_LIMIT, Affine
from dsf.train.quantization.layers import LARGEST_RATIO_ERROR, bias_parts, count_integers
from dsf.train.quantization.scales import Scales, largest_threshold_for_bias


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(sizes=exportable(largest_width=16, largest_blocks=3))
def test_fold_is_exact(sizes: dict[str, Any]) -> None:
    model, context = random_model(**sizes), sizes["context"]
    tokens = random_coded(fold(model), 5, sizes["seed"]).swapaxes(0, 1)
    rung = compare_fold(run_torch(in_float64(model), tokens), run_folded(fold(model), tokens))
    assert rung.passed, rung.summary
    populations = 3 if sizes["attention"] == "none" else 8
    per_slot = sizes["ticks"] * sizes["blocks"] * sizes["width"] * populations
    assert rung.details["compared_spikes"] == 5 * context * per_slot


def test_random_networks_are_alive() -> None:
    """The property tests would prove little on silent networks."""
    model = random_model(0)
    tokens = random_tokens(random_network(0), 8, 20, seed=1).swapaxes(0, 1).astype(np.int32)
    _, spikes = run_torch(in_float64(model), tokens)
    rates = {name: float(values.mean()) for name, values in spikes.items()}
    assert all(0.02 < rate < 0.98 for rate in rates.values()), rates


def with_extremes(network: Network, seed: int) -> Network:
    """The network with the largest biases a file may hold, of either sign, and any readout shift; it may overflow."""
    generator, nodes = np.random.default_rng(seed), []
    for node in network.nodes:
        signs = generator.choice([-1, 1], node.size)
        if isinstance(node, Residual) and generator.random() < 0.5:
            bias = signs * generator.integers(2**22 - 9000, 2**22 + 9000)
            node = dataclasses.replace(node, bias=bias.astype(np.int32))
        elif isinstance(node, LIF):
            mantissa = (4095 * signs).astype(np.int16)
            node = dataclasses.replace(node, bias_mantissa=mantissa, bias_exponent=int(generator.integers(0, 8)))
        elif isinstance(node, Readout):
            node = dataclasses.replace(node, shift=int(generator.integers(0, 16)))
        nodes.append(node)
    return dataclasses.replace(network, nodes=tuple(nodes))


class Largest:
    """The largest magnitude of every quantity that the proof bounds, from a run's values and the nodes' equations."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.seen: dict[tuple[str, str], int] = {}
        self.values: dict[str, np.ndarray] = {}

    def observe(self, name: str, values: np.ndarray) -> None:
        """As an engine's observer."""
        node, self.values[name] = self.network[name], values
        if isinstance(node, Synapses):
            self.note(name, "synaptic sum", self.values[node.source] @ node.weights.T.astype(np.int64))
            self.note(name, "shifted sum", values)
        elif isinstance(node, Residual):
            self.note(name, "residual", values)
        elif isinstance(node, LIF):
            self.note(name, "current", self.values[node.source])
            membrane = np.zeros_like(values[0])
            for current, fired in zip(self.values[node.source], values):
                membrane = np.trunc(membrane * (4096 - node.decay) / 4096).astype(np.int64) + 64 * current + node.bias
                self.note(name, "membrane", membrane)
                membrane = np.where(fired == 1, 0, np.clip(membrane, -MEMBRANE_LIMIT, MEMBRANE_LIMIT))
        elif isinstance(node, Readout):
            summed = self.values[node.source].sum(axis=0)
            for held in (summed, summed + (1 << node.shift >> 1)):
                self.note(name, "residual summed over ticks", held)
            self.note(name, "action accumulator", values)

    def note(self, name: str, quantity: str, values: np.ndarray) -> None:
        """One more observation."""
        self.seen[name, quantity] = max(self.seen.get((name, quantity), 0), int(np.abs(values).max()))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(sizes=exportable(), bits=st.integers(2, 8), extreme=st.booleans())
def test_no_run_leaves_the_proven_bounds(sizes: dict[str, Any], bits: int, extreme: bool) -> None:
    """Sums, currents, residuals, membranes and both sums of the readout; the proof bounds nothing else."""
    network = random_network(bits=bits, **sizes)
    require_no_overflow(network)
    if extreme:
        network = with_extremes(network, sizes["seed"])
    proven = {(bound.node, bound.quantity): bound.largest for bound in compute_bounds(network)}
    largest, engine = Largest(network), ReferenceEngine(network, lanes=4)
    for token in random_tokens(network, 6, 4, sizes["seed"]):
        engine.step_graded(token, largest.observe)
    assert largest.seen.keys() == proven.keys()
    assert [key for key, value in largest.seen.items() if value > proven[key]] == []


def test_a_negative_sum_is_not_saved_by_the_half_that_is_added_for_rounding() -> None:
    """2 * (-2**22 - 8000) is beyond 24 bits, though not after half of 2**15 is added."""
    network = random_network(0, ticks=2, blocks=1, attention="none")
    last, head = network["residual.1"], network.readout
    assert isinstance(last, Residual)
    bias = np.full(last.size, -(2**22) - 8000, np.int32)
    silent = node_of(network, "blocks.0.mlp.contract", Synapses)
    silent = dataclasses.replace(silent, weights=np.zeros((12, 24), np.int8))
    changed: dict[str, Any] = {
        last.name: dataclasses.replace(last, sources=(silent.name,), bias=bias),
        silent.name: silent,
        head.name: dataclasses.replace(head, shift=15),
    }
    network = dataclasses.replace(network, nodes=tuple(changed.get(node.name, node) for node in network.nodes))
    (bound,) = [bound for bound in compute_bounds(network) if bound.quantity == "residual summed over ticks"]
    assert bound.largest == 2 * (2**22 + 8000) and not bound.holds
    with pytest.raises(
        NetworkError, match="'readout' could overflow: its residual summed over ticks can reach 8404608"
    ):
        require_no_overflow(network)


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
    affine = present(folded.blocks[0].attention).qkv
    assert (np.abs(qkv.weights * scale - affine.weight) <= scale / 2 + 1e-9).all()
    scales = Scales(8, model.config.threshold, 1, int(lif.decays[0]))
    capped = lif.threshold == largest_threshold_for_bias(affine.bias, scales)
    assert np.abs(qkv.weights)[~capped].max(axis=1).min() > 120 and capped.mean() < 0.2
    entry = network["blocks.0.attention.input_lif"]
    assert isinstance(entry, LIF)
    unit = model.config.threshold / int(entry.threshold[0])
    assert isinstance(folded.embed, Affine)
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


def test_the_way_out_of_an_overflow_depends_on_the_node() -> None:
    """A coarser residual unit makes residuals smaller, and nothing that counts spikes."""

    def refusal(network: Network, name: str, **fields: Any) -> str:
        nodes = [dataclasses.replace(n, **fields) if n.name == name else n for n in network.nodes]
        with pytest.raises(NetworkError) as found:
            require_no_overflow(dataclasses.replace(network, nodes=tuple(nodes)))
        return str(found.value)

    outer, count = random_network(0, attention="tssa"), random_network(0, attention="sdsa1")
    assert any(outer.of_kind(Outer)) and any(count.of_kind(Count))
    text = refusal(outer, "blocks.0.attention.outer", gain=127, reach=9999)
    assert text.endswith("retrain with more --model.heads or a shorter --model.context")
    text = refusal(count, "blocks.0.attention.count", gain=127, reach=9999)
    assert text.endswith("its current can reach 1269873, the limit is 131072; retrain with a shorter --model.context")
    text = refusal(count, "residual.1", bias=np.full(12, 2**22, np.int32))
    assert "use a coarser residual unit, or use fewer --bits" in text
    text = refusal(count, "blocks.0.mlp.expand", exponent=15)
    assert "coarser" not in text and "use fewer --bits" in text


def test_partial_sums_that_cancel_are_still_bounded() -> None:
    """Two equal terms of opposite sign end at zero, but the accumulator passes through the first one."""
    values = Interval(np.array([30_000, 30_000]), np.array([30_000, 30_000]))
    assert values.times(np.array([[127, -127]])).largest == 127 * 30_000


def test_actions_that_are_not_numbers_are_no_proof() -> None:
    """NaN is larger than nothing, so the largest error must not forget it."""
    model = random_model(0)
    tokens = random_tokens(quantize(fold(model), "hopper"), 8, 4, 0).swapaxes(0, 1).astype(np.int32)
    truth, folded = run_torch(in_float64(model), tokens), run_folded(fold(model), tokens)
    assert compare_fold(truth, folded).passed is True
    actions = truth[0].copy()
    actions[2, 1, 0] = np.nan
    for l0, l1 in ((actions, folded[0]), (truth[0], actions)):
        broken = FoldComparison()
        for actions_l0, actions_l1 in ((truth[0], folded[0]), (l0, l1), (truth[0], folded[0])):
            broken.add(actions_l0, truth[1], actions_l1, folded[1], folded[2])
        assert broken.rung().passed is False and "nan" in broken.rung().summary
    assert FoldComparison().rung().passed is False  # nothing was compared


def test_the_lossy_rung_claims_nothing() -> None:
    folded, network = fold(random_model(0)), random_network(0)
    tokens = random_tokens(network, 8, 4, 0).swapaxes(0, 1).astype(np.int32)
    rung = IntegerComparison().add(*run_folded(folded, tokens)[:2], *run_reference(network, tokens)).rung()
    assert rung.passed is None and rung.details["spike_agreement_overall"] > 0.9


@pytest.mark.parametrize(("context", "passed"), [(7, True), (4, None)])
def test_stream_and_window_are_told_apart_by_tokens_that_windows_lose(context: int, passed: bool | None) -> None:
    """A field of 7 tokens: one that is shorter than the context proves nothing, one that is longer is not claimed."""
    network = random_network(4, width=16, blocks=2, window=4, context=context)
    short, long = (compare_stream(network, random_tokens(network, n, 4, 0)) for n in (context, 2 * context))
    assert short.passed is None and "too short" in short.summary
    assert long.passed is passed and "too short" not in long.summary
    assert (long.details["different"] > 0) == (passed is None)
    assert len(random_proof_tokens(network, 1, 0)) == 2 * context


def test_a_proof_that_is_told_to_stop_says_so() -> None:
    network, stop = random_network(0), Event()
    stop.set()
    with pytest.raises(ProofStopped):
        prove_network(network, random_tokens(network, 8, 4, 0), stop)


def test_engines_are_compared_on_two_contexts_where_episodes_are_long_enough() -> None:
    model, network = random_model(0), random_network(0)
    episodes = [tokens.astype(np.int32) for tokens in random_tokens(network, 3 * 8 + 1, 3, 0).swapaxes(0, 1)]
    rungs, tokens = prove_run(model, fold(model), network, None, episodes)
    found = {rung.name: rung.details.get("decisions") for rung in rungs}
    assert found["L2 stream = window"] == PROOF_SEQUENCES * 2 * network.context and tokens.shape[1:] == (8, 6)
    rungs, _ = prove_run(model, fold(model), network, None, [tokens[:5] for tokens in episodes])
    assert {rung.name: rung.passed for rung in rungs}["L2 stream = window"] is None


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("bias", [0.0, 0.5, -3.0])
def test_a_head_row_of_zeros_is_a_constant_output(discrete: bool, bias: float) -> None:
    """And so is a head of nothing but zeros."""
    folded = fold(random_model(0, discrete=discrete))
    for rows in ([1], [0, 1, 2]):
        weight, offsets = folded.head.weight.copy(), folded.head.bias.copy()
        weight[rows], offsets[rows] = 0.0, bias
        network = quantize(dataclasses.replace(folded, head=Affine(weight, offsets)), "hopper")
        head = network.readout
        assert not head.weights[rows].any() and (head.weights.any() or len(rows) == 3)
        assert np.allclose((head.scale * head.bias)[rows], bias, atol=2e-3)
        answers = replay_window(network, random_tokens(network, 4, 2, 0))
        wanted = bias if discrete else np.tanh(bias)
        assert np.allclose(decode(head, answers)[..., rows], wanted, atol=2e-3)


@pytest.mark.parametrize(
    ("layer", "field", "value", "words"),
    [
        ("blocks.1.mlp.expand_norm.batch", "running_var", -1.0, r"blocks\.1\.mlp\.expand, its norm folded in, is"),
        ("blocks.0.attention.project_norm.batch", "weight", np.inf, r"blocks\.0\.attention\.project,"),
        ("final_norm.batch", "running_var", -1.0, "head,"),
        ("blocks.0.attention", "positional_bias", float("nan"), r"blocks\.0\.attention\.positional_bias,"),
    ],
)
def test_maps_that_are_not_finite_are_refused_by_name(layer: str, field: str, value: float, words: str) -> None:
    model = random_model(0)
    getattr(model.get_submodule(layer), field).data.fill_(value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=rf"cannot export: {words}.*not finite"):
            fold(model)


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
    settings: dict[str, Any] = {name: value}
    with pytest.raises(UserError, match=words):
        quantize(fold(random_model(0)), "hopper", **settings)


def test_decay_that_loihi_cannot_say() -> None:
    with pytest.raises(UserError, match=r"decay 0\.3"):
        quantize(fold(random_model(0, decay=0.3)), "hopper")


def test_layernorm_is_refused_with_field_and_way_out(model: DSFormer) -> None:
    model.final_norm = torch.nn.LayerNorm(12)
    with pytest.raises(UserError, match=r"final_norm is a LayerNorm.*--model.norm ptbn"):
        fold(model)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"norm": "tdln"},
            r"model\.norm is tdln: blocks\.0\.attention\.qkv_norm.*cannot become spikes.*--model\.norm ptbn",
        ),
        (
            {"input_bits": 0},
            r"model\.input_bits is 0: .* use --model\.input-bits 8, or --model\.embed-norm layernorm",
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
    config = ModelConfig(norm="tdln", input_bits=0, attention="none")
    broken = DSFormer(config, model.codec, 2)
    with pytest.raises(UserError, match=r"model\.norm is tdln: blocks\.0\.mlp\.expand_norm.*; model\.input_bits"):
        fold(broken)


@pytest.mark.parametrize("scale", [1.0, 1 / 64, 1 / 8, 0.3, 2.5])
def test_the_scale_of_a_count_becomes_a_ratio_of_integers(scale: float) -> None:
    found = count_integers(scale, 1000, Scales(8, 0.5, 64, 3072), "x")
    assert found.gain / found.threshold_units == pytest.approx(scale / 0.5, rel=1e-9)
    assert count_integers(0.123456, 10, Scales(8, 0.5, 64, 3072), "x").gain > 1


@settings(max_examples=200, deadline=None)
@given(scale=st.floats(1e-7, 10.0), largest=st.integers(1, 200_000))
def test_the_scale_of_a_count_is_right_or_refused(scale: float, largest: int) -> None:
    try:
        found = count_integers(scale, largest, Scales(8, 0.5, 64, 3072), "x")
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert found.gain / found.threshold_units == pytest.approx(scale / 0.5, rel=LARGEST_RATIO_ERROR * 1.002)


@pytest.mark.parametrize(("scale", "largest"), [(1.0, 81_920), (2.5, 60_000), (0.3, 81_920), (1e-6, 1000)])
def test_a_scale_of_a_count_that_integers_cannot_say_is_refused(scale: float, largest: int) -> None:
    words = "blocks.2.attention multiplies counts .*--model.heads, a shorter --model.context, .*--model.attention-scale"
    with pytest.raises(UserError, match=words):
        count_integers(scale, largest, Scales(8, 0.5, 64, 3072), "blocks.2.attention")


def test_unscaled_scores_of_a_wide_model_are_refused_and_the_scaled_ones_are_not() -> None:
    wide: dict[str, Any] = {"width": 1024, "blocks": 1, "context": 20, "attention": "tssa", "mlp_ratio": 1}
    folded = fold(random_model(0, **wide))
    attention = folded.blocks[0].attention
    assert attention is not None and attention.scale == 1 / 512
    unscaled = dataclasses.replace(folded.blocks[0], attention=dataclasses.replace(attention, scale=1.0))
    with pytest.raises(UserError, match=r"blocks\.0\.attention multiplies counts of up to 81920 by 1"):
        quantize(dataclasses.replace(folded, blocks=(unscaled,)), "hopper")


@pytest.mark.parametrize("attention", get_args(AttentionKind))
@pytest.mark.parametrize("width", [64, 128, 256, 512, 1024])
def test_the_shipped_scales_are_exact(attention: AttentionKind, width: int) -> None:
    config = ModelConfig(attention=attention, width=width)
    features = {"sdsa1": 1, "tssa": width * config.ticks}.get(attention, width)
    scales = Scales(8, config.threshold, 64, 3072)
    found = count_integers(config.scale_of_attention, config.context * features, scales, "x")
    assert found.gain / found.threshold_units == config.scale_of_attention / config.threshold


def test_integer_choices_are_the_largest_accumulators() -> None:
    network = random_network(1, discrete=True)
    assert network.readout.head == "choice" and len(set(network.readout.scale)) == 1
    accumulators = np.random.default_rng(0).integers(-9, 10, (50, 3))
    assert np.array_equal(decode(network.readout, accumulators).argmax(axis=1), accumulators.argmax(axis=1))

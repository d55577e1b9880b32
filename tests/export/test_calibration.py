"""Statistics of a network on tokens, what quantization makes of them, and the report on layers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from dsf.export.conversion.calibrate import calibrate, run_layers
from dsf.export.conversion.fold import fold
from dsf.export.conversion.folded import FoldedModel
from dsf.export.conversion.layer_report import LayerFigures, layer_report, print_layers
from dsf.export.conversion.quantize import quantize
from dsf.export.network.bounds import require_no_overflow
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Count, NetworkError, Outer, PlacedWindow, Residual, Synapses, Window
from dsf.export.network.reference import decode, replay_window
from dsf.export.proof.levels import run_folded, run_reference
from dsf.shell.errors import UserError
from dsf.testing.narrowed import node_of, present
from dsf.testing.quantization_settings import CONFIGS
from dsf.testing.random_networks import exportable, random_model
from dsf.train.models.dsformer import DSFormer
from dsf.train.quantization.integers import EmbedIntegers, HeadIntegers, LifIntegers, ResidualIntegers
from dsf.train.quantization.layers import (
    embed_integers,
    head_integers,
    lif_integers,
    residual_integers,
)
from dsf.train.quantization.rounding import QuantizationConfig
from dsf.train.quantization.scales import Scales, decay_units


def draw_tokens(model: DSFormer, lanes: int, seed: int, count: int | None = None) -> np.ndarray:
    """(tokens, lanes, features) of what the codec makes of tokens, K of them by default."""
    tokens = model.config.context if count is None else count
    shape = (tokens, lanes, len(model.codec.unit))
    if not model.codec.bits:
        return np.random.default_rng(seed).normal(size=shape)
    limit = model.codec.limit
    return np.random.default_rng(seed).integers(-limit, limit + 1, shape).astype(np.int32)


@pytest.mark.parametrize("attention", ["pssa", "tssa", "sssa", "sdsa1", "sdsa3", "none"])
def test_statistics_are_those_of_what_the_trained_layers_read(attention: Any) -> None:
    """Against hooks on the float model, before the fold."""
    model = random_model(4, attention=attention, heads=2, width=8)
    tokens = draw_tokens(model, 5, seed=1)
    read: dict[str, torch.Tensor] = {}
    double = random_model(4, attention=attention, heads=2, width=8).double()
    for name, module in double.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _m, inputs, name=name: read.__setitem__(name, inputs[0]))
    with torch.no_grad():
        lanes_first = torch.from_numpy(tokens.swapaxes(0, 1).astype(np.float64))
        double(lanes_first, torch.ones(lanes_first.shape[:2], dtype=torch.bool))
    calibration = calibrate(fold(model), tokens)
    compared = 0
    for name, inputs in read.items():
        if name in calibration.inputs and name != "embed":
            found, rows = calibration.inputs[name], inputs.reshape(-1, inputs.shape[-1]).numpy()
            assert np.allclose(found.mean, rows.mean(axis=0), atol=1e-9), name
            assert np.allclose(found.variance, found.mean * (1 - found.mean), atol=1e-9), name  # spikes
            compared += 1
    assert compared == (4 if attention == "none" else 8) and calibration.tokens == 5 * len(tokens)
    embed = calibration.inputs["embed"]
    assert np.allclose(embed.mean, tokens.mean(axis=(0, 1))) and np.allclose(embed.variance, tokens.var(axis=(0, 1)))


def test_the_last_residual_is_what_decides() -> None:
    model = random_model(2)
    folded, tokens = fold(model), draw_tokens(model, 6, seed=3)
    activity = run_layers(folded, tokens)
    actions = np.tanh(folded.head(activity.inputs["readout"]))[0]
    assert np.allclose(actions.swapaxes(0, 1), run_folded(folded, tokens.swapaxes(0, 1))[0].swapaxes(0, 1), atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((9, 1, 6), "9 per lane, the network's context is 8"), ((3, 2, 5), "give some as"), ((0, 2, 6), "give some as")],
)
def test_tokens_that_do_not_fit(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        calibrate(fold(random_model(0)), np.zeros(shape, np.int32))


@settings(max_examples=40, deadline=None)
@given(sizes=exportable(), config=CONFIGS)
def test_bias_correction_removes_the_mean_error(sizes: dict[str, Any], config: QuantizationConfig) -> None:
    """What is left of the mean is the rounding of the bias, on the data that were calibrated on."""
    model = random_model(**sizes)
    folded, tokens = fold(model), draw_tokens(model, 4, seed=sizes["seed"])
    activity, inputs = run_layers(folded, tokens), calibrate(folded, tokens).inputs
    rules = dataclasses.replace(config, bias_correction=True)
    scales = Scales(rules.bits, folded.threshold, 1024, decay_units(folded.decay), False, rules, inputs)
    for name, affine in activity.layers.items():
        integers: EmbedIntegers | HeadIntegers | ResidualIntegers | LifIntegers
        step: Any = scales.unit
        try:
            if name == "embed":
                integers = embed_integers(affine, folded.codec.bits, scales)
            elif name == "readout":
                integers, step = head_integers(affine, scales, folded.discrete), 0.0
            elif name.endswith(("project", "contract")):
                integers = residual_integers(affine, scales, name)
            else:
                integers = lif_integers(affine, scales, name)
                step = folded.threshold / integers.thresholds * 2.0**integers.bias_exponent / 64
        except UserError as error:  # a bias that no exponent holds
            assert "\n" not in str(error)
            continue
        seen = activity.inputs[name]
        mean_error = (integers.dequantized()(seen) - affine(seen)).mean(axis=(0, 1, 2))
        size = np.abs(affine(seen)).max() + np.abs(integers.dequantized().bias).max()
        assert (np.abs(mean_error) <= step / 2 * (1 + 1e-9) + size * 1e-9).all(), name


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(sizes=exportable(), config=CONFIGS, whole=st.booleans())
def test_any_settings_give_a_proven_network_or_one_line(
    sizes: dict[str, Any], config: QuantizationConfig, whole: bool
) -> None:
    model = random_model(**sizes)
    folded = fold(model)
    calibration = calibrate(folded, draw_tokens(model, 3, sizes["seed"]))
    try:
        network = quantize(folded, "hopper", config=config, calibration=calibration, whole_biases=whole)
    except UserError as error:
        assert "\n" not in str(error)
        return
    require_no_overflow(network)
    limit = 2 ** (config.bits - 1) - 1
    weights = [*(node.weights for node in network.of_kind(Synapses)), network.readout.weights]
    assert all(np.abs(values).max() <= limit for values in weights)
    for lif in network.of_kind(LIF):
        reads_residual = isinstance(network[lif.source], Residual)
        if not config.per_channel and not (reads_residual and config.residual_scales == "channel"):
            assert len(set(lif.threshold.tolist())) == 1
    assert_same_network(network, quantize(folded, "hopper", config=config, calibration=calibration, whole_biases=whole))
    if config == QuantizationConfig(config.bits):
        assert_same_network(network, quantize(folded, "hopper", config.bits, whole_biases=whole))


def assert_same_network(left: Network, right: Network) -> None:
    for one, other in zip(left.nodes, right.nodes, strict=True):
        for field in dataclasses.fields(one):
            assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), (one.name, field.name)


def test_what_is_missing_or_contradicts_itself() -> None:
    folded = fold(random_model(0))
    with pytest.raises(UserError, match="bias correction needs a calibration"):
        quantize(folded, "hopper", config=QuantizationConfig(bias_correction=True))
    with pytest.raises(UserError, match="are exported as they were trained"):
        quantize(folded, "hopper", threshold_units=256, config=QuantizationConfig(clipping="mse"))
    with pytest.raises(ValueError, match=r"bits is 8, config\.bits is 4"):
        quantize(folded, "hopper", 8, config=QuantizationConfig(4))
    other = fold(random_model(0, attention="tssa", blocks=3))
    with pytest.raises(NetworkError, match=r"layer 'blocks\.2\.attention\.project' differs between network and model"):
        layer_report(folded, quantize(other, "hopper"), np.zeros((2, 2, 6), np.int32))


@pytest.mark.slow
def test_calibrated_clipping_and_correction_pay_at_few_bits() -> None:
    """Measured on tokens that calibration has not seen, over several networks."""
    agreement: dict[tuple[str, bool], list[float]] = {}
    for seed in range(3):
        model = random_model(seed, width=24)
        folded, tokens = fold(model), draw_tokens(model, 24, seed=2).swapaxes(0, 1)
        calibration = calibrate(folded, draw_tokens(model, 32, seed=1))
        _, truth, _ = run_folded(folded, tokens)
        tried: tuple[tuple[Literal["max", "mse"], bool], ...] = (("max", False), ("max", True), ("mse", True))
        for clipping, correction in tried:
            config = QuantizationConfig(3, clipping=clipping, bias_correction=correction)
            _, spikes = run_reference(quantize(folded, "hopper", config=config, calibration=calibration), tokens)
            equal = [np.mean(spikes[name] == truth[name]) for name in truth]
            agreement.setdefault((clipping, correction), []).append(float(np.mean(equal)))
    plain, corrected, clipped = (np.mean(values) for values in agreement.values())
    assert plain < corrected < clipped and clipped > plain + 0.02


@pytest.fixture(scope="module")
def reported() -> tuple[FoldedModel, Network, np.ndarray, dict[str, LayerFigures]]:
    """A small network that clips, and its report."""
    model = random_model(6, width=6, blocks=1, attention="pssa")
    folded, tokens = fold(model), draw_tokens(model, 3, seed=5)
    network = quantize(folded, "hopper", config=QuantizationConfig(4, clipping="percentile", percentile=80.0))
    return folded, network, tokens, {layer.name: layer for layer in layer_report(folded, network, tokens)}


def decibels(wanted: list[float], got: list[float]) -> float:
    """Ten log10 of the power of what was wanted against that of the difference."""
    return 10 * np.log10(sum(w * w for w in wanted) / sum((g - w) ** 2 for w, g in zip(wanted, got)))


def test_figures_of_a_layer_in_front_of_neurons(reported: Any) -> None:
    folded, network, tokens, figures = reported
    node, lif = network["blocks.0.mlp.expand"], network["blocks.0.mlp.hidden_lif"]
    affine, layer = folded.blocks[0].expand, figures["blocks.0.mlp.expand"]
    _, l1, _ = run_folded(folded, tokens.swapaxes(0, 1))
    _, l2 = run_reference(network, tokens.swapaxes(0, 1))
    steps = [folded.threshold / int(theta) for theta in lif.threshold]
    wanted, got, clipped = [], [], 0
    sums, errors = [], []
    for n, step in enumerate(steps):
        for m in range(node.weights.shape[1]):
            wanted.append(affine.weight[n, m])
            got.append(int(node.weights[n, m]) * step * 2.0**node.exponent)
            clipped += abs(wanted[-1]) > 7 * step * 2.0**node.exponent * (1 + 1e-9)
        for spikes in l1["blocks.0.mlp.input_lif"].reshape(-1, node.weights.shape[1]):
            real = sum(affine.weight[n, m] for m in np.flatnonzero(spikes))
            integer = sum(int(node.weights[n, m]) for m in np.flatnonzero(spikes)) << node.exponent
            sums.append(real)
            errors.append((integer + int(lif.bias[n]) / 64) * step - real - affine.bias[n])
    assert layer.weights_db == pytest.approx(decibels(wanted, got))
    assert layer.sums_db == pytest.approx(decibels(sums, [s + e for s, e in zip(sums, errors)]))
    assert clipped > 0 and layer.clipped == clipped / node.weights.size
    assert layer.saturated == (np.abs(node.weights) == 7).mean()
    assert (layer.scale_min, layer.scale_max) == pytest.approx(
        (min(steps) * 2.0**node.exponent, max(steps) * 2.0**node.exponent)
    )
    assert layer.population == lif.name and layer.exponent == node.exponent
    assert layer.agreement == (l1[lif.name] == l2[lif.name]).mean() and layer.firing_rate == l2[lif.name].mean()


def test_figures_of_layers_that_write_and_read_the_residual(reported: Any) -> None:
    folded, network, tokens, figures = reported
    unit = folded.threshold / int(node_of(network, "blocks.0.attention.input_lif", LIF).threshold[0])
    embed = node_of(network, "embed", Synapses)
    values: dict[str, np.ndarray] = {}
    replay_window(network, tokens, observe=values.__setitem__)
    real = tokens @ folded.embed.weight.T
    got = (values["embed"][0] + node_of(network, "residual.0", Residual).bias) * unit - folded.embed.bias
    layer = figures["embed"]
    assert layer.sums_db == pytest.approx(decibels(list(real.ravel()), list(got.ravel())))
    stood_for = embed.weights * unit * 2.0**embed.exponent * 2.0**network.encoder.shift
    assert layer.weights_db == pytest.approx(decibels(list(folded.embed.weight.ravel()), list(stood_for.ravel())))
    assert layer.population == "blocks.0.attention.input_lif"
    assert figures["blocks.0.attention.project"].population == "blocks.0.mlp.input_lif"
    last, readout = figures["blocks.0.mlp.contract"], figures["readout"]
    assert (last.population, last.agreement, last.firing_rate, readout.population) == (None,) * 4
    head = network.readout
    worth = head.weights * (head.scale * folded.ticks / 2.0**head.shift / unit)[:, None]
    assert readout.weights_db == pytest.approx(decibels(list(folded.head.weight.ravel()), list(worth.ravel())))
    exact = np.arctanh(run_folded(folded, tokens.swapaxes(0, 1))[0]) - folded.head.bias  # (tokens, lanes, actions)
    assert np.abs(decode(head, replay_window(network, tokens))).max() < 1.0 and readout.exponent == -head.shift
    spread = 10 ** (-readout.sums_db / 20) * np.sqrt(np.square(exact).mean())
    assert 0.0 < spread < 5 * readout.scale_max * np.abs(np.diff(folded.head.weight)).max() + 1.0


@pytest.mark.parametrize("bias", ["relative", "full"])
def test_figures_of_a_window(bias: Any) -> None:
    model = random_model(3, width=12, positional_bias=bias)
    folded, tokens = fold(model), draw_tokens(model, 4, seed=5, count=5)
    network = quantize(folded, "hopper")
    node = network["blocks.0.attention.window"]
    assert isinstance(node, (Window, PlacedWindow))
    layer = next(layer for layer in layer_report(folded, network, tokens) if layer.name == node.name)
    unit = folded.threshold / int(node_of(network, "blocks.0.attention.attention_lif", LIF).threshold[0])
    assert layer.scale_min == layer.scale_max == pytest.approx(unit) and layer.exponent is None
    _, l1, _ = run_folded(folded, tokens.swapaxes(0, 1))
    query, key, value = np.split(l1["blocks.0.attention.qkv_lif"], 3, axis=-1)  # (tokens, ticks, lanes, channels)
    real, integer = [], []
    for i in range(5):
        terms, rounded = np.zeros(query.shape[1:]), np.zeros(query.shape[1:])
        for k in range(min(i + 1, model.config.window)):
            place = 8 - 5 + i
            positional = present(present(folded.blocks[0].attention).positional_bias)
            weight = positional[k] if isinstance(node, Window) else positional[place, place - k]
            both = key[i - k] & value[i - k]
            terms = terms + weight * both
            rounded = rounded + int(node.weights[k] if isinstance(node, Window) else node.weights[place, k]) * both
        real += list((query[i] * terms).ravel())
        integer += list((query[i] * rounded * unit).ravel())
    assert layer.sums_db == pytest.approx(decibels(real, integer))


@pytest.mark.parametrize("scale", [0.031, 0.0314159265])
@pytest.mark.parametrize(("attention", "kind"), [("tssa", "outer"), ("sssa", "outer"), ("sdsa1", "count")])
def test_figures_of_a_count(attention: Any, kind: str, scale: float) -> None:
    """Its scale is gain over threshold, and nothing else errs: measured here on the sums themselves."""
    model = random_model(3, width=12, attention=attention)
    present(model.blocks[0].attention).scale = scale
    folded, tokens = fold(model), draw_tokens(model, 4, seed=5, count=5)
    network = quantize(folded, "hopper")
    node, lif = network[f"blocks.0.attention.{kind}"], node_of(network, "blocks.0.attention.attention_lif", LIF)
    assert isinstance(node, (Outer, Count))
    layer = next(layer for layer in layer_report(folded, network, tokens) if layer.name == node.name)
    values: dict[str, np.ndarray] = {}
    replay_window(network, tokens, observe=values.__setitem__)
    counted = values[node.name].ravel() / node.gain
    assert counted.any() and np.array_equal(counted, np.rint(counted))
    unit = folded.threshold / int(lif.threshold[0])
    if scale == 0.031:  # 31/1000 is exact
        assert layer.sums_db is layer.weights_db is None
    else:
        expected = decibels(list(counted * scale), list(values[node.name].ravel() * unit))
        assert layer.sums_db == pytest.approx(expected) and layer.weights_db == pytest.approx(expected)
    assert layer.scale_min == layer.scale_max == pytest.approx(unit) and layer.exponent is None
    assert layer.population == lif.name and layer.saturated == layer.clipped == 0.0


def test_report_is_json_and_a_table(reported: Any) -> None:
    *_, figures = reported
    rows = [dataclasses.asdict(layer) for layer in figures.values()]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    console = Console(width=160, record=True)
    print_layers(list(figures.values()), console)
    text = console.export_text()
    assert all(name in text for name in figures) and "nan" not in text


@settings(max_examples=20, deadline=None)
@given(sizes=exportable(largest_context=5))
def test_every_kind_of_network_is_reported(sizes: dict[str, Any]) -> None:
    model = random_model(**sizes)
    folded = fold(model)
    network = quantize(folded, "hopper", 6)
    figures = layer_report(folded, network, draw_tokens(model, 2, seed=1))
    weighted = [node.name for node in network.nodes if hasattr(node, "weights") or hasattr(node, "gain")]
    assert [layer.name for layer in figures] == weighted
    assert all(layer.clipped == 0.0 for layer in figures)

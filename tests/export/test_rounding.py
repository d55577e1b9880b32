"""The options of quantization, layer by layer: bounds on errors, clipping, rounding at random, shared scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from dsf.shell.errors import UserError
from dsf.testing.quantization_settings import CONFIGS
from dsf.train.quantization.integers import Affine
from dsf.train.quantization.layers import (
    embed_integers,
    head_integers,
    lif_integers,
    residual_integers,
)
from dsf.train.quantization.rounding import InputStatistics, QuantizationConfig
from dsf.train.quantization.scales import Scales

SHAPES = st.tuples(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 20))
NAME = "layer"

Quantizer = Callable[[Affine, Scales], tuple[Any, np.ndarray]]


def lif(affine: Affine, scales: Scales) -> tuple[Any, np.ndarray]:
    """Integers, and the float value of one of them, per row."""
    try:
        found = lif_integers(affine, scales, NAME)
    except UserError as refusal:  # a correction that no bias exponent holds, where most weights are clipped
        assert scales.rules.bias_correction and scales.rules.clipping == "percentile" and "\n" not in str(refusal)
        reject()
    return found, (scales.threshold / found.thresholds * 2.0**found.exponent)[:, None]


def residual(affine: Affine, scales: Scales) -> tuple[Any, np.ndarray]:
    found = residual_integers(affine, scales, NAME)
    return found, np.full((len(affine.bias), 1), scales.unit * 2.0**found.exponent)


def head(affine: Affine, scales: Scales) -> tuple[Any, np.ndarray]:
    found = head_integers(affine, scales, name=NAME)
    return found, found.weight_scale[:, None]


QUANTIZERS = st.sampled_from([lif, residual, head])


def random_layer(seed: int, outputs: int, inputs: int) -> tuple[Affine, InputStatistics]:
    """Weights with outliers and rows of unequal size, and inputs some of which are silent."""
    generator = np.random.default_rng(seed)
    rows = generator.uniform(0.02, 1.0, (outputs, 1))
    weight: Any = generator.standard_t(2.5, (outputs, inputs)) * rows * (generator.random((outputs, inputs)) < 0.9)
    rates = generator.uniform(0.0, 1.0, inputs) * (generator.random(inputs) < 0.8)
    return Affine(weight, generator.normal(0.0, 1.0, outputs)), InputStatistics(rates, rates * (1.0 - rates))


def scales_of(config: QuantizationConfig, inputs: InputStatistics | None) -> Scales:
    if inputs is None:
        config = dataclasses.replace(config, bias_correction=False)
    return Scales(config.bits, 0.5, 1024, 3072, False, config, {} if inputs is None else {NAME: inputs})


def expected_error(weight: np.ndarray, got: np.ndarray, inputs: InputStatistics | None, corrected: bool) -> np.ndarray:
    """Squared error (rows,) of the sums, one weight at a time."""
    errors = np.zeros(len(weight))
    for row, (wanted, found) in enumerate(zip(weight, got)):
        mean = 0.0
        for column, error in enumerate(found - wanted):
            errors[row] += error**2 * (1.0 if inputs is None else inputs.variance[column])
            mean += 0.0 if inputs is None or corrected else error * inputs.mean[column]
        errors[row] += mean**2
    return errors


@settings(max_examples=200, deadline=None)
@given(shape=SHAPES, config=CONFIGS, quantize=QUANTIZERS, calibrated=st.booleans())
def test_errors_are_bounded_and_the_clipped_are_counted(
    shape: tuple[int, int, int], config: QuantizationConfig, quantize: Quantizer, calibrated: bool
) -> None:
    affine, inputs = random_layer(*shape)
    scales = scales_of(config, inputs if calibrated else None)
    integers, step = quantize(affine, scales)
    limit = 2 ** (config.bits - 1) - 1
    reach = limit * step * (1 + 1e-9)
    beyond = np.abs(affine.weight) > reach
    assert integers.clipped == beyond.sum()
    assert (integers.weights[beyond] == np.sign(affine.weight[beyond]) * limit).all()
    worst = step * (0.5 if config.rounding == "nearest" else 1.0) * (1 + 1e-9)
    assert (np.abs(integers.weights * step - affine.weight) <= np.where(beyond, np.inf, worst)).all()
    assert np.allclose(integers.dequantized().weight, integers.weights * step, rtol=1e-12, atol=0.0)
    if config.clipping == "max":
        assert integers.clipped == 0


@settings(max_examples=50, deadline=None)
@given(shape=SHAPES, config=CONFIGS)
@example(shape=(656, 1, 1), config=QuantizationConfig(bits=2, per_channel=False))
def test_embedding_is_bounded_too(shape: tuple[int, int, int], config: QuantizationConfig) -> None:
    affine, inputs = random_layer(*shape)
    found = embed_integers(affine, 8, scales_of(config, inputs), NAME)
    step = found.synapses.unit[:, None] * 2.0**found.synapses.exponent * 2.0**found.shifts
    beyond = np.abs(affine.weight) > (2 ** (config.bits - 1) - 1) * step * (1 + 1e-9)
    assert found.synapses.clipped == beyond.sum()
    error = np.abs(found.dequantized().weight - affine.weight)
    if found.fine is not None:
        lost = affine.weight - found.synapses.dequantized().weight * 2.0**found.shifts
        step = found.fine.unit[:, None] * 2.0**found.fine.exponent * 2.0**found.shifts
        beyond = np.abs(lost) > (2 ** (config.bits - 1) - 1) * step * (1 + 1e-9)
        assert found.fine.clipped == beyond.sum()
    assert (error <= np.where(beyond, np.inf, step * (1 + 1e-9))).all()


def test_a_second_synapse_holds_what_the_first_has_lost() -> None:
    """127 steps in place of one: the second scale fits half a step of the first."""
    affine, _ = random_layer(0, 64, 15)
    one, two = (
        embed_integers(affine, 8, scales_of(QuantizationConfig(embed_synapses=count), None)) for count in (1, 2)
    )
    errors = [np.abs(found.dequantized().weight - affine.weight).max() for found in (one, two)]
    assert errors[1] <= errors[0] / 64


@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, config=CONFIGS, quantize=QUANTIZERS, calibrated=st.booleans())
def test_least_squares_clipping_never_loses_to_none(
    shape: tuple[int, int, int], config: QuantizationConfig, quantize: Quantizer, calibrated: bool
) -> None:
    affine, inputs = random_layer(*shape)
    known = inputs if calibrated else None
    errors = []
    for clipping in ("mse", "max"):
        scales = scales_of(dataclasses.replace(config, clipping=clipping), known)
        integers, step = quantize(affine, scales)
        errors.append(expected_error(affine.weight, integers.weights * step, known, scales.rules.bias_correction))
    assert errors[0].sum() <= errors[1].sum() * (1 + 1e-9) + 1e-24
    if config.per_channel and quantize is not residual:
        assert (errors[0] <= errors[1] * (1 + 1e-9) + 1e-24).all()


def test_least_squares_clipping_pays_where_one_weight_is_far_out() -> None:
    weight = np.full((1, 400), 0.1) * np.linspace(-1, 1, 400)
    weight[0, 0] = 0.4
    errors = {}
    for clipping in ("max", "mse"):
        integers, step = lif(
            Affine(weight, np.zeros(1)), scales_of(QuantizationConfig(bits=3, clipping=clipping), None)
        )
        errors[clipping] = float(np.square(integers.weights * step - weight).sum())
    assert errors["mse"] < 0.5 * errors["max"]


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, config=CONFIGS, quantize=QUANTIZERS)
def test_the_hundredth_percentile_is_the_largest_weight(
    shape: tuple[int, int, int], config: QuantizationConfig, quantize: Quantizer
) -> None:
    affine, inputs = random_layer(*shape)
    largest, everything = (
        quantize(affine, scales_of(dataclasses.replace(config, clipping=clipping, percentile=100.0), inputs))[0]
        for clipping in ("max", "percentile")
    )
    assert_equal_fields(largest, everything)


def assert_equal_fields(left: Any, right: Any) -> None:
    for field in dataclasses.fields(left):
        assert np.array_equal(getattr(left, field.name), getattr(right, field.name)), field.name


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, config=CONFIGS)
def test_one_scale_per_layer(shape: tuple[int, int, int], config: QuantizationConfig) -> None:
    affine, inputs = random_layer(*shape)
    scales = scales_of(dataclasses.replace(config, per_channel=False), inputs)
    assert len(set(lif(affine, scales)[0].thresholds)) == 1
    assert len(set(head(affine, scales)[0].weight_scale)) == 1


def test_stochastic_rounding_keeps_the_mean_and_can_be_repeated() -> None:
    affine, _ = random_layer(3, 6, 10)
    draws = [
        residual(affine, scales_of(QuantizationConfig(4, rounding="stochastic", seed=s), None)) for s in range(600)
    ]
    step = draws[0][1]
    wanted = affine.weight / step
    drawn = np.stack([integers.weights for integers, _ in draws]).astype(float)
    assert ((drawn == np.floor(wanted)) | (drawn == np.ceil(wanted))).all()
    share = wanted - np.floor(wanted)
    sigma = np.sqrt(share * (1 - share) / len(draws))
    assert (np.abs(drawn.mean(axis=0) - wanted) <= 5 * sigma + 1e-9).all()
    assert drawn.std(axis=0).max() > 0.4
    config = QuantizationConfig(4, rounding="stochastic", seed=7)
    again = [residual_integers(affine, scales_of(config, None), name).weights for name in ("a", "a", "b")]
    assert np.array_equal(again[0], again[1]) and not np.array_equal(again[0], again[2])


def test_a_row_that_is_mostly_zeros_is_not_clipped_to_nothing() -> None:
    weight = np.zeros((2, 50))
    weight[0, 3], weight[1, :] = 0.3, np.linspace(-0.2, 0.2, 50)
    integers, step = lif(
        Affine(weight, np.zeros(2)), scales_of(QuantizationConfig(clipping="percentile", percentile=90.0), None)
    )
    assert abs((integers.weights * step)[0, 3] - 0.3) <= step[0, 0] / 2 and integers.clipped > 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bits": 1}, "--bits is 1"),
        ({"bits": 9}, "--bits is 9"),
        ({"percentile": 0.0}, r"--percentile is 0\.0"),
        ({"percentile": float("nan")}, "--percentile is nan"),
        ({"seed": -1}, "--rounding-seed is -1"),
        ({"rounding": "up"}, "--rounding is 'up': use one of nearest, stochastic"),
        ({"clipping": "none"}, "--clipping is 'none': use one of max, percentile, mse"),
    ],
)
def test_settings_out_of_range(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        QuantizationConfig(**fields)


def test_bits_that_disagree_and_missing_inputs() -> None:
    with pytest.raises(ValueError, match="8 bits got a config of 4"):
        Scales(8, 0.5, 64, 3072, config=QuantizationConfig(4))
    with pytest.raises(UserError, match="bias correction needs the mean inputs of layer"):
        rules = QuantizationConfig(bias_correction=True)
        lif_integers(random_layer(0, 2, 2)[0], Scales(8, 0.5, 64, 3072, config=rules), NAME)

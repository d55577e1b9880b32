from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.train.quantization.integers import Affine
from dsf.train.quantization.layers import residual_integers
from dsf.train.quantization.residual_scales import LARGEST_SPREAD, Writer, channel_thresholds
from dsf.train.quantization.rounding import InputStatistics, QuantizationConfig
from dsf.train.quantization.scales import Scales

UNITS = 256


def scales_of(bits: int = 8) -> Scales:
    return Scales(bits, 0.5, UNITS, 3072, config=QuantizationConfig(bits, residual_scales="channel"))


def random_layers(seed: int, layers: int, channels: int) -> list[Affine]:
    """Some layers are large in all channels, some channels in all layers."""
    generator = np.random.default_rng(seed)
    sizes = np.exp(generator.normal(0.0, 1.0, (layers, 1, 1)) + generator.normal(0.0, 0.5, (layers, channels, 1)))
    return [Affine(generator.normal(size=(channels, 5)) * size, np.zeros(channels)) for size in sizes]


def expected_error(thresholds: np.ndarray, writers: list[Writer], scales: Scales) -> float:
    """Error of the sums, from steps that hold every weight: what the choice has to make small."""
    total = 0.0
    for writer in writers:
        fits = writer.strongest * thresholds / scales.threshold / scales.weight_limit
        exponent = np.ceil(np.log2(fits.max() * (1 - 1e-12)))
        total += writer.power * float(np.square(2.0**exponent / thresholds).sum())
    return total


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), layers=st.integers(1, 6), channels=st.integers(1, 12), bits=st.integers(2, 8))
def test_never_worse_than_one_unit_and_never_clips(seed: int, layers: int, channels: int, bits: int) -> None:
    scales, affines = scales_of(bits), random_layers(seed, layers, channels)
    writers = [Writer.of(affine, None, scales) for affine in affines]
    found = channel_thresholds(writers, scales)
    assert found.dtype == np.int32
    assert (found <= UNITS).all() and (found * LARGEST_SPREAD >= UNITS).all()
    shared = np.full(channels, UNITS)
    assert expected_error(found, writers, scales) <= expected_error(shared, writers, scales) * (1 + 1e-9)
    chosen = Scales(bits, 0.5, UNITS, 3072, config=scales.rules, channel_thresholds=found)
    for affine in affines:
        assert residual_integers(affine, chosen).clipped == 0


def test_nothing_within_reach_is_better() -> None:
    """Two layers, every pair of exponents by hand."""
    for seed in range(20):
        scales, affines = scales_of(4), random_layers(seed, 2, 4)
        writers = [Writer.of(affine, None, scales) for affine in affines]
        found = expected_error(channel_thresholds(writers, scales), writers, scales)
        start = [np.ceil(np.log2(writer.strongest.max() / scales.unit / scales.weight_limit)) for writer in writers]
        errors = []
        for moves in itertools.product((-1, 0, 1), repeat=2):
            limits = [
                np.floor(0.5 * scales.weight_limit * 2.0 ** (exponent + move) / writer.strongest)
                for exponent, move, writer in zip(start, moves, writers)
            ]
            thresholds = np.minimum(np.min(limits, axis=0), UNITS)
            if thresholds.min() * LARGEST_SPREAD >= UNITS:
                errors.append(expected_error(thresholds, writers, scales))
        single = min(errors)
        assert found <= single * (1 + 1e-9)


def test_inputs_that_never_fire_cost_nothing() -> None:
    """A silent layer with one huge weight must not take the other layer's precision."""
    scales = scales_of(4)
    loud, silent = np.ones((3, 5)), np.ones((3, 5)) * 0.1
    silent[0, 0] = 50.0
    rates = {"loud": np.full(5, 0.5), "silent": np.zeros(5)}
    writers = [
        Writer.of(Affine(weight, np.zeros(3)), InputStatistics(rates[name], rates[name] * (1 - rates[name])), scales)
        for name, weight in (("loud", loud), ("silent", silent))
    ]
    assert writers[1].power == 0.0
    alone = channel_thresholds(writers[:1], scales)
    assert (channel_thresholds(writers, scales) == alone).all()

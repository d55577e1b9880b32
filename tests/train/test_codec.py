"""The input codec and the statistics that it is fitted to."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.train.quantization.codec import InputCodec, TokenStatistics, summarise_parts


def test_codec_covers_the_data_and_never_clips_the_wished_points() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, (5000, 2))
    codec = InputCodec.fit(TokenStatistics.of(values), np.array([[np.nan, 40.0]]), bits=8)
    integers = codec.encode(values)
    assert integers.dtype == np.int32 and np.abs(integers).max() <= 127
    assert codec.encode(np.array([[5.0, 40.0]]))[0, 1] == 127
    error = np.abs(integers[:, 0] * codec.step[0] + codec.offset[0] - values[:, 0])
    assert error.max() <= codec.step[0] / 2 + 1e-9
    assert np.allclose(codec.unit, codec.step / values.std(axis=0))


def test_codec_clips_what_lies_beyond_five_deviations_and_takes_constant_features() -> None:
    values = np.zeros((10_000, 2))
    values[0, 0] = 1000.0
    codec = InputCodec.fit(TokenStatistics.of(values), np.full((1, 2), np.nan), bits=8)
    assert np.isclose(codec.step[0] * 127, 5 * values[:, 0].std())
    assert codec.encode(np.array([[1000.0, 1.0], [0.0, 0.0]])).tolist() == [[127, 127], [0, 0]]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    chunk=st.integers(1, 5),
    centre=st.sampled_from([0.0, 1.0, -1e4, 1e7]),
    seed=st.integers(0, 2**32 - 1),
)
def test_merged_statistics_are_those_of_all_samples(lengths: list[int], chunk: int, centre: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    parts = [generator.normal(centre, generator.uniform(0.1, 2.0), (length, 3)) for length in lengths]
    summaries = summarise_parts(np.concatenate(parts), np.array(lengths))
    starts = range(0, len(parts), chunk)
    merged = TokenStatistics.merge((np.array(lengths[i : i + chunk]), summaries[i : i + chunk]) for i in starts)
    values = np.concatenate(parts)
    assert np.allclose(merged.mean, values.mean(axis=0), rtol=1e-14, atol=1e-13)
    # Rounding of the samples' own mean, not cancellation: at 1e7, deviations keep 8 digits and more.
    assert np.allclose(merged.std, values.std(axis=0), rtol=1e-13, atol=1e-15 * abs(centre))
    assert np.array_equal(merged.low, values.min(axis=0)) and np.array_equal(merged.high, values.max(axis=0))

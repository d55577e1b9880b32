"""Any settings of quantization, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from dsf.train.quantization.rounding import QuantizationConfig

CONFIGS = st.builds(
    QuantizationConfig,
    bits=st.integers(2, 8),
    per_channel=st.booleans(),
    rounding=st.sampled_from(["nearest", "stochastic"]),
    seed=st.integers(0, 5),
    clipping=st.sampled_from(["max", "percentile", "mse"]),
    percentile=st.floats(1.0, 100.0),
    bias_correction=st.booleans(),
    residual_scales=st.sampled_from(["shared", "channel"]),
    embed_synapses=st.integers(1, 2),
)

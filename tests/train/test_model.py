"""Norms, attention and the whole model against slow definitions written from the paper's equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_model

from dsf.tasks import UserError
from dsf.train.attention import PSSA, PackedTokens
from dsf.train.config import ModelConfig
from dsf.train.norm import PTBN, set_blend


def random_mask(batch: int, context: int, generator: np.random.Generator) -> torch.Tensor:
    """Windows with padding in front, one of them full."""
    lengths = generator.integers(1, context + 1, batch)
    lengths[0] = context
    return torch.from_numpy(np.arange(context)[None] >= context - lengths[:, None])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 7), st.floats(0, 1))
def test_ptbn_blends_layer_and_batch_norm(seed: int, rows: int, channels: int, blend: float) -> None:
    x = torch.randn(4, rows + 1, channels + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    norm = PTBN(channels + 1, gain=0.5).double().train()
    set_blend(norm, blend)
    flat = x.reshape(-1, channels + 1)
    batch = (flat - flat.mean(0)) / torch.sqrt(flat.var(0, unbiased=False) + norm.batch.eps)
    layer = (flat - flat.mean(1, keepdim=True)) / torch.sqrt(flat.var(1, unbiased=False, keepdim=True) + norm.layer.eps)
    expected = 0.5 * (blend * layer + (1 - blend) * batch)
    assert torch.allclose(norm(x).reshape(flat.shape), expected, atol=1e-10)


def test_ptbn_is_batch_norm_at_inference_whatever_lambda() -> None:
    norm = PTBN(5, gain=0.5).eval()
    x = torch.randn(3, 2, 5)
    set_blend(norm, 1.0)
    assert torch.equal(norm(x), norm.batch(x.reshape(-1, 5)).view_as(x))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9))
def test_windowed_sum_is_the_sum_over_lags(seed: int, window: int, context: int) -> None:
    window = min(window, context)
    attention = PSSA(ModelConfig(width=2, window=window, context=context)).double()
    generator = torch.Generator().manual_seed(seed)
    attention.positional_bias.data = torch.randn(window, dtype=torch.float64, generator=generator)
    x = (torch.rand(2, 3, context, 2, generator=generator) < 0.4).double()
    expected = torch.zeros_like(x)
    for token in range(context):
        for lag in range(min(window, token + 1)):
            expected[:, :, token] += attention.positional_bias[lag] * x[:, :, token - lag]
    assert torch.allclose(attention.windowed_sum(x), expected, atol=1e-12)


def test_packing_round_trip() -> None:
    tokens = PackedTokens(random_mask(3, 5, np.random.default_rng(0)))
    rows = torch.randn(4, int(tokens.mask.sum()), 2)
    assert torch.equal(tokens.repack(tokens.unpack(rows)), rows)


def test_padding_changes_neither_actions_nor_statistics() -> None:
    """The same tokens with more padding in front: equal actions, equal running statistics."""
    model = random_model(seed=3)
    tokens = torch.randn(2, 4, 6)
    padded = torch.cat([torch.full((2, 3, 6), 1e6), tokens], dim=1)
    mask = torch.ones(2, 4, dtype=torch.bool)
    padded_mask = torch.cat([torch.zeros(2, 3, dtype=torch.bool), mask], dim=1)
    model.train()
    short = model(tokens, mask)
    statistics = [buffer.clone() for buffer in model.buffers()]
    model = random_model(seed=3).train()
    long = model(padded, padded_mask)
    assert torch.equal(long[:, 3:], short) and not long[:, :3].any()
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), statistics))


def test_decisions_are_causal_and_reach_as_far_as_the_receptive_field() -> None:
    model = random_model(seed=1, window=2, blocks=2, context=6)
    assert model.config.receptive_field == 3
    tokens = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0)) * 40
    mask = torch.ones(1, 6, dtype=torch.bool)
    base = model(tokens, mask)
    for changed in range(6):
        other = tokens.clone()
        other[0, changed] = -other[0, changed]
        different = (model(other, mask) != base).any(dim=-1)[0]
        assert different[changed]
        assert not different[:changed].any() and not different[changed + 3 :].any()


def test_paper_size_and_parameter_count() -> None:
    model = random_model(width=128, blocks=3, window=7, context=20, features=15)
    assert (
        sum(p.numel() for n, p in model.named_parameters() if n.endswith(("qkv.weight", "project.weight")))
        == 3 * 4 * 128**2
    )
    assert ModelConfig().stream_is_exact and not ModelConfig(window=8).stream_is_exact


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("window", 21), ("decay", 1.0), ("threshold", 0.0), ("input_bits", 17)],
)
def test_config_names_the_wrong_field(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"model.{field}"):
        ModelConfig(**{field: value})

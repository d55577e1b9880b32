"""The whole model: causality, receptive fields, padding, and attention that carries information."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
import torch

from dsf.shell.errors import UserError
from dsf.testing.random_networks import ACTIONS, random_model
from dsf.train.config.training import AttentionKind, ModelConfig, export_obstacles, quantization_obstacles
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.norm import set_blend
from dsf.train.quantization.codec import InputCodec

VARIANTS: list[dict[str, Any]] = [
    {"attention": "pssa"},
    {"attention": "pssa", "positional_bias": "full"},
    {"attention": "tssa", "heads": 2},
    {"attention": "sssa", "heads": 2},
    {"attention": "sdsa1"},
    {"attention": "sdsa3", "heads": 2},
    {"attention": "none"},
]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))


def random_tokens(batch: int, context: int, seed: int = 0) -> torch.Tensor:
    """Integers over the whole range of an 8-bit codec, (batch, context, 6)."""
    return torch.randint(-127, 128, (batch, context, 6), generator=torch.Generator().manual_seed(seed)).float()


@each_variant
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_neither_actions_nor_statistics(variant: dict[str, Any], training: bool) -> None:
    """The same tokens with more padding in front, whatever it holds: equal actions, equal running statistics."""
    lengths, tokens = (4, 2), random_tokens(2, 4, seed=3)
    mask = torch.arange(4)[None] >= 4 - torch.tensor(lengths)[:, None]
    padded = torch.cat([torch.full((2, 3, 6), 1e6), tokens], dim=1)
    padded_mask = torch.cat([torch.zeros(2, 3, dtype=torch.bool), mask], dim=1)
    padded[~padded_mask] = 1e6
    found = []
    for inputs, present in ((tokens, mask), (padded, padded_mask)):
        model = random_model(seed=3, **variant).train(training)
        set_blend(model, 0.3)
        actions = model(inputs, present)
        assert not actions[~present].any()
        found.append((actions[present], [buffer.clone() for buffer in model.buffers()]))
    (short, statistics), (long, padded_statistics) = found
    assert len(short) == 6 and short.any(dim=1).all()
    assert torch.allclose(long, short, atol=1e-6)  # the window's length decides how sums are ordered
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(statistics, padded_statistics))


@each_variant
def test_windows_of_a_batch_do_not_see_each_other(variant: dict[str, Any]) -> None:
    model, tokens = random_model(seed=2, **variant), random_tokens(3, 6)
    mask = torch.arange(6)[None] >= 6 - torch.tensor([6, 2, 4])[:, None]
    together = model(tokens, mask)
    for window in range(3):
        alone = model(tokens[window : window + 1], mask[window : window + 1])
        assert torch.allclose(together[window : window + 1], alone, atol=1e-6)


@each_variant
def test_decisions_are_causal_and_reach_exactly_as_far_as_the_receptive_field(variant: dict[str, Any]) -> None:
    """A token changes no earlier decision and none beyond the receptive field, and some decision at its far end."""
    context, reached = 6, 0
    for seed in range(4):
        model = random_model(seed=seed, window=2, blocks=2, context=context, width=24, **variant)
        field = model.config.receptive_field
        tokens, mask = random_tokens(1, context, seed), torch.ones(1, context, dtype=torch.bool)
        base = model(tokens, mask)
        for changed in range(context):
            other = tokens.clone()
            other[0, changed] = -other[0, changed]
            different = (model(other, mask) != base).any(dim=-1)[0]
            assert different[changed]
            assert not different[:changed].any() and not different[changed + field :].any()
            reached = max(reached, int(different.nonzero().max()) - changed + 1)
    assert reached == field == {"pssa": 3, "none": 1}.get(variant["attention"], context)


@each_variant
def test_every_parameter_that_a_forward_pass_uses_has_the_config_s_shape(variant: dict[str, Any]) -> None:
    model = random_model(seed=0, width=12, blocks=1, context=8, window=3, **variant)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    attention = "blocks.0.attention."
    if variant["attention"] == "none":
        assert not any(name.startswith(attention) for name in shapes)
        return
    assert shapes[attention + "qkv.weight"] == (36, 12) and shapes[attention + "project.weight"] == (12, 12)
    full = variant.get("positional_bias") == "full"
    expected = (8, 8) if full else (3,)
    assert shapes.get(attention + "positional_bias") == (expected if variant["attention"] == "pssa" else None)


def test_a_discrete_head_scores_choices_without_squashing_them() -> None:
    continuous = random_model(seed=0)
    discrete = DSFormer(continuous.config, continuous.codec, ACTIONS, discrete=True).eval()
    discrete.load_state_dict(continuous.state_dict())
    tokens, mask = random_tokens(2, 8), torch.ones(2, 8, dtype=torch.bool)
    with torch.no_grad():
        discrete.head.weight.mul_(20.0)
        continuous.head.weight.mul_(20.0)
        scores = discrete(tokens, mask)
        assert scores.abs().max() > 1.0
        assert torch.allclose(torch.tanh(scores), continuous(tokens, mask), atol=1e-6)


COPY_LAG = 2
"""Tokens between an observation and the decision that has to repeat it."""


def copy_loss(attention: AttentionKind, seed: int) -> float:
    """Train to repeat the observation of ``COPY_LAG`` tokens ago; the last steps' loss as a share of its variance.

    Observations are independent of each other, so whoever cannot look back stays at 1.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = ModelConfig(width=32, blocks=1, ticks=2, context=8, window=4, mlp_ratio=2, attention=attention)
    codec = InputCodec(offset=np.zeros(1), step=np.ones(1), unit=np.full(1, 0.02), bits=8)
    model = DSFormer(config, codec, action_size=1).train()
    set_blend(model, 0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    mask, losses, steps = torch.ones(32, 8, dtype=torch.bool), [], 200
    for _ in range(steps):
        observed = torch.randint(-100, 101, (32, 8, 1), generator=generator).float()
        target = observed[:, :-COPY_LAG] / 125.0
        loss = (model(observed, mask)[:, COPY_LAG:] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach() / target.square().mean()))
    return float(np.mean(losses[-30:]))


@pytest.mark.slow
def test_attention_carries_information() -> None:
    assert copy_loss("none", seed=0) > 0.95
    assert copy_loss("pssa", seed=0) < 0.5
    assert copy_loss("tssa", seed=0) < 0.9  # it has no positions: it must find the token by what is in it


def test_paper_size_and_parameter_count() -> None:
    model = random_model(width=128, blocks=3, window=7, context=20, features=15)
    assert (
        sum(p.numel() for n, p in model.named_parameters() if n.endswith(("qkv.weight", "project.weight")))
        == 3 * 4 * 128**2
    )
    assert ModelConfig().stream_is_exact and not ModelConfig(window=8).stream_is_exact


def test_default_scales_of_attention() -> None:
    """As the docstring of ``attention_scale`` says."""
    scales = {name: ModelConfig(attention=name).scale_of_attention for name in get_args(AttentionKind)}
    assert scales == {"pssa": 1.0, "tssa": 1 / 64, "sssa": 1 / 16, "sdsa1": 1.0, "sdsa3": 1 / 8, "none": 1.0}
    assert ModelConfig(attention="tssa", heads=4, ticks=2).scale_of_attention == 1 / 8
    assert ModelConfig(attention="sssa", width=4).scale_of_attention == 1.0
    assert ModelConfig(attention="tssa", attention_scale=1.0).scale_of_attention == 1.0
    with pytest.raises(UserError, match=r"model\.attention pssa does not use model\.attention_scale"):
        ModelConfig(attention_scale=0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("window", 21), ("decay", 1.0), ("threshold", 0.0), ("input_bits", 17), ("attention_scale", 0.0)],
)
def test_config_names_the_wrong_field(field: str, value: float) -> None:
    wrong: dict[str, Any] = {field: value}
    with pytest.raises(UserError, match=f"model.{field}"):
        ModelConfig(**wrong)


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"norm": "tdln"}, "model.norm"), ({"input_bits": 0}, "model.input_bits")],
)
def test_configs_that_cannot_become_spikes_name_the_field(changed: dict[str, Any], named: str) -> None:
    assert export_obstacles(ModelConfig()) == []
    (obstacle,) = export_obstacles(dataclasses.replace(ModelConfig(), **changed))
    assert obstacle.startswith(named) and "; use --model." in obstacle


def test_an_embedding_on_the_host_is_exported_and_not_trained_with_integers() -> None:
    paper = dataclasses.replace(ModelConfig(), embed_norm="layernorm", input_bits=0)
    assert export_obstacles(paper) == []
    (obstacle,) = quantization_obstacles(paper)
    assert obstacle.startswith("model.embed_norm is layernorm") and "--model.embed-norm ptbn" in obstacle

"""Every attention against a definition written from the papers' equations, one token and one tick at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsf.testing.dsformer_definitions import (
    Definition,
    Neuron,
    assert_close,
    assert_same_gradients,
    own_values,
    stream_of,
    tensor_of,
)
from dsf.testing.narrowed import gradient, present
from dsf.testing.random_networks import randomise, randomise_layer_norms
from dsf.train.config.training import AttentionKind, ModelConfig, NeuronKind, NormKind
from dsf.train.models.attention import PSSA, PackedTokens, make_attention
from dsf.train.models.dsformer import Block
from dsf.train.models.neurons import set_neuron_kind
from dsf.train.models.norm import set_blend

ATTENTIONS: tuple[AttentionKind, ...] = ("pssa", "tssa", "sssa", "sdsa1", "sdsa3")
NORMS: tuple[NormKind, ...] = ("ptbn", "tdbn", "tdln", "reptbn", "none")
SAFE_MARGIN = 1e-9
"""Nearer to the threshold (or to the surrogate's edge) than this, rounding alone may decide about a spike."""
TOLERANCE: dict[NeuronKind, float] = {"fused": 1e-9, "snntorch": 1e-5}
"""Gradients may differ by this: snnTorch's spikes, and the gradients that flow back through them, are float32."""
UNNORMED_GAIN = 4.0
"""Weights are enlarged by this where no norm makes their outputs reach the threshold."""


def random_lengths(windows: int, context: int, generator: np.random.Generator) -> list[int]:
    """Tokens in each window."""
    return [int(length) for length in generator.integers(1, context + 1, windows)]


def padded_mask(lengths: list[int], context: int) -> Tensor:
    """The mask of windows with padding in front."""
    return torch.arange(context)[None] >= context - torch.tensor(lengths)[:, None]


@dataclass
class Case:
    """A random block, its definition, a residual stream (ticks, rows, width) and a gradient to send back."""

    module: Block
    definition: Definition
    mask: Tensor
    lengths: list[int]
    residual: Tensor
    upstream: Tensor


@st.composite
def cases(draw: Any, kinds: tuple[AttentionKind, ...]) -> Case:
    heads = draw(st.sampled_from([1, 2, 3]))
    context, ticks = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    attention = draw(st.sampled_from(kinds))
    scale = draw(st.sampled_from([0.0625, 0.5, 3.0])) if attention not in ("pssa", "none") else 1.0
    config = ModelConfig(
        width=heads * draw(st.integers(1, 24 // heads)),
        attention=attention,
        attention_scale=scale,
        positional_bias=draw(st.sampled_from(["relative", "full"])),
        heads=heads,
        ticks=ticks,
        context=context,
        window=draw(st.integers(1, context)),
        mlp_ratio=draw(st.integers(1, 2)),
        threshold=draw(st.sampled_from([0.5, 0.375, 1.0])),
        # snnTorch holds decay and threshold in float32, so only such values mean the same to all
        attention_surrogate_width=draw(st.sampled_from([1.0, 1.5, 2.0])),
        # of a decay near 0, float64 loses the trace that a whole number leaves beside the surrogate's edge
        decay=draw(st.sampled_from([0.0, 0.25, 0.5, 0.625]) | st.floats(2.0**-10, 0.9375, width=32)),
        norm=draw(st.sampled_from(NORMS)),
    )
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    module = Block(config).double()
    randomise(module, generator)
    randomise_layer_norms(module, generator)
    if config.norm == "none":
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data.mul_(UNNORMED_GAIN)
    module.train(draw(st.booleans()))
    blend = draw(st.sampled_from([0.0, 0.3, 1.0]))
    set_blend(module, blend)
    lengths = random_lengths(draw(st.integers(1, 3)), context, generator)
    definition = Definition(
        values=own_values(module),
        neuron=Neuron(config.decay, config.threshold),
        attention_neuron=Neuron(config.decay, config.threshold, config.attention_surrogate_width),
        norm=config.norm,
        attention=config.attention,
        positional_bias=config.positional_bias,
        heads=heads,
        context=context,
        window=config.window,
        scale=scale,
        blend=blend,
        training=module.training,
    )
    shape = (ticks, sum(lengths), config.width)
    residual, upstream = (torch.from_numpy(generator.normal(mean, 1.0, shape)) for mean in (0.4, 0.0))
    return Case(module, definition, padded_mask(lengths, context), lengths, residual, upstream)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(cases(ATTENTIONS))
def test_rules_that_mix_tokens_agree_with_their_definitions(case: Case) -> None:
    """Spikes from random spikes, and gradients down to query, key, value and positional bias."""
    rule = present(case.module.attention)
    generator = torch.Generator().manual_seed(case.residual.numel())
    spikes = (torch.rand(3, *case.residual.shape, generator=generator) < 0.5).double()
    ours, defined = spikes.clone().requires_grad_(), spikes.clone().requires_grad_()
    query, key, value = (stream_of(part, case.lengths) for part in defined)
    expected = tensor_of(case.definition.mix(query, key, value, "attention."))
    assume(case.definition.margin > SAFE_MARGIN)
    mixed = rule.mix(ours[0], ours[1], ours[2], PackedTokens(case.mask))
    assert torch.equal(mixed, expected)
    mixed.backward(case.upstream)
    expected.backward(case.upstream)
    assert_close(gradient(ours), gradient(defined), 1e-10, "gradients of query, key and value")
    assert_same_gradients(case.module, case.definition.values, 1e-10)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(cases((*ATTENTIONS, "none")), st.sampled_from(["fused", "snntorch"]))
def test_whole_blocks_agree_with_their_definition(case: Case, kind: NeuronKind) -> None:
    set_neuron_kind(case.module, kind)
    ours, defined = case.residual.clone().requires_grad_(), case.residual.clone().requires_grad_()
    expected = tensor_of(case.definition.block(stream_of(defined, case.lengths)))
    assume(case.definition.margin > SAFE_MARGIN)
    output = case.module(ours, PackedTokens(case.mask))
    assert_close(output, expected, 1e-9, "values")
    output.backward(case.upstream)
    expected.backward(case.upstream)
    assert_close(gradient(ours), gradient(defined), TOLERANCE[kind], "gradient of the residual stream")
    assert_same_gradients(case.module, case.definition.values, TOLERANCE[kind])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_snntorch_neurons_give_a_block_the_same_spikes_and_gradients_in_float32(attention: AttentionKind) -> None:
    torch.manual_seed(0)
    block = Block(ModelConfig(width=24, attention=attention, heads=2, context=6, window=3, norm="tdbn"))
    randomise(block, np.random.default_rng(0))
    tokens = PackedTokens(padded_mask([6, 2, 5, 1], 6))
    residual = torch.randn(4, 14, 24, generator=torch.Generator().manual_seed(1)) + 0.4
    found = []
    for kind in ("fused", "snntorch"):
        set_neuron_kind(block, kind)
        block.zero_grad()
        given_residual = residual.clone().requires_grad_()
        output = block(given_residual, tokens)
        output.square().sum().backward()
        found.append([output.detach(), gradient(given_residual), *(gradient(p).clone() for p in block.parameters())])
    for fused, snntorch in zip(*found):
        assert_close(fused, snntorch, 1e-4, attention)


def test_packing_round_trip() -> None:
    tokens = PackedTokens(padded_mask([5, 2, 1], 5))
    rows = torch.randn(4, 8, 2)
    padded = tokens.unpack(rows)
    assert padded.shape == (4, 3, 5, 2) and not padded[:, ~tokens.mask].any()
    assert torch.equal(tokens.repack(padded), rows)
    assert torch.equal(tokens.pack(padded[0]), rows[0])


def test_the_full_bias_belongs_to_places_counted_from_the_present() -> None:
    """A shorter window sees the lower right corner, so the last token keeps its row."""
    attention = PSSA(ModelConfig(width=2, context=5, window=3, positional_bias="full"))
    attention.positional_bias.data = torch.arange(25.0).view(5, 5)
    assert attention.bias_matrix(2).tolist() == [[18.0, 0.0], [23.0, 24.0]]
    assert attention.bias_matrix(5)[4].tolist() == [0.0, 0.0, 22.0, 23.0, 24.0]


def test_the_ablation_has_no_attention() -> None:
    config = ModelConfig(width=8, attention="none")
    assert make_attention(config) is None
    assert not any("attention" in name for name, _ in Block(config).named_parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradients_reach_queries_keys_and_values_from_the_first_step(attention: AttentionKind) -> None:
    """Unscaled currents are counts: with the paper's surrogate their membranes lie on its edges, and none passes."""
    reached = {}
    for width in (1.0, 2.0):
        torch.manual_seed(0)
        config = ModelConfig(width=16, attention=attention, attention_surrogate_width=width, attention_scale=1.0)
        module = Block(config).train()
        set_blend(module, 0.0)
        residual = torch.randn(4, 40, 16, generator=torch.Generator().manual_seed(0))
        module(residual, PackedTokens(torch.ones(2, 20, dtype=torch.bool))).square().sum().backward()
        assert module.attention is not None
        parts = gradient(module.attention.qkv.weight).chunk(3)
        reached[width] = [bool(part.abs().max() > 0.0) for part in parts]
    assert reached[2.0] == [True, True, True]
    if attention in ("pssa", "tssa", "sssa"):
        assert reached[1.0] == [False, False, False]

"""Norms, alone and in front of a neuron, against definitions written from the paper's equations."""

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
    moved_statistics,
    own_values,
    stream_of,
    tensor_of,
)
from dsf.testing.narrowed import gradient, present
from dsf.testing.random_networks import randomise, randomise_layer_norms
from dsf.train.config.training import NeuronKind, NormKind
from dsf.train.models.fused import batch_moments
from dsf.train.models.neurons import LIF, set_neuron_kind
from dsf.train.models.norm import PTBN, BatchNorm, make_norm, set_blend

NORMS: tuple[NormKind, ...] = ("ptbn", "tdbn", "tdln", "reptbn", "none")
SAFE_MARGIN = 1e-9
"""Nearer to the threshold (or to the surrogate's edge) than this, rounding alone may decide about a spike."""
TOLERANCE: dict[NeuronKind, float] = {"fused": 1e-10, "snntorch": 1e-6}
"""Gradients may differ by this: snnTorch's spikes, and the gradients that flow back through them, are float32."""


@dataclass
class Case:
    """A norm with random parameters, its definition, currents (ticks, rows, channels) and a gradient to send back."""

    module: nn.ModuleDict
    definition: Definition
    currents: Tensor
    upstream: Tensor


@st.composite
def cases(draw: Any) -> Case:
    ticks, rows, channels = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 70))
    kind = draw(st.sampled_from(NORMS))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    module = nn.ModuleDict({"norm": make_norm(kind, channels, gain=0.5)}).double()
    randomise(module, generator)
    randomise_layer_norms(module, generator)
    for name, parameter in module.named_parameters():
        if name.endswith("skip"):
            parameter.data.fill_(0.3)
    blend = draw(st.sampled_from([0.0, 0.3, 1.0]))
    set_blend(module, blend)
    module.train(draw(st.booleans()))
    # snnTorch holds decay and threshold in float32, so only such values mean the same to all
    decay = draw(st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(0.0, 0.9375, width=32)))
    threshold = draw(st.sampled_from([0.5, 0.375, 1.0]))
    definition = Definition(own_values(module), Neuron(decay, threshold), kind, blend=blend, training=module.training)
    shape = (ticks, rows, channels)
    currents = generator.normal(generator.normal(size=channels), generator.uniform(0.1, 2.0, channels), shape)
    return Case(module, definition, torch.from_numpy(currents), torch.from_numpy(generator.normal(size=shape)))


def check_statistics(case: Case) -> None:
    """Running statistics moved by exactly one batch if training, and not at all otherwise."""
    now, before = dict(case.module.named_buffers()), case.definition.values
    if "norm.batch.running_mean" not in now:
        return
    mean, variance = before["norm.batch.running_mean"], before["norm.batch.running_var"]
    if case.module.training:
        mean, variance = moved_statistics(stream_of(case.currents, [case.currents.shape[1]]), mean, variance)
    assert_close(now["norm.batch.running_mean"], mean, 1e-12, "running mean")
    assert_close(now["norm.batch.running_var"], variance, 1e-12, "running variance")
    assert now["norm.batch.num_batches_tracked"] == int(case.module.training)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_norms_agree_with_their_definitions(case: Case) -> None:
    ours, defined = (case.currents.clone().requires_grad_() for _ in range(2))
    values = case.module["norm"](ours)
    values.backward(case.upstream)
    expected = tensor_of(case.definition.normed(stream_of(defined, [ours.shape[1]]), "norm"))
    expected.backward(case.upstream)
    assert_close(values, expected, 1e-10, "values")
    assert_close(gradient(ours), gradient(defined), 1e-10, "gradient of the input")
    assert_same_gradients(case.module, case.definition.values, 1e-10)
    check_statistics(case)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(["fused", "snntorch"]))
def test_a_norm_and_its_neuron_agree_with_their_definitions(case: Case, kind: NeuronKind) -> None:
    definition = case.definition
    neuron = LIF(definition.neuron.decay, definition.neuron.threshold).double()
    set_neuron_kind(neuron, kind)
    ours, defined = (case.currents.clone().requires_grad_() for _ in range(2))
    expected = tensor_of(definition.fire(definition.normed(stream_of(defined, [ours.shape[1]]), "norm")))
    assume(definition.margin > SAFE_MARGIN)
    expected.backward(case.upstream)
    spikes = neuron(ours, case.module["norm"])
    spikes.backward(case.upstream)
    assert torch.equal(spikes, expected)
    assert_close(gradient(ours), gradient(defined), TOLERANCE[kind], "gradient of the input")
    assert_same_gradients(case.module, definition.values, TOLERANCE[kind])
    check_statistics(case)


def test_training_follows_torch_batch_norm_in_float32() -> None:
    """Values, gradients and running statistics over several steps, also where means dwarf deviations."""
    generator = torch.Generator().manual_seed(0)
    ours, torchs = BatchNorm(70, gain=0.5), nn.BatchNorm1d(70)
    nn.init.constant_(torchs.weight, 0.5)
    for _ in range(3):
        values = 50.0 * torch.randn(70, generator=generator) + torch.randn(4, 33, 70, generator=generator)
        left, right = values.clone().requires_grad_(), values.clone().requires_grad_()
        upstream = torch.randn(values.shape, generator=generator)
        answer, expected = ours(left), torchs(right.flatten(0, 1)).view_as(right)
        answer.backward(upstream)
        expected.backward(upstream)
        assert torch.allclose(answer, expected, atol=1e-4)
        assert torch.allclose(gradient(left), gradient(right), atol=1e-5)
    assert torch.allclose(gradient(ours.batch.weight), gradient(torchs.weight), rtol=1e-4, atol=1e-2)
    for name, buffer in torchs.named_buffers():
        assert torch.allclose(ours.batch.get_buffer(name).float(), buffer.float(), rtol=1e-5, atol=1e-5), name


def test_ptbn_is_batch_norm_at_inference_whatever_lambda() -> None:
    norm = PTBN(5, gain=0.5).eval()
    present(norm.batch.running_mean).copy_(torch.randn(5))
    x = torch.randn(3, 2, 5)
    expected = norm.batch(x.reshape(-1, 5)).view_as(x)
    for blend in (1.0, 0.4, 0.0):
        set_blend(norm, blend)
        assert torch.allclose(norm(x), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["ptbn", "tdbn", "tdln", "reptbn"])
def test_gains_start_at_the_threshold(kind: NormKind) -> None:
    gains = [value for name, value in make_norm(kind, 6, gain=0.375).named_parameters() if name.endswith("weight")]
    assert gains and all(torch.equal(gain, torch.full((6,), 0.375)) for gain in gains)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_survive_means_that_dwarf_deviations(dtype: torch.dtype) -> None:
    """Sums of squares in float32 would lose a deviation of 0.5 around 1,000 altogether."""
    spread = 0.5 if dtype == torch.float32 else 8.0
    values = (1000.0 + spread * torch.randn(4, 333, 65, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = values.double().flatten(0, 1)
    moments = batch_moments(values, eps=1e-5)
    assert torch.allclose(moments.mean.double(), exact.mean(0), rtol=1e-6)
    assert torch.allclose(moments.variance.double(), exact.var(0, unbiased=False), rtol=1e-4)
    assert moments.count == 4 * 333


def test_a_batch_without_tokens_has_no_moments() -> None:
    """It never comes to that: every window has a token. Were it to, the norm must not answer with NaN."""
    with pytest.raises(ValueError, match="without a single token"):
        BatchNorm(3, gain=0.5).train()(torch.zeros(4, 0, 3))

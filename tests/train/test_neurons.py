"""The neuron, fused and as snnTorch's Leaky, against the definition, each other, and Loihi's integer neuron."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dsf.export.network import nodes
from dsf.export.network.reference import fire
from dsf.testing.dsformer_definitions import Neuron, assert_close, lif, stream_of, tensor_of
from dsf.testing.narrowed import gradient
from dsf.testing.random_networks import random_model
from dsf.train.config.training import NeuronKind
from dsf.train.models.neurons import LIF, set_neuron_kind

STEPS, NEURONS = 4, 12_500
KINDS: tuple[NeuronKind, ...] = get_args(NeuronKind)
SAFE_MARGIN = 1e-9
"""Nearer to the threshold (or to the surrogate's edge) than this, rounding alone may decide about a spike."""
TOLERANCE: dict[NeuronKind, float] = {"fused": 1e-10, "snntorch": 1e-6}
"""Gradients may differ by this: snnTorch's spikes, and the gradients that flow back through them, are float32."""


def spikes_and_gradient(
    kind: NeuronKind, current: torch.Tensor, upstream: torch.Tensor, decay: float, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes and gradient of a neuron computed in this way, in the dtype of ``current``."""
    neuron = LIF(decay, threshold).to(current.dtype)
    set_neuron_kind(neuron, kind)
    given_current = current.clone().requires_grad_()
    spikes = neuron(given_current)
    spikes.backward(upstream)
    return spikes.detach(), gradient(given_current)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    ticks=st.integers(1, 6),
    rows=st.integers(1, 5),
    channels=st.integers(1, 70),
    # snnTorch holds decay and threshold in float32, so only such values mean the same to all
    decay=st.sampled_from([0.0, 0.25]) | st.floats(0.0, 0.9375, width=32),
    threshold=st.floats(0.125, 4.0, width=32),
    kind=st.sampled_from(KINDS),
)
def test_spikes_and_gradients_follow_the_definition(
    seed: int, ticks: int, rows: int, channels: int, decay: float, threshold: float, kind: NeuronKind
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (ticks, rows, channels)
    current = torch.randn(shape, dtype=torch.float64, generator=generator) + 0.6 * threshold
    upstream = torch.randn(shape, dtype=torch.float64, generator=generator)
    definition, defined = Neuron(decay, threshold), current.clone().requires_grad_()
    expected = tensor_of(lif(stream_of(defined, [rows]), definition))
    assume(definition.margin > SAFE_MARGIN)
    expected.backward(upstream)
    spikes, found = spikes_and_gradient(kind, current, upstream, decay, threshold)
    assert torch.equal(spikes, expected)
    assert_close(found, gradient(defined), TOLERANCE[kind], "gradient of the current")


@pytest.mark.parametrize(("decay", "threshold"), [(0.25, 0.5), (0.3, 0.7), (0.0, 1.0), (0.9, 0.1)])
def test_fused_equals_snntorch_over_many_float32_steps(decay: float, threshold: float) -> None:
    """snnTorch is the definition: spike for spike, and gradient for gradient to the last bit but the order of sums."""
    generator = torch.Generator().manual_seed(7)
    current = torch.randn(6, 130, 70, generator=generator) * 0.8 + 0.5 * threshold
    upstream = torch.randn(current.shape, generator=generator)
    assert current.numel() > 50_000
    found = {kind: spikes_and_gradient(kind, current, upstream, decay, threshold) for kind in KINDS}
    fused, snntorch = found["fused"], found["snntorch"]
    assert 0.05 < float(fused[0].mean()) < 0.95
    assert torch.equal(fused[0], snntorch[0])
    assert torch.allclose(fused[1], snntorch[1], rtol=1e-6, atol=1e-6)
    assert float(fused[1].abs().mean()) > 0.05


def test_firing_is_strict_and_the_surrogate_ends_before_its_edges() -> None:
    """On the threshold: no spike. Exactly half a unit from it: no gradient. Both kinds, values that floats hold."""
    edges = torch.tensor([[[0.0, 0.5, 1.0, 2.0**-24, 1.0 - 2.0**-24]]])
    for kind in KINDS:
        spikes, found = spikes_and_gradient(kind, edges, torch.ones_like(edges), 0.25, 0.5)
        assert spikes.flatten().tolist() == [0.0, 0.0, 1.0, 0.0, 1.0]
        assert found.flatten().tolist() == [0.0, 1.0, 0.0, 1.0, 1.0]


def test_both_kinds_share_parameters_and_checkpoints() -> None:
    fused, snntorch = random_model(seed=0), random_model(seed=1)
    set_neuron_kind(snntorch, "snntorch")
    assert [name for name, _ in fused.named_parameters()] == [name for name, _ in snntorch.named_parameters()]
    assert list(fused.state_dict()) == list(snntorch.state_dict())
    snntorch.load_state_dict(fused.state_dict())
    tokens = torch.randint(-127, 128, (3, 8, 6), generator=torch.Generator().manual_seed(0)).float()
    mask = torch.ones(3, 8, dtype=torch.bool)
    assert torch.allclose(fused(tokens, mask), snntorch(tokens, mask), atol=1e-5)


def test_spikes_and_membranes_follow_the_definition() -> None:
    """v = decay * v * (1 - s) + x; snnTorch's membrane shows the value that fired, ours is reset in the same tick."""
    current = torch.randn(STEPS, NEURONS, generator=torch.Generator().manual_seed(0)) * 0.6
    neuron = LIF(decay=0.25, threshold=0.5)
    membrane, snn_membrane = torch.zeros(NEURONS), torch.zeros(NEURONS)
    for tick, spikes in enumerate(neuron(current)):
        before_reset = 0.25 * membrane + current[tick]
        expected = (before_reset > 0.5).float()
        membrane = before_reset * (1 - expected)
        _, snn_membrane = neuron.leaky(current[tick], snn_membrane)
        assert torch.equal(spikes, expected)
        assert torch.equal(snn_membrane * (1 - spikes), membrane)


def test_equal_to_the_integer_neuron_spike_by_spike() -> None:
    """With T = 4 and decay 1/4 the membrane's 6 fraction bits lose nothing, so float and Loihi must agree exactly."""
    generator = np.random.default_rng(1)
    currents = generator.integers(-400, 500, (STEPS, 1, NEURONS))
    threshold = generator.integers(50, 400, NEURONS)
    bias = generator.integers(-40, 40, NEURONS)
    node = nodes.LIF("lif", "x", threshold, (bias << 6) >> 3, 3, 3072)
    assert np.array_equal(fire(node, currents)[:, 0], _float_lif(currents[:, 0] + bias, threshold))


def _float_lif(drive: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """snnTorch neurons, one threshold group at a time, on integer currents in float64."""
    spikes = np.zeros(drive.shape, np.int64)
    for level in np.unique(threshold):
        group = threshold == level
        spikes[:, group] = LIF(0.25, float(level))(torch.from_numpy(drive[:, group].astype(np.float64))).numpy()
    return spikes


def test_surrogate_gradient_is_a_rectangle_and_the_reset_is_detached() -> None:
    current = torch.tensor([[-0.2], [0.9], [1.2]])
    for kind in KINDS:
        spikes, found = spikes_and_gradient(kind, current, torch.ones_like(current), 0.25, 0.5)
        assert spikes.flatten().tolist() == [0.0, 1.0, 1.0]
        # v = -0.2, 0.85, 1.2 (reset): the rectangle covers 0 .. 1: only tick 1 passes; tick 0 reaches it by the leak
        assert torch.allclose(found.flatten(), torch.tensor([0.25, 1.0, 0.0]))

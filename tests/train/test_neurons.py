"""snnTorch's Leaky against the definition, and against Loihi's integer neuron."""

from __future__ import annotations

import numpy as np
import torch

from dsf.export.network import LIF as IntegerLIF
from dsf.export.reference import fire
from dsf.train.neurons import LIF

STEPS, NEURONS = 4, 12_500


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
    node = IntegerLIF("lif", "x", threshold, (bias << 6) >> 3, 3, 3072)
    assert np.array_equal(fire(node, currents)[:, 0], _float_lif(currents[:, 0] + bias, threshold))


def _float_lif(drive: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """snnTorch neurons, one threshold group at a time, on integer currents in float64."""
    spikes = np.zeros(drive.shape, np.int64)
    for level in np.unique(threshold):
        group = threshold == level
        spikes[:, group] = LIF(0.25, float(level))(torch.from_numpy(drive[:, group].astype(np.float64))).numpy()
    return spikes


def test_surrogate_gradient_is_a_rectangle_and_the_reset_is_detached() -> None:
    current = torch.tensor([[-0.2], [0.9], [1.2]], requires_grad=True)
    spikes = LIF(decay=0.25, threshold=0.5)(current)
    assert spikes.flatten().tolist() == [0.0, 1.0, 1.0]
    spikes.sum().backward()
    # v = -0.2, 0.85, 1.2 (reset): the rectangle covers 0 .. 1, so only tick 1 passes; tick 0 reaches it by the leak.
    assert torch.allclose(current.grad.flatten(), torch.tensor([0.25, 1.0, 0.0]))

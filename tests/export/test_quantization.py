"""Integers and the floats they stand for; quantization-aware training and export see the same integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.conversion.fold import fold
from dsf.export.conversion.quantize import quantize
from dsf.export.network.attention import lag_rows
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Encoder, NetworkError, PlacedWindow, Readout, Residual, Synapses, Window
from dsf.export.proof.levels import IntegerComparison, in_float64, run_folded, run_reference, run_torch
from dsf.shell.errors import UserError
from dsf.testing.fold import compare_fold
from dsf.testing.random_networks import ACTIONS, exportable, random_model
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.qat import QuantizedDSFormer, quantization_aware
from dsf.train.quantization.integers import (
    Affine,
    EmbedIntegers,
    HeadIntegers,
    Integers,
    LifIntegers,
    ResidualIntegers,
    WindowIntegers,
)
from dsf.train.quantization.layers import (
    embed_integers,
    head_integers,
    lif_integers,
    residual_integers,
    window_integers,
)
from dsf.train.quantization.rounding import QuantizationConfig
from dsf.train.quantization.scales import COARSEST_THRESHOLD_UNITS, Scales, decay_units

BITS = st.integers(2, 8)
SIZES = {"width": st.integers(1, 12), "blocks": st.integers(1, 2), "window": st.integers(1, 5)}


class Recording(QuantizedDSFormer):
    """Keeps the integers of its last forward pass."""

    def integers(self) -> dict[str, Integers]:
        self.recorded = super().integers()
        return self.recorded


def random_affine(seed: int, outputs: int, inputs: int, spread: float) -> Affine:
    """Normal weights whose rows differ in size by up to two orders of magnitude."""
    generator = np.random.default_rng(seed)
    rows = generator.uniform(0.01, 1.0, (outputs, 1)) * spread
    return Affine(generator.normal(0.0, rows, (outputs, inputs)), generator.normal(0.0, spread, outputs))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    bits=BITS,
    outputs=st.integers(1, 20),
    inputs=st.integers(1, 20),
    spread=st.floats(0.01, 3.0),
    units=st.sampled_from([16, 256, 4096]),
)
def test_dequantized_is_within_half_a_step_and_gives_the_integers_back(
    seed: int, bits: int, outputs: int, inputs: int, spread: float, units: int
) -> None:
    affine, scales = random_affine(seed, outputs, inputs, spread), Scales(bits, 0.5, units, 3072)
    lif = lif_integers(affine, scales, "x")
    step = 0.5 / lif.thresholds * 2.0**lif.exponent
    assert_round_trip(affine.weight, lif.dequantized().weight, lif.weights, step[:, None])
    bias_step = 0.5 / lif.thresholds * 2.0**lif.bias_exponent / 64
    assert_round_trip(affine.bias, lif.dequantized().bias, lif.mantissa, bias_step)

    residual = residual_integers(affine, scales)
    assert_round_trip(
        affine.weight, residual.dequantized().weight, residual.weights, scales.unit * 2.0**residual.exponent
    )
    assert_round_trip(affine.bias, residual.dequantized().bias, residual.bias, scales.unit)

    embed = embed_integers(affine, 8, scales)
    step = scales.unit * 2.0**embed.synapses.exponent * 2.0**embed.shifts
    assert_round_trip(affine.weight, embed.dequantized().weight, embed.synapses.weights, step)

    head = head_integers(affine, scales)
    assert_round_trip(affine.weight, head.dequantized().weight, head.weights, head.weight_scale[:, None])
    for integers in (lif, residual, embed.synapses, head):
        assert np.abs(integers.weights).max() <= scales.weight_limit
    window = window_integers(affine.bias, scales, "x")
    assert_round_trip(affine.bias, window.dequantized(), window.weights, 0.5 / window.threshold_units)


def assert_round_trip(wanted: np.ndarray, got: np.ndarray, integers: np.ndarray, step: np.ndarray | float) -> None:
    """``got`` is ``integers`` steps, and the nearest such number to ``wanted``."""
    assert np.array_equal(np.rint(got / step), integers)
    assert (np.abs(got - wanted) <= step / 2 * (1 + 1e-9)).all()


def trained_a_little(model: DSFormer, bits: int, units: int, steps: int, per_channel: bool = True) -> Recording:
    """A few optimizer steps, then one more forward pass."""
    start = quantization_aware(model, bits, units, per_channel)
    arguments: dict[str, Any] = start.to_json()
    network = Recording(model.config, model.codec, ACTIONS, model.discrete, **arguments)
    network.load_state_dict(start.state_dict())
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    mask = torch.ones(4, model.config.context, dtype=torch.bool)
    for _ in range(steps):
        integers = torch.randint(-model.codec.limit, model.codec.limit + 1, (*mask.shape, 6)).float()
        optimizer.zero_grad()
        (network(integers, mask) - 0.3).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        network(integers, mask)
    return network.eval()


def threshold_units(network: Network) -> int:
    """The residual's threshold in its own units."""
    return int(next(network.of_kind(LIF)).threshold[0])


def assert_same_integers(network: Network, recorded: dict[str, Integers]) -> None:
    """Every number of the network is one that was recorded, or follows from it."""
    for name, integers in recorded.items():
        node = network[name]
        if isinstance(integers, LifIntegers):
            lif = next(other for other in network.of_kind(LIF) if other.source == name)
            assert isinstance(node, Synapses) and node.exponent == integers.exponent
            assert np.array_equal(lif.threshold, integers.thresholds)
            assert np.array_equal(lif.bias_mantissa, integers.mantissa) and lif.bias_exponent == integers.bias_exponent
        elif isinstance(integers, WindowIntegers):
            lif = next(other for other in network.of_kind(LIF) if other.source == name)
            assert isinstance(node, (Window, PlacedWindow)) and (lif.threshold == integers.threshold_units).all()
        elif isinstance(integers, HeadIntegers):
            assert isinstance(node, Readout)
            assert (np.abs(node.bias * node.scale - integers.bias) <= node.scale / 2 * (1 + 1e-9)).all()
        else:
            synapses = integers.synapses if isinstance(integers, EmbedIntegers) else integers
            assert isinstance(synapses, ResidualIntegers) and isinstance(node, Synapses)
            residual = next(other for other in network.of_kind(Residual) if other.sources[-1] == name)
            assert node.exponent == synapses.exponent and np.array_equal(residual.bias, synapses.bias)
            if isinstance(integers, EmbedIntegers):
                assert isinstance(network.encoder, Encoder) and np.array_equal(network.encoder.shift, integers.shifts)
        weights = integers.synapses.weights if isinstance(integers, EmbedIntegers) else integers.weights
        if isinstance(node, PlacedWindow):
            weights = lag_rows(weights, node.reach)
        assert np.array_equal(node.weights, weights), name
    kinds = (Synapses, Window, PlacedWindow, Readout)
    assert len(recorded) == sum(isinstance(node, kinds) for node in network.nodes)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(sizes=exportable(on_host=False), bits=BITS, per_channel=st.booleans())
def test_export_finds_exactly_the_integers_trained_with(sizes: dict[str, Any], bits: int, per_channel: bool) -> None:
    network = trained_a_little(random_model(**sizes), bits, COARSEST_THRESHOLD_UNITS, 3, per_channel)
    rules = QuantizationConfig(bits, per_channel)
    exported = quantize(fold(network), "hopper", threshold_units=COARSEST_THRESHOLD_UNITS, config=rules)
    assert_same_integers(exported, network.recorded)
    assert threshold_units(exported) == COARSEST_THRESHOLD_UNITS


@pytest.mark.slow
def test_dequantized_model_folds_exactly_and_fires_as_the_integers() -> None:
    network = trained_a_little(random_model(3, width=32), 4, 256, steps=20)
    model = network.dequantized()
    limit = model.codec.limit
    tokens = np.random.default_rng(0).integers(-limit, limit + 1, (20, 8, 6)).astype(np.int32)
    folded = run_folded(fold(model), tokens)
    rung = compare_fold(run_torch(in_float64(model), tokens), folded)
    assert rung.passed, rung.summary
    exported = quantize(fold(network), "hopper", 4, threshold_units=256)
    rung = IntegerComparison().add(*folded[:2], *run_reference(exported, tokens)).rung()
    assert rung.details["spike_agreement_overall"] > 0.995, rung.summary
    mask = torch.ones(20, 8, dtype=torch.bool)
    with torch.no_grad():
        assert torch.allclose(
            model(torch.from_numpy(tokens).float(), mask), network(torch.from_numpy(tokens).float(), mask)
        )


def test_unit_fixed_by_training_is_refused_where_it_could_overflow() -> None:
    folded = fold(quantization_aware(random_model(0), 8, 4096))
    assert isinstance(folded.embed, Affine)
    big = type(folded)(**{**vars(folded), "embed": Affine(folded.embed.weight * 300, folded.embed.bias)})
    with pytest.raises(
        NetworkError, match=r"quantization-aware.*4096 residual units.*could overflow.*--threshold-units 2048"
    ):
        quantize(big, "hopper", 8, threshold_units=4096)
    assert threshold_units(quantize(big, "hopper", 8)) < 4096
    huge = type(folded)(**{**vars(folded), "embed": Affine(folded.embed.weight * 30_000, folded.embed.bias)})
    with pytest.raises(NetworkError, match=r"16 residual units.*could overflow.*fewer --bits") as refusal:
        quantize(huge, "hopper", 8, threshold_units=COARSEST_THRESHOLD_UNITS)
    assert "--threshold-units" not in str(refusal.value)
    with pytest.raises(NetworkError, match=r"even with the coarsest residual unit: .*fewer --bits") as refusal:
        quantize(huge, "hopper", 8)
    assert "use a coarser" not in str(refusal.value)


def test_whole_biases_would_change_what_was_trained() -> None:
    network = trained_a_little(random_model(0), 4, 256, steps=2)
    with pytest.raises(UserError, match=r"exported as they were trained.*drop --whole-biases"):
        quantize(fold(network), "hopper", 4, threshold_units=256, whole_biases=True)


def test_decay_of_a_membrane_in_integers() -> None:
    assert decay_units(0.25) == 3072 and decay_units(0.0) == 4096

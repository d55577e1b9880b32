"""A default export, number by number, against the formulas as they stood before quantization had options."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.conversion.fold import fold
from dsf.export.conversion.folded import FoldedAttention, FoldedModel
from dsf.export.conversion.quantize import quantize
from dsf.export.network.attention import lag_rows
from dsf.export.network.bounds import require_no_overflow
from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    LIF,
    HostEmbedding,
    NetworkError,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    Window,
)
from dsf.testing.narrowed import node_of, present
from dsf.testing.random_networks import exportable, random_model
from dsf.train.quantization.codec import InputCodec
from dsf.train.quantization.host_embedding import NormedEmbedding
from dsf.train.quantization.integers import Affine


def threshold_units(network: Network) -> int:
    """The residual's threshold in its own units."""
    return int(next(network.of_kind(LIF)).threshold[0])


def reader(network: Network, name: str) -> LIF:
    return next(lif for lif in network.of_kind(LIF) if lif.source == name)


def plain_lif(affine: Affine, bits: int, threshold: float) -> dict[str, Any]:
    limit, inputs = 2 ** (bits - 1) - 1, affine.weight.shape[1]
    rows = affine.weight.tolist()
    wanted = 64 * max(abs(w) for row in rows for w in row) / (threshold * limit)
    room = 2**16 // (inputs * limit)
    exponent = max(0, min(math.ceil(math.log2(max(wanted, 1.0))), int(math.log2(max(room, 1))), 15))
    thetas, weights, biases = [], [], []
    for row, bias in zip(rows, affine.bias.tolist()):
        strongest = max(abs(w) for w in row)
        theta = 131071 if strongest == 0 else min(math.floor(threshold * (limit << exponent) / strongest), 131071)
        cap = 131071 if bias == 0 else min(max(math.floor(1023 * threshold / abs(bias)), 64), 131071)
        thetas.append(min(theta, cap))
        weights.append([round(w / (threshold / thetas[-1]) / 2**exponent) for w in row])
        biases.append(bias / (threshold / thetas[-1]) * 64)
    largest = max(abs(bias) for bias in biases)
    shift = max(0, math.ceil(math.log2(largest / 4095))) if largest > 0 else 0
    mantissa = [round(bias / 2**shift) for bias in biases]
    return {"weights": weights, "exponent": exponent, "threshold": thetas, "mantissa": mantissa, "shift": shift}


def plain_residual(affine: Affine, bits: int, unit: float) -> tuple[list[list[int]], int, list[int]]:
    wanted = [[w / unit for w in row] for row in affine.weight.tolist()]
    strongest = max(abs(w) for row in wanted for w in row) / (2 ** (bits - 1) - 1)
    exponent = max(math.ceil(math.log2(strongest)), -15) if strongest > 0 else 0
    weights = [[round(w / 2.0**exponent) for w in row] for row in wanted]
    return weights, exponent, [round(b / unit) for b in affine.bias.tolist()]


def plain_shifts(embed: Affine, input_bits: int, bits: int) -> list[int]:
    columns = [max(abs(w) for w in column) for column in embed.weight.T.tolist()]
    room = 2**23 // ((2 ** (bits - 1) - 1) * (2 ** (input_bits - 1) - 1) * len(columns))
    most = min(int(math.log2(max(room, 1))), 16 - input_bits)
    base = max(columns) / 2.0**most
    return [min(max(math.ceil(math.log2(c / base)), 0), most) if c > 0 else 0 for c in columns]


def assert_default_stage(network: Network, name: str, expected: dict[str, Any]) -> None:
    node, lif = node_of(network, name, Synapses), reader(network, name)
    assert np.array_equal(node.weights, expected["weights"]) and node.exponent == expected["exponent"]
    assert np.array_equal(lif.threshold, expected["threshold"]) and lif.bias_exponent == expected["shift"]
    assert np.array_equal(lif.bias_mantissa, expected["mantissa"])


def assert_default_writer(network: Network, name: str, expected: tuple[list[list[int]], int, list[int]]) -> None:
    weights, exponent, bias = expected
    residual = next(other for other in network.of_kind(Residual) if other.sources[-1] == name)
    node = node_of(network, name, Synapses)
    assert np.array_equal(node.weights, weights) and node.exponent == exponent
    assert np.array_equal(residual.bias, bias)


def assert_default_window(network: Network, name: str, attention: FoldedAttention, threshold: float) -> None:
    bias, node = present(attention.positional_bias), network[name]
    assert isinstance(node, (Window, PlacedWindow))
    units = min(math.floor(threshold * 127 / np.abs(bias).max()), 131071)
    expected = np.array([round(b * units / threshold) for b in bias.ravel().tolist()]).reshape(bias.shape)
    if isinstance(node, PlacedWindow):
        expected = lag_rows(expected, attention.window)
    assert np.array_equal(node.weights, expected) and (reader(network, name).threshold == units).all()


def assert_default_readout(folded: FoldedModel, readout: Readout, bits: int, unit: float) -> None:
    strongest = [max(abs(w) for w in row) for row in folded.head.weight.tolist()]
    strongest = [max(strongest)] * len(strongest) if folded.discrete else strongest
    for n, row in enumerate(folded.head.weight.tolist()):
        scale = strongest[n] / (2 ** (bits - 1) - 1)
        assert readout.weights[n].tolist() == [round(w / scale) for w in row]
        accumulator = scale * unit * 2.0**readout.shift / folded.ticks
        assert readout.scale[n] == accumulator
        assert readout.bias[n] == round(float(folded.head.bias[n]) / accumulator)


def assert_default_host(embed: NormedEmbedding, codec: InputCodec, network: Network, unit: float) -> None:
    """The host embedding has the trained numbers, the residual's unit, and the fewest bits that never clip."""
    node, first = network.nodes[:2]
    assert isinstance(node, HostEmbedding) and isinstance(first, Residual)
    assert first.sources == (node.name,) and not first.bias.any() and node.unit.tolist() == [unit] * node.size
    for mine, theirs in (
        (node.matrix, embed.matrix),
        (node.linear_bias, embed.linear_bias),
        (node.norm_gain, embed.gain),
        (node.norm_bias, embed.bias),
    ):
        assert np.array_equal(mine, theirs)
    assert np.array_equal(node.offset, codec.offset) and np.array_equal(node.step, codec.step)
    assert (node.input_bits, node.epsilon) == (codec.bits, embed.epsilon)
    largest = max(abs(g) * math.sqrt(node.size - 1) + abs(b) for g, b in zip(embed.gain, embed.bias)) / unit
    assert 2 ** (node.bits - 2) - 1 <= largest + 1 and largest <= 2 ** (node.bits - 1) - 1


def assert_default_integers(folded: FoldedModel, network: Network, bits: int) -> None:
    """Every array of a default export equals the plain formulas."""
    unit = folded.threshold / threshold_units(network)
    if isinstance(folded.embed, Affine):
        shifts = plain_shifts(folded.embed, folded.codec.bits, bits)
        assert network.encoder.shift.tolist() == shifts
        embed = Affine(folded.embed.weight / 2.0 ** np.array(shifts), folded.embed.bias)
        assert_default_writer(network, "embed", plain_residual(embed, bits, unit))
    else:
        assert_default_host(folded.embed, folded.codec, network, unit)
    for index, block in enumerate(folded.blocks):
        name, mlp = f"blocks.{index}.attention", f"blocks.{index}.mlp"
        if (attention := block.attention) is not None:
            assert_default_stage(network, f"{name}.qkv", plain_lif(attention.qkv, bits, folded.threshold))
            assert_default_writer(network, f"{name}.project", plain_residual(attention.project, bits, unit))
            if attention.positional_bias is not None:
                assert_default_window(network, f"{name}.window", attention, folded.threshold)
        assert_default_stage(network, f"{mlp}.expand", plain_lif(block.expand, bits, folded.threshold))
        assert_default_writer(network, f"{mlp}.contract", plain_residual(block.contract, bits, unit))
    assert_default_readout(folded, network.readout, bits, unit)


@settings(max_examples=40, deadline=None)
@given(sizes=exportable(), bits=st.integers(2, 8))
def test_default_export_follows_the_plain_formulas_bit_for_bit(sizes: dict[str, Any], bits: int) -> None:
    folded = fold(random_model(**sizes))
    network = quantize(folded, "hopper", bits)
    assert_default_integers(folded, network, bits)
    units = threshold_units(network)
    for lif in network.of_kind(LIF):
        assert not lif.name.endswith(".input_lif") or (lif.threshold == units).all()
    if units < 4096:  # the unit is the finest that can be
        with pytest.raises(NetworkError, match=r"could overflow|exponent"):
            quantize(folded, "hopper", bits, threshold_units=2 * units)
    if (shift := network.readout.shift) > 0:  # and so is the readout's shift
        scale = network.readout.scale / 2
        bias = np.rint(folded.head.bias / scale).astype(np.int32)
        with pytest.raises(NetworkError):
            finer = dataclasses.replace(network.readout, shift=shift - 1, bias=bias, scale=scale)
            require_no_overflow(dataclasses.replace(network, nodes=(*network.nodes[:-1], finer)))

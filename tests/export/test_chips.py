"""Limits of chips: every figure has a source, every violation is found, and all of them at once."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Encoder, NetworkError, Outer, Residual, Synapses
from dsf.export.placement.chips import (
    CHIPS,
    DEFAULT_CHIP,
    LOIHI_1,
    LOIHI_2,
    NO_LIMITS,
    Chip,
    Figure,
    Grade,
    Violation,
    checked,
    get_chip,
    stored_weight_bits,
    unchecked,
    verdict,
    violations,
)
from dsf.export.placement.placement import place
from dsf.shell.errors import UserError
from dsf.testing.narrowed import node_of
from dsf.testing.random_networks import exportable, random_network
from dsf.train.quantization.integers import DECAY_BITS

FIXED = ("Encoder", "HostEmbedding", "Synapses", "LIF", "Readout")


def strict(value: int) -> Figure:
    """A limit of a chip that does not exist."""
    return Figure(value, "inferred", "a test's own chip")


def replaced(network: Network, name: str, **fields: Any) -> Network:
    """The network with some fields of one node changed."""
    nodes = (dataclasses.replace(node, **fields) if node.name == name else node for node in network.nodes)
    return dataclasses.replace(network, nodes=tuple(nodes))


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_every_figure_has_a_source_and_a_grade(chip: Any) -> None:
    for name, figure in chip.figures():
        assert figure.source, name
        assert (figure.grade is None) == (figure.value is None), name
    assert json.loads(json.dumps(chip.to_json()))["cores"]["value"] == chip.cores.value
    assert get_chip(chip.name) is chip


def test_unknown_chip() -> None:
    with pytest.raises(UserError, match="unknown chip 'loihi3': choose one of loihi1, loihi2"):
        get_chip("loihi3")
    assert get_chip(DEFAULT_CHIP) is LOIHI_2


@settings(max_examples=25, deadline=None)
@given(exportable())
def test_loihi_2_takes_what_can_be_exported(sizes: dict[str, Any]) -> None:
    """But for a membrane that forgets everything: 4096 needs 13 bits where 12 are published."""
    network = random_network(**sizes)
    forgets = {node.name for node in network.of_kind(LIF) if node.decays.max() == 1 << DECAY_BITS}
    assert {(found.node, found.rule) for found in violations(network, LOIHI_2)} == {
        (name, "decay bits") for name in forgets
    }


def test_only_what_is_published_binds() -> None:
    grades: tuple[Grade, ...] = ("published", "vendor brief", "inferred", "inferred", "inferred")
    found = [Violation("node", "rule", 2, 1, grade) for grade in grades]
    assert [item.binds for item in found] == [True, True, False, False, False]
    looked_at = "; 6 published and 6 inferred ones checked, 17 not checked"
    assert verdict(found, LOIHI_2) == f"2 published limits broken, and 3 inferred ones{looked_at}"
    assert verdict(found[:2], LOIHI_2) == f"2 published limits broken{looked_at}"
    assert verdict([], LOIHI_2) == f"0 published limits broken{looked_at}"
    assert verdict([], LOIHI_1).endswith("; 18 published and 1 inferred ones checked, 3 not checked")


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_what_is_said_to_be_checked_is_noticed(chip: Chip) -> None:
    """A limit that no network keeps breaks a rule or moves neurons, for every limit that counts as checked."""
    network = random_network(0)
    absurd = {"programmable": 0, "weight_exponent_min": 100, "cores": 1, "neurons_per_core": 3}
    for name in checked(chip):
        limit: dict[str, Any] = {name: strict(absurd.get(name, -1))}
        tight = dataclasses.replace(chip, **limit)
        assert violations(network, tight) != violations(network, chip) or moved(network, tight, chip), name
    known = {name for name, figure in chip.figures() if figure.value is not None}
    assert known - set(checked(chip)) <= set(NO_LIMITS)


def moved(network: Network, tight: Chip, chip: Chip) -> bool:
    """Whether the placement on another chip is another one, or none."""
    try:
        one, other = (place(network, each) for each in (tight, chip))
        return (one.chips, len(one.cores)) != (other.chips, len(other.cores))
    except NetworkError:
        return True


@settings(max_examples=25, deadline=None)
@given(exportable())
def test_loihi_1_lacks_programs_and_payloads(sizes: dict[str, Any]) -> None:
    network = random_network(**sizes)
    found = violations(network, LOIHI_1)
    programs = {item.node for item in found if item.rule == "programmable neurons"}
    payloads = {item.node for item in found if item.rule == "graded spike bits"}
    assert programs == {node.name for node in network.nodes if type(node).__name__ not in FIXED}
    assert {network.encoder.name, *(node.name for node in network.of_kind(Residual))} <= payloads
    assert not payloads & {node.name for node in network.of_kind(LIF)}


@settings(max_examples=15, deadline=None)
@given(exportable(), st.integers(2, 8), st.integers(4, 12), st.integers(2, 13))
def test_all_violations_at_once(sizes: dict[str, Any], weight_bits: int, threshold_bits: int, bias_bits: int) -> None:
    """Against widths counted from the arrays, for chips narrower than any real one."""
    network = random_network(**sizes)
    figures = {"weight_bits": weight_bits, "threshold_bits": threshold_bits, "bias_mantissa_bits": bias_bits}
    strictly: dict[str, Any] = {name: strict(value) for name, value in figures.items()}
    chip = dataclasses.replace(LOIHI_2, **strictly)
    expected = set()
    for node in network.nodes:
        if isinstance(node, Synapses) and not fits(node.weights, weight_bits):
            expected.add((node.name, "weight bits", weight_bits))
        if isinstance(node, LIF) and (node.threshold >= 2**threshold_bits).any():
            expected.add((node.name, "threshold bits", threshold_bits))
        if isinstance(node, LIF) and (np.abs(node.bias_mantissa.astype(int)) >= 2 ** (bias_bits - 1)).any():
            expected.add((node.name, "bias mantissa bits", bias_bits))
    found = {(item.node, item.rule, item.limit) for item in violations(network, chip) if item.rule != "decay bits"}
    assert found == expected
    unknown: dict[str, Any] = {name: Figure(None, None, "unknown") for name in figures}
    loose = dataclasses.replace(chip, **unknown)
    assert not {item.rule for item in violations(network, loose)} - {"decay bits"}
    assert {name.replace("_", " ") for name in figures} <= set(unchecked(loose))


def fits(weights: np.ndarray, bits: int) -> bool:
    """Whether weights fit a stored width; there is no format of 7 bits."""
    largest = int(np.abs(weights.astype(int)).max())
    return largest < 2 ** ((6 if bits == 7 else bits) - 1)


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [(8, None), (9, (8, 7)), (-7, None), (-8, (-9, -8))],
    ids=["highest", "too high", "lowest", "too low"],
)
def test_weight_exponent(exponent: int, expected: tuple[int, int] | None) -> None:
    """A weight of 8 bits and mixed sign is stored doubled, so the chip's exponent is one lower."""
    name = "blocks.0.mlp.expand"
    network = replaced(random_network(0, blocks=1), name, exponent=exponent)
    assert stored_weight_bits(node_of(network, name, Synapses).weights) == 8
    found = [item for item in violations(network, LOIHI_1) if item.rule == "weight exponent"]
    assert found == ([] if expected is None else [Violation(name, "weight exponent", *expected, "published")])


def test_narrow_weights_need_a_lower_exponent() -> None:
    name = "blocks.0.mlp.expand"
    network = replaced(random_network(0, bits=4, blocks=1), name, exponent=9)
    assert stored_weight_bits(node_of(network, name, Synapses).weights) == 4
    assert "weight exponent" not in {item.rule for item in violations(network, LOIHI_1)}


def test_payload_of_the_encoder() -> None:
    network = random_network(0, blocks=1)
    largest = max(network.encoder.limit << int(shift) for shift in network.encoder.shift)
    bits = len(f"{largest:b}") + 1
    assert {item.node: item.found for item in violations(network, LOIHI_1) if item.rule == "graded spike bits"}[
        "encoder"
    ] == bits
    wide = dataclasses.replace(LOIHI_2, graded_bits=strict(bits))
    narrow = dataclasses.replace(LOIHI_2, graded_bits=strict(bits - 1))
    for chip, refused in ((wide, False), (narrow, True)):
        assert any(item.node == "encoder" for item in violations(network, chip)) is refused
    assert isinstance(network["encoder"], Encoder)


def test_payload_of_every_sender_with_history() -> None:
    network = random_network(0, blocks=1, attention="tssa")
    senders = {item.node for item in violations(network, LOIHI_1) if item.rule == "graded spike bits"}
    assert {node.name for node in network.of_kind(Outer)} <= senders


@pytest.mark.parametrize(
    ("synapses", "weight_bits", "words"),
    [(1, 2, 1), (6, 8, 1), (7, 8, 2), (64, 8, 9), (65, 8, 10), (128, 8, 18), (0, 8, 0)],
)
def test_synapse_words_of_loihi_1(synapses: int, weight_bits: int, words: int) -> None:
    """Blocks of 64 synapses, 10 bits of header each, in words of 64 bits."""
    assert LOIHI_1.row_bits(synapses, weight_bits) == 64 * words
    assert LOIHI_2.row_bits(synapses, weight_bits) == synapses * weight_bits

"""Descriptions of networks and the differences between two of them."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from rich.console import Console

from dsf.export.inspect import describe_nodes, inspect_network, print_network
from dsf.export.network.bounds import require_no_overflow
from dsf.export.network.difference import ABSENT, HEADER, compare_networks, print_differences
from dsf.export.network.file import file_digest, read_network, write_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Readout, Synapses
from dsf.export.placement.chips import CHIPS, LOIHI_1, LOIHI_2, verdict, violations
from dsf.export.placement.placement import place
from dsf.runtime.artifacts import network_path
from dsf.testing.narrowed import node_of
from dsf.testing.random_networks import exportable, random_network


def printed(show: Any, *arguments: Any) -> str:
    """What a printer writes on a wide page."""
    page = io.StringIO()
    show(*arguments[:1], Console(file=page, width=400), *arguments[1:])
    return page.getvalue()


@settings(max_examples=25, deadline=None)
@given(exportable())
def test_descriptions(sizes: dict[str, Any]) -> None:
    network = random_network(**sizes)
    placement = place(network, LOIHI_2)
    nodes = describe_nodes(network, placement)
    assert [item["name"] for item in nodes] == [node.name for node in network.nodes]
    assert json.loads(json.dumps(nodes)) == nodes
    for node, item in zip(network.nodes, nodes):
        assert item["kind"] == type(node).__name__
        if isinstance(node, (Synapses, Readout)):
            assert item["synapses"] == np.prod(item["shape"]) == node.weights.size
            assert (np.abs(node.weights.astype(int)) < 2 ** (item["weight_bits"] - 1)).all()
            assert item["zero_share"] * node.weights.size == pytest.approx((node.weights == 0).sum())
        if isinstance(node, LIF):
            assert (item["threshold_min"], item["threshold_max"]) == (node.threshold.min(), node.threshold.max())
        assert (item["cores"] or 0) == len(placement.cores_of(node.name))
    margins = [item["margin"] for item in nodes if item["margin"] is not None]
    assert min(margins) == require_no_overflow(network).margin
    assert all(item["cores"] is None for item in describe_nodes(network))


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_shipped_network_is_printed(chip: Any) -> None:
    network, digest = read_network(network_path()), file_digest(network_path())
    text = printed(print_network, network, chip, digest)
    for expected in (
        f"task {network.task}, T {network.ticks}, K {network.context}, target return {network.target_return:g}",
        network.provenance["dataset"]["id"],
        f"sha256 {digest}",
        f"{chip.title}: {len(place(network, chip).cores)} cores",
        *(node.name for node in network.nodes),
        *(rung["summary"] for rung in network.verification["rungs"]),
        *(f"{item.rule} " for item in violations(network, chip)),
        verdict(violations(network, chip), chip),
    ):
        assert expected in text
    found = inspect_network(network, chip, digest)
    assert json.loads(json.dumps(found)) == found
    assert found["totals"]["neurons"] == found["placement"]["totals"]["neurons"]
    assert len(found["violations"]) == len(violations(network, chip))


def test_a_network_that_nothing_is_known_of() -> None:
    network = random_network(0, blocks=1)
    text = printed(print_network, network)
    assert "from nothing recorded" in text
    assert "no verification is stored" in text
    assert "sha256" not in text and "cores" not in text
    assert "violations" not in inspect_network(network)


def test_text_from_a_file_is_no_markup() -> None:
    """Provenance and ladder are anybody's text: rich must not read tags in them."""
    text = "[red]x[/nonsense]"
    network = dataclasses.replace(random_network(0, blocks=1), provenance={"dataset": {"id": text}})
    network = network.with_verification({"rungs": [{"name": text, "passed": "maybe", "summary": text}]})
    shown = printed(print_network, network, LOIHI_1)
    assert f"dataset {text}" in shown and shown.count(text) == 3


@settings(max_examples=15, deadline=None)
@given(exportable())
def test_equal_networks_do_not_differ(sizes: dict[str, Any]) -> None:
    assert compare_networks(random_network(**sizes), random_network(**sizes)) == []


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    network = dataclasses.replace(
        random_network(0, blocks=1), provenance={"score": float("nan"), "seeds": [1, 2]}, target_return=3.5
    )
    write_network(network, tmp_path / "a.dsf.h5")
    differences = compare_networks(network, read_network(tmp_path / "a.dsf.h5"))
    assert differences == []
    assert "equal" in printed(print_differences, differences)


def changed(network: Network, name: str, **fields: Any) -> Network:
    nodes = (dataclasses.replace(node, **fields) if node.name == name else node for node in network.nodes)
    return dataclasses.replace(network, nodes=tuple(nodes))


def test_every_difference_is_named() -> None:
    first = dataclasses.replace(random_network(0, blocks=1), provenance={"model": {"width": 12}, "seeds": [1, 2]})
    weights = copy.deepcopy(node_of(first, "blocks.0.mlp.expand", Synapses).weights)
    weights[0, :3] = np.where(weights[0, :3] > 0, weights[0, :3] - 7, weights[0, :3] + 7)
    second = changed(first, "blocks.0.mlp.expand", weights=weights, exponent=3)
    second = dataclasses.replace(
        second, context=9, target_return=1.0, provenance={"model": {"width": 12, "blocks": 1}, "seeds": [1, 3]}
    )
    found = {(item.where, item.field): item for item in compare_networks(first, second)}
    assert set(found) == {
        (HEADER, "context"),
        (HEADER, "target_return"),
        (HEADER, "provenance.model.blocks"),
        (HEADER, "provenance.seeds.1"),
        ("blocks.0.mlp.expand", "weights"),
        ("blocks.0.mlp.expand", "exponent"),
    }
    array = found["blocks.0.mlp.expand", "weights"]
    assert (array.first, array.entries, array.of_entries, array.largest) == ([24, 12], 3, 288, 7.0)
    assert found[HEADER, "provenance.model.blocks"].first == ABSENT
    assert found["blocks.0.mlp.expand", "exponent"].second == 3
    text = printed(print_differences, list(found.values()))
    assert "3 of 288 entries differ, by 7 at most" in text
    assert all(field in text for _, field in found)
    json.dumps([item.to_json() for item in found.values()])


def test_other_architectures() -> None:
    """Missing and added nodes, other kinds under one name, other shapes: seen from both sides."""
    first, second = random_network(0, blocks=1), random_network(0, blocks=2, attention="sdsa1", width=8)
    there, back = compare_networks(first, second), compare_networks(second, first)
    assert {(item.where, item.field) for item in there} == {(item.where, item.field) for item in back}
    found = {(item.where, item.field): item for item in there}
    assert found["blocks.0.attention.window", "node"].second == ABSENT
    assert found["blocks.0.attention.count", "node"].first == ABSENT
    assert found["blocks.1.mlp.expand", "node"].second == "Synapses"
    shapes = found["embed", "weights"]
    assert (shapes.first, shapes.second, shapes.entries) == ([12, 6], [8, 6], None)
    assert found["readout", "source"].second == "residual.2"


def test_other_kinds_and_orders() -> None:
    first = random_network(0, blocks=1, attention="pssa", positional_bias="relative")
    second = random_network(0, blocks=1, attention="pssa", positional_bias="full")
    window = next(item for item in compare_networks(first, second) if item.where == "blocks.0.attention.window")
    assert (window.field, window.first, window.second) == ("kind", "Window", "PlacedWindow")
    embed = first.nodes[1]
    twin = dataclasses.replace(embed, name="twin")
    one = dataclasses.replace(first, nodes=(first.nodes[0], embed, twin, *first.nodes[2:]))
    other = dataclasses.replace(first, nodes=(first.nodes[0], twin, embed, *first.nodes[2:]))
    assert [item.field for item in compare_networks(one, other)] == ["order of nodes"]

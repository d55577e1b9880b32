"""The torch target equals the reference, bit for bit, in memory and from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.network.nodes import SPIKING_KINDS, NetworkError
from dsf.export.network.reference import WindowReference, decode, replay_window
from dsf.export.targets.torch_module import IntegerNetwork, read_torch, write_torch
from dsf.testing.random_networks import exportable, random_network, random_tokens


@settings(max_examples=60, deadline=None)
@given(sizes=exportable(), bits=st.integers(2, 8), data=st.data())
def test_every_spike_and_accumulator_of_a_window(sizes: dict[str, Any], bits: int, data: st.DataObject) -> None:
    network = random_network(bits=bits, **sizes)
    length = data.draw(st.integers(1, network.context))
    graded = random_tokens(network, length, 3, sizes["seed"])
    absent = np.array([0, length - 1, data.draw(st.integers(0, length - 1))])
    exists: Any = np.arange(length)[:, None] >= absent
    expected: dict[str, np.ndarray] = {}
    observed: dict[str, np.ndarray] = {}
    truth = replay_window(network, graded, exists, expected.__setitem__)
    module = IntegerNetwork(network)
    answers = module.decide(
        torch.from_numpy(graded).transpose(0, 1),
        torch.from_numpy(exists.T),
        lambda name, values: observed.__setitem__(name, values.numpy()),
    )
    there = exists.T
    assert np.array_equal(answers.numpy()[there], truth.swapaxes(0, 1)[there])
    for node in network.nodes:
        if isinstance(node, SPIKING_KINDS):
            assert np.array_equal(observed[node.name][:, exists], expected[node.name][:, exists]), node.name


def test_forward_decides_as_the_closed_loop_does() -> None:
    for discrete in (False, True):
        network = random_network(4, attention="tssa", discrete=discrete, context=5)
        engine, module = WindowReference(network), IntegerNetwork(network)
        vectors = np.random.default_rng(0).normal(0.0, 2.0, (7, 6))
        for step in range(7):
            wanted = decode(network.readout, engine.step(vectors[step : step + 1]))[0]
            window = torch.from_numpy(vectors[max(0, step - 4) : step + 1])[None]
            assert np.allclose(module(window)[0, -1].numpy(), wanted, rtol=1e-12, atol=1e-15)


@settings(max_examples=20, deadline=None)
@given(sizes=exportable(), bits=st.integers(2, 8))
def test_file_round_trip(tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, Any], bits: int) -> None:
    network = random_network(bits=bits, **sizes)
    path = tmp_path_factory.mktemp("torch") / "network.safetensors"
    write_torch(network, path)
    loaded = read_torch(path)
    tokens = random_tokens(network, network.context, 2, 0).swapaxes(0, 1)
    ours = IntegerNetwork(network)
    assert torch.equal(loaded.decide(torch.from_numpy(tokens)), ours.decide(torch.from_numpy(tokens)))
    assert loaded.network.nodes[0].name == network.encoder.name and len(loaded.network.nodes) == len(network.nodes)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_damage_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    with pytest.raises(NetworkError, match="cannot read"):
        read_torch(path)
    write_torch(random_network(0), path)
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for position in generator.integers(0, len(content), 300).tolist():
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(NetworkError):
            read_torch(path)
    for damaged in (content[:100], content[: len(content) // 2], b"", b"x" * 500):
        path.write_bytes(damaged)
        with pytest.raises(NetworkError, match=r"cannot read.*export it again"):
            read_torch(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_is_refused(value: float) -> None:
    module, vectors = IntegerNetwork(random_network(0)), torch.zeros(2, 4, 6, dtype=torch.float64)
    vectors[1, 0, 3] = value
    with pytest.raises(NetworkError, match="not finite"):
        module(vectors)
    exists = torch.ones(2, 4, dtype=torch.bool)
    exists[1, 0] = False
    assert torch.isfinite(module(vectors, exists)[exists]).all()


def test_a_header_of_wrong_types_is_refused_with_file_and_field(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    for field, value in (("ticks", 4.5), ("verification", 3), ("target_return", "abc")):
        network = random_network(0)
        object.__setattr__(network, field, value)
        write_torch(network, path)
        with pytest.raises(NetworkError, match=rf"{path}: network: {field} is {value!r}, expected"):
            read_torch(path)
    object.__setattr__(network := random_network(0), "context", 8)
    object.__setattr__(network["embed"], "exponent", -5.9)
    write_torch(network, path)
    with pytest.raises(NetworkError, match=rf"{path}: embed: exponent is -5.9, expected a whole number"):
        read_torch(path)


def test_a_window_longer_than_the_context_is_refused() -> None:
    with pytest.raises(NetworkError, match="context is 8"):
        IntegerNetwork(random_network(0)).decide(torch.zeros(1, 9, 6))

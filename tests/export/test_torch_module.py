"""The torch target equals the reference, bit for bit, in memory and from its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from dsf.export.network.difference import compare_networks
from dsf.export.network.nodes import SPIKING_KINDS, NetworkError, Readout, Synapses
from dsf.export.network.reference import WindowReference, decode, replay_window
from dsf.export.targets.torch_module import DIGEST_KEY, HEADER_KEY, IntegerNetwork, digest, read_torch, write_torch
from dsf.testing.random_networks import exportable, random_network, random_tokens, sparser


@pytest.mark.slow
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


def test_sparse_weights_are_kept_without_zeros(tmp_path: Path) -> None:
    network, sizes = random_network(3, width=48), []
    for zeros in (0.0, 0.9, 1.0):
        path, written = tmp_path / "network.safetensors", sparser(network, zeros)
        write_torch(written, path)
        loaded = read_torch(path)
        assert compare_networks(written, loaded.network) == []
        tokens = random_tokens(written, written.context, 2, 0)
        answers = loaded.decide(torch.from_numpy(tokens).transpose(0, 1)).numpy()
        assert np.array_equal(answers, replay_window(written, tokens).swapaxes(0, 1))
        sizes.append(path.stat().st_size)
    weights = sum(node.weights.size for node in network.nodes if isinstance(node, (Synapses, Readout)))
    assert sizes[0] - sizes[1] > 0.6 * weights > 0 < sizes[1] - sizes[2]


def forged_rows(path: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], Any]) -> None:
    """Change the arrays of a file and its embedding's scalars, and give it a fitting digest."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (no mapping)
        header = json.loads(file.metadata()[HEADER_KEY])
    change(arrays, header["nodes"][1])
    text = json.dumps(header)
    save_file(arrays, path, {HEADER_KEY: text, DIGEST_KEY: digest(text, arrays)})


COLUMNS, STARTS = "embed:weights.columns", "embed:weights.starts"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays, _: arrays[COLUMNS].fill(77), "a column is 77, of 6 inputs"),
        (lambda arrays, _: arrays[COLUMNS].fill(1), "the columns of a row do not ascend, or one is there twice"),
        (lambda arrays, _: arrays.update({COLUMNS: arrays[COLUMNS].astype(np.uint32)}), "columns has dtype uint32"),
        (lambda arrays, _: arrays.update({COLUMNS: arrays[COLUMNS][None]}), "columns has 2 axes, expected 1"),
        (lambda arrays, _: arrays[STARTS].fill(0), "starts do not ascend from 0"),
        (lambda _, node: node.update(weights_inputs=1 << 40), "number of inputs is 1099511627776, limit 65,536"),
        (lambda _, node: node.update(weights_inputs="6"), "inputs is '6', expected a whole number"),
        (lambda arrays, _: arrays.pop(STARTS), "cannot read .* as a torch target"),
        (lambda _, node: node.pop("weights_inputs"), "cannot read .* as a torch target"),
    ],
)
def test_forged_sparse_weights_are_one_line(change: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    write_torch(sparser(random_network(0), 0.65), path)
    forged_rows(path, change)
    with pytest.raises(NetworkError, match=said) as refusal:
        read_torch(path)
    assert str(path) in str(refusal.value) and str(refusal.value).isprintable()


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

"""The network file: round trip, damage, atomic writes."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dsf.export.network.difference import compare_networks
from dsf.export.network.file import FORMAT_VERSION, SEAL, read_network, write_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, NetworkError, Readout, Synapses
from dsf.export.network.sealed import USER_BLOCK_BYTES, VERSION_LINE
from dsf.testing.random_networks import random_network, sparser


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A written network."""
    file = tmp_path / "net.dsf.h5"
    write_network(random_network(0), file)
    return file


def test_round_trip(path: Path) -> None:
    network, loaded = random_network(0), read_network(path)
    assert (loaded.task, loaded.ticks, loaded.context) == (network.task, network.ticks, network.context)
    assert len(loaded.nodes) == len(network.nodes)
    for before, after in zip(network.nodes, loaded.nodes):
        assert type(before) is type(after)
        for item in dataclasses.fields(before):
            left, right = getattr(before, item.name), getattr(after, item.name)
            assert np.array_equal(left, right) and type(left) is type(right)


def test_same_network_same_bytes(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.dsf.h5"
    write_network(random_network(0), again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("zeros", [0.0, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("sizes", [{}, {"width": 1, "features": 1}, {"width": 300, "features": 260, "blocks": 1}])
def test_sparse_matrices_come_back_and_only_they_need_a_newer_format(
    zeros: float, sizes: dict[str, Any], tmp_path: Path
) -> None:
    """Of random networks 8-bit weights are hardly ever 0, so a share of 0 leaves them dense."""
    network, file = sparser(random_network(0, **sizes), zeros), tmp_path / "net.dsf.h5"
    write_network(network, file)
    assert compare_networks(network, read_network(file)) == []
    matrices = {node.name: node.weights for node in network.nodes if isinstance(node, (Synapses, Readout))}
    with h5py.File(file) as opened:
        stored = {group.attrs["name"]: group["weights"] for group in opened["nodes"].values() if "weights" in group}
        header = json.loads(bytes(opened["header"][()]))
        sparse = {name for name in matrices if isinstance(stored[name], h5py.Group)}
        for name in sparse:
            taken = sum(stored[name][part].nbytes for part in ("values", "columns", "starts"))
            assert taken < matrices[name].size
            assert stored[name]["columns"].dtype.itemsize == (1 if matrices[name].shape[1] <= 256 else 2)
    assert sparse == {name for name, weights in matrices.items() if smaller_without_zeros(weights)}
    assert header["format"] == (3 if sparse else 2)
    assert (zeros > 0 and matrices["embed"].size > 1) == bool(sparse)


def smaller_without_zeros(weights: np.ndarray) -> bool:
    """A weight and its column for each that is not 0, and where each row starts, against all of them."""
    kept, (neurons, inputs) = np.count_nonzero(weights), weights.shape
    width = {largest: 1 if largest < 256 else 2 if largest < 65_536 else 4 for largest in (kept, inputs - 1)}
    return int(kept * (1 + width[inputs - 1]) + (neurons + 1) * width[kept]) < weights.size


@pytest.mark.slow
def test_ten_thousand_flipped_bytes_and_truncations_are_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    damaged = tmp_path / "damaged.dsf.h5"
    damaged.write_bytes(content)
    with damaged.open("r+b", buffering=0) as file:  # one byte at a time: a whole file each would wait for the disk
        for position in [*range(512), *generator.integers(0, len(content), 8_500).tolist()]:
            flipped = content[position] ^ int(generator.integers(1, 256))
            os.pwrite(file.fileno(), bytes([flipped]), position)
            with pytest.raises(NetworkError):
                read_network(damaged)
            os.pwrite(file.fileno(), content[position : position + 1], position)
    assert damaged.read_bytes() == content
    for length in [0, 1, 511, 512, 513, *generator.integers(0, len(content), 1_000).tolist()]:
        damaged.write_bytes(content[:length])
        with pytest.raises(NetworkError):
            read_network(damaged)


def sign(path: Path, version: int | None = None) -> None:
    """Give an altered file a fitting digest: the work of someone who means harm. None is the version that it had."""
    content = path.read_bytes()
    stated = VERSION_LINE.search(content, 0, USER_BLOCK_BYTES)
    assert stated is not None
    version = int(stated.group(1)) if version is None else version
    path.write_bytes(SEAL.user_block(content[USER_BLOCK_BYTES:], version) + content[USER_BLOCK_BYTES:])


WRONG_HEADERS = {
    "ticks": (4.5, True, "4", None, 0),
    "context": (float("inf"), float("nan"), [], -1),
    "nodes": (2.5, "all"),
    "task": (7, None),
    "provenance": ([], 3, "x"),
    "verification": (3, [1]),
    "target_return": ("abc", float("inf"), float("nan"), True),
    "format": (1, "2", None),
}


@pytest.mark.slow
@pytest.mark.parametrize(("field", "value"), [(name, value) for name in WRONG_HEADERS for value in WRONG_HEADERS[name]])
def test_a_signed_header_of_wrong_types_names_file_and_field(path: Path, field: str, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        header = json.loads(bytes(file["header"][()]))
        del file["header"]
        text = json.dumps({**header, field: value}).encode()
        file.create_dataset("header", data=np.frombuffer(text, np.uint8))
    sign(path)
    with pytest.raises(NetworkError, match=rf"^{path}: .*{field} is {re.escape(repr(value))}") as refusal:
        read_network(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("node", "field", "value"), [(1, "exponent", -5.9), (1, "exponent", "3"), (1, "source", 4), (2, "sources", "[4]")]
)
def test_a_signed_node_of_wrong_types_names_file_and_field(path: Path, node: int, field: str, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        file[f"nodes/{node:04d}"].attrs[field] = value
    sign(path)
    with pytest.raises(NetworkError, match=rf"^{path}: /nodes/{node:04d}: {field} is .*expected"):
        read_network(path)


def test_a_file_of_a_newer_version_says_so(path: Path) -> None:
    sign(path, version=FORMAT_VERSION + 1)
    with pytest.raises(NetworkError, match=rf"^{path} has format 4, this dsf reads 1, 2 and 3"):
        read_network(path)


def test_errors_of_nodes_and_of_the_overflow_proof_name_the_file(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["nodes/0001"].attrs["exponent"] = 40
    sign(path)
    with pytest.raises(NetworkError, match=rf"^{path}: network node 'embed': exponent is 40"):
        read_network(path)


def test_a_node_that_does_not_exist_is_a_network_error() -> None:
    with pytest.raises(NetworkError, match=r"there is no node 'blocks\.9'"):
        random_network(0)["blocks.9"]


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, (str(self.proof), "w")


def plant_pickle(group: h5py.Group, proof: Path) -> None:
    del group["weights"]
    group.create_dataset("weights", data=np.void(pickle.dumps(Payload(proof))))


def plant_link(group: h5py.Group, proof: Path) -> None:
    del group["weights"]
    group["weights"] = h5py.ExternalLink(str(proof), "/weights")


def plant_external(group: h5py.Group, proof: Path) -> None:
    del group["weights"]
    group.create_dataset("weights", (12, 6), np.int8, external=[(str(proof), 0, 72)])


def plant_giant(group: h5py.Group, proof: Path) -> None:
    del group["weights"]
    group.create_dataset("weights", (1 << 20, 1 << 20), np.int8, chunks=(1, 1 << 20))


def plant_kind(group: h5py.Group, proof: Path) -> None:
    group.attrs["kind"] = "__import__('os').system('touch ' + str(proof))"


def plant_group(group: h5py.Group, proof: Path) -> None:
    del group["weights"]
    group.create_group("weights")


@pytest.mark.parametrize("plant", [plant_pickle, plant_link, plant_external, plant_giant, plant_kind, plant_group])
def test_a_signed_malicious_file_runs_nothing_and_is_refused(path: Path, tmp_path: Path, plant: Any) -> None:
    proof = tmp_path / "proof"
    with h5py.File(path, "r+") as file:
        plant(file["nodes/0001"], proof)
    sign(path)
    with pytest.raises(NetworkError):
        read_network(path)
    assert not proof.exists()


FORBIDDEN = re.compile(
    r"^\s*(import|from)\b[^#\n]*\b(pickle|cloudpickle|dill|joblib|marshal|shelve)\b"
    r"|\btorch\.load\b|\bfrom torch\S* import\b[^#\n]*\bload\b|allow_pickle=True"
    r"|\byaml\.(unsafe_)?load\(|(?<![\w.])(eval|exec)\(",
    re.MULTILINE,
)
"""Unpicklers, and what evaluates text."""


@pytest.mark.parametrize(
    "line",
    [
        "import os, pickle",
        "    from pickle import loads",
        "from torch import load",
        "from torch import nn, load as read",
        "read = torch.load",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
    ],
)
def test_the_search_for_loaders_that_execute_code_finds_them(line: str) -> None:
    assert FORBIDDEN.search(f"x = 1\n{line}\n")


def test_no_loader_can_execute_code() -> None:
    """In no room."""
    source = Path(__file__).resolve().parents[2]
    for room in ("tasks", "train", "export", "hardware_models", "runtime"):
        for file in (source / room).rglob("*.py"):
            assert (match := FORBIDDEN.search(file.read_text())) is None, f"{file}: {match.group()}"


def test_network_that_could_overflow_is_refused_by_the_reader(path: Path) -> None:
    network = change(random_network(0), "residual.1", bias=np.full(12, 2**20, np.int32))
    write_network(network, path)
    with pytest.raises(NetworkError, match=rf"^{path}: node .*could overflow"):
        read_network(path)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"cannot read network file .*: No such file"):
        read_network(tmp_path / "none.dsf.h5")


def test_failed_write_leaves_the_old_file_and_no_litter(path: Path) -> None:
    before = path.read_bytes()
    network = dataclasses.replace(random_network(1), provenance={"not json": {1, 2}})
    with pytest.raises(TypeError):
        write_network(network, path)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


def change(network: Network, name: str, **fields: Any) -> Network:
    """The network with one node's fields replaced."""
    nodes = [dataclasses.replace(node, **fields) if node.name == name else node for node in network.nodes]
    return dataclasses.replace(network, nodes=tuple(nodes))


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("embed", {"weights": np.full((12, 6), 128)}, "weights leaves the range"),
        ("embed", {"weights": np.ones((12, 5), np.int8)}, "weights read 5 of 6 inputs"),
        ("embed", {"exponent": 40}, "exponent is 40"),
        ("blocks.0.attention.qkv_lif", {"threshold": np.zeros(36, np.int32)}, "not positive"),
        ("blocks.0.attention.qkv_lif", {"threshold": np.ones(36)}, "dtype float64"),
        ("blocks.0.attention.qkv_lif", {"bias_mantissa": np.full(36, 5000)}, "bias_mantissa leaves the range"),
        ("blocks.0.attention.qkv_lif", {"source": "nowhere"}, "'nowhere' is no earlier node"),
        ("blocks.0.attention.qkv_lif", {"source": "encoder"}, "source 'encoder' is a Encoder"),
        ("readout", {"scale": np.array([1.0, np.nan, 1.0])}, "scale is not positive"),
    ],
)
def test_networks_that_break_a_rule_name_node_and_field(name: str, fields: dict[str, object], words: str) -> None:
    with pytest.raises(NetworkError, match=f"{name}.*{words}"):
        change(random_network(0), name, **fields)


def test_integer_dtype_survives(path: Path) -> None:
    loaded = read_network(path)
    assert {node.weights.dtype for node in loaded.of_kind(Synapses)} == {np.dtype(np.int8)}
    assert {node.threshold.dtype for node in loaded.of_kind(LIF)} == {np.dtype(np.int32)}

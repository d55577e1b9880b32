"""Files of other targets that a stranger may have made: nothing is read from elsewhere, and nothing runs for ever."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dsf.export.network.network import Network
from dsf.export.network.nodes import NetworkError
from dsf.export.proof.rungs import random_proof_tokens
from dsf.export.proof.written import compare_written
from dsf.export.targets.onnx_graph import write_onnx
from dsf.export.targets.options import Target, TargetOptions
from dsf.export.targets.torch_module import DIGEST_KEY, HEADER_KEY, digest, read_torch, write_torch
from dsf.export.write import write_target
from dsf.testing.random_networks import random_network

HOPPER: dict[str, Any] = {"features": 15, "width": 8, "blocks": 1, "context": 6, "window": 3}


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network(0, **HOPPER)


def verify(target: Target, path: Path, network: Network) -> Any:
    return compare_written(target, path, network, None, random_proof_tokens(network, 8, seed=0))


def external_tensor(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def doubled(model: onnx.ModelProto) -> None:
    name = model.graph.node[0].output[0]
    for number in range(40):
        model.graph.node.append(helper.make_node("Concat", [name, name], [f"twice{number}"], axis=0))
        name = f"twice{number}"


def looped(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Loop", ["", "", ""], ["x"], body=helper.make_graph([], "b", [], [])))


def custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "somebody.else"


def padded(model: onnx.ModelProto) -> None:
    shape = helper.make_tensor("huge", TensorProto.INT64, [4], [0, 0, 1 << 40, 0])
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Pad", [model.graph.node[0].output[0], "huge"], ["x"]))


def without_output(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (external_tensor, "holds no data of its own, it names another file"),
        (doubled, "tensor 'twice.*numbers, limit"),
        (looped, "operator 'Loop' is none that dsf-export writes"),
        (custom, "is none that dsf-export writes"),
        (padded, "numbers, limit|nobody can tell the size"),
        (without_output, "is no ONNX graph, or is damaged|does not run as a graph"),
    ],
)
def test_an_onnx_graph_stays_within_its_file_and_its_network(
    network: Network, change: Callable[[onnx.ModelProto], None], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "forged.onnx"
    write_onnx(network, path, window=False)
    model = onnx.load_model_from_string(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(NetworkError, match=rf"^{path}.*({said})") as refusal:
        verify("onnx", path, network)
    assert str(refusal.value).isprintable()


def outside(file: h5py.File, elsewhere: Path) -> None:
    del file["node/nodes/embed/weight"]
    file["node/nodes/embed/weight"] = h5py.ExternalLink(str(elsewhere), "/x")


def foreign_bytes(file: h5py.File, elsewhere: Path) -> None:
    del file["node/nodes/embed/weight"]
    file.create_dataset("node/nodes/embed/weight", (8, 15), "f8", external=[(str(elsewhere), 0, 960)])


def convolution(file: h5py.File, _elsewhere: Path) -> None:
    file["node/nodes/embed/type"][()] = "Conv1d"


def unlisted(file: h5py.File, _elsewhere: Path) -> None:
    file["node/metadata/inexact"][()] = '{"a": 1}'


def steering(file: h5py.File, _elsewhere: Path) -> None:
    file["node/metadata/inexact"][()] = json.dumps(["\x1b[2J"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (outside, "/node/nodes/embed/weight is a link out of the file"),
        (foreign_bytes, "/node/nodes/embed/weight holds no data of its own"),
        (convolution, "its node 'embed' is 'Conv1d', which dsf-export does not write"),
        (unlisted, "metadata: inexact is .*expected a list of texts"),
        (steering, "metadata: inexact.* holds control characters"),
    ],
)
def test_a_nir_graph_stays_within_its_file(
    network: Network, change: Callable[[h5py.File, Path], None], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "forged.nir"
    write_target("nir", network, None, path, TargetOptions(partial=True))
    with h5py.File(path, "r+") as file:
        change(file, tmp_path / "elsewhere")
    with pytest.raises(NetworkError, match=rf"^{path}: {said}"):
        verify("nir", path, network)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ticks": 1 << 24}, "ticks is 16777216, limit"),
        ({"verification": {"rungs": "all"}}, "rungs is 'all', expected a list"),
        ({"nodes": [{"kind": "Encoder", "name": "../up"}]}, "name is '../up', expected up to 128"),
        ({"nodes": []}, "it has 0 nodes"),
        ({"task": "\u202e"}, r"header\.task holds control characters"),
        ({"nodes": {"kind": 1}}, "torch target"),
    ],
)
def test_a_torch_target_has_the_limits_of_a_network(
    network: Network, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = tmp_path / "forged.safetensors"
    write_torch(network, path)
    with safe_open(path, framework="numpy") as file:
        arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (no mapping)
        header = json.loads(file.metadata()[HEADER_KEY])
    text = json.dumps({**header, **change})
    save_file(arrays, path, {HEADER_KEY: text, DIGEST_KEY: digest(text, arrays)})
    with pytest.raises(NetworkError, match=f"{path}.*{said}"):
        read_torch(path)


@pytest.mark.parametrize("target", ["onnx", "nir", "torch", "loihi"])
def test_a_pipe_is_no_target(network: Network, target: Target, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NetworkError, match="is a device, pipe or socket, not a file"):
        verify(target, tmp_path / "pipe", network)

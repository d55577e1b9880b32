"""Written files are read back and compared before they get their names, and a wrong one is never left behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import h5py
import nir
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from dsf.export.conversion.fold import fold
from dsf.export.conversion.quantize import quantize
from dsf.export.network.file import write_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, NetworkError, Synapses
from dsf.export.proof.rungs import proof_versions
from dsf.export.proof.written import compare_written, token_vectors
from dsf.export.targets.nir_graph import write_nir
from dsf.export.targets.onnx_float import write_onnx_float
from dsf.export.targets.onnx_graph import write_onnx
from dsf.export.targets.options import SUFFIXES, Target, TargetOptions, require_target, require_writable
from dsf.export.targets.torch_module import write_torch
from dsf.export.write import write_target
from dsf.shell.errors import CommandFailed, UserError
from dsf.testing.random_networks import exportable, random_model, random_network, random_tokens
from dsf.train.quantization.integers import Affine

KINDS = ("loihi", "onnx stream", "onnx window", "onnx float", "nir", "torch")
QKV, EXPAND = "blocks.0.attention.qkv", "blocks.0.mlp.expand"
RUNG = {"name": "L2 overflow", "passed": True, "summary": "impossible", "details": {}}


def write(kind: str, network: Network, path: Path, seed: int = 0, **sizes: Any) -> Target:
    """Write a kind of file; returns the target it belongs to."""
    if kind == "loihi":
        write_network(network, path)
    elif kind == "nir":
        write_nir(network, path, partial=True)
    elif kind == "torch":
        write_torch(network, path)
    elif kind == "onnx float":
        write_onnx_float(fold(random_model(seed, **sizes)), network, path)
    else:
        write_onnx(network, path, window=kind == "onnx window")
    target: Target = kind.split()[0]  # type: ignore[assignment]
    return target


def tokens_of(network: Network, lanes: int = 3) -> np.ndarray:
    return random_tokens(network, 2 * network.context, lanes, 1)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(sizes=exportable(), bits=st.integers(2, 8), kind=st.sampled_from(KINDS))
def test_every_file_of_every_network_is_what_was_proven(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, Any], bits: int, kind: str
) -> None:
    folded = fold(random_model(**sizes))
    network = quantize(folded, "hopper", bits)
    path = tmp_path_factory.mktemp("written") / "file"
    target = write(kind, network, path, **sizes)
    (rung,) = compare_written(target, path, network, folded, tokens_of(network))
    assert rung.passed is True, rung
    json.dumps(dataclasses.asdict(rung), allow_nan=False)


def alike(network: Network, kind: str) -> Network:
    """Another network of the same shape: one weight differs, or for the float graph all of them."""
    if kind == "onnx float":
        return random_network(1)
    node = network["blocks.0.mlp.contract"]
    assert isinstance(node, Synapses)
    weights = node.weights.copy()
    weights[3] = -weights[3]
    nodes = [dataclasses.replace(node, weights=weights) if n is node else n for n in network.nodes]
    return dataclasses.replace(network, nodes=tuple(nodes))


@pytest.mark.parametrize("kind", KINDS)
def test_another_network_of_the_same_shape_fails(kind: str, tmp_path: Path) -> None:
    network, path = random_network(0), tmp_path / "file"
    target = write(kind, alike(network, kind), path, seed=1)
    (rung,) = compare_written(target, path, network, fold(random_model(0)), tokens_of(network, 8))
    assert rung.passed is False, rung


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_and_those_of_other_networks_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    network, path = random_network(0), tmp_path / "file"
    target = write(kind, random_network(0, context=5, features=4), path, context=5, features=4)
    try:
        rungs = compare_written(target, path, network, fold(random_model(0)), tokens_of(network))
    except NetworkError as error:
        assert "\n" not in str(error)
    else:
        assert [rung.passed for rung in rungs] == [False]
    path.write_bytes(b"x" * 900)
    with pytest.raises(NetworkError) as refusal:
        compare_written(target, path, network, None, tokens_of(network))
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(NetworkError):
        compare_written(target, tmp_path / "none", network, None, tokens_of(network))


def test_a_float_graph_without_its_run_is_not_claimed(tmp_path: Path) -> None:
    network, path = random_network(0), tmp_path / "file.onnx"
    write("onnx float", network, path)
    (rung,) = compare_written("onnx", path, network, None, tokens_of(network))
    assert rung.passed is None and "trained run" in rung.summary


def test_the_encoder_in_the_file_is_compared_too(tmp_path: Path) -> None:
    """Spikes from the encoder's integers would not see a wrong offset."""
    network, path = random_network(0), tmp_path / "file.onnx"
    write_onnx(network, path, window=False)
    model = onnx.load(path)
    offset = next(tensor for tensor in model.graph.initializer if ".offset." in tensor.name)
    offset.CopyFrom(numpy_helper.from_array(network.encoder.offset + network.encoder.step, offset.name))
    path.write_bytes(model.SerializeToString())
    (rung,) = compare_written("onnx", path, network, None, tokens_of(network))
    assert rung.passed is False


def test_token_vectors_reach_beyond_the_range_and_between_the_integers() -> None:
    network = random_network(0)
    tokens = random_tokens(network, 50, 8, 0)
    places = (token_vectors(network, tokens) - network.encoder.offset) / network.encoder.step
    assert (np.abs(places) > 2 * network.encoder.limit).any() and (np.abs(places - np.rint(places)) > 0.4).any()
    assert np.mean(np.rint(places) == tokens) > 0.9


def test_nir_compares_what_the_file_calls_exact(tmp_path: Path) -> None:
    """A neuron of which the file does not say that it rounds must fire the reference's spikes."""
    network, path = random_network(3, ticks=8, decay=0.875, width=24), tmp_path / "file.nir"
    write_nir(network, path, partial=True)
    (honest,) = compare_written("nir", path, network, None, tokens_of(network))
    assert honest.passed is True and honest.details["compared"] > 1000
    graph = nir.read(path)
    graph.metadata["inexact"] = "[]"
    nir.write(path, graph)
    (boasting,) = compare_written("nir", path, network, None, random_tokens(network, 60, 8, 0))
    assert boasting.passed is False and boasting.details["different"] == []


@pytest.mark.parametrize("target", get_args(Target))
def test_write_target_says_what_it_compared(target: Target, tmp_path: Path) -> None:
    network, path = random_network(0), tmp_path / f"file{SUFFIXES[target]}"
    said = write_target(target, network, None, path, TargetOptions(partial=True))
    assert " = " in said and "differ" in said and "\n" not in said
    assert list(tmp_path.iterdir()) == [path]


def test_write_target_of_the_float_network(tmp_path: Path) -> None:
    folded, path = fold(random_model(0)), tmp_path / "file.onnx"
    said = write_target("onnx", random_network(0), folded, path, TargetOptions(float_onnx=True))
    assert "L1 folded float = ONNX file, float32" in said and "median" in said
    other = fold(random_model(1))
    assert isinstance(other.embed, Affine)
    embed = dataclasses.replace(other.embed, weight=other.embed.weight * np.float64(np.nan))
    path.write_text("older")
    with pytest.raises(CommandFailed, match=r"nothing written: L1 folded float = ONNX file"):
        write_target(
            "onnx", random_network(0), dataclasses.replace(other, embed=embed), path, TargetOptions(float_onnx=True)
        )
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


def whole_network(**sizes: Any) -> Network:
    return quantize(fold(random_model(0, blocks=1, **sizes)), "hopper", whole_biases=True)


def changed(network: Network, name: str, **fields: Any) -> Network:
    nodes = [dataclasses.replace(node, **fields) if node.name == name else node for node in network.nodes]
    return dataclasses.replace(network, nodes=tuple(nodes))


def export(network: Network, folder: Path, netx: Path) -> str:
    options = TargetOptions(netx=netx)
    require_target("loihi", options)
    require_writable(network, options)
    return write_target("loihi", network, None, folder / "net.dsf.h5", options)


def test_netx_writes_the_stages_it_can_say_and_lists_the_rest(tmp_path: Path) -> None:
    network, netx = whole_network(), tmp_path / "deep" / "netx"
    network = changed(network, QKV, weights=np.zeros_like(network[QKV].weights))  # type: ignore[union-attr]
    said = export(network.with_verification({"rungs": [RUNG]}), tmp_path, netx)
    assert [path.name for path in netx.iterdir()] == [f"{EXPAND}.net"]
    assert "1 dense stages for netx" in said and f"left out: cannot write network node '{QKV}' for netx: all" in said
    with h5py.File(netx / f"{EXPAND}.net") as file:
        assert json.loads(file["verification"][()]) == {"rungs": [RUNG]}
        assert json.loads(file["provenance"][()]) == network.provenance
    export(network, tmp_path, netx)  # the same stages again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "net.dsf.h5"]


def test_netx_that_can_say_nothing_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"--netx can write none of the 2 dense stages.*--whole-biases"):
        write_target(
            "loihi", random_network(0, blocks=1), None, tmp_path / "n.dsf.h5", TargetOptions(netx=tmp_path / "a" / "b")
        )
    with pytest.raises(NetworkError, match=r"--netx can write none of the "):
        require_writable(random_network(0), TargetOptions(netx=tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


def test_netx_refuses_places_early_and_in_one_line(tmp_path: Path) -> None:
    file, network = tmp_path / "afile", whole_network()
    file.write_text("mine")
    for netx in (file, file / "below"):
        with pytest.raises(UserError, match=r"--netx .*afile"):
            require_target("loihi", TargetOptions(netx=netx))
    netx = tmp_path / "netx"
    netx.mkdir()
    (netx / "blocks.7.mlp.expand.net").write_text("of a larger network")
    with pytest.raises(NetworkError, match=r"holds blocks\.7\.mlp\.expand\.net, which is not of this network"):
        export(network, tmp_path, netx)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["afile", "netx"] and file.read_text() == "mine"


def test_a_network_file_that_fails_leaves_no_netx_directory(tmp_path: Path) -> None:
    """Everything is written under temporary names until all of it has been compared."""
    network = whole_network()
    export(network, tmp_path, tmp_path / "netx")
    (tmp_path / "taken.dsf.h5").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_target("loihi", network, None, tmp_path / "taken.dsf.h5", TargetOptions(netx=tmp_path / "new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.dsf.h5", "netx", "taken.dsf.h5"]


def test_a_wrong_net_file_is_found(tmp_path: Path) -> None:
    from dsf.export.targets.netx_file import compare_net, dense_stages, write_net

    network, path = whole_network(), tmp_path / "x.net"
    stage = next(stage for stage in dense_stages(network) if stage.name == QKV)
    write_net(network, QKV, path)
    compare_net(path, network, stage)
    assert isinstance(stage.lif, LIF)
    with h5py.File(path, "r+") as file:
        file["layer/1/neuron/vThMant"][0] += 1
        file["layer/1/bias"][1] += 1
    with pytest.raises(NetworkError, match=r"differs from network node '.*qkv' in bias, threshold"):
        compare_net(path, network, stage)


def test_versions_name_everything_that_took_part() -> None:
    wanted = {"python", "dsf", "numpy", "h5py", "gymnasium", "mujoco", "torch", "onnx", "onnxruntime", "nir"}
    assert proof_versions().keys() == wanted and all(proof_versions().values())

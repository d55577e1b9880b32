"""``dsf-export verify`` on the files of every target: what lies on the disk, against the network behind it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from dsf.export.cli import main
from dsf.export.network.file import write_network
from dsf.export.targets.options import SUFFIXES, Target
from dsf.testing.command_line import assert_failed, assert_refused
from dsf.testing.random_networks import random_network, write_checkpoint
from dsf.testing.training_runs import run_here


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``dsf-export`` in this process."""
    return run_here(main, "dsf-export", *arguments)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network file, and one of another network of the same sizes."""
    folder = tmp_path_factory.mktemp("networks")
    for seed, name in enumerate(("own", "other")):
        write_network(random_network(seed, features=15, width=8, blocks=1, bits=8 - seed), folder / f"{name}.dsf.h5")
    return folder / "own.dsf.h5", folder / "other.dsf.h5"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "arguments"),
    [("onnx", ()), ("onnx", ("--onnx-mode", "window")), ("torch", ()), ("nir", ("--partial",))],
)
def test_written_files(
    target: Target, arguments: tuple[str, ...], networks: tuple[Path, Path], tiny_store: Path, tmp_path: Path
) -> None:
    (own, other), path, figures = networks, tmp_path / f"net{SUFFIXES[target]}", tmp_path / "figures.json"
    result = export(str(own), "--target", target, "-o", str(path), *arguments)
    assert result.returncode == 0, result.stderr
    for tokens in ((), ("--dataset", "dsf/hopper/medium-v0")):
        result = export("verify", str(path), "--network", str(own), "--json", str(figures), *tokens)
        assert result.returncode == 0 and "yes" in result.stdout, (result.stdout, result.stderr)
        found = json.loads(figures.read_text())
        assert found["rungs"] and all(rung["passed"] for rung in found["rungs"]) and len(found["sha256"]) == 64
    figures.unlink()
    result = export("verify", str(path), "--network", str(other))
    assert result.returncode != 0 and len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_a_float_graph_needs_its_run(networks: tuple[Path, Path], tiny_store: Path, tmp_path: Path) -> None:
    """A network file does not know the floats: nothing is proven, and that is no success."""
    run, path, network = write_checkpoint(tmp_path / "run.safetensors"), tmp_path / "f.onnx", tmp_path / "n.dsf.h5"
    open_loop = ("--episodes", "0", "--dataset", "dsf/hopper/medium-v0")
    for arguments in (("-o", str(network)), ("-o", str(path), "--target", "onnx", "--precision", "float")):
        result = export(str(run), *arguments, *open_loop)
        assert result.returncode == 0, result.stderr
    assert_failed(export("verify", str(path), "--network", str(network)), "nothing could be proven of", "f.onnx")


def test_what_cannot_be_verified(networks: tuple[Path, Path], tmp_path: Path) -> None:
    own, other = networks
    graph, text = tmp_path / "net.onnx", tmp_path / "net.txt"
    graph.write_text("no graph")
    text.write_text("no network")
    assert_refused(export("verify", str(graph)), "name that with --network")
    assert_refused(export("verify", str(own), "--network", str(other)), "is a network file itself: drop --network")
    assert_refused(export("verify", str(text)), "is no dsf network file, and its name ends in none of", ".safetensors")
    assert_refused(export("verify", str(tmp_path / "none.onnx")), "there is no such file")
    before = own.read_bytes()
    result = export("verify", str(graph), "--network", str(own), "--json", str(own))
    assert_refused(result, "it is the input")
    assert own.read_bytes() == before

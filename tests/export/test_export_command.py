"""``dsf-export`` from the outside: every target, the commands on files, and every refusal."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from dsf.export.cli import main
from dsf.export.network.file import read_network, write_network
from dsf.export.network.nodes import LIF
from dsf.export.placement.chips import LOIHI_2
from dsf.export.placement.placement import place
from dsf.export.targets.torch_module import read_torch
from dsf.testing.command_line import assert_refused, run_command
from dsf.testing.random_networks import random_network, write_checkpoint
from dsf.testing.training_runs import run_here

OPEN_LOOP = ("--episodes", "0", "--dataset", "dsf/hopper/medium-v0")
"""No closed loop: seconds instead of minutes."""
RUNGS = [
    "L0 torch -> L1 folded float",
    "L1 folded float -> L2 integers",
    "L2 overflow",
    "L2 stream = window",
    "L2 reference = torch target, window",
    "L2 reference = L4 ONNX Runtime, stream",
    "L2 reference = L4 ONNX Runtime, window",
]


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``dsf-export`` in this process."""
    return run_here(main, "dsf-export", *arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("run") / "run.safetensors")


@pytest.mark.slow
def test_network_file_carries_the_whole_ladder(run: Path, tiny_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.dsf.h5"
    result = export(str(run), "--target", "loihi", "-o", str(out), "--episodes", "2")
    assert result.returncode == 0, result.stderr
    network = read_network(out)
    names = [rung["name"] for rung in network.verification["rungs"]]
    assert names == [*RUNGS[:2], "L0 -> L2 closed loop", *RUNGS[2:]]
    rungs = {rung["name"]: rung for rung in network.verification["rungs"]}
    assert all(rung["passed"] for name, rung in rungs.items() if name != RUNGS[1])  # that one claims nothing
    assert rungs[RUNGS[1]]["passed"] is None and network.provenance["bits"] == 8
    assert {rung["tokens"] for rung in rungs.values()} == {"closed loop", "any"}
    assert all(rung["seed"] == 2_000 and rung["versions"]["onnxruntime"] for rung in rungs.values())
    assert network.verification["placement"]["cores"] > 0
    assert network.verification["placement"]["assignment"] == place(network, LOIHI_2).assignment()
    lines = result.stdout.splitlines()
    for figures in network.verification["layers"]:  # every layer on one line, though this is no terminal
        line = next(line for line in lines if f" {figures['name']} " in line)
        assert figures["firing_rate"] is None or f" {figures['firing_rate']:.3f} " in line
    assert {figures["name"] for figures in network.verification["layers"]} >= {"embed", "blocks.0.attention.qkv"}
    for words in (*names[:2], "loihi2", "layers", "sha256"):
        assert words in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["tssa", "sdsa1"])
def test_windowed_attentions_are_exported_and_say_that_stream_is_another_policy(
    attention: str, tiny_store: Path, tmp_path: Path
) -> None:
    run = write_checkpoint(tmp_path / "run.safetensors", attention=attention, blocks=2)
    out = tmp_path / "net.dsf.h5"
    result = export(str(run), "-o", str(out), *OPEN_LOOP, "--bits", "4", "--no-per-channel")
    assert result.returncode == 0, result.stderr
    network = read_network(out)
    passed = {rung["name"]: rung["passed"] for rung in network.verification["rungs"]}
    assert passed.pop("L2 stream = window") is None and passed.pop(RUNGS[1]) is None and all(passed.values())
    assert "stream mode differs from window mode" in result.stdout
    assert network.provenance["quantization"]["per_channel"] is False
    stages = [node for node in network.of_kind(LIF) if node.name.endswith("qkv_lif")]
    assert all(len(np.unique(lif.threshold)) == 1 for lif in stages)


@pytest.mark.slow
def test_the_other_targets(run: Path, tiny_store: Path, tmp_path: Path) -> None:
    """From a run, and from the network file it was exported to."""
    file = tmp_path / "net.dsf.h5"
    netx = tmp_path / "netx"
    assert export(str(run), "-o", str(file), *OPEN_LOOP, "--whole-biases", "--netx", str(netx)).returncode == 0
    assert {path.name for path in netx.iterdir()} == {"blocks.0.attention.qkv.net", "blocks.0.mlp.expand.net"}
    for target, arguments in (
        ("onnx", ()),
        ("onnx", ("--onnx-mode", "window")),
        ("nir", ("--partial",)),
        ("torch", ()),
    ):
        out = tmp_path / f"net.{target}"
        result = export(str(file), "--target", target, "-o", str(out), *arguments)
        assert result.returncode == 0, result.stderr
        assert out.stat().st_size > 1_000
    assert read_torch(tmp_path / "net.torch").network.task == "hopper"
    metadata = {item.key: item.value for item in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert metadata["mode"] == "window" and json.loads(metadata["verification"])["rungs"]
    floats = tmp_path / "float.onnx"
    result = export(str(run), "--target", "onnx", "--precision", "float", "-o", str(floats), *OPEN_LOOP)
    assert result.returncode == 0 and "float32" in result.stdout, result.stderr
    onnx.checker.check_model(onnx.load(floats), full_check=True)


@pytest.mark.slow
def test_verify_inspect_and_diff(tiny_store: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.dsf.h5", tmp_path / "b.dsf.h5"
    write_network(random_network(0, features=15), first)
    write_network(random_network(0, bits=7, features=15), second)
    figures = tmp_path / "figures.json"
    for arguments in ((), ("--dataset", "dsf/hopper/medium-v0", "--decisions", "100")):
        result = export("verify", str(first), "--json", str(figures), *arguments)
        assert result.returncode == 0, result.stderr
        found = json.loads(figures.read_text())
        assert [rung["name"] for rung in found["rungs"]] == RUNGS[2:] and all(r["passed"] for r in found["rungs"])
        assert found["rungs"][-1]["details"]["compared_spikes"] > 10_000
    result = export("inspect", str(first), "--json", str(figures))
    assert result.returncode == 0 and "blocks.1.mlp.expand" in result.stdout, result.stderr
    assert json.loads(figures.read_text())["placement"]["total_cores"] > 0
    assert export("diff", str(first), str(first)).returncode == 0
    result = export("diff", str(first), str(second), "--json", str(figures))
    assert result.returncode == 1 and "blocks.0.attention.qkv" in result.stdout
    assert json.loads(figures.read_text())


def test_a_broken_chip_limit_lists_everything_and_writes_nothing(run: Path, tiny_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.dsf.h5"
    result = export(str(run), "-o", str(out), *OPEN_LOOP, "--chip", "loihi1")
    assert result.returncode == 1 and not out.exists()
    assert "limits of loihi1 are broken" in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert "blocks.0.attention.coincidence" in result.stdout and "blocks.0.attention.window" in result.stdout
    assert "ladder" not in result.stdout  # known before the long part


def test_nothing_is_written_when_a_rung_fails(run: Path, tmp_path: Path) -> None:
    """An impossible demand on the lossy rung: the integers must gain a million points."""
    out = tmp_path / "net.dsf.h5"
    result = export(str(run), "-o", str(out), "--episodes", "1", "--max-score-drop", "-1e6")
    assert result.returncode == 1 and not out.exists()
    said = result.stderr.strip()
    assert said.startswith("dsf-export: nothing written: the ladder fails at L0 -> L2 closed loop; what may help: ")
    assert len(said.splitlines()) == 1


def test_layernorm_checkpoint_cannot_be_exported(tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run.safetensors", norm="tdln")
    out = tmp_path / "net.dsf.h5"
    assert_refused(export(str(run), "-o", str(out)), "LayerNorm", "--model.norm ptbn")
    assert not out.exists()


def test_the_console_script() -> None:
    assert_refused(run_command("dsf-export", "verify", "nowhere.dsf.h5"), "dsf-export verify: cannot read network file")


def test_export_of_nothing(tmp_path: Path) -> None:
    assert_refused(export(str(tmp_path / "none")), "no checkpoint at", "dsf-train")
    assert_refused(export(str(tmp_path), "-o", "/nowhere/x.h5"), "/nowhere does not exist")
    assert_refused(export("verify", str(tmp_path / "none")), "cannot read", "there is no such file")
    assert_refused(export("inspect", str(tmp_path)), "cannot read network file")

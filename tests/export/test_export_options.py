"""``dsf-export`` with options that would do nothing, destroy something, or change what was trained: all are refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dsf.export.cli import main
from dsf.export.exporting import merged, require_passed
from dsf.export.network.file import read_network, write_network
from dsf.export.network.nodes import LIF
from dsf.export.options import NEEDS_RUN
from dsf.export.proof.rungs import Rung
from dsf.shell.errors import CommandFailed
from dsf.testing.command_line import assert_refused
from dsf.testing.random_networks import random_network, write_checkpoint
from dsf.testing.training_runs import run_here
from dsf.train.checkpoint import load_checkpoint, save_checkpoint
from dsf.train.models.qat import quantization_aware

DATASET = "dsf/hopper/medium-v0"
OPEN_LOOP = ("--episodes", "0", "--dataset", DATASET)
FLOATS = ("--target", "onnx", "--precision", "float")


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``dsf-export`` in this process."""
    return run_here(main, "dsf-export", *arguments)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A network file of Hopper's sizes whose name does not say so."""
    path = tmp_path / "net.h5"
    network = random_network(0, features=15, width=8, blocks=1)
    earlier = {
        "rungs": [
            {"name": "L0 torch -> L1 folded float", "passed": True, "summary": "equal", "details": {}},
            {"name": "L2 overflow", "passed": True, "summary": "impossible", "details": {}},
        ],
        "layers": [{"name": "embed"}],
        "tokens": "dsf/earlier",
        "seed": 7,
        "versions": {"numpy": "1"},
    }
    write_network(network.with_verification(earlier), path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "run.safetensors")


FOR_A_RUN = {
    "bits": ("--bits", "1"),
    "per_channel": ("--per-channel",),
    "no_per_channel": ("--no-per-channel",),
    "rounding": ("--rounding", "stochastic"),
    "rounding_seed": ("--rounding-seed", "3"),
    "clipping": ("--clipping", "mse"),
    "percentile": ("--percentile", "50"),
    "residual_scales": ("--residual-scales", "channel"),
    "embed_synapses": ("--embed-synapses", "2"),
    "bias_correction": ("--bias-correction",),
    "calibration": ("--calibration", DATASET),
    "remove_silent": ("--remove-silent", "proven"),
    "whole_biases": ("--whole-biases",),
    "episodes": ("--episodes", "0"),
    "most_episodes": ("--most-episodes", "20"),
    "target_return": ("--target-return", "1800"),
    "max_score_drop": ("--max-score-drop", "1"),
    "precision": ("--precision", "float", "--target", "onnx"),
}


@pytest.mark.parametrize("name", FOR_A_RUN)
def test_a_network_file_has_its_integers(name: str, file: Path, tmp_path: Path) -> None:
    """Options that shape or measure them are refused by name."""
    assert set(FOR_A_RUN) == set(NEEDS_RUN)
    out = tmp_path / "out"
    flag = f"--{name.replace('_', '-')}"
    assert_refused(export(str(file), "-o", str(out), *FOR_A_RUN[name]), "is a network file", flag, "trained run")
    assert not out.exists()


def test_a_network_file_is_proven_on_the_dataset_that_is_named(file: Path, tiny_store: Path, tmp_path: Path) -> None:
    """And it keeps what it knew: rungs that need the checkpoint, with their own tokens, and the report on layers."""
    out = tmp_path / "out"
    assert_refused(export(str(file), "-o", str(out), "--dataset", "dsf/cartpole/expert-v0"), "features")
    assert not out.exists()
    result = export(str(file), "-o", str(out), "--dataset", DATASET, "--seed", "3")
    assert result.returncode == 0, result.stderr
    verification = read_network(out).verification
    rungs = {rung["name"]: rung for rung in verification["rungs"]}
    assert next(iter(rungs)) == "L0 torch -> L1 folded float" and len(rungs) == len(verification["rungs"])
    kept = rungs["L0 torch -> L1 folded float"]
    assert (kept["tokens"], kept["seed"], kept["versions"]) == ("dsf/earlier", 7, {"numpy": "1"})
    fresh = rungs["L2 stream = window"]
    assert (fresh["tokens"], fresh["seed"]) == (DATASET, 3) and fresh["versions"]["numpy"] == np.__version__
    assert rungs["L2 overflow"]["tokens"] == "any" and rungs["L2 overflow"]["seed"] == 3
    assert verification["layers"] == [{"name": "embed"}]
    assert not verification.keys() & {"tokens", "seed", "versions"}  # what would be said of all rungs alike


def test_rungs_that_know_their_tokens_keep_them() -> None:
    earlier = {"rungs": [{"name": "a", "tokens": "first"}], "tokens": "second", "placement": {"cores": 1}}
    assert merged(earlier, [{"name": "b"}]) == {
        "rungs": [{"name": "a", "tokens": "first"}, {"name": "b"}],
        "placement": {"cores": 1},
    }
    assert merged({}, []) == {"rungs": []}


def test_integers_that_lose_score_do_not_stop_a_float_graph() -> None:
    fold, loss = (Rung(name, False, "", {}) for name in ("L0 torch -> L1 folded float", "L0 -> L2 closed loop"))
    require_passed([loss], floats=True)
    for rungs, floats in (([loss], False), ([fold], False), ([fold, loss], True)):
        with pytest.raises(CommandFailed, match="the ladder fails at L0"):
            require_passed(rungs, floats)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--episodes", "0"), "name a --dataset"),
        (("--bias-correction",), "--bias-correction requires --calibration DATASET"),
        (
            ("--calibration", DATASET),
            "--calibration requires --clipping mse, --bias-correction, --residual-scales channel or --remove-silent",
        ),
        (("--percentile", "50"), "--percentile requires --clipping percentile"),
        (("--percentile", "50", "--clipping", "mse"), "--percentile requires --clipping percentile"),
        (("--rounding-seed", "1"), "--rounding-seed requires --rounding stochastic"),
        (("--max-score-drop", "1", *OPEN_LOOP), "--max-score-drop requires --episodes"),
        ((*FLOATS, "--max-score-drop", "1"), "--max-score-drop requires --precision integer"),
        (("--most-episodes", "20", *OPEN_LOOP), "--most-episodes requires --episodes"),
        ((*FLOATS, "--most-episodes", "20"), "--most-episodes requires --precision integer"),
        ((*FLOATS, "--chip", "loihi2"), "--chip requires --precision integer"),
        (("--per-channel", "--no-per-channel"), "contradict"),
        (("--netx", "nx"), "--netx requires --whole-biases"),
        (("--target", "nir"), "--partial"),
        (("--partial",), "--partial requires --target nir"),
        ((*FLOATS, "--onnx-mode", "stream"), "--precision float"),
        (("--chip", "tpu"), "unknown chip 'tpu'"),
        (("--seed", "-1"), "--seed is -1"),
        (("--max-score-drop", "nan"), "--max-score-drop is nan"),
    ],
)
def test_options_are_refused_before_any_work(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    """The run does not even exist."""
    assert_refused(export(str(tmp_path / "none"), "-o", str(tmp_path / "out"), *arguments), words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("--target", "nir"), ("--netx", "nx", "--target", "onnx")])
def test_targets_refuse_early_for_network_files_too(arguments: tuple[str, ...], file: Path, tmp_path: Path) -> None:
    result = export(str(file), "-o", str(tmp_path / "out"), *arguments)
    assert_refused(result, "--partial" if "nir" in arguments else "--netx requires --target loihi")
    assert result.stdout == ""


def test_biases_that_netx_does_not_know_are_seen_before_the_ladder(file: Path, tmp_path: Path) -> None:
    result = export(str(file), "-o", str(tmp_path / "out"), "--netx", str(tmp_path / "nx"))
    assert_refused(result, "--netx", "--whole-biases")
    assert "ladder" not in result.stdout and not (tmp_path / "nx").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bits", "9", *OPEN_LOOP), "--bits is 9"),
        (("--dataset", "dsf/cartpole/expert-v0", "--episodes", "0"), "features"),
        (("--calibration", "dsf/cartpole/expert-v0", "--clipping", "mse", *OPEN_LOOP), "features"),
    ],
)
def test_options_that_only_the_run_can_judge(
    checkpoint: Path, tiny_store: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "out"
    assert_refused(export(str(checkpoint), "-o", str(out), *arguments), words)
    assert not out.exists()


def trained_integers(checkpoint: Path, per_channel: bool) -> Path:
    """The checkpoint once more, as quantization-aware training at 4 bits leaves one."""
    found = load_checkpoint(checkpoint)
    model = quantization_aware(found.build_trained(), 4, threshold_units=256, per_channel=per_channel)
    path = checkpoint.with_name(f"qat-{per_channel}.safetensors")
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(path, tensors, {**found.header, "quantization": model.to_json()})
    return path


@pytest.mark.parametrize(
    ("per_channel", "arguments", "words"),
    [
        (True, ("--bits", "8"), "--bits is 8"),
        (True, ("--no-per-channel",), "one scale per neuron"),
        (False, ("--per-channel",), "one scale per layer"),
        (True, ("--whole-biases",), "finer biases"),
        (True, ("--clipping", "mse"), "as they were trained"),
    ],
)
def test_trained_integers_stay_as_they_are(
    per_channel: bool, arguments: tuple[str, ...], words: str, checkpoint: Path, tiny_store: Path, tmp_path: Path
) -> None:
    run, out = trained_integers(checkpoint, per_channel), tmp_path / "out"
    assert_refused(export(str(run), "-o", str(out), *OPEN_LOOP, *arguments), words)
    assert not out.exists()


@pytest.mark.slow
def test_scales_are_those_of_training(checkpoint: Path, tiny_store: Path, tmp_path: Path) -> None:
    """Asked for or not: per layer here."""
    out = tmp_path / "out"
    for arguments in ((), ("--no-per-channel",)):
        result = export(str(trained_integers(checkpoint, False)), "-o", str(out), *OPEN_LOOP, *arguments)
        assert result.returncode == 0, result.stderr
        network = read_network(out)
        assert network.provenance["quantization"]["per_channel"] is False and network.provenance["bits"] == 4
        assert all(len(np.unique(lif.threshold)) == 1 for lif in network.of_kind(LIF))


def test_outputs_never_replace_inputs(file: Path, checkpoint: Path, tmp_path: Path) -> None:
    other, folder = tmp_path / "other.dsf.h5", tmp_path / "run"
    write_network(random_network(1), other)
    folder.mkdir()
    os.link(checkpoint, folder / "checkpoint.safetensors")
    before = {path: path.read_bytes() for path in (file, other, checkpoint)}
    for arguments in (
        ("verify", str(file), "--json", str(file)),
        ("inspect", str(file), "--json", str(file)),
        ("diff", str(file), str(other), "--json", str(other)),
        ("diff", str(file), str(other), "--json", str(file)),
        (str(file), "--target", "torch", "-o", str(file)),
        (str(checkpoint), "--target", "torch", "-o", str(checkpoint)),
        (str(folder), "--target", "torch", "-o", str(folder / "checkpoint.safetensors")),
    ):
        assert_refused(export(*arguments), "cannot write", "it is the input")
    assert before == {path: path.read_bytes() for path in before}


def test_a_pipe_is_not_replaced(file: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for arguments in ((str(file), "-o", str(pipe)), ("inspect", str(file), "--json", str(pipe))):
        assert_refused(export(*arguments), "it is a device, pipe or socket")
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("target", "name"), [("onnx", "z.dsf.h5"), ("loihi", "z.onnx"), ("torch", "z.nir"), ("nir", "z.safetensors")]
)
def test_a_name_does_not_promise_another_target(target: str, name: str, file: Path, tmp_path: Path) -> None:
    suffix, arguments = name[1:], ("--partial",) if target == "nir" else ()
    result = export(str(file), "--target", target, "-o", str(tmp_path / name), *arguments)
    assert_refused(result, f"{suffix} requires --target", f"not {target}")
    assert not (tmp_path / name).exists()


@pytest.mark.slow
def test_the_content_says_what_a_file_is(file: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A network under any name can be read, and is digested; a broken one is called that."""
    result = export(str(file), "-o", str(tmp_path / "second"))
    assert result.returncode == 0 and "sha256 " in result.stdout, result.stderr
    result = export(str(file), "--target", "torch", "-o", str(tmp_path / "third"))
    assert result.returncode == 0 and "sha256" not in result.stdout, result.stderr
    assert_refused(export(str(tmp_path / "none.dsf.h5"), "-o", str(tmp_path / "x")), "cannot read network file")
    broken = tmp_path / "broken.dsf.h5"
    broken.write_bytes(checkpoint.read_bytes())
    assert_refused(export(str(broken), "-o", str(tmp_path / "x")), "is no dsf network file")
    assert_refused(
        export(str(tmp_path / "third"), "--dataset", DATASET, "-o", str(tmp_path / "x")), "no dsf checkpoint"
    )


def test_limits_that_nobody_has_published_do_not_bind(tmp_path: Path) -> None:
    """A membrane that forgets everything needs 13 bits of decay; that Loihi 2 has 12 is only inferred."""
    path, out = tmp_path / "net.dsf.h5", tmp_path / "out"
    network = random_network(0, decay=0.0, blocks=1)
    write_network(network, path)
    result = export(str(path), "-o", str(out), "--chip", "loihi2")
    assert result.returncode == 0, result.stderr
    count = len(list(network.of_kind(LIF)))
    assert result.stdout.count("decay bits: 13, limit 12 (inferred)") == count
    assert f"0 published limits broken, and {count} inferred ones" in result.stdout
    placement = read_network(out).verification["placement"]
    assert (placement["violations"], placement["inferred_violations"]) == (0, count)

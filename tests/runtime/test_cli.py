"""``dsf-sim-run`` from the outside: the main job, its JSON, and every refusal."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from dsf.export.network.file import read_network, write_network
from dsf.runtime.artifacts import checkpoint_path, network_path
from dsf.runtime.engines.errors import BackendUnavailable
from dsf.runtime.open_engine import require_lava
from dsf.testing.command_line import assert_refused, run_command
from dsf.testing.random_networks import random_network
from dsf.testing.spike_tally import TALLY
from dsf.train.checkpoint import load_checkpoint

KEYS = {
    "task",
    "backend",
    "mode",
    "episodes",
    "return_mean",
    "score_mean",
    "decisions_per_second",
    "firing_rate",
    "energy",
    "parity",
}


@pytest.mark.slow
def test_main_job_without_arguments(tmp_path: Path) -> None:
    """The shipped network, one whole Hopper episode in Lava (or the reference, where Lava cannot run)."""
    arguments = [] if sys.version_info < (3, 11) else ["--backend", "reference"]
    result = run_command("dsf-sim-run", *arguments, "--json", str(tmp_path / "out.json"), timeout=280.0)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out.json").read_text())
    assert summary.keys() >= KEYS
    assert summary["parity"]["mismatches"] == 0 and summary["parity"]["compared_spikes"] > 10_000_000
    TALLY.add("Lava fused" if sys.version_info < (3, 11) else "reference again", summary["parity"]["compared_spikes"])
    episode = summary["episodes"][0]
    assert episode.keys() >= {"seed", "return", "score", "decisions", "spikes"} and episode["seed"] == 0
    assert episode["return"] > 2_900
    assert set(summary["energy"]) == {"paper_45nm", "int8_45nm", "loihi2_derived"}
    assert all(values["joules_per_decision"] > 0 and values["grade"] for values in summary["energy"].values())
    for words in ("D4RL-normalised score", "paper_45nm", "mismatches"):
        assert words in result.stdout


@pytest.mark.slow
def test_reference_and_lava_returns_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    backend = "lava" if sys.version_info < (3, 11) else "reference"
    arguments = ["--backend", backend, "--seed", "11", "--parity-decisions", "0"]
    result = run_command("dsf-sim-run", *arguments, "--json", str(tmp_path / "out.json"), timeout=280.0)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out.json").read_text())
    assert set(summary["comparison"]) == {"float (torch, window)", "integer reference"}
    assert summary["comparison"]["integer reference"][0]["return"] == summary["episodes"][0]["return"]
    assert summary["parity"]["compared_spikes"] == 0


def test_shipped_network_carries_its_proof_and_provenance() -> None:
    network = read_network(network_path())
    assert network.provenance["dataset"]["id"] == "dsf/hopper/medium-expert-v1"
    assert not network.provenance["train_revision"].endswith("-dirty")
    rungs = {rung["name"]: rung["passed"] for rung in network.verification["rungs"]}
    claims_nothing = "L1 folded float -> L2 integers"  # the lossy rung only reports
    assert rungs.pop(claims_nothing) is None and len(rungs) == 7 and all(rungs.values()), rungs
    assert network.stream_is_exact
    header = load_checkpoint(checkpoint_path()).header
    assert header["dataset"] == network.provenance["dataset"]


@pytest.mark.slow
def test_bad_network_files(tmp_path: Path) -> None:
    content, bad = network_path().read_bytes(), tmp_path / "bad.dsf.h5"
    out = tmp_path / "out.json"
    bad.write_bytes(content[: len(content) // 2])
    options = ("--backend", "reference", "--json", str(out))  # on newer Pythons, Lava's absence would be told first
    assert_refused(run_command("dsf-sim-run", str(bad), *options), "SHA-256", "cut short")
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    bad.write_bytes(flipped)
    assert_refused(run_command("dsf-sim-run", str(bad), *options), "SHA-256", "altered")
    assert_refused(run_command("dsf-sim-run", str(tmp_path / "none.h5"), *options), "No such file")
    assert not out.exists()


@pytest.mark.slow
def test_network_of_another_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.dsf.h5"
    write_network(random_network(0), path)
    assert_refused(run_command("dsf-sim-run", str(path), "--backend", "reference"), "6 features", "15 and 3")
    write_network(dataclasses.replace(random_network(0), task="walker2d"), path)
    assert_refused(
        run_command("dsf-sim-run", str(path), "--backend", "reference"), "6 features", "24 and 6", "walker2d"
    )
    write_network(dataclasses.replace(random_network(0), task="chess"), path)
    assert_refused(run_command("dsf-sim-run", str(path), "--backend", "reference"), "unknown task 'chess'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episodes", "0"], "--episodes is 0"),
        (["--hardware", "tpu"], "unknown hardware preset 'tpu'"),
        (["--task", "chess"], "unknown task 'chess'"),
        (["--seed", "x"], "--seed"),
        (["--json", "/nowhere/out.json"], "/nowhere does not exist"),
        (["--parity-decisions", "-1"], "--parity-decisions is -1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--target-return", "nan"], "--target-return is nan"),
        (["--json", "/tmp"], "is a directory"),
        (["--checkpoint", "x", "--no-compare"], "--no-compare"),
        (["--checkpoint", "x"], "no checkpoint at x"),
        (["--bogus"], "--bogus"),
    ],
)
def test_bad_options(arguments: list[str], words: str) -> None:
    assert_refused(run_command("dsf-sim-run", "--backend", "reference", *arguments), words)


def test_lava_on_a_newer_python_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSF_LAVA_ON_NEWER_PYTHON", raising=False)
    with pytest.raises(BackendUnavailable, match=r"needs Python 3\.10 .*this is 3\.12.*--backend fast"):
        require_lava((3, 12))

"""The files of ``dsf-sim-run``: none is written over what it reads, and none costs another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsf.export.network.file import write_network
from dsf.runtime.cli import main
from dsf.testing.command_line import assert_refused
from dsf.testing.full_disk import small_files
from dsf.testing.random_networks import random_network, write_checkpoint
from dsf.testing.training_runs import run_here


@pytest.mark.parametrize("which", ["network", "checkpoint"])
def test_the_report_replaces_no_input(which: str, tmp_path: Path) -> None:
    inputs = {"network": tmp_path / "net.dsf.h5", "checkpoint": write_checkpoint(tmp_path / "run.safetensors")}
    write_network(random_network(0, features=15), inputs["network"])
    before = inputs[which].read_bytes()
    arguments = (str(inputs["network"]), "--checkpoint", str(inputs["checkpoint"]), "--backend", "reference")
    result = run_here(main, "dsf-sim-run", *arguments, "--json", str(inputs[which]))
    assert_refused(result, "cannot write", "it is the input")
    assert inputs[which].read_bytes() == before


@pytest.mark.slow
def test_a_film_that_fails_costs_nothing_else(tmp_path: Path) -> None:
    """The film replays the episode in a new environment; the page says why there is none, and has the success rate."""
    page, out = tmp_path / "page.html", tmp_path / "out.json"
    world = ("--env", "dsf.testing.gym_worlds:Unrepeatable-v0", "--backend", "fast", "--no-compare")
    result = run_here(main, "dsf-sim-run", *world, "--html", str(page), "--json", str(out))
    assert result.returncode == 0, result.stderr
    text = page.read_text(encoding="utf-8")
    assert "There is no film: RuntimeError: the robot is &lt;asleep&gt;" in text
    assert "<b>100.0%</b><span>reached the goal: 1 of 1 episodes</span>" in text
    assert json.loads(out.read_text())["success"] == {"rate": 1.0, "reached": 1, "episodes": 1}


@pytest.mark.slow
def test_a_file_that_cannot_be_written_costs_no_other(tmp_path: Path) -> None:
    """The recording, which is written first, does not fit on the disk; the report does, and the table is printed."""
    out = tmp_path / "out.json"
    options = ("--backend", "fast", "--no-compare", "--parity-decisions", "0")
    with small_files(100_000):
        result = run_here(main, "dsf-sim-run", *options, "--record", str(tmp_path / "run.h5"), "--json", str(out))
    assert result.returncode == 2 and result.stderr.startswith("dsf-sim-run: File too large"), result.stderr
    assert result.stderr.count("\n") == 1 and "run.h5" in result.stderr
    assert json.loads(out.read_text())["decisions"] == 1000 and "spikes per decision" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]

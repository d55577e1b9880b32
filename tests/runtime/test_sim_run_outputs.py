"""``dsf-sim-run`` does not write its report over what it reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsf.export.network.file import write_network
from dsf.runtime.cli import main
from dsf.testing.command_line import assert_refused
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

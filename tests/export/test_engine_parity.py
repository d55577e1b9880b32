"""Two thousand random networks of every kind through all engines: endurance/engine_parity.py, run as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsf.testing.spike_tally import TALLY

SCRIPT = Path(__file__).resolve().parents[2] / "endurance" / "engine_parity.py"
NETWORKS, SHARE = 2_000, 500


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, NETWORKS, SHARE))
def test_two_thousand_networks_agree_in_every_engine(first: int, tmp_path: Path) -> None:
    """In shares, each with one process, so that both workers of the suite take some."""
    figures = tmp_path / "parity.json"
    share = ("--first", str(first), "--networks", str(SHARE), "--workers", "1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *share, "--json", str(figures)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(figures.read_text())
    assert found["networks"] == SHARE and found["failed"] == 0 and found["compared_spikes"] > 10_000_000
    for engine in ("torch target", "ONNX Runtime", "fast engine"):
        TALLY.add(engine, found["compared_by_rung"][engine])

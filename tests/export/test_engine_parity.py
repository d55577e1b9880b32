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
NETWORKS, PARTS = 2_000, 4
"""All networks, and how many tests share them: a suite in two workers stays even."""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_two_thousand_networks_agree_in_every_engine(part: int, tmp_path: Path) -> None:
    figures, share = tmp_path / "parity.json", NETWORKS // PARTS
    seeds = ("--first", str(part * share), "--networks", str(share))
    command = [sys.executable, str(SCRIPT), *seeds, "--workers", "1", "--json", str(figures)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(figures.read_text())
    assert found["networks"] == share and found["failed"] == 0 and found["compared_spikes"] > 10_000_000
    for engine in ("torch target", "ONNX Runtime", "fast engine"):
        TALLY.add(engine, found["compared_by_rung"][engine])

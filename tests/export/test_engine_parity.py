"""Two thousand random networks of every kind through all engines: endurance/engine_parity.py, run as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dsf.testing.spike_tally import TALLY

SCRIPT = Path(__file__).resolve().parents[2] / "endurance" / "engine_parity.py"
NETWORKS = 2_000


def test_two_thousand_networks_agree_in_every_engine(tmp_path: Path) -> None:
    figures = tmp_path / "parity.json"
    command = [sys.executable, str(SCRIPT), "--networks", str(NETWORKS), "--json", str(figures)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(figures.read_text())
    assert found["networks"] == NETWORKS and found["failed"] == 0 and found["compared_spikes"] > 10_000_000
    for engine in ("torch target", "ONNX Runtime", "fast engine"):
        TALLY.add(engine, found["compared_by_rung"][engine])

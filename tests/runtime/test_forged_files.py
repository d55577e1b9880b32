"""Forged files of every kind through their commands: endurance/forged_files.py, run as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "endurance" / "forged_files.py"
FILES = 24
"""One of each kind at least, of networks eight."""


@pytest.mark.slow
def test_forged_files_end_in_one_line_and_run_nothing(tmp_path: Path) -> None:
    figures = tmp_path / "forged.json"
    command = [sys.executable, str(SCRIPT), "--files", str(FILES), "--json", str(figures)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())["files"]
    assert len(found) == FILES and {outcome["code"] for outcome in found} <= {0, 1, 2}
    assert len({outcome["kind"] for outcome in found}) == 12

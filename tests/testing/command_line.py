"""The console scripts, as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run_command(*arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run one of the console scripts of this environment."""
    program = Path(sys.executable).parent / arguments[0]
    return subprocess.run([str(program), *arguments[1:]], capture_output=True, text=True, timeout=timeout)


def assert_refused(result: subprocess.CompletedProcess[str], *fragments: str) -> None:
    """Exit code 2, one line on stderr that holds every fragment, no traceback."""
    assert result.returncode == 2, (result.stdout, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for fragment in fragments:
        assert fragment in lines[0], lines[0]

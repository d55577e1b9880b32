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
    assert_ended_with_one_line(result, 2, *fragments)


def assert_failed(result: subprocess.CompletedProcess[str], *fragments: str) -> None:
    """The same with exit code 1."""
    assert_ended_with_one_line(result, 1, *fragments)


def assert_ended_with_one_line(result: subprocess.CompletedProcess[str], code: int, *fragments: str) -> None:
    """The exit code, and one line on stderr that holds every fragment."""
    assert result.returncode == code, (result.stdout, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for fragment in fragments:
        assert fragment in lines[0], lines[0]

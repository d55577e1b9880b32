"""What a child process is told about its parent's wishes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dsf.shell.child_processes import AUTOGROUP

LEADS_A_SESSION = """
from dsf.shell.child_processes import AUTOGROUP, keep_niceness
keep_niceness()
print(AUTOGROUP.read_text())
"""


@pytest.mark.skipif(not os.access(AUTOGROUP, os.W_OK), reason="the kernel has no groups of sessions here")
def test_nice_before_a_command_holds_for_the_sessions_that_it_starts() -> None:
    asked = min(os.nice(0) + 7, 19)
    child = subprocess.run(
        [sys.executable, "-c", f"import os; os.nice({asked} - os.nice(0))\n{LEADS_A_SESSION}"],
        capture_output=True,
        text=True,
        start_new_session=True,
        check=True,
    )
    assert child.stdout.rstrip().endswith(f" nice {asked}")

"""A directory that one process at a time writes to, and scratch directories that do not stay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsf.shell.errors import UserError
from dsf.shell.held_directory import LOCK_NAME, held
from dsf.shell.scratch_directory import YOUNGEST_LEFTOVER_S, scratch_directory

HOLD = """
import sys, time
from pathlib import Path
from dsf.shell.held_directory import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_exactly_one_process_holds_a_directory_and_the_other_says_who(tmp_path: Path) -> None:
    place = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        told = rf"run is in use by process {other.pid} on {os.uname().nodename}: wait"
        with pytest.raises(UserError, match=told), held(place):
            pass
    finally:
        other.kill()
        other.communicate()
    with held(place):  # the kernel has taken the lock from the dead
        assert (place / LOCK_NAME).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"
        with pytest.raises(UserError, match=f"process {os.getpid()}"), held(place):
            pass
    assert not place.exists(), "nothing but the lock was ever in it"


def test_what_was_made_stays_and_the_lock_goes(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]


def test_leftovers_of_killed_commands_are_removed_and_those_at_work_stay(tmp_path: Path) -> None:
    old = time.time() - 2 * YOUNGEST_LEFTOVER_S
    for name in (".work-dead", ".work-young", ".other-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
        if "young" not in name:
            os.utime(tmp_path / name, (old, old))
    with scratch_directory(tmp_path, ".work-") as mine:
        os.utime(mine, (old, old))
        with scratch_directory(tmp_path, ".work-") as second:
            found = {path.name for path in tmp_path.iterdir()}
            assert found == {mine.name, second.name, ".work-young", ".other-dead"}
    assert {path.name for path in tmp_path.iterdir()} == {".work-young", ".other-dead"}

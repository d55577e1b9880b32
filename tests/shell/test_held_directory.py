"""A directory that one process at a time writes to, and scratch directories that do not stay."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from dsf.shell.errors import UserError
from dsf.shell.held_directory import LOCK_NAME, held
from dsf.shell.scratch_directory import YOUNGEST_LEFTOVER_S, scratch_directory, temporary_directory

HOLD = """
import sys, time
from pathlib import Path
from typing import Any
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
    assert list(place.iterdir()) == [], "who made it is dead, so it stays"


def test_a_directory_that_was_there_stays_there_and_parents_that_were_made_go(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="typo"), held(tmp_path / "mine"):
        raise ValueError("typo")
    with pytest.raises(ValueError, match="typo"), held(tmp_path / "runs" / "x"):
        raise ValueError("typo")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and not list((tmp_path / "mine").iterdir())


def test_what_was_made_stays_and_the_lock_goes(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]


def test_leftovers_of_killed_commands_are_removed_and_those_at_work_stay(tmp_path: Path) -> None:
    old = time.time() - 2 * YOUNGEST_LEFTOVER_S
    here = os.uname().nodename
    dead, young, elsewhere = f".work-{here}-dead", f".work-{here}-young", ".work-elsewhere-dead"
    for name in (dead, young, elsewhere, ".other-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
        if "young" not in name:
            os.utime(tmp_path / name, (old, old))
    with scratch_directory(tmp_path, ".work-") as mine:
        os.utime(mine, (old, old))
        with scratch_directory(tmp_path, ".work-") as second:
            found = {path.name for path in tmp_path.iterdir()}
            assert found == {mine.name, second.name, young, elsewhere, ".other-dead"}
    assert {path.name for path in tmp_path.iterdir()} == {young, elsewhere, ".other-dead"}


@pytest.mark.parametrize("moment", ["made", "removed"])
def test_a_signal_at_its_ends_leaves_no_temporary_directory(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two moments at which Python's own forgets it: made but not entered, and half removed."""
    module, name = (tempfile, "mkdtemp") if moment == "made" else (shutil, "rmtree")
    real = getattr(module, name)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if moment == "removed":
            os.kill(os.getpid(), signal.SIGINT)
        made = real(*arguments, **options)
        if moment == "made":
            os.kill(os.getpid(), signal.SIGINT)
        return made

    monkeypatch.setattr(module, name, interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # commands that ran here have left their own
    try:
        with pytest.raises(KeyboardInterrupt), temporary_directory("tried-", tmp_path) as made:
            (made / "file").write_text("x")
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []

"""A console script's environment and its signals, from the first moment to the last."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, time
from dsf.shell import interrupts
from dsf.shell.command import Command, run_commands
from dsf.shell.console_script import run_console_script
from dataclasses import dataclass

interrupts.GRACE_S = {grace}
ready = lambda: os.write(1, b"ready\\n")

@dataclass(frozen=True)
class Config:
    pass

{act}

def load():
{loading}
    return lambda: run_commands("program", Command(act, Config, ""), {{}})

run_console_script("program", load)
"""
NUMBERS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}


def strike(act: str, number: int, loading: str = "pass", grace: float = 4.0, times: int = 1) -> tuple[int, str, float]:
    """Exit code, stderr, and seconds from the signal to the end of a program that says when it is ready."""
    code = SCRIPT.format(act=textwrap.dedent(act), loading=textwrap.indent(loading, "    "), grace=grace)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(known, signal.SIG_DFL) for known in (signal.SIGINT, signal.SIGHUP)],
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    begun = time.monotonic()
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=30.0)
    return process.returncode, errors, time.monotonic() - begun


@pytest.mark.parametrize("number", NUMBERS)
def test_while_it_imports(number: signal.Signals) -> None:
    code, errors, seconds = strike("act = None", number, "ready(); time.sleep(20)")
    assert (code, errors) == (128 + number, f"program: {NUMBERS[number]}\n") and seconds < 2.0


@pytest.mark.parametrize("number", NUMBERS)
def test_a_wait_that_swallows_it_is_ended(number: signal.Signals) -> None:
    """As where the main thread waits in C++, or for a lock that nobody lets go of."""
    act = """
    def act(config):
        ready()
        while True:
            try:
                time.sleep(20)
            except BaseException:
                pass
    """
    code, errors, seconds = strike(act, number, grace=0.5)
    assert (code, errors) == (128 + number, f"program: {NUMBERS[number]}\n") and seconds < 3.0


def test_a_signal_whose_exception_python_would_only_print_comes_again() -> None:
    """In a callback that cannot raise."""
    act = """
    def act(config):
        class Thing:
            def __del__(self):
                ready()
                time.sleep(20)
        Thing()
        time.sleep(20)
    """
    code, errors, seconds = strike(act, signal.SIGTERM, grace=15.0)
    assert (code, errors) == (143, "program: ended by SIGTERM\n") and seconds < 5.0


def test_a_second_signal_does_not_disturb_what_the_first_has_begun() -> None:
    """A closed terminal's often come in pairs."""
    act = """
    def act(config):
        try:
            ready()
            time.sleep(20)
        finally:
            time.sleep(0.3)
            os.write(2, b"cleaned\\n")
    """
    code, errors, _ = strike(act, signal.SIGHUP, times=3)
    assert (code, errors) == (129, "cleaned\nprogram: ended by SIGHUP\n")


def test_an_error_that_a_signal_became_in_code_written_in_c_is_told_as_the_signal() -> None:
    act = """
    def act(config):
        try:
            ready()
            time.sleep(20)
        except KeyboardInterrupt:
            raise ImportError("numpy's core could not be imported")
    """
    code, errors, _ = strike(act, signal.SIGINT)
    assert (code, errors) == (130, "program: interrupted\n")


@pytest.mark.slow
def test_leftovers_of_other_programs_change_nothing(tmp_path: Path) -> None:
    """All at once; the page is written, and the one line is about what was asked for and left aside."""
    leftovers = {
        "COLUMNS": "0",
        "LINES": "nonsense",
        "PYTHONWARNINGS": "error",
        "MUJOCO_GL": "nonsense",
        "MPLBACKEND": "nonsense",
        "MPLCONFIGDIR": "/proc/nowhere",
        "SOURCE_DATE_EPOCH": "nonsense",
        "TMPDIR": "/nowhere",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "TERM": "dumb",
        "DISPLAY": "nowhere:9",
        "WORLD_SIZE": "2",
    }
    page, program = tmp_path / "p\u00e4ge.html", Path(sys.executable).parent / "dsf-sim-run"
    command = [str(program), "--backend", "fast", "--no-compare", "--parity-decisions", "10", "--html", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **leftovers})
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("note: MUJOCO_GL=nonsense is left aside") and done.stderr.count("\n") == 1
    assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")


@pytest.mark.slow
def test_a_torch_log_setting_that_torch_refuses_is_named() -> None:
    program = Path(sys.executable).parent / "dsf-train"
    command = [str(program), "evaluate", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TORCH_LOGS": "nonsense"})
    assert done.returncode == 2 and "TORCH_LOGS is 'nonsense'" in done.stderr and done.stderr.count("\n") == 1

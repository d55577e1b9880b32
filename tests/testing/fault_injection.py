"""Runs ``dsf-sim-run``, breaks it at a chosen moment, and looks at what it says, when it ends and what it leaves."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
FILLER = "filler"
"""A file of ours in a private one."""
LIMIT_S = 10.0
"""Every fault has to be over this long after it struck."""
START_LIMIT_S = 60.0
MARK = "DSF_FAULT_MARK"
"""Environment variable that every process of one run inherits, orphans too."""
PRIVATE = "DSF_FAULTS_PRIVATE_SHM"
"""Set where /dev/shm belongs to this process alone: then whatever lies there counts as left behind."""

HARNESS = """
import os, sys
def note(word):
    os.write({notes}, (word + "\\n").encode())
def announce(owner, name, word, after=False):
    original = getattr(owner, name)
    def announcing(*arguments):
        if not after:
            note(word)
        result = original(*arguments)
        if after:
            note(word)
        return result
    setattr(owner, name, announcing)
sys.argv[0] = "dsf-sim-run"
{patch}
from dsf.runtime.__main__ import main
main()
"""
_SUPERVISOR = "from dsf.runtime.lava_backend.supervisor import LavaSupervisor as S"
ANNOUNCE = {
    "importing": (
        "from dsf.shell import console_script; announce(console_script, 'handle_ending_signals', 'importing', True)"
    ),
    "starting": f"{_SUPERVISOR}; announce(S, '__enter__', 'starting')",
    "serving": "from multiprocessing.managers import SharedMemoryManager as M; announce(M, 'start', 'serving')",
    "running": "from dsf.tasks.lane import Lane; announce(Lane, 'start', 'running')",
    "stopping": f"{_SUPERVISOR}; announce(S, 'kill', 'stopping')",
    "injected": "",
}
"""What makes the run announce that a moment has come; "injected" is announced by a patch that is the fault itself."""


class Missed(Exception):
    """The run was over before the fault could strike."""


@dataclass(frozen=True)
class Trial:
    """One run and its fault.

    Attributes:
        arguments: of dsf-sim-run.
        moment: key of :data:`ANNOUNCE`, or None for a fault that is there before the run.
        delay_s: between the announcement and the fault.
        inject: the fault, or None where it is part of ``patch``, ``prefix`` or the files.
        patch: Python code that runs before dsf-sim-run in its process.
        prefix: of the command, such as a shell that sets limits.
        shared_memory_kib: size of a private /dev/shm.
    """

    arguments: tuple[str, ...]
    moment: str | None = None
    delay_s: float = 0.0
    inject: Callable[[Run], None] | None = None
    patch: str = ""
    prefix: tuple[str, ...] = ()
    shared_memory_kib: int = 64 * 1024


@dataclass(frozen=True)
class Outcome:
    """What became of a run: exit code, stderr, seconds from the fault until nothing was left, and what was left."""

    code: int | None
    lines: tuple[str, ...]
    seconds: float
    processes: int
    segments: int


class Run:
    """A running dsf-sim-run with a session of its own."""

    def __init__(self, trial: Trial, errors: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.mapped: set[str] = set()
        if os.environ.get(PRIVATE):
            resize = ["mount", "-o", f"remount,size={trial.shared_memory_kib}k", str(SHARED_MEMORY)]
            subprocess.run(resize, check=True)
        self.notes, writing = os.pipe()
        code = HARNESS.format(notes=writing, patch=ANNOUNCE.get(trial.moment or "", "") + "\n" + trial.patch)
        with errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*trial.prefix, sys.executable, "-c", code, *trial.arguments],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, MARK: self.mark},
                pass_fds=(writing,),
                start_new_session=True,
                preexec_fn=default_signals,
            )
        os.close(writing)

    def await_note(self, word: str) -> None:
        """Wait until the run announces a moment.

        Raises:
            Missed: it ended before.
        """
        said, deadline = b"", time.monotonic() + START_LIMIT_S
        while f"{word}\n".encode() not in said:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Missed(word)
            if select.select([self.notes], [], [], 0.02)[0]:
                said += os.read(self.notes, 1024)

    def processes(self) -> list[int]:
        """Every process of this run that is no zombie."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (entry / "environ").read_bytes():  # a zombie has none
                    found.append(int(entry.name))
        return found

    def lava_processes(self) -> list[int]:
        """The processes that Lava has started."""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            return [int(pid) for pid in children if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()]
        return []

    def await_lava_processes(self, count: int) -> list[int]:
        """The same, once there are so many.

        Raises:
            Missed: the run ended before.
        """
        while len(found := self.lava_processes()) < count:
            if self.process.poll() is not None:
                raise Missed("Lava")
        return found

    def segments(self) -> set[str]:
        """Names of the shared-memory segments of this run."""
        there = {path.name for path in SHARED_MEMORY.iterdir()} - {FILLER}
        if os.environ.get(PRIVATE):
            return there
        for pid in self.processes():
            with contextlib.suppress(OSError):
                self.mapped |= set(re.findall(rf"{SHARED_MEMORY}/(psm_\w+)", Path(f"/proc/{pid}/maps").read_text()))
        return self.mapped & there

    def close(self) -> None:
        """Free everything, whatever is left."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        os.close(self.notes)
        if os.environ.get(PRIVATE):  # whatever is left there was this run's
            for path in SHARED_MEMORY.iterdir():
                path.unlink()


def default_signals() -> None:
    """A suite that a script started with & inherits an ignored Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def started(trial: Trial, errors: Path) -> Iterator[Run]:
    """A run that leaves nothing to the next one."""
    run = Run(trial, errors)
    try:
        yield run
    finally:
        run.close()


def break_run(trial: Trial, errors: Path) -> Outcome:
    """Run, break, wait and look.

    Args:
        trial: what to do.
        errors: file for the run's stderr.

    Raises:
        Missed: the run was over before the fault.
    """
    with started(trial, errors) as run:
        if trial.moment is not None:
            run.await_note(trial.moment)
        if trial.delay_s:
            time.sleep(trial.delay_s)
        if trial.inject is not None:
            if run.process.poll() is not None:
                raise Missed("the run had ended")
            run.segments()  # remembers them
            try:
                trial.inject(run)
            except ProcessLookupError:
                raise Missed("the process had ended") from None
        struck = time.monotonic()
        while time.monotonic() - struck < (LIMIT_S if trial.moment or trial.inject else START_LIMIT_S):
            if not run.processes() and not run.segments() and run.process.poll() is not None:
                break
            time.sleep(0.02)
        seconds = time.monotonic() - struck
        processes, segments = len(run.processes()), len(run.segments())
        lines = tuple(errors.read_text().strip().splitlines())
        return Outcome(run.process.poll(), lines, seconds, processes, segments)


DEATH = 7
"""Exit code of a worker that dies."""


def dies(_connection: Connection) -> None:
    """At once, without a word."""
    os._exit(DEATH)


def never_listens(_connection: Connection) -> None:
    """Nobody takes what it is sent."""
    time.sleep(60.0)


def echoes(connection: Connection) -> None:
    """Sends the length of what it gets, until it gets nothing."""
    while value := connection.recv():
        connection.send(len(value))

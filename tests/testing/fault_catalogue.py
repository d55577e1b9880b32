"""Every fault that ``dsf-sim-run`` has to survive with dignity: how it is injected, and what the run must say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from dsf.export.network.file import write_network
from dsf.runtime.artifacts import network_path
from dsf.testing.fault_injection import LIMIT_S, PRIVATE, SHARED_MEMORY, Missed, Outcome, Run, Trial
from dsf.testing.random_networks import random_network

HOPPER_FEATURES = 15
BARE = ("--no-compare", "--parity-decisions", "0")
LAVA = (*BARE, "--backend", "lava", "--episodes", "50")
"""The shipped network in Lava, for minutes."""
DIRECT = (*LAVA, "--lava-fast-channels")
FAST = (*BARE, "--backend", "fast", "--episodes", "5000")
REFERENCE = (*BARE, "--backend", "reference", "--episodes", "50")
LONGEST_S = {"importing": 0.4, "starting": 0.5, "running": 2.0, "stopping": 0.03}
"""Random times after an announcement."""
LAVA_PROCESSES = 5
"""Processes of the shipped network, fused: server, three blocks (with the ends), runtime service."""
LAVA_PAGES = 300
"""Fewer pages of shared memory than the shipped network needs in Lava."""
AS_NOBODY = (
    "setpriv",
    "--reuid",
    "65534",
    "--clear-groups",
    "--inh-caps",
    "+dac_override",
    "--ambient-caps",
    "+dac_override",
)
"""Prefix of a command: another user, who may still read this one's environment."""
MODEL_FAULT = """
from dsf.runtime.lava_backend.stages import arithmetic
counted = 0
original = arithmetic.CoincidenceHistory.{method}
def broken(*arguments):
    global counted
    counted += 1
    if counted > {calls}:
        note("injected")
        raise ZeroDivisionError("injected")
    return original(*arguments)
arithmetic.CoincidenceHistory.{method} = broken
"""
"""Reaches Lava's processes through fork."""
PRIVATE_MOUNTS, ANOTHER_USER = "a private mount namespace", "root, to become another user"
"""What some faults need of the machine."""
KIB = 1024


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: what goes wrong.
        how: it is injected.
        codes: exit codes that are right; 0 where nothing is lost.
        line: regular expression of the one line on stderr; empty: none.
        trial: of a working directory and a source of chance.
        needs: what the machine must allow, or empty.
        quick: whether a quick round tries it.
    """

    name: str
    how: str
    codes: tuple[int, ...]
    line: str
    trial: Callable[[Path, Random], Trial]
    needs: str = ""
    quick: bool = False

    def possible(self) -> bool:
        """Whether this machine allows it."""
        if self.needs == PRIVATE_MOUNTS:
            return bool(os.environ.get(PRIVATE))
        return self.needs != ANOTHER_USER or subprocess.run([*AS_NOBODY, "true"], capture_output=True).returncode == 0

    def complaints(self, outcome: Outcome) -> list[str]:
        """What is wrong with an outcome."""
        found, lines = [], outcome.lines
        if outcome.code not in self.codes:
            found.append(f"exit code {outcome.code}")
        # 0 and the default action of a signal say nothing.
        silent = not lines and (not self.line or outcome.code is None or outcome.code <= 0)
        if not silent and not (len(lines) == 1 and re.match(f"dsf-sim-run: {self.line}", lines[0])):
            found.append(f"{len(lines)} lines: {' / '.join(lines)}")
        if outcome.processes or outcome.segments:
            found.append(f"{outcome.processes} processes and {outcome.segments} segments left")
        if outcome.seconds > LIMIT_S:
            found.append(f"{outcome.seconds:.1f} s")
        return found


def to_group(number: int) -> Callable[[Run], None]:
    """What a terminal does."""
    return lambda run: os.killpg(run.process.pid, number)


def to_parent(number: int) -> Callable[[Run], None]:
    """What another program does."""
    return lambda run: os.kill(run.process.pid, number)


def to_a_lava_process(number: int, chance: Random, first: int = 0) -> Callable[[Run], None]:
    """The newest when so many are there, from the ``first`` on; number 0 is the server of the shared memory."""
    chosen = chance.randrange(first, LAVA_PROCESSES)
    return lambda run: os.kill(run.await_lava_processes(chosen + 1)[chosen], number)


def to_a_dying_lava_process(chance: Random) -> Callable[[Run], None]:
    """One that the run itself is about to kill."""

    def inject(run: Run) -> None:
        found = run.lava_processes()
        if not found:
            raise Missed("they were gone")
        os.kill(chance.choice(found), signal.SIGKILL)

    return inject


def short(work: Path, backend: str) -> tuple[str, ...]:
    """A robot that falls within a second."""
    path = work / "short.dsf.h5"
    if not path.exists():
        write_network(random_network(0, features=HOPPER_FEATURES), path)
    return (str(path), *BARE, "--backend", backend)


def strike(
    when: str, inject: Callable[[Random], Callable[[Run], None]], arguments: tuple[str, ...] = LAVA
) -> Callable[[Path, Random], Trial]:
    """A fault at a random time after a moment was announced."""

    def trial(work: Path, chance: Random) -> Trial:
        chosen = short(work, "lava") if when == "stopping" else arguments
        return Trial(chosen, when, chance.uniform(0.0, LONGEST_S[when]), inject(chance))

    return trial


def killed_while_stopping(work: Path, chance: Random) -> Trial:
    """At once: the run itself kills them within milliseconds."""
    return Trial(short(work, "lava"), "stopping", 0.0, to_a_dying_lava_process(chance))


def stopped_server(_work: Path, _chance: Random) -> Trial:
    """The server of the shared memory stops before it has made any."""
    return Trial(LAVA, "serving", 0.0, lambda run: os.kill(run.await_lava_processes(1)[0], signal.SIGSTOP))


def failing_model(method: str, most_calls: int) -> Callable[[Path, Random], Trial]:
    """An exception in a block's process, after a random number of ticks."""

    def trial(_work: Path, chance: Random) -> Trial:
        patch = MODEL_FAULT.format(method=method, calls=chance.randint(0, most_calls))
        return Trial(LAVA, "injected", patch=patch)

    return trial


def shell(script: str, *values: str) -> tuple[str, ...]:
    """A prefix that prepares something and then becomes the command; ``$0`` is the first value."""
    return ("sh", "-c", f'{script} && exec "$@"', *values)


def fill_shared_memory(_run: Run) -> None:
    """To the last page; only a private one."""
    with (SHARED_MEMORY / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4 * KIB))
        except OSError:
            pass


def small_shared_memory(_work: Path, chance: Random) -> Trial:
    """Less than Lava needs."""
    return Trial(LAVA, shared_memory_kib=4 * chance.randint(1, LAVA_PAGES - 1))


def full_shared_memory_later(work: Path, chance: Random) -> Trial:
    """Every page that is still free is taken."""
    return Trial(short(work, "lava"), "running", 0.0, fill_shared_memory, shared_memory_kib=16 * KIB)


def few_descriptors(_work: Path, chance: Random) -> Trial:
    """Enough to import everything, too few for Lava."""
    return Trial(LAVA, prefix=shell('ulimit -n "$0"', str(chance.randint(20, 50))))


def few_processes(_work: Path, chance: Random) -> Trial:
    """Such limits do not bind root."""
    return Trial(LAVA, prefix=("prlimit", f"--nproc={chance.randint(4, 30)}", *AS_NOBODY))


def full_disk(work: Path, _chance: Random) -> Trial:
    """A file system without room behind --json."""
    disk = work / "disk"
    disk.mkdir(exist_ok=True)
    script = 'mount -t tmpfs -o size=4k tmpfs "$0" && head -c 4096 /dev/zero > "$0/filler"'
    arguments = (*short(work, "fast"), "--json", str(disk / "out.json"))
    return Trial(arguments, prefix=("unshare", "--mount", *shell(script, str(disk))))


def close_output(run: Run) -> None:
    """As ``| head -1`` does."""
    assert run.process.stdout is not None
    run.process.stdout.readline()
    run.process.stdout.close()


def truncated_network(work: Path, chance: Random) -> Trial:
    """The shipped network's beginning."""
    content, path = network_path().read_bytes(), work / "cut.dsf.h5"
    path.write_bytes(content[: chance.randrange(len(content))])
    return Trial((str(path), *BARE))


def full_output(work: Path, _chance: Random) -> Trial:
    """Nothing can be printed."""
    return Trial(short(work, "fast"), prefix=shell('exec > "$0"', "/dev/full"))


def on_signals() -> Iterator[Fault]:
    """Every signal that ends a program, at every moment of a Lava run; and the other engines."""
    senders = {
        signal.SIGINT: ("Ctrl-C", "SIGINT to the foreground group", to_group, "interrupted"),
        signal.SIGTERM: ("SIGTERM", "kill PID", to_parent, "ended by SIGTERM"),
        signal.SIGHUP: ("closed terminal", "SIGHUP to the foreground group", to_group, "ended by SIGHUP"),
        signal.SIGKILL: ("SIGKILL of the run", "kill -9 PID", to_parent, ""),
    }
    for number, (name, how, send, line) in senders.items():
        codes = (-number,) if number == signal.SIGKILL else (128 + number,)
        inject = lambda _chance, number=number, send=send: send(number)  # noqa: E731
        for when in LONGEST_S:
            late = (-number,) if when == "stopping" else ()  # the interpreter itself was ending
            quick = (number, when) in QUICK_SIGNALS
            yield Fault(f"{name}, {when}", how, (*codes, *late), line, strike(when, inject), quick=quick)
        others = {"Lava with fast channels": DIRECT, "fast engine": FAST, "reference engine": REFERENCE}
        for engine, arguments in others.items():
            yield Fault(f"{name}, {engine}", how, codes, line, strike("running", inject, arguments))


QUICK_SIGNALS = (
    (signal.SIGINT, "importing"),
    (signal.SIGINT, "starting"),
    (signal.SIGTERM, "stopping"),
    (signal.SIGHUP, "running"),
    (signal.SIGKILL, "running"),
)


def on_lava() -> Iterator[Fault]:
    """What may happen to Lava's own processes."""
    raised = "a Lava process model failed: ZeroDivisionError: injected"
    died = "(Lava child .* died|the process that owns Lava's shared memory died)"
    hangs = "Lava (does|did) not (start|answer)"
    kill = lambda chance: to_a_lava_process(signal.SIGKILL, chance)  # noqa: E731
    stop_later = lambda chance: to_a_lava_process(signal.SIGSTOP, chance, first=1)  # noqa: E731
    how = "ZeroDivisionError in a block's process"
    yield Fault("exception while a process model is built", how, (1,), raised, failing_model("__init__", 0))
    yield Fault("exception inside a process model", how, (1,), raised, failing_model("current", 2000), quick=True)
    how = "to a random one of Lava's processes"
    for when in ("starting", "running"):
        yield Fault(f"killed child, {when}", f"SIGKILL {how}", (1,), died, strike(when, kill), quick=when == "running")
    direct = strike("running", kill, DIRECT)
    yield Fault("killed child, running, fast channels", f"SIGKILL {how}", (1,), died, direct)
    server = "SIGSTOP to the server of Lava's shared memory, as soon as it is there"
    yield Fault("hanging memory server, starting", server, (1,), hangs, stopped_server)
    how += " but the server of the memory, which is asked for nothing once Lava has started"
    yield Fault("hanging child, starting", f"SIGSTOP {how}", (1,), hangs, strike("starting", stop_later))
    yield Fault("hanging child, running", f"SIGSTOP {how}", (1,), hangs, strike("running", stop_later), quick=True)
    direct = strike("running", stop_later, DIRECT)
    yield Fault("hanging child, running, fast channels", f"SIGSTOP {how}", (1,), hangs, direct)
    how = "to a random one of Lava's processes; the results are there already"
    yield Fault("killed child, stopping", f"SIGKILL {how}", (0, 1), died, killed_while_stopping)


def on_resources() -> Iterator[Fault]:
    """What the machine may run out of."""
    full = "Lava cannot start: /dev/shm is full"
    yield Fault("full /dev/shm", "tmpfs with room for 1 to 299 pages", (1,), full, small_shared_memory, PRIVATE_MOUNTS)
    how = "tmpfs filled to its last page; Lava has its pages since its start"
    yield Fault("full /dev/shm, running", how, (0,), "", full_shared_memory_later, PRIVATE_MOUNTS)
    how, line = "ulimit -n 20 to 50", ".*(file descriptors|Too many open files)"
    yield Fault("too few file descriptors", how, (1, 2), line, few_descriptors, quick=True)
    how = "ulimit -u 4 to 30, not as root"
    line = "(Lava cannot start: no further process may start|the process that owns Lava's shared memory died)"
    yield Fault("too few processes", how, (1,), line, few_processes, ANOTHER_USER)


def on_files() -> Iterator[Fault]:
    """What may happen to what is read and written."""
    line = "No space left on device: .*out.json"
    yield Fault("full disk behind --json", "a full tmpfs", (2,), line, full_disk, PRIVATE_MOUNTS)
    line = "No space left on device"
    yield Fault("full disk behind stdout", "> /dev/full", (2,), line, full_output, quick=True)
    for backend in ("lava", "fast"):
        run = lambda work, _chance, name=backend: Trial(short(work, name), "running", 0.0, close_output)  # noqa: E731
        line = "nobody reads the output any more"
        yield Fault(
            f"closed stdout, {backend}", "| head -1", (128 + signal.SIGPIPE,), line, run, quick=backend == "fast"
        )
    vanished = lambda work, _chance: Trial((str(work / "gone.dsf.h5"), *BARE))  # noqa: E731
    yield Fault(
        "network file that is not there",
        "its path",
        (2,),
        "cannot read network file .*gone.dsf.h5: No such file",
        vanished,
    )
    line = ".*cut.dsf.h5"
    yield Fault("truncated network file", "cut at a random byte", (2,), line, truncated_network)


FAULTS = (*on_signals(), *on_lava(), *on_resources(), *on_files())

"""Two Ray nodes on loopback, each by ``ray start``, that end with this program and leave nothing behind.

``ray stop`` ends every Ray process of the user, also other people's clusters on the machine. Here each node is one
``ray start --block`` that this process has started, and orphans come back to this process (PR_SET_CHILD_SUBREAPER), so
whatever belongs to the cluster is found among its descendants, under any name.

The token is spelt out. Left to itself, Ray 2.60 asks for one at the head where ``~/.ray/auth_token`` exists (any
``ray.init`` that starts a cluster writes it), while ``ray start --address`` and ``ray.init`` with an address send none
unless RAY_AUTH_MODE is ``token``, and are refused with InvalidAuthToken (``ray/scripts/scripts.py``: only the head's
branch calls ``maybe_enable_token_auth_if_token_available``).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsf.shell.child_processes import die_with_parent

PR_SET_CHILD_SUBREAPER = 36
OBJECT_STORE_BYTES = 80_000_000  # about the least that Ray takes
START_S, STOP_S, POLL_S = 120.0, 10.0, 0.05
STARTED = "Ray runtime started"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Cluster:
    """A cluster's address and the two programs that hold its nodes."""

    address: str
    head: subprocess.Popen[bytes]
    second: subprocess.Popen[bytes]


@contextlib.contextmanager
def two_nodes(place: Path, cpus: int) -> Iterator[Cluster]:
    """Start two nodes of ``cpus`` CPUs; yields when both have joined. At the end all descendants of this process end.

    Args:
        place: empty directory with a short path (Ray puts sockets there, whose paths may have 107 bytes).
        cpus: of each node.

    Raises:
        RuntimeError: a node has not started.
    """
    adopt_orphans()
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": str(place)}
    port, client_port = free_ports(2)
    address = f"{LOOPBACK}:{port}"
    head = ("--head", "--port", port, "--ray-client-server-port", client_port, "--temp-dir", place)
    try:
        first = start_node(place / "head.txt", cpus, *head, "--include-dashboard", "false")
        wait_for_node(first, place / "head.txt")
        second = start_node(place / "second.txt", cpus, "--address", address)
        wait_for_node(second, place / "second.txt")
        yield Cluster(address, first, second)
    finally:
        end_descendants()


def start_node(log: Path, cpus: int, *options: object) -> subprocess.Popen[bytes]:
    """Start a node as a child of this process; ports of workers are the system's choice, as two nodes share them."""
    limits = ("--num-cpus", cpus, "--object-store-memory", OBJECT_STORE_BYTES, "--disable-usage-stats")
    ports = ("--node-ip-address", LOOPBACK, "--min-worker-port", 0, "--max-worker-port", 0)
    program = Path(sys.executable).parent / "ray"
    words = [str(word) for word in (program, "start", "--block", *options, *ports, *limits)]
    with log.open("wb") as said:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            preexec_fn=die_with_parent,
            start_new_session=True,
        )


def wait_for_node(node: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a node has joined its cluster.

    Raises:
        RuntimeError: it ended instead, or took too long.
    """
    deadline = time.monotonic() + START_S
    while STARTED not in log.read_text():
        if node.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"ray start has not started a node: {log.read_text()[-2000:].strip()}")
        time.sleep(POLL_S)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at: another cluster on this machine is none of ours."""
    with contextlib.ExitStack() as held:
        found = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind((LOOPBACK, 0))
        return [int(each.getsockname()[1]) for each in found]


def adopt_orphans() -> None:
    """Make this process the parent of its descendants that lose theirs."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def descendants(process: int) -> list[int]:
    """Processes below one, from top to bottom, without those that have ended and wait to be asked how."""
    found: list[int] = []
    for child in children(process):
        found += [child, *descendants(child)]
    return found


def children(process: int) -> list[int]:
    """Living children of a process; none where it has ended."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return [child for child in found if is_alive(child)]


def is_alive(process: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def end_descendants() -> None:
    """End all that this process has started. A node that is asked to would drain first: seconds, for nothing here."""
    while left := descendants(os.getpid()):
        for process in left:
            kill(process, signal.SIGKILL)
        wait_until_gone(left)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass  # what has been adopted is not left to init as a zombie


def kill(process: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def wait_until_gone(processes: list[int]) -> None:
    """Wait until all have ended, for a while."""
    deadline = time.monotonic() + STOP_S
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(POLL_S)

"""What running a network takes of the machine's memory, said before it is taken."""

from __future__ import annotations

import re
import resource
from pathlib import Path

from dsf.export.network.network import Mode, Network
from dsf.shell.errors import UserError

VALUE_BYTES = 8
"""Of one value in the reference engine."""
GIGABYTE = 1e9


def bytes_needed(network: Network, mode: Mode, lanes: int) -> int:
    """Memory of the reference engine: every node's values, of all tokens of a window, or the histories of a stream.

    Args:
        network: to run.
        mode: stream or window.
        lanes: episodes side by side.
    """
    values = sum(node.size for node in network.nodes) * (network.context if mode == "window" else 1)
    past = sum(node.reach * network[node.remembered].size for node in network.with_history) if mode == "stream" else 0
    return VALUE_BYTES * network.ticks * lanes * (values + past)


def free_bytes() -> int | None:
    """What this process can still get; None where nobody says."""
    info = Path("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", info.read_text(), re.MULTILINE) if info.exists() else None
    available = None if found is None else int(found.group(1)) << 10
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    known = [
        limit for limit in (available, None if allowed == resource.RLIM_INFINITY else allowed) if limit is not None
    ]
    return min(known, default=None)


def require_memory(network: Network, mode: Mode, lanes: int, remedy: str) -> None:
    """Refuse a run that this machine cannot hold: it would end in the middle, and take other programs with it.

    Raises:
        UserError: saying how much it takes, and how much there is.
    """
    needed, free = bytes_needed(network, mode, lanes), free_bytes()
    if free is not None and needed > free:
        raise UserError(
            f"this network takes about {needed / GIGABYTE:,.1f} GB in {mode} mode for {lanes} episodes at once (T "
            f"{network.ticks}, K {network.context}), and {free / GIGABYTE:,.1f} GB are free: {remedy}"
        )

"""Episodes spread over a Ray cluster: one task per worker, the same results as on this machine alone."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsf.export.network.network import Network
from dsf.runtime.loop.closed_loop import LoopSettings, OnStep
from dsf.runtime.loop.results import ClosedLoopResult, EngineTotals, EpisodeResult, gather
from dsf.runtime.loop.workers import OpenEngine, run_share
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.installed import require_installed
from dsf.shell.processes.workers import told

CONNECT_S = 5.0
"""Time for a cluster to answer; Ray itself would try for minutes."""
CLIENT_SCHEME = "ray://"
ADDRESS, MODE, TOKEN, TOKEN_PATH = "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
TOKEN_FILE = Path("~/.ray/auth_token")

Share = tuple[list[EpisodeResult], EngineTotals]


def run_on_ray(
    open_engine: OpenEngine,
    settings: LoopSettings,
    network: Network,
    seeds: Sequence[int],
    workers: int,
    address: str | None,
    on_step: OnStep | None = None,
) -> ClosedLoopResult:
    """Run one episode per seed in ``workers`` tasks of a Ray cluster, every one with an engine of its own.

    Args:
        open_engine: starts an engine, where the task runs.
        settings: of every episode.
        network: that the engines run.
        seeds: environment reset seeds; every task gets its share before it starts.
        workers: tasks.
        address: of a running cluster; None takes the one of RAY_ADDRESS or of this machine, else starts one for this
            run.
        on_step: called with the steps of a share when it is done.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, or what a task raised.
        CommandFailed: a task failed, or its process died.
    """
    require_installed("cluster", "ray")
    import ray

    begun = time.perf_counter()
    shares: list[Share] = []
    with connected(address):
        share = ray.remote(max_retries=0)(_run_share)
        count = min(workers, len(seeds))
        waiting = [share.remote(open_engine, settings, list(seeds[first::count])) for first in range(count)]
        while waiting:
            (done,), waiting = ray.wait(waiting)
            shares.append(_fetch(done))
            if on_step is not None:
                on_step(sum(result.episode.decisions for result in shares[-1][0]))
        seconds = time.perf_counter() - begun
    results = [result for episodes, _ in shares for result in episodes]
    return gather(network, seeds, results, [totals for _, totals in shares], seconds)


def _run_share(open_engine: OpenEngine, settings: LoopSettings, seeds: list[int]) -> Share:
    results: list[EpisodeResult] = []
    return results, run_share(open_engine, settings, seeds, results.append)


def _fetch(reference: Any) -> Share:
    """A task's result, or what it raised."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        share: Share = ray.get(reference)
    except RayTaskError as error:
        raise told(error.cause, "a Ray task") from None
    except RayError as error:
        raise CommandFailed(f"a Ray task failed: {' '.join(str(error).split())}") from None
    return share


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a cluster, without Ray's own messages and without its handler of SIGTERM.

    Raises:
        UserError: there is no cluster.
    """
    import ray
    from ray.exceptions import RayError

    where = ADDRESS if address is None else "--ray-address"
    found = os.environ.get(ADDRESS, "") if address is None else address
    if found in ("", "local"):
        _make_token()
    else:
        _require_listener(where, found)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RayError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{where} {found}: {said}{_token_hint(found)}" if found else f"Ray: {said}") from None
    try:
        signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        ray.shutdown()


def _make_token() -> None:
    """Give a cluster that Ray may start for this run a token that nobody else needs.

    Left to itself, Ray 2.60 writes one to the user's home. From then on the head of every cluster that is started with
    ``ray start`` asks for it, and nodes and programs that join by address are refused, because they send none.
    """
    decided = any(name in os.environ for name in (MODE, TOKEN, TOKEN_PATH))
    if not (decided or TOKEN_FILE.expanduser().exists()):
        os.environ[TOKEN] = secrets.token_hex(32)


def _token_hint(address: str) -> str:
    """What to try where a cluster has refused us; nothing where the user, or Ray on this machine, has decided."""
    if MODE in os.environ or address == "auto":
        return ""
    return f"; if it was started where {TOKEN_FILE} exists, it asks for that token: set {MODE}=token on every node"


def _require_listener(where: str, address: str) -> None:
    """Refuse an address at which nobody listens.

    Raises:
        UserError: it is none, or there is no answer.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix(CLIENT_SCHEME).rpartition(":")
    if not (host and port.isdigit()):
        raise UserError(f"{where} is {address}: give HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{where} {address}: no Ray cluster answers ({error}): start one with ray start --head"
        ) from None

"""The choice between engines: each is started here, and stopped with everything that belongs to it."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

from dsf.export.network.network import Mode, Network
from dsf.runtime.engines.adapters import FastLoopEngine, ReferenceLoopEngine
from dsf.runtime.engines.errors import BackendUnavailable
from dsf.runtime.engines.interface import STOCK_LAVA, BackendName, Engine, LavaModel, LavaOptions
from dsf.runtime.lava_backend.newer_python import (
    FIRST_PYTHON_WITHOUT_LAVA,
    OPT_IN,
    make_lava_importable,
    newer_python_allowed,
)


@contextlib.contextmanager
def open_engine(
    network: Network,
    backend: BackendName,
    lava_model: LavaModel = "fused",
    mode: Mode = "stream",
    lava_options: LavaOptions = STOCK_LAVA,
) -> Iterator[Engine]:
    """Start a backend and stop everything that belongs to it at the end, whatever happens.

    Args:
        network: to run.
        backend: where.
        lava_model: of every block, in Lava.
        mode: one token per decision, or the last K tokens replayed for each.
        lava_options: read by Lava only; the other engines report all populations.

    Raises:
        BackendUnavailable: Lava was asked for where it cannot run, or the fast engine where no C compiler is.
        EngineDied: Lava failed.
        NetworkError: Lava cannot hold the network.
    """
    if backend != "lava":
        yield (FastLoopEngine if backend == "fast" else ReferenceLoopEngine)(network, mode)
        return
    require_lava()
    from dsf.runtime.lava_backend.engine import LavaEngine

    with LavaEngine(network, lava_model, mode, lava_options) as engine:
        yield engine


def require_lava(python: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Check that the Lava backend can run here, and make it importable where the user wants it on a newer Python.

    Raises:
        BackendUnavailable: wrong Python, or Lava is not installed.
    """
    if python >= FIRST_PYTHON_WITHOUT_LAVA and not newer_python_allowed():
        raise BackendUnavailable(
            f"backend 'lava' needs Python 3.10 (Lava is frozen there) and this is {python[0]}.{python[1]}: "
            f"use a Python 3.10 environment, {OPT_IN}=1 to try it here, or --backend fast, which gives the same spikes"
        )
    if importlib.util.find_spec("lava") is None:
        raise BackendUnavailable("backend 'lava' needs lava-nc: pip install 'dsf[lava]', or use --backend fast")
    make_lava_importable()

"""``dsf-sim-run``, also ``python -m dsf.runtime``, and ``dsf-bench``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

from dsf.shell.console_script import run_console_script


def _load() -> Callable[[], NoReturn]:
    # numpy's OpenBLAS starts its threads when it is imported. Nothing here multiplies large float matrices with it, and
    # where no thread may start (ulimit -u) it prints lines of its own and raises SIGINT before dsf has a say.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from dsf.runtime import cli

    return cli.main


def _load_bench() -> Callable[[], NoReturn]:
    from dsf.runtime import bench_cli

    return bench_cli.main


def main() -> NoReturn:
    """Console script."""
    run_console_script("dsf-sim-run", _load)


def bench_main() -> NoReturn:
    """Console script."""
    run_console_script("dsf-bench", _load_bench)


if __name__ == "__main__":
    main()

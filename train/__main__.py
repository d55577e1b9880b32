"""``dsf-train``, also ``python -m dsf.train``, and ``dsf-data``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from dsf.shell.console_script import run_console_script


def _load() -> Callable[[], NoReturn]:
    from dsf.train import cli

    return cli.main


def _load_data() -> Callable[[], NoReturn]:
    from dsf.train import data_cli

    return data_cli.main


def main() -> NoReturn:
    """Console script."""
    run_console_script("dsf-train", _load)


def data_main() -> NoReturn:
    """Console script."""
    run_console_script("dsf-data", _load_data)


if __name__ == "__main__":
    main()

"""``dsf-export``, also ``python -m dsf.export``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from dsf.shell.console_script import run_console_script


def _load() -> Callable[[], NoReturn]:
    from dsf.export import cli

    return cli.main


def main() -> NoReturn:
    """Console script."""
    run_console_script("dsf-export", _load)


if __name__ == "__main__":
    main()

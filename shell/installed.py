"""Optional parts of dsf: whether they are installed, without importing them."""

from __future__ import annotations

import importlib.util

from dsf.shell.errors import UserError


def require_installed(extra: str, *modules: str) -> None:
    """Check that an optional part of dsf is installed.

    Raises:
        UserError: a module is missing; the message names the extra that brings it.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"this command needs {', '.join(missing)}: install them with pip install 'dsf[{extra}]'")

"""Optional parts of dsf: whether they are installed, and how those are imported that no signal may disturb."""

from __future__ import annotations

import importlib
import importlib.util

from dsf.shell.errors import UserError
from dsf.shell.interrupts import interrupts_deferred

UNDISTURBED = ("torch", "onnxruntime")
"""Modules whose C++ aborts the program where an exception comes through it while they are imported."""


def are_installed(*modules: str) -> bool:
    """Whether they all are; those that no signal may disturb are then imported, and signals wait meanwhile."""
    if any(importlib.util.find_spec(module) is None for module in modules):
        return False
    for module in UNDISTURBED:
        if module in modules:
            with interrupts_deferred():
                importlib.import_module(module)
    return True


def require_installed(extra: str, *modules: str) -> None:
    """Check that an optional part of dsf is installed; those of its modules that no signal may disturb are imported.

    Raises:
        UserError: a module is missing; the message names the extra that brings it.
    """
    if not are_installed(*modules):
        missing = ", ".join(module for module in modules if importlib.util.find_spec(module) is None)
        raise UserError(f"this command needs {missing}: install them with pip install 'dsf[{extra}]'")

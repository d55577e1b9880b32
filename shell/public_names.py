"""A package's public names, found in its modules when they are first asked for: naming a package loads none of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def public_names(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package that offers names from its modules.

    A type checker needs the same names imported under ``TYPE_CHECKING``, and must not see the ``__getattr__``: it would
    believe in any name.

    Args:
        package: its ``__name__``.
        places: public name to the module that has it, or to ``module:name`` where it has another name there.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, own = places[name].partition(":")
        return getattr(importlib.import_module(module), own or name)

    return find

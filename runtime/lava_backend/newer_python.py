"""Lets lava-nc 0.10.0, which ends at Python 3.10, be imported on newer Pythons; nothing in site-packages changes.

What is in the way is one class: since Python 3.11 dataclasses refuse a default value that cannot be hashed, and
Lava's ``ByteEncoder``, itself a dataclass, is the default of several fields. Here it is hashed by identity.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
from typing import Any

FIRST_PYTHON_WITHOUT_LAVA = (3, 11)
OPT_IN = "DSF_LAVA_ON_NEWER_PYTHON"
"""Environment variable that asks, with the value 1, for Lava on a Python that it was not made for."""
_REFUSED_MODULE, _REFUSED_CLASS = "lava.magma.compiler.var_model", "ByteEncoder"

_dataclass = dataclasses.dataclass


def newer_python_allowed() -> bool:
    """Whether the user opted in."""
    return os.environ.get(OPT_IN) == "1"


def make_lava_importable() -> None:
    """Import the one module that newer Pythons refuse; does nothing on Python 3.10."""
    if sys.version_info < FIRST_PYTHON_WITHOUT_LAVA:
        return
    dataclasses.dataclass = _dataclass_with_hashable_encoder
    try:
        importlib.import_module(_REFUSED_MODULE)
    finally:
        dataclasses.dataclass = _dataclass


def _dataclass_with_hashable_encoder(cls: Any = None, **options: Any) -> Any:
    """The decorator as it is, for every class but one."""
    if cls is None:
        return functools.partial(_dataclass_with_hashable_encoder, **options)
    made: Any = _dataclass(cls, **options)
    if (made.__module__, made.__name__) == (_REFUSED_MODULE, _REFUSED_CLASS):
        made.__hash__ = object.__hash__
    return made

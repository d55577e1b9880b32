"""Values that a file brings (JSON's or YAML's), checked against the types that a dataclass declares.

A record of a stranger's file is checked once, where it is read, for all of its fields; nobody need doubt it later.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from dsf.shell.errors import UserError
from dsf.shell.plain_text import plain, shown

Record = TypeVar("Record")

LARGEST_WHOLE = (1 << 63) - 1
"""Whole numbers of files fit 64 bits, as those of arrays do."""


def read_record(kind: type[Record], values: Any, where: str, remedy: str) -> Record:
    """A dataclass from names and values; names that it does not declare are left alone.

    Declared types may be ``int``, ``float`` (finite), ``str``, ``bool``, ``None``, ``Any``, literals, dataclasses,
    lists, tuples, mappings from ``str``, and unions of these. A whole number is a ``float``, too; a truth value is no
    number.

    Args:
        kind: dataclass.
        values: as a file holds them.
        where: they stand, for messages.
        remedy: what to do with such a file.

    Raises:
        UserError: naming the field that is missing or of another type.
    """
    try:
        return cast(Record, _checked(kind, values, where))
    except _Wrong as wrong:
        raise UserError(f"{wrong}: {remedy}") from None


class _Wrong(Exception):
    """A value of another type than the declared one."""


def _checked(declared: Any, value: Any, where: str) -> Any:
    origin = get_origin(declared)
    if declared is Any:
        return value
    if dataclasses.is_dataclass(declared):
        return _record(declared, value, where)
    if origin in (Union, types.UnionType):
        return _one_of_several(declared, value, where)
    if origin is Literal:
        known = get_args(declared)
        return (
            value if isinstance(value, str) and value in known else _refuse(where, value, " or ".join(map(str, known)))
        )
    if origin in (list, tuple):
        return _sequence(declared, value, where)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            return _refuse(where, value, "names and values")
        inner = get_args(declared)[1]
        return {name: _checked(inner, item, f"{where}.{plain(name)}") for name, item in value.items()}
    return _plain_value(declared, value, where)


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        return _refuse(where, value, "names and values")
    found: dict[str, Any] = {}
    for name, (declared, required) in _fields(kind).items():
        if name in value:
            found[name] = _checked(declared, value[name], f"{where}: {name}" if where else name)
        elif required:
            raise _Wrong(f"{where}: {name} is missing" if where else f"{name} is missing")
    return kind(**found)


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """A dataclass's fields: their types, and whether they have to be there."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        item.name: (hints[item.name], item.default is missing and item.default_factory is missing)
        for item in dataclasses.fields(kind)
    }


def _one_of_several(declared: Any, value: Any, where: str) -> Any:
    choices = get_args(declared)
    if value is None and type(None) in choices:
        return None
    others = [choice for choice in choices if choice is not type(None)]
    for choice in others[:-1]:
        try:
            return _checked(choice, value, where)
        except _Wrong:
            continue
    return _checked(others[-1], value, where)


def _sequence(declared: Any, value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        return _refuse(where, value, "a list")
    inner = get_args(declared) or (Any,)
    fixed = get_origin(declared) is tuple and Ellipsis not in inner
    if fixed and len(value) != len(inner):
        return _refuse(where, value, f"a list of {len(inner)}")
    kinds = inner if fixed else (inner[0],) * len(value)
    items = [_checked(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(zip(kinds, value))]
    return items if get_origin(declared) is list else tuple(items)


def _plain_value(declared: Any, value: Any, where: str) -> Any:
    if declared is float:
        return _number(value, where)
    if declared is int:
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_WHOLE
        return value if whole else _refuse(where, value, "a whole number")
    names = {str: "text", bool: "true or false", dict: "names and values", list: "a list"}
    return value if isinstance(value, declared) else _refuse(where, value, names.get(declared, declared.__name__))


def _number(value: Any, where: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    return cast(float, _refuse(where, value, "a finite number"))


def _refuse(where: str, value: Any, expected: str) -> Any:
    raise _Wrong(f"{where} is {shown(value)}, expected {expected}")

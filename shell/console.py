"""A console for tables that are wider than a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

TABLE_WIDTH = 140
"""Columns that wide tables need; narrower terminals wrap their lines, and files and pipes hold them whole."""


def table_console() -> Console:
    """A console for wide tables, whatever the terminal."""
    return Console(width=max(Console().width, TABLE_WIDTH))


def first_few(names: Sequence[str], count: int) -> str:
    """The first ``count`` names in a line, and how many more there are."""
    more = [f"{len(names) - count} more"] if len(names) > count else []
    return ", ".join([*names[:count], *more])

"""Tables that more than one command prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

TABLE_WIDTH = 140
"""Columns that wide tables need; narrower terminals wrap their lines, and files and pipes hold them whole."""


def table_console() -> Console:
    """A console for wide tables, whatever the terminal."""
    return Console(width=max(Console().width, TABLE_WIDTH))


def print_ladder(rungs: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The verification ladder, from rungs as JSON values: anybody may have written them into a file."""
    table = Table(title="verification ladder", title_justify="left")
    for column in ("rung", "holds", "figures"):
        table.add_column(column, overflow="fold")
    for rung in rungs:
        passed = rung.get("passed")
        holds = "-" if passed is None else "yes" if passed is True else "NO"
        table.add_row(escape(str(rung.get("name", ""))), holds, escape(str(rung.get("summary", ""))))
    console.print(table)

"""The verification ladder as a table, for every command that prints one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


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

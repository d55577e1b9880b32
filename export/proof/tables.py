"""The verification ladder in words, for all who show one: anybody may have written it into a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsf.export.proof.rungs import UNPROVEN


def print_ladder(rungs: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The verification ladder, from rungs as JSON values."""
    table = Table(title="verification ladder", title_justify="left")
    for column in ("rung", "holds", "figures"):
        table.add_column(column, overflow="fold")
    for rung in rungs:
        table.add_row(escape(str(rung.get("name", ""))), holds(rung), escape(str(rung.get("summary", ""))))
    console.print(table)


def holds(rung: Mapping[str, Any]) -> str:
    """Whether a rung holds: yes, NO, unproven (tried, and undecided), or "-" (not claimed, or not tried)."""
    if is_unproven(rung):
        return UNPROVEN
    passed = rung.get("passed")
    return "-" if passed is None else "yes" if passed is True else "NO"


def is_unproven(rung: Mapping[str, Any]) -> bool:
    """Whether a rung was tried and is undecided."""
    details = rung.get("details")
    return rung.get("passed") is None and isinstance(details, Mapping) and details.get("verdict") == UNPROVEN


def unproven_lines(verification: Mapping[str, Any]) -> list[str]:
    """A line for each rung of a file that was tried and is undecided: its figures, and what would settle it."""
    rungs = verification.get("rungs") if isinstance(verification, Mapping) else None
    found = [rung for rung in rungs if isinstance(rung, Mapping)] if isinstance(rungs, Sequence) else []
    return [
        f"{rung.get('name', '')} is {UNPROVEN}: {rung.get('summary', '')}; "
        f"what would settle it: {rung['details'].get('settled_by', 'more episodes')}"
        for rung in found
        if is_unproven(rung)
    ]

"""What two networks differ in: header, provenance, nodes, and every field of the nodes they share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsf.export.network.network import Network
from dsf.export.network.nodes import Node

HEADER = "header"
"""Where fields belong that are no node's; :attr:`Difference.field` starts with their name."""
ABSENT = "absent"
"""Stands for the value that one side does not have."""
_HEADER_FIELDS = ("task", "ticks", "context", "target_return", "provenance", "verification")


@dataclass(frozen=True)
class Difference:
    """One difference.

    Attributes:
        where: node name, or :data:`HEADER`.
        field: field of the node or header; ``node`` where a whole node is missing, ``kind`` where kinds differ.
        first: JSON value in the first network; of an array, its shape.
        second: the same in the second network.
        entries: of arrays of one shape, how many entries differ.
        of_entries: out of this many.
        largest: of arrays of one shape, the largest difference in magnitude.
    """

    where: str
    field: str
    first: Any
    second: Any
    entries: int | None = None
    of_entries: int | None = None
    largest: float | None = None

    @property
    def text(self) -> str:
        """The two sides in one line."""
        if self.entries is not None and self.largest is not None:
            return f"{self.entries:,} of {self.of_entries:,} entries differ, by {self.largest:g} at most"
        return f"{_short(self.first)} -> {_short(self.second)}"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)


def compare_networks(first: Network, second: Network) -> list[Difference]:
    """Every difference between two networks: the header's, then the nodes' in evaluation order. Equal: empty."""
    differences = [
        item for name in _HEADER_FIELDS for item in _values(name, getattr(first, name), getattr(second, name))
    ]
    nodes, others = ({node.name: node for node in network.nodes} for network in (first, second))
    for name, node in nodes.items():
        differences += _nodes(node, others.get(name))
    differences += [
        Difference(name, "node", ABSENT, type(node).__name__) for name, node in others.items() if name not in nodes
    ]
    orders = [[name for name in names if name in nodes and name in others] for names in (nodes, others)]
    if orders[0] != orders[1]:
        differences.append(Difference(HEADER, "order of nodes", orders[0], orders[1]))
    return differences


def _values(path: str, first: Any, second: Any) -> Iterator[Difference]:
    """Differences of JSON values, one per leaf; dictionaries are entered, lists of one length, too."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            yield from _values(f"{path}.{key}", first.get(key, ABSENT), second.get(key, ABSENT))
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second)):
            yield from _values(f"{path}.{index}", one, other)
    elif first != second and not (first != first and second != second):  # a NaN equals a NaN here
        yield Difference(HEADER, path, first, second)


def _nodes(first: Node, second: Node | None) -> list[Difference]:
    kind = type(first).__name__
    if second is None:
        return [Difference(first.name, "node", kind, ABSENT)]
    if type(second) is not type(first):
        return [Difference(first.name, "kind", kind, type(second).__name__)]
    differences = []
    for item in dataclasses.fields(first):
        one, other = getattr(first, item.name), getattr(second, item.name)
        if isinstance(one, np.ndarray) is not isinstance(other, np.ndarray):  # one number for all neurons, or many
            one, other = (np.broadcast_to(value, node.size) for node, value in ((first, one), (second, other)))
        if isinstance(one, np.ndarray):
            differences += _arrays(first.name, item.name, one, other)
        elif one != other:
            one, other = (list(value) if isinstance(value, tuple) else value for value in (one, other))
            differences.append(Difference(first.name, item.name, one, other))
    return differences


def _arrays(where: str, field: str, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> list[Difference]:
    """Entries that differ; the width of their dtype does not matter, because the file has one per field."""
    shapes = list(first.shape), list(second.shape)
    if shapes[0] != shapes[1]:
        return [Difference(where, field, shapes[0], shapes[1])]
    wide = np.int64 if np.issubdtype(first.dtype, np.integer) else np.float64
    gap = np.abs(first.astype(wide) - second.astype(wide))
    differing = int(np.count_nonzero(gap))
    if differing == 0:
        return []
    return [
        Difference(where, field, shapes[0], shapes[1], entries=differing, of_entries=gap.size, largest=float(gap.max()))
    ]


def _short(value: Any, longest: int = 60) -> str:
    """JSON text, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def print_differences(differences: list[Difference], console: Console) -> None:
    """Print differences as a table, or that there is none."""
    if not differences:
        console.print("the networks are equal")
        return
    table = Table(title=f"{len(differences)} differences", title_justify="left")
    for column in ("where", "field", "difference"):
        table.add_column(column, overflow="fold")
    for difference in differences:
        table.add_row(*map(escape, (difference.where, difference.field, difference.text)))
    console.print(table)

"""How large a network may be: far beyond what fits a chip, and small enough that looking at one costs little.

A file of a few kilobytes can claim any number; whoever reads one allocates by these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dsf.export.network.nodes import HISTORY_KINDS, HostEmbedding, NetworkError, Node
from dsf.shell.plain_text import shown

LARGEST_TICKS = 1 << 10
LARGEST_CONTEXT = 1 << 14
"""Tokens: of a window, and that one node looks back on."""
LARGEST_POPULATION = 1 << 16
"""Neurons of one node."""
MOST_NODES = 1 << 12
MOST_NEURONS = 1 << 20
"""Of all nodes together, relays and adders included."""
MOST_SOURCES = 64
"""Nodes whose values one adds up."""
LARGEST_HISTORY = 1 << 32
"""Spikes of earlier tokens that all nodes together remember."""
LARGEST_MATRIX = 1 << 24
"""Weights of one node, zeros included: a file that leaves them out is small, and an engine's matrix is not."""
NODE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""Names end up in pictures, pages, tables, and as names of files and of what they hold."""


def require_count(count: int) -> None:
    """Refuse more nodes than any network has, before any is read.

    Raises:
        NetworkError: there are none, or more than :data:`MOST_NODES`.
    """
    if not 0 < count <= MOST_NODES:
        raise NetworkError(f"network: it has {shown(count)} nodes, limit {MOST_NODES:,}; export it again")


def require_name(where: str, name: str) -> None:
    """Refuse a node's name that a file should not bring.

    Raises:
        NetworkError: it is no :data:`NODE_NAME`.
    """
    if not NODE_NAME.fullmatch(name):
        raise NetworkError(
            f"{where}: name is {shown(name)}, expected up to 128 letters, digits, '_', '.' and '-'; "
            "export the network again"
        )


def require_matrix(where: str, neurons: int, inputs: int) -> None:
    """Refuse a matrix that a file claims and does not hold, zero by zero.

    Raises:
        NetworkError: naming the limit.
    """
    _require(where, "number of rows", neurons, LARGEST_POPULATION)
    _require(where, "number of inputs", inputs, LARGEST_POPULATION)
    _require(where, "number of weights", neurons * inputs, LARGEST_MATRIX)


def require_sizes(ticks: int, context: int, nodes: Sequence[Node]) -> None:
    """Refuse a network whose numbers alone would exhaust time or memory.

    Raises:
        NetworkError: naming the limit.
    """
    require_count(len(nodes))
    for name, value, limit in (("ticks", ticks, LARGEST_TICKS), ("context", context, LARGEST_CONTEXT)):
        _require("network", name, value, limit)
    for node in nodes:
        where = f"network node '{node.name}'"
        _require(where, "size", node.size, LARGEST_POPULATION)
        _require(where, "number of sources", len(node.sources), MOST_SOURCES)
        if isinstance(node, HostEmbedding):
            _require(where, "number of features", node.features, LARGEST_POPULATION)
        if isinstance(node, HISTORY_KINDS):
            _require(where, "reach", node.reach, LARGEST_CONTEXT)
    _require("network", "number of neurons", sum(node.size for node in nodes), MOST_NEURONS)
    sizes = {node.name: node.size for node in nodes}
    remembered = sum(node.reach * sizes.get(node.remembered, 0) for node in nodes if isinstance(node, HISTORY_KINDS))
    _require("network", "number of remembered spikes", ticks * remembered, LARGEST_HISTORY)


def _require(where: str, name: str, value: Any, limit: int) -> None:
    if value > limit:
        raise NetworkError(f"{where}: {name} is {shown(value)}, limit {limit:,}; export the network again")

"""A whole integer network: nodes in evaluation order, and what a closed loop and a reader need of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from dsf.export.network.limits import require_sizes
from dsf.export.network.nodes import (
    ALLOWED_SOURCES,
    HISTORY_KINDS,
    HOST_KINDS,
    LIF,
    And,
    Count,
    Gate,
    HistoryNode,
    HostNode,
    NetworkError,
    Node,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    Window,
    require,
    require_text,
    require_whole,
)
from dsf.shell.plain_text import shown

NodeType = TypeVar("NodeType")
Mode = Literal["stream", "window"]
"""How an engine decides: from what histories remember, or from the last K tokens, replayed for every decision."""


@dataclass(frozen=True)
class Network:
    """A deployable network in evaluation order, with all that a closed loop and a reader need.

    Attributes:
        task: name of the registered task it was trained for.
        ticks: T, inner ticks per token.
        context: K, tokens of a window-mode decision.
        nodes: in evaluation order, the encoder first and the readout last.
        provenance: dataset, seeds, config, revision, scores (JSON values).
        verification: the ladder's table (JSON values), see :mod:`dsf.export.proof.verify`.
        target_return: return that the network was verified at (reward units); None means the task's first target.
    """

    task: str
    ticks: int
    context: int
    nodes: tuple[Node, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    target_return: float | None = None

    def __post_init__(self) -> None:
        _check_header(self)
        require_sizes(self.ticks, self.context, self.nodes)
        if not (self.nodes and isinstance(self.nodes[0], HOST_KINDS) and isinstance(self.nodes[-1], Readout)):
            raise NetworkError("network: the first node must be the encoder and the last the readout; export it again")
        known: dict[str, Node] = {}
        for node in self.nodes:
            require(node.name not in known, node, "name is used twice")
            for source in node.sources:
                require(source in known, node, f"source '{source}' is no earlier node")
                allowed = ALLOWED_SOURCES[type(node)]
                require(
                    isinstance(known[source], allowed), node, f"source '{source}' is a {type(known[source]).__name__}"
                )
            _check_sizes(node, known)
            if isinstance(node, PlacedWindow):
                require(len(node.weights) == self.context, node, f"has not one place for each of {self.context} tokens")
            known[node.name] = node

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise NetworkError(f"network: there is no node '{name}'; dsf-export inspect lists all nodes of a file")

    def of_kind(self, kind: type[NodeType]) -> Iterator[NodeType]:
        """All nodes of one kind, in evaluation order."""
        return (node for node in self.nodes if isinstance(node, kind))

    @property
    def encoder(self) -> HostNode:
        """The first node: what makes a token's integers, on the host."""
        first = self.nodes[0]
        assert isinstance(first, HOST_KINDS)
        return first

    @property
    def readout(self) -> Readout:
        """The last node."""
        return next(self.of_kind(Readout))

    @property
    def with_history(self) -> tuple[HistoryNode, ...]:
        """All nodes that read earlier tokens, in evaluation order."""
        return tuple(node for node in self.nodes if isinstance(node, HISTORY_KINDS))

    @property
    def receptive_field(self) -> int:
        """Tokens that can influence one decision in stream mode: 1 + sum over the nodes with history of (reach - 1)."""
        return 1 + sum(node.reach - 1 for node in self.with_history)

    @property
    def stream_is_exact(self) -> bool:
        """Whether stream mode equals window mode bit for bit."""
        return self.receptive_field <= self.context and not any(self.of_kind(PlacedWindow))

    def with_verification(self, verification: dict[str, Any]) -> Network:
        """The same network with another ladder table."""
        return dataclasses.replace(self, verification=verification)


def _check_header(network: Network) -> None:
    """Check what is no node: a file may hold anything there.

    Raises:
        NetworkError: naming the field.
    """
    require_text("network", "task", network.task)
    for name in ("ticks", "context"):
        if require_whole("network", name, getattr(network, name)) < 1:
            raise NetworkError(
                f"network: {name} is {shown(getattr(network, name))}, it must be at least 1; export it again"
            )
    values: dict[str, Any] = {"provenance": network.provenance, "verification": network.verification}
    for name, value in values.items():
        if not isinstance(value, dict):
            raise NetworkError(f"network: {name} is {shown(value)}, expected names and values; export it again")
    target: Any = network.target_return
    if target is not None and not _is_finite(target):
        raise NetworkError(
            f"network: target_return is {shown(target)}, expected a finite number or none; export it again"
        )


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _check_sizes(node: Node, known: dict[str, Node]) -> None:
    """Check that a node's arrays fit the populations it reads."""
    sizes = [known[source].size for source in node.sources]
    if isinstance(node, (Synapses, Readout)):
        require(node.weights.shape[1] == sizes[0], node, f"weights read {node.weights.shape[1]} of {sizes[0]} inputs")
    elif isinstance(node, (Residual, LIF)):
        require(all(size == node.size for size in sizes), node, f"source sizes {sizes} differ from {node.size}")
    elif isinstance(node, Gate):
        require(max(node.first, node.second) + node.size <= sizes[0], node, f"reads beyond {sizes[0]} neurons")
    elif isinstance(node, (Window, PlacedWindow, And)):
        require(node.first + node.size <= sizes[0], node, f"reads beyond {sizes[0]} query neurons")
        require(sizes[1] == node.size, node, f"second source has {sizes[1]} neurons, expected {node.size}")
    elif isinstance(node, Count):
        require(sizes[0] == node.size, node, f"source has {sizes[0]} neurons, expected {node.size}")
    elif isinstance(node, Outer):
        last = max(node.query, node.key, node.value) + node.size
        require(last <= sizes[0], node, f"reads beyond {sizes[0]} neurons")

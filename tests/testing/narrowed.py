"""What a test knows about a value and its type does not say."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from dsf.export.network.network import Network

Kind = TypeVar("Kind")


def node_of(network: Network, name: str, kind: type[Kind]) -> Kind:
    """The node of that name, which is of that kind."""
    node = network[name]
    assert isinstance(node, kind)
    return node


def present(value: Kind | None) -> Kind:
    """A value that is there."""
    assert value is not None
    return value


def gradient(tensor: Tensor) -> Tensor:
    """What a backward pass has left in a tensor."""
    return present(tensor.grad)

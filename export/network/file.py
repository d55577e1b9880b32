"""The network file ``*.dsf.h5``: HDF5 behind a 512-byte user block that holds the SHA-256 of all that follows.

Layout: ``/header`` is JSON text (format, task, ticks, context, provenance, verification); ``/nodes/<index>`` holds one
node, scalars and strings as attributes, arrays as datasets, ``kind`` naming the dataclass. What may be one number or
many, a LIF's decay, is an attribute or a dataset; versions do not differ in it, because a reader that knows only the
attribute refuses a file without. A matrix of synapses or of
the readout is a group of three arrays, where that is smaller than all of its numbers: see
:class:`~dsf.export.network.sparse.CompressedRows`. No pickle, no code.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsf.export.network.bounds import require_no_overflow
from dsf.export.network.carried import require_carried
from dsf.export.network.limits import MOST_NODES, require_count, require_name
from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    NODE_KINDS,
    Decay,
    NetworkError,
    Node,
    Readout,
    Synapses,
    require_number,
    require_text,
    require_whole,
)
from dsf.export.network.reference import check_token_size
from dsf.export.network.sealed import Seal
from dsf.export.network.sparse import (
    ARRAYS,
    CompressedRows,
    compress,
    index_type,
    is_sparse,
    require_rows,
    require_shape,
)
from dsf.shell.arrays import IntArray
from dsf.shell.errors import UserError
from dsf.shell.file_values import parse_json
from dsf.shell.hdf5_reading import ReadLimits
from dsf.shell.plain_text import shown
from dsf.tasks.registry import TASK_FACT, described_task

FORMAT_VERSION, SPARSE_VERSION, DENSE_VERSION = 4, 3, 2
"""A network whose actions lie between -1 and 1, or are choices counted from 0, is still written as version 3, and as
version 2 where it has no sparse matrices: older readers take it, and its bytes stay."""
READABLE_VERSIONS = (1, DENSE_VERSION, SPARSE_VERSION, FORMAT_VERSION)
"""Version 1 had no nodes PlacedWindow, Count, Outer and And, and only the head 'tanh'; 2 has no sparse matrices; 3 has
no bounds of actions in the readout."""
SUFFIX = ".dsf.h5"


def _glance(header: dict[str, Any]) -> None:
    """Refuse more nodes than any network has."""
    require_count(require_whole("header", "nodes", header["nodes"]))


SEAL = Seal(
    magic=b"dsf network file\n",
    noun="network file",
    version=FORMAT_VERSION,
    readable=READABLE_VERSIONS,
    make="make one with dsf-export",
    remake="export it again",
    limits=ReadLimits(objects=6 * MOST_NODES, numbers=1 << 24, expanded=1 << 28, ratio=100),
    error=NetworkError,
    glance=_glance,
)

_ARRAY_TYPES: dict[str, type[np.generic]] = {
    "weights": np.int8,
    "bias": np.int32,
    "threshold": np.int32,
    "bias_mantissa": np.int16,
    "decay": np.int16,
    "offset": np.float64,
    "step": np.float64,
    "shift": np.int8,
    "scale": np.float64,
    "matrix": np.float64,
    "linear_bias": np.float64,
    "norm_gain": np.float64,
    "norm_bias": np.float64,
    "unit": np.float64,
}
"""Storage type of every array field, whatever its node."""
COMMANDS = ("low", "high", "first_choice")
"""Fields of the readout that say what a machine gets for actions."""
_MATRIX_KINDS = (Synapses, Readout)
"""Nodes whose weights are a matrix that may be sparse."""
_SCALARS: dict[Any, Callable[[str, str, Any], int | float | str]] = {
    int: require_whole,
    float: require_number,
    str: require_text,
}
"""Types of the fields that are attributes, and who checks them."""


def write_network(network: Network, path: Path) -> None:
    """Write a network file whole or not at all.

    Raises:
        OSError: the directory cannot be written.
    """
    header = {
        "task": network.task,
        "ticks": network.ticks,
        "context": network.context,
        "nodes": len(network.nodes),
        "provenance": network.provenance,
        "verification": network.verification,
        "target_return": network.target_return,
    }
    sparse = any(isinstance(node, _MATRIX_KINDS) and is_sparse(node.weights) for node in network.nodes)
    version = SPARSE_VERSION if sparse else DENSE_VERSION
    if network.readout.has_commands:
        version = FORMAT_VERSION
    SEAL.write(path, header, lambda file: _write_nodes(network, file), version)


def read_network(path: Path) -> Network:
    """Read and check a network file.

    Raises:
        NetworkError: the file is missing, truncated, altered, of another version, breaks a rule of its nodes, or could
            overflow.
    """
    return SEAL.read(path, _read_body)


def file_digest(path: Path) -> str:
    """The SHA-256 that the user block states, in hexadecimal."""
    return SEAL.digest(path)


def _write_nodes(network: Network, file: h5py.File) -> None:
    for index, node in enumerate(network.nodes):
        _write_node(file.create_group(f"nodes/{index:04d}"), node)


def _write_node(group: h5py.Group, node: Node) -> None:
    group.attrs["kind"] = type(node).__name__
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if is_left_out(item, value):
            continue
        if _may_be_sparse(type(node), item.name) and is_sparse(value):
            _write_rows(group.create_group(item.name), compress(value))
        elif isinstance(value, np.ndarray):
            stored = value.astype(_ARRAY_TYPES[item.name])
            group.create_dataset(item.name, data=stored, compression="gzip", shuffle=True)
        elif isinstance(value, tuple):
            group.attrs[item.name] = json.dumps(value)
        else:
            group.attrs[item.name] = value


def is_left_out(item: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field says nothing that a file without it does not say: those of the readout that are younger than most
    files, at their defaults.
    """
    return item.name in COMMANDS and bool(value == item.default)


def _may_be_sparse(kind: type[Any], field: str) -> bool:
    """Whether a field is a matrix of synapses; a window's weights are no more than a few."""
    return field == "weights" and kind in _MATRIX_KINDS


def _is_sparse_here(kind: type[Any], field: str, group: h5py.Group) -> bool:
    return _may_be_sparse(kind, field) and isinstance(group.get(field), h5py.Group)


def _write_rows(group: h5py.Group, rows: CompressedRows) -> None:
    group.attrs["inputs"] = rows.inputs
    for name in ARRAYS:
        stored = getattr(rows, name)
        packing = {"compression": "gzip", "shuffle": True} if stored.size else {}  # nothing has no pieces to pack
        group.create_dataset(name, data=stored, **packing)


def _read_body(file: h5py.File, header: dict[str, Any]) -> Network:
    count = require_whole("header", "nodes", header["nodes"])
    if (found := len(file["nodes"])) != count:
        raise NetworkError(f"header: nodes is {count}, and the file holds {found}: export it again")
    require_carried(header["provenance"], header["verification"])
    network = Network(
        task=header["task"],
        ticks=header["ticks"],
        context=header["context"],
        nodes=_read_nodes(file, count, header["format"]),
        provenance=header["provenance"],
        verification=header["verification"],
        target_return=header["target_return"],
    )
    require_own_bounds(network)
    require_no_overflow(network)  # engines rely on it for exactness, and another tool may have written the file
    return network


def require_own_bounds(network: Network) -> None:
    """Refuse a network whose readout has other bounds than the task that it carries.

    Raises:
        NetworkError: they differ, or it carries no task.
    """
    if TASK_FACT not in network.provenance:
        return
    try:
        task = described_task(network.task, network.provenance)
    except UserError as error:
        raise NetworkError(f"network: provenance: {error}") from None
    readout, bounds = network.readout, task.command_bounds
    if (readout.low, readout.high) != bounds or readout.first_choice != task.first_choice:
        raise NetworkError(
            f"network: its readout ends at other actions than task {task.name}, which it carries: export it again"
        )
    check_token_size(network, task.observation_size, task.action_size)


def _read_nodes(file: h5py.File, count: int, version: int) -> tuple[Node, ...]:
    groups = [file[f"nodes/{index:04d}"] for index in range(count)]
    if version >= SPARSE_VERSION:
        _require_room(groups, SEAL.limits.allowed(file.id.get_filesize()))
    return tuple(_read_node(group, version) for group in groups)


def _require_room(groups: list[h5py.Group], allowed: int) -> None:
    """Refuse sparse matrices that would take more memory with their zeros than a file's arrays may, before one is made.

    Raises:
        NetworkError: naming the matrix.
    """
    for group in groups:
        if isinstance(rows := group.get("weights"), h5py.Group):
            starts = rows["starts"].size
            allowed -= (starts - 1) * require_shape(rows.name, rows.attrs["inputs"], starts)
            if allowed < 0:
                raise NetworkError(f"{rows.name}: the matrices take more memory than such a file may: export it again")


def _read_rows(group: h5py.Group) -> IntArray:
    """The matrix that a group holds as compressed rows.

    Raises:
        NetworkError: it holds none.
    """
    inputs = require_whole(group.name, "inputs", group.attrs["inputs"])
    rows = CompressedRows(
        inputs,
        SEAL.read_array(group, "values", np.int8),
        SEAL.read_array(group, "columns", index_type(inputs - 1)),
        SEAL.read_array(group, "starts", index_type(group["values"].size)),
    )
    require_rows(group.name, rows)
    return rows.dense()


def _read_node(group: h5py.Group, version: int) -> Node:
    kind = NODE_KINDS.get(str(group.attrs["kind"]))
    if kind is None:
        raise NetworkError(f"{group.name}: unknown node kind {shown(group.attrs['kind'])}: it needs a newer dsf")
    types_by_name = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        declared = types_by_name[item.name]
        if declared == Decay and item.name not in group:
            declared = int  # one for all neurons
        if item.default is not dataclasses.MISSING and item.name not in group.attrs:
            continue  # younger than the file's version
        if item.name in COMMANDS and version < FORMAT_VERSION:
            raise NetworkError(f"{group.name}: {item.name} is none of version {version}: export it again")
        if declared in _SCALARS:
            values[item.name] = _SCALARS[declared](group.name, item.name, group.attrs[item.name])
        elif isinstance(declared, types.GenericAlias) and typing.get_origin(declared) is tuple:
            text = require_text(group.name, item.name, group.attrs[item.name])
            entries = parse_json(text, f"{group.name}: {item.name}")
            check = require_number if float in typing.get_args(declared) else require_text
            values[item.name] = tuple(check(group.name, item.name, entry) for entry in entries)
        elif version >= SPARSE_VERSION and _is_sparse_here(kind, item.name, group):
            values[item.name] = _read_rows(group[item.name])
        else:
            values[item.name] = SEAL.read_array(group, item.name, _ARRAY_TYPES[item.name])
    require_name(group.name, values["name"])
    node: Node = kind(**values)
    return node

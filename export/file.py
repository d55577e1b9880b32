"""The network file ``*.dsf.h5``: HDF5 behind a 512-byte user block that holds the SHA-256 of all that follows.

Layout: ``/header`` is JSON text (format, task, ticks, context, provenance, verification); ``/nodes/<index>`` holds one
node, scalars and strings as attributes, arrays as datasets, ``kind`` naming the dataclass. No pickle, no code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from dsf.export.bounds import require_no_overflow
from dsf.export.network import Network
from dsf.export.nodes import NODE_KINDS, NetworkError, Node, require_text, require_whole
from dsf.tasks.files import replacing

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, FORMAT_VERSION)
"""Version 1 had no nodes PlacedWindow, Count, Outer and And, and only the head 'tanh'."""
SUFFIX = ".dsf.h5"
USER_BLOCK_BYTES = 512
MAGIC = b"dsf network file\n"
VERSION_LINE = re.compile(rb"\nformat (\d{1,9})\n")
LARGEST_ARRAY = 1 << 28
"""Numbers in one array: more would only exhaust the memory of whoever reads the file."""

_ARRAY_TYPES: dict[str, type[np.generic]] = {
    "weights": np.int8,
    "bias": np.int32,
    "threshold": np.int32,
    "bias_mantissa": np.int16,
    "offset": np.float64,
    "step": np.float64,
    "shift": np.int8,
    "scale": np.float64,
}
"""Storage type of every array field, whatever its node."""
_SCALARS: dict[Any, Callable[[str, str, Any], int | str]] = {int: require_whole, str: require_text}
"""Types of the fields that are attributes, and who checks them."""


def write_network(network: Network, path: Path) -> None:
    """Write a network file whole or not at all.

    Raises:
        OSError: the directory cannot be written.
    """
    with replacing(path) as temporary:
        _write_body(network, temporary)
        block = _user_block(temporary.read_bytes()[USER_BLOCK_BYTES:])
        with temporary.open("r+b") as file:
            file.write(block)


def read_network(path: Path) -> Network:
    """Read and check a network file.

    Raises:
        NetworkError: the file is missing, truncated, altered, of another version, breaks a rule of its nodes, or could
            overflow.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NetworkError(f"cannot read network file {path}: {error.strerror}") from None
    if not content.startswith(MAGIC) or len(content) <= USER_BLOCK_BYTES:
        raise NetworkError(f"{path} is no dsf network file, or is truncated: make one with dsf-export")
    version = _require_intact(content, path)
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            network = _read_body(file, version)
        require_no_overflow(network)  # engines rely on it for exactness, and another tool may have written the file
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        raise NetworkError(f"{path}: content is not a network of this version ({error}): export it again") from None
    return network


def _require_intact(content: bytes, path: Path) -> int:
    """The version that a file's user block states.

    Raises:
        NetworkError: it is unknown, or the block does not fit what follows.
    """
    stated = VERSION_LINE.search(content, 0, USER_BLOCK_BYTES)
    version = int(stated.group(1)) if stated else 0
    if stated and version not in READABLE_VERSIONS:
        known = " and ".join(map(str, READABLE_VERSIONS))
        raise NetworkError(f"{path} has format {version}, this dsf reads {known}: update dsf, or export it again")
    if content[:USER_BLOCK_BYTES] != _user_block(content[USER_BLOCK_BYTES:], version):
        raise NetworkError(f"{path}: SHA-256 does not match, the file was altered or cut short: export it again")
    return version


def file_digest(path: Path) -> str:
    """The SHA-256 that the user block states, in hexadecimal."""
    return path.read_bytes()[len(MAGIC) :][:64].decode()


def _user_block(body: bytes, version: int = FORMAT_VERSION) -> bytes:
    """Magic, digest, version, then zeros: every byte is determined, so any flipped one is seen."""
    text = MAGIC + hashlib.sha256(body).hexdigest().encode() + f"\nformat {version}\n".encode()
    return text.ljust(USER_BLOCK_BYTES, b"\0")


def _write_body(network: Network, path: Path) -> None:
    header = {
        "format": FORMAT_VERSION,
        "task": network.task,
        "ticks": network.ticks,
        "context": network.context,
        "nodes": len(network.nodes),
        "provenance": network.provenance,
        "verification": network.verification,
        "target_return": network.target_return,
    }
    with h5py.File(path, "w", userblock_size=USER_BLOCK_BYTES, libver="latest") as file:
        text = json.dumps(header, sort_keys=True).encode()
        file.create_dataset("header", data=np.frombuffer(text, np.uint8))
        for index, node in enumerate(network.nodes):
            _write_node(file.create_group(f"nodes/{index:04d}"), node)


def _write_node(group: h5py.Group, node: Node) -> None:
    group.attrs["kind"] = type(node).__name__
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if isinstance(value, np.ndarray):
            stored = value.astype(_ARRAY_TYPES[item.name])
            group.create_dataset(item.name, data=stored, compression="gzip", shuffle=True)
        elif isinstance(value, tuple):
            group.attrs[item.name] = json.dumps(value)
        else:
            group.attrs[item.name] = value


def _read_body(file: h5py.File, version: int) -> Network:
    header = json.loads(bytes(_read_array(file, "header", np.uint8)))
    if header["format"] != version:
        raise NetworkError(f"header: format is {header['format']!r}, the user block says {version}: export it again")
    count = require_whole("header", "nodes", header["nodes"])
    return Network(
        task=header["task"],
        ticks=header["ticks"],
        context=header["context"],
        nodes=tuple(_read_node(file[f"nodes/{index:04d}"]) for index in range(count)),
        provenance=header["provenance"],
        verification=header["verification"],
        target_return=header["target_return"],
    )


def _read_node(group: h5py.Group) -> Node:
    kind = NODE_KINDS.get(str(group.attrs["kind"]))
    if kind is None:
        raise NetworkError(f"{group.name}: unknown node kind '{group.attrs['kind']}': it needs a newer dsf")
    types_by_name = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        declared = types_by_name[item.name]
        if item.default is not dataclasses.MISSING and item.name not in group.attrs:
            continue  # younger than the file's version
        if declared in _SCALARS:
            values[item.name] = _SCALARS[declared](group.name, item.name, group.attrs[item.name])
        elif isinstance(declared, types.GenericAlias) and typing.get_origin(declared) is tuple:
            names = json.loads(require_text(group.name, item.name, group.attrs[item.name]))
            values[item.name] = tuple(require_text(group.name, item.name, name) for name in names)
        else:
            values[item.name] = _read_array(group, item.name, _ARRAY_TYPES[item.name])
    node: Node = kind(**values)
    return node


def _read_array(group: h5py.Group, name: str, expected: type[np.generic]) -> npt.NDArray[Any]:
    """One array, after a look at what it claims to be: whoever signs a file anew may put anything in it.

    Raises:
        NetworkError: it lies elsewhere, has another type, or is larger than any network's.
    """
    where = f"{group.name}/{name}"
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise NetworkError(f"{where} is a link out of the file: export the network again")
    stored = group[name]
    if not isinstance(stored, h5py.Dataset) or stored.external or stored.is_virtual:
        raise NetworkError(f"{where} holds no data of its own: export the network again")
    if stored.dtype != expected:
        raise NetworkError(f"{where} has dtype {stored.dtype}, expected {np.dtype(expected)}: export the network again")
    if stored.size > LARGEST_ARRAY:
        raise NetworkError(f"{where} claims {stored.size:,} numbers, limit {LARGEST_ARRAY:,}: export the network again")
    values: npt.NDArray[Any] = stored[()]
    return values

"""A matrix of weights without its zeros: compressed rows, in a file and wherever they are the smaller form.

Which form a matrix takes changes no meaning: a node's matrix is the dense one, in memory and in every equation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsf.export.network.limits import require_matrix
from dsf.export.network.nodes import NetworkError, require_whole
from dsf.shell.arrays import IntArray

VALUE_BYTES = np.dtype(np.int8).itemsize
"""Of a stored weight."""
INDEX_TYPES: tuple[type[np.unsignedinteger[Any]], ...] = (np.uint8, np.uint16, np.uint32)
ARRAYS = ("values", "columns", "starts")
"""Of compressed rows."""


def index_type(largest: int) -> type[np.unsignedinteger[Any]]:
    """The narrowest unsigned type that holds ``largest``."""
    return next(kind for kind in INDEX_TYPES if largest <= np.iinfo(kind).max)


def index_bytes(largest: int) -> int:
    """Bytes of the narrowest unsigned integer that holds ``largest``."""
    return np.dtype(index_type(largest)).itemsize


@dataclass(frozen=True)
class CompressedRows:
    """Row n of the matrix is 0, but for values[starts[n] : starts[n + 1]] in columns[starts[n] : starts[n + 1]].

    Attributes:
        inputs: length of a row.
        values: (kept,) int8, none of them 0.
        columns: (kept,) ascending within a row, in the narrowest unsigned type that holds inputs - 1.
        starts: (rows + 1,) from 0 to kept, in the narrowest unsigned type that holds kept.
    """

    inputs: int
    values: npt.NDArray[np.int8]
    columns: npt.NDArray[np.unsignedinteger[Any]]
    starts: npt.NDArray[np.unsignedinteger[Any]]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the three arrays."""
        return self.values.nbytes + self.columns.nbytes + self.starts.nbytes

    def dense(self) -> npt.NDArray[np.int8]:
        """The matrix, (rows, inputs)."""
        matrix = np.zeros((len(self.starts) - 1, self.inputs), np.int8)
        matrix[np.repeat(np.arange(len(matrix)), np.diff(self.starts.astype(np.int64))), self.columns] = self.values
        return matrix


def compress(weights: IntArray) -> CompressedRows:
    """The compressed rows of a matrix of 8-bit weights (rows, inputs)."""
    inputs, found = weights.shape[1], weights != 0
    starts = np.concatenate([[0], np.cumsum(np.count_nonzero(found, axis=1))])
    return CompressedRows(
        inputs,
        weights[found].astype(np.int8),
        np.nonzero(found)[1].astype(index_type(inputs - 1)),
        starts.astype(index_type(int(starts[-1]))),
    )


def compressed_bytes(weights: IntArray) -> int:
    """Bytes of a matrix of 8-bit weights (rows, inputs) as compressed rows."""
    (rows, inputs), kept = weights.shape, int(np.count_nonzero(weights))
    columns, starts = (index_bytes(largest) for largest in (inputs - 1, kept))
    return kept * (VALUE_BYTES + columns) + (rows + 1) * starts


def is_sparse(weights: IntArray) -> bool:
    """Whether compressed rows are the smaller form of a matrix of 8-bit weights (rows, inputs)."""
    return compressed_bytes(weights) < weights.size * VALUE_BYTES


def stored_bytes(weights: IntArray) -> int:
    """Bytes of a matrix of 8-bit weights in its smaller form."""
    return min(compressed_bytes(weights), weights.size * VALUE_BYTES)


def require_shape(where: str, inputs: Any, starts: int) -> int:
    """The length of a row that a file claims for compressed rows, before any array of that size is made.

    Args:
        where: the matrix is, in the file.
        inputs: what the file says.
        starts: entries of the array of rows' starts.

    Raises:
        NetworkError: it is no length, or the matrix is larger than any network's.
    """
    length = require_whole(where, "inputs", inputs)
    if length < 1 or starts < 2:
        raise NetworkError(f"{where}: it has {max(starts - 1, 0)} rows of {length} inputs; export the network again")
    require_matrix(where, starts - 1, length)
    return length


def require_rows(where: str, rows: CompressedRows) -> None:
    """Refuse compressed rows that are none: engines would read and write elsewhere.

    Raises:
        NetworkError: naming the array.
    """
    for name in ARRAYS:
        _require(getattr(rows, name).ndim == 1, where, f"{name} has {getattr(rows, name).ndim} axes, expected 1")
    kinds: tuple[type[np.generic], ...] = (np.int8, index_type(rows.inputs - 1), index_type(len(rows.values)))
    for name, kind in zip(ARRAYS, kinds):
        found, expected = getattr(rows, name).dtype, np.dtype(kind)
        _require(found == expected, where, f"{name} has dtype {found}, expected {expected}")
    starts, columns, kept = rows.starts.astype(np.int64), rows.columns.astype(np.int64), len(rows.values)
    _require(len(columns) == kept, where, f"it has {kept:,} values and {len(columns):,} columns")
    _require(
        int(starts[0]) == 0 and int(starts[-1]) == kept and bool((np.diff(starts) >= 0).all()),
        where,
        f"starts do not ascend from 0 to the {kept:,} values",
    )
    if kept == 0:
        return
    _require(int(columns.max()) < rows.inputs, where, f"a column is {int(columns.max())}, of {rows.inputs} inputs")
    ascends = np.diff(columns) > 0
    begins = starts[1:-1]
    ascends[begins[(begins > 0) & (begins < kept)] - 1] = True  # a new row may begin anywhere
    _require(bool(ascends.all()), where, "the columns of a row do not ascend, or one is there twice")
    _require(bool((rows.values != 0).all()), where, "values holds a weight of 0, which compressed rows leave out")


def _require(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise NetworkError(f"{where}: {what}; export the network again")

"""How weights are kept and how often they are fetched: what every count of weight bytes assumes.

Two choices, each with a name: ``weights`` says what a matrix takes in memory, ``fetch`` whom a fetched row serves.
A row holds the weights from one input to all targets: it is what a spike needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dsf.export.placement.chips import stored_weight_bits
from dsf.shell.arrays import Int64Array
from dsf.shell.errors import UserError

Weights = Literal["bytes", "packed"]
Fetch = Literal["event", "token"]
BYTE_BITS = 8

WEIGHTS: dict[Weights, str] = {
    "bytes": "a byte for every weight, zeros too",
    "packed": "every matrix in the cheapest of three formats at the bits that its largest weight needs; a weight of "
    "zero is no synapse",
}
"""What a matrix takes."""

DENSE_ROWS, MARKED_ROWS, COMPRESSED_ROWS = "dense rows", "marked rows", "compressed rows"
FORMATS: dict[str, str] = {
    DENSE_ROWS: "every weight at its width, zeros too",
    MARKED_ROWS: "where the row starts, a bit for every target, and the weights that are not zero",
    COMPRESSED_ROWS: "where the row starts and how many weights it keeps; for each its target's number and its value",
}
"""Formats of packed matrices, in the order in which equals are chosen. Indices and bitmaps are how neuromorphic
memories keep sparse connections (Schaefer et al. 2020, arXiv 2003.11639, abstract: grade A); compressed rows are a
variant of EIE's compressed columns (Han et al., ISCA 2016), with whole target numbers in place of runs of zeros."""


@dataclass(frozen=True)
class FetchSchedule:
    """Whom a fetched row serves.

    Attributes:
        title: for people.
        meaning: one sentence.
        hardware: what works like it.
        grade: of that, see :data:`dsf.hardware_models.preset.GRADES`.
        source: of that.
    """

    title: str
    meaning: str
    hardware: str
    grade: str
    source: str

    @property
    def cited(self) -> str:
        """Hardware, grade and source in one line."""
        return f"{self.title}: {self.hardware} (grade {self.grade}: {self.source})"


FETCHES: dict[Fetch, FetchSchedule] = {
    "event": FetchSchedule(
        "event by event",
        "Every spike fetches its row; nothing is kept for the next tick.",
        "cores that take spikes as they come, tick by tick, as Loihi's and ODIN's: a synaptic operation reads its own "
        "weight",
        "Q",
        "Davies et al. 2018, IEEE Micro 38(1); Frenkel et al., TBioCAS 2019; the count is that of Lemaire et al. 2022, "
        "arXiv 2210.13107: weight reads = spikes x targets",
    ),
    "token": FetchSchedule(
        "token by token",
        "Layer by layer, all ticks of a token at once: a row that one tick fetches serves the token's later ticks.",
        "accelerators that compute all ticks of a layer together, as LoAS does; among ours the fast engine",
        "A",
        "Yin et al., MICRO 2024, arXiv 2407.14073, abstract: a fully temporal-parallel dataflow that minimises data "
        "movement across timesteps",
    ),
}
"""Schedules by name."""


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix as it lies in memory.

    Attributes:
        format: of :data:`FORMATS`, or what :data:`WEIGHTS` says of bytes.
        bits: of one weight.
        kept: (inputs,) synapses of every row.
        row_bytes: (inputs,) what a fetch of the row reads, its index included. Rows begin at whole bytes.
    """

    format: str
    bits: int
    kept: Int64Array
    row_bytes: Int64Array

    @property
    def synapses(self) -> int:
        """Weights that a product meets."""
        return int(self.kept.sum())

    @property
    def total_bytes(self) -> int:
        """Bytes of all rows, each once."""
        return int(self.row_bytes.sum())


@dataclass(frozen=True)
class WeightMemory:
    """What a count of weight bytes assumes; the default is what all figures before 2026-12 assume."""

    weights: Weights = "bytes"
    fetch: Fetch = "event"

    @property
    def described(self) -> str:
        """Both choices, in words."""
        return f"weights fetched {FETCHES[self.fetch].title}, {WEIGHTS[self.weights]}"

    def stored(self, weights: npt.NDArray[np.integer]) -> StoredMatrix:
        """A matrix of (targets, inputs) in this memory."""
        return packed(weights) if self.weights == "packed" else in_bytes(weights)


USUAL = WeightMemory()
"""Event by event, a byte for every weight."""


def in_bytes(weights: npt.NDArray[np.integer]) -> StoredMatrix:
    """A byte for every weight of (targets, inputs), zeros too."""
    targets, inputs = weights.shape
    each = np.full(inputs, targets, np.int64)
    return StoredMatrix(WEIGHTS["bytes"], BYTE_BITS, each, each)


def packed(weights: npt.NDArray[np.integer]) -> StoredMatrix:
    """(targets, inputs) at the bits that the largest weight needs, in the cheapest format."""
    kept = np.count_nonzero(weights, axis=0).astype(np.int64)
    return cheapest(kept, len(weights), stored_weight_bits(weights))


def evenly_packed(inputs: int, targets: int, bits: int, share: float) -> StoredMatrix:
    """A matrix of which only the size is known: a share of its weights is kept, spread evenly over its rows.

    Raises:
        UserError: bits or share are out of range.
    """
    if not 1 <= bits <= 32 or not 0.0 <= share <= 1.0:
        raise UserError(f"weights of {bits} bits, a share of {share} kept: bits are 1 to 32, a share is 0 to 1")
    each, more = divmod(round(share * inputs * targets), inputs)
    kept = np.full(inputs, each, np.int64)
    kept[:more] += 1
    return cheapest(kept, targets, bits)


def cheapest(kept: Int64Array, targets: int, bits: int) -> StoredMatrix:
    """The format in which all rows together take the fewest bytes: a choice made once, whatever then fires.

    Args:
        kept: (inputs,) weights of every row that are not zero.
        targets: of every row.
        bits: of a weight.
    """
    found = (StoredMatrix(form, bits, kept, row_bytes(form, kept, targets, bits)) for form in FORMATS)
    return min(found, key=lambda matrix: matrix.total_bytes)


def row_bytes(form: str, kept: Int64Array, targets: int, bits: int) -> Int64Array:
    """(inputs,) bytes of rows in one format; arguments are those of :func:`cheapest`."""
    start = int(kept.sum()).bit_length()  # counts the weights before the row
    if form == DENSE_ROWS:
        row_bits = np.full(len(kept), targets * bits, np.int64)
    elif form == MARKED_ROWS:
        row_bits = start + targets + kept * bits
    else:
        count, position = targets.bit_length(), (targets - 1).bit_length()
        row_bits = start + count + kept * (position + bits)
    return -(-row_bits // BYTE_BITS)

"""What a block reports of each token: how many spikes every population fired, and the rasters that were asked for."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from dsf.hardware_models import SpikeCounter
from dsf.runtime.lava_blocks import BlockNodes
from dsf.runtime.parity import Spikes

WORD_BITS = 32


def raster_words(ticks: int, neurons: int) -> int:
    """Words of a packed raster: ticks x neurons bits, padded."""
    return -(-ticks * neurons // WORD_BITS)


def pack_raster(spikes: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Pack (ticks, neurons) spikes into int32 words."""
    packed = np.zeros(raster_words(*spikes.shape), np.int32)
    bits = np.packbits(spikes, bitorder="little")
    packed.view(np.uint8)[: len(bits)] = bits
    return packed


def unpack_raster(words: npt.NDArray[np.int32], ticks: int, neurons: int) -> npt.NDArray[np.uint8]:
    """Inverse of :func:`pack_raster`: (ticks, neurons), each 0 or 1."""
    bits = np.unpackbits(words.view(np.uint8), count=ticks * neurons, bitorder="little")
    return bits.reshape(ticks, neurons)


class BlockReport:
    """One block's words in the message that all blocks' reports form: counts first, then the packed raster.

    A block sends a whole message with zeros outside its own words, so that a fan-in adder concatenates.

    Attributes:
        ticks: per token.
        first: place of the first word.
        words: how many there are.
    """

    def __init__(self, block: BlockNodes, ticks: int, probed: frozenset[str], first: int) -> None:
        """Args: ``probed`` names the populations whose rasters are wanted; counts are always there."""
        self.ticks, self.first = ticks, first
        self.names = [population.node.name for population in block.populations]
        self.probed = [name in probed for name in self.names]
        self.columns = [slice(end - size, end) for size, end in zip(block.sizes, itertools.accumulate(block.sizes))]
        self.counted = list(self.columns)
        self.history = ""
        """Name of the node whose query spikes are counted last, as energy models want them, or empty."""
        if block.attention is not None and block.attention.query is not None:
            query, (_, qkv, *_) = block.attention.query, self.columns
            self.counted.append(slice(qkv.start + query.start, qkv.start + query.stop))
            self.history = block.attention.history.name
        sizes = [size for size, wanted in zip(block.sizes, self.probed) if wanted]
        names = [name for name, wanted in zip(self.names, self.probed) if wanted]
        self.probed_neurons = sum(sizes)
        ends = itertools.accumulate(sizes)
        self.reported = {name: slice(end - size, end) for name, size, end in zip(names, sizes, ends)}
        """Columns of the probed populations in the raster that is sent."""
        self.words = len(self.counted) + raster_words(ticks, self.probed_neurons)

    def write(self, raster: npt.NDArray[np.bool_], message: npt.NDArray[np.int32]) -> None:
        """Put a token's (ticks, neurons) raster of all populations into a message."""
        own = message[self.first :][: self.words]
        own[: len(self.counted)] = [np.count_nonzero(raster[:, columns]) for columns in self.counted]
        if all(self.probed):
            own[len(self.counted) :] = pack_raster(raster)
        elif any(self.probed):
            wanted = [raster[:, columns] for columns, wanted in zip(self.columns, self.probed) if wanted]
            own[len(self.counted) :] = pack_raster(np.concatenate(wanted, axis=1))

    def count(self, message: npt.NDArray[np.int32], counter: SpikeCounter) -> None:
        """Add the block's spikes to a counter."""
        counts = message[self.first :][: len(self.counted)].tolist()
        for name, count in zip(self.names, counts):
            counter.spikes[name] += count
        if self.history:
            counter.query_spikes[self.history] += counts[-1]

    def read(self, message: npt.NDArray[np.int32]) -> Spikes:
        """The rasters of the probed populations, each (ticks, neurons)."""
        words = message[self.first :][len(self.counted) : self.words]
        raster = unpack_raster(words, self.ticks, self.probed_neurons)
        return {name: raster[:, columns] for name, columns in self.reported.items()}


def lay_out_reports(blocks: tuple[BlockNodes, ...], ticks: int, probed: frozenset[str]) -> list[BlockReport]:
    """Every block's report, one behind the other."""
    reports: list[BlockReport] = []
    for block in blocks:
        first = reports[-1].first + reports[-1].words if reports else 0
        reports.append(BlockReport(block, ticks, probed, first))
    return reports

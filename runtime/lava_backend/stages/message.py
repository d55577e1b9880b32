"""What a block reports of each token: every neuron's spikes and active updates, and the rasters that were asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dsf.export.network.nodes import LIF, NetworkError
from dsf.hardware_models import SpikeCounter
from dsf.runtime.engines.parity import Spikes
from dsf.runtime.lava_backend.stages.blocks import BlockNodes

WORD_BITS, WORD_BYTES = 32, 4
MOST_TICKS = 255


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

    A block sends a whole message with zeros outside its own words, so that a fan-in adder concatenates. Counts are a
    byte per neuron: its spikes in the token, and behind those of all populations the LIFs' updates that had work to do.

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
        self.columns = _side_by_side(block.sizes)
        lifs = [population.node for population in block.populations if isinstance(population.node, LIF)]
        self.active = dict(zip([lif.name for lif in lifs], _side_by_side([lif.size for lif in lifs])))
        self.neurons, self.lif_neurons = sum(block.sizes), sum(lif.size for lif in lifs)
        self.count_words = -(-(self.neurons + self.lif_neurons) // WORD_BYTES)
        sizes = [size for size, wanted in zip(block.sizes, self.probed) if wanted]
        names = [name for name, wanted in zip(self.names, self.probed) if wanted]
        self.probed_neurons = sum(sizes)
        self.reported = dict(zip(names, _side_by_side(sizes)))
        """Columns of the probed populations in the raster that is sent."""
        self.words = self.count_words + raster_words(ticks, self.probed_neurons)

    def write(
        self,
        raster: npt.NDArray[np.bool_],
        active: npt.NDArray[np.uint8] | None,
        message: npt.NDArray[np.int32],
    ) -> None:
        """Put a token's (ticks, neurons) raster of all populations into a message, and how many updates of every LIF
        neuron had work to do; None counts every update, for processes that do not show their membranes.
        """
        own = message[self.first :][: self.words]
        counts = own[: self.count_words].view(np.uint8)
        np.add.reduce(raster.view(np.uint8), axis=0, dtype=np.uint8, out=counts[: self.neurons])
        counts[self.neurons : self.neurons + self.lif_neurons] = self.ticks if active is None else active
        if all(self.probed):
            own[self.count_words :] = pack_raster(raster)
        elif any(self.probed):
            wanted = [raster[:, columns] for columns, wanted in zip(self.columns, self.probed) if wanted]
            own[self.count_words :] = pack_raster(np.concatenate(wanted, axis=1))

    def count(self, message: npt.NDArray[np.int32], counter: SpikeCounter) -> None:
        """Add the block's spikes and active updates to a counter."""
        counts = message[self.first :][: self.count_words].view(np.uint8)
        for name, columns in zip(self.names, self.columns):
            counter.fired[name] += counts[columns]
        for name, columns in self.active.items():
            counter.active[name] += counts[self.neurons :][columns]

    def read(self, message: npt.NDArray[np.int32]) -> Spikes:
        """The rasters of the probed populations, each (ticks, neurons)."""
        words = message[self.first :][self.count_words : self.words]
        raster = unpack_raster(words, self.ticks, self.probed_neurons)
        return {name: raster[:, columns] for name, columns in self.reported.items()}


def _side_by_side(sizes: Sequence[int]) -> list[slice]:
    """Columns of arrays of these sizes, one behind the other."""
    return [slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes))]


def lay_out_reports(blocks: tuple[BlockNodes, ...], ticks: int, probed: frozenset[str]) -> list[BlockReport]:
    """Every block's report, one behind the other.

    Raises:
        NetworkError: a token has more ticks than a byte can count.
    """
    if ticks > MOST_TICKS:
        raise NetworkError(f"network: {ticks} ticks per token; the Lava backend counts at most {MOST_TICKS}")
    reports: list[BlockReport] = []
    for block in blocks:
        first = reports[-1].first + reports[-1].words if reports else 0
        reports.append(BlockReport(block, ticks, probed, first))
    return reports

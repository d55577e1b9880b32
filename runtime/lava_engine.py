"""The Lava backend: an integer network on Lava's Loihi simulator, fused or expanded, in stream mode."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.run_configs import Loihi2SimCfg

from dsf.export.network import Network
from dsf.export.nodes import Synapses
from dsf.export.reference import Int64Array
from dsf.runtime.engine import LavaModel
from dsf.runtime.lava_layout import (
    BLOCK_DEPTH,
    DENSE_TICKS,
    Clock,
    NetworkParts,
    raster_words,
    split_network,
    unpack_raster,
)
from dsf.runtime.lava_processes.block import DsfBlock, stock_synapses
from dsf.runtime.lava_processes.ends import FusedEmbedding, FusedReadout, ResidualSum, TokenSink, TokenSource
from dsf.runtime.lava_processes.parts import EmbeddingRelay
from dsf.runtime.lava_supervisor import LavaSupervisor
from dsf.runtime.parity import Spikes
from dsf.train.integers import MAX_INPUT_BITS

GRADED_BITS = 24


class LavaEngine:
    """Runs one lane. Use as a context manager: Lava starts operating-system processes.

    ``fused`` has one process per block and P = T ticks per decision; ``expanded`` builds each block from stock
    LIFReset and Dense and needs P = T + 14 ticks for three blocks. Both report every spike of every population.
    """

    lanes = 1

    def __init__(self, network: Network, model: LavaModel = "fused") -> None:
        self.network, self.parts = network, split_network(network)
        blocks = self.parts.blocks
        self.words = [raster_words(network.ticks, sum(p.size for p in block.populations)) for block in blocks]
        depth = 2 * DENSE_TICKS + BLOCK_DEPTH * len(blocks) if model == "expanded" else 0
        self.clock = Clock(network.ticks, network.ticks + depth)
        build = _build_expanded if model == "expanded" else _build_fused
        self.source, self.sink = build(self.parts, self.clock, self.words)
        config = Loihi2SimCfg(select_tag="fixed_pt", select_sub_proc_model=model == "expanded")
        self.supervisor = LavaSupervisor(self.source, config)
        self.episode_starts = True

    @property
    def ticks_per_decision(self) -> int:
        """Lava time steps per token."""
        return self.clock.period

    def __enter__(self) -> LavaEngine:
        self.supervisor.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.supervisor.__exit__(kind, error, tb)

    def reset(self, lane: int) -> None:
        """Start a new episode: the next token carries the reset flag."""
        assert lane == 0
        self.episode_starts = True

    def step_graded(self, graded: npt.NDArray[np.integer]) -> tuple[Int64Array, Spikes]:
        """Consume one token: the encoder's integers (1, features).

        Returns:
            accumulators (1, actions), and the spikes of every population, each (ticks, neurons).

        Raises:
            EngineDied: a Lava process failed.
        """
        message = np.append(graded[0] << self.network.encoder.shift, self.episode_starts).astype(np.int32)
        self.episode_starts = False
        self.source.pipe.external_pipe_csp_send_port.send(message)
        self.supervisor.run(self.clock.period)
        answer = self.sink.pipe.external_pipe_csp_recv_port.recv()
        actions = self.network.readout.size
        return answer[None, :actions].astype(np.int64), self._spikes(answer[actions:])

    def _spikes(self, words: npt.NDArray[np.int32]) -> Spikes:
        spikes: Spikes = {}
        first = 0
        for block, count in zip(self.parts.blocks, self.words):
            sizes = [population.size for population in block.populations]
            raster = unpack_raster(words[first : first + count], self.network.ticks, sum(sizes))
            columns = np.split(raster, np.cumsum(sizes)[:-1], axis=1)
            spikes.update({node.name: values for node, values in zip(block.populations, columns)})
            first += count
        return spikes


def _blocks(parts: NetworkParts, clock: Clock, words: list[int], depth_per_block: int) -> list[DsfBlock]:
    """The blocks, chained, each at its pipeline depth and with its slice of the raster."""
    blocks: list[DsfBlock] = []
    for index, nodes in enumerate(parts.blocks):
        block = DsfBlock(
            block=nodes,
            first_word=sum(words[:index]),
            words=sum(words),
            clock=clock.at(clock.depth + index * depth_per_block),
        )
        if blocks:
            blocks[-1].r_out.connect(block.r_in)
        blocks.append(block)
    return blocks


def _build_fused(parts: NetworkParts, clock: Clock, words: list[int]) -> tuple[Any, Any]:
    source = FusedEmbedding(encoder=parts.encoder, embed=parts.embed, residual=parts.embed_residual, clock=clock)
    sink = FusedReadout(readout=parts.readout, words=sum(words), clock=clock)
    blocks = _blocks(parts, clock, words, depth_per_block=0)
    _connect_ends(source, source.r_out, blocks, sink.r_in, sink)
    return source, sink


def _build_expanded(parts: NetworkParts, clock: Clock, words: list[int]) -> tuple[Any, Any]:
    source = TokenSource(encoder=parts.encoder, clock=clock)
    embed = stock_synapses(parts.embed, message_bits=MAX_INPUT_BITS)
    first = EmbeddingRelay(bias=parts.embed_residual.bias)
    source.g_out.connect(embed.s_in)
    embed.a_out.connect(first.a_in)
    blocks = _blocks(parts, clock.at(DENSE_TICKS), words, BLOCK_DEPTH)
    last = clock.at(DENSE_TICKS + BLOCK_DEPTH * len(blocks))
    total = ResidualSum(readout=parts.readout, clock=last)
    weights = Synapses(parts.readout.name, parts.readout.source, parts.readout.weights, exponent=0)
    head = stock_synapses(weights, message_bits=GRADED_BITS)
    sink = TokenSink(readout=parts.readout, words=sum(words), clock=clock)
    total.g_out.connect(head.s_in)
    head.a_out.connect(sink.y_in)
    _connect_ends(source, first.r_out, blocks, total.r_in, sink)
    return source, sink


def _connect_ends(source: Any, residual: Any, blocks: list[DsfBlock], last: Any, sink: AbstractProcess) -> None:
    residual.connect(blocks[0].r_in)
    blocks[-1].r_out.connect(last)
    for block in blocks:
        source.reset_out.connect(block.reset_in)
        block.raster_out.connect(sink.raster_in)

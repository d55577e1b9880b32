"""The Lava backend: an integer network on Lava's Loihi simulator, fused or expanded, in stream or window mode."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.run_configs import Loihi2SimCfg

from dsf.export.network import Network
from dsf.export.nodes import Synapses
from dsf.export.reference import Int64Array
from dsf.hardware_models import SpikeCounter
from dsf.runtime.engine import HostEncoder, LavaModel
from dsf.runtime.fast_engine import Mode
from dsf.runtime.lava_blocks import NetworkParts, split_network
from dsf.runtime.lava_layout import (
    CONTINUES,
    DENSE_TICKS,
    Clock,
    raster_words,
    unpack_raster,
)
from dsf.runtime.lava_processes.block import DsfBlock
from dsf.runtime.lava_processes.ends import FusedEmbedding, FusedReadout, ResidualSum, TokenSink, TokenSource
from dsf.runtime.lava_processes.parts import EmbeddingRelay
from dsf.runtime.lava_processes.stock import stock_synapses
from dsf.runtime.lava_supervisor import LavaSupervisor
from dsf.runtime.parity import Spikes
from dsf.train.integers import MAX_INPUT_BITS

GRADED_BITS = 24


class LavaEngine(HostEncoder):
    """Runs one lane. Use as a context manager: Lava starts operating-system processes.

    ``fused`` has one process per block, ``expanded`` builds each block from stock LIFReset and Dense. A token takes a
    period of T ticks plus the pipeline's depth: T per block whose scores need all ticks (TSSA), and in the expanded
    network 1 per Dense on the way. Both report every spike of every population, for the present token.
    """

    lanes = 1

    def __init__(self, network: Network, model: LavaModel = "fused", mode: Mode = "stream") -> None:
        self.network, self.parts, self.mode = network, split_network(network), mode
        blocks = self.parts.blocks
        self.words = [raster_words(network.ticks, sum(block.sizes)) for block in blocks]
        depth = sum(block.delay for block in blocks)
        if model == "expanded":
            depth = 2 * DENSE_TICKS + sum(block.depth for block in blocks)
        self.clock = Clock(network.ticks, network.ticks + depth)
        build = _build_expanded if model == "expanded" else _build_fused
        self.source, self.sink = build(self.parts, self.clock, self.words)
        config = Loihi2SimCfg(select_tag="fixed_pt", select_sub_proc_model=model == "expanded")
        self.supervisor = LavaSupervisor(self.source, config)
        self.window: deque[npt.NDArray[np.integer]] = deque(maxlen=network.context)
        self.episode_starts = True
        self.restart_counter()

    @property
    def ticks_per_token(self) -> int:
        """Lava time steps of one period."""
        return self.clock.period

    def restart_counter(self) -> None:
        """Forget what was counted."""
        self.counter = SpikeCounter(self.network)

    def __enter__(self) -> LavaEngine:
        self.supervisor.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.supervisor.__exit__(kind, error, tb)

    def reset(self, lane: int) -> None:
        """Start a new episode."""
        assert lane == 0
        self.episode_starts = True
        self.window.clear()

    def step_graded(self, graded: npt.NDArray[np.integer]) -> tuple[Int64Array, Spikes]:
        """Consume one token: the encoder's integers (1, features).

        Returns:
            accumulators (1, actions), and the spikes of every population, each (ticks, neurons).

        Raises:
            EngineDied: a Lava process failed.
        """
        accumulators, spikes = self._decide(graded[0] << self.network.encoder.shift)
        self.counter.decisions += 1
        return accumulators[None].astype(np.int64), spikes

    def _decide(self, token: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int32], Spikes]:
        """The network's answer to the present token; in window mode after all earlier ones, from an empty history."""
        last_place = self.network.context - 1
        if self.mode == "stream":
            start = 1 + last_place if self.episode_starts else CONTINUES
            self.episode_starts = False
            return self._send(token, start)
        self.window.append(token)
        earlier = len(self.window) - 1
        for index, replayed in enumerate(self.window):
            answer = self._send(replayed, 1 + last_place - earlier if index == 0 else CONTINUES)
        return answer

    def _send(self, token: npt.NDArray[np.integer], start: int) -> tuple[npt.NDArray[np.int32], Spikes]:
        """One period: a token in, its accumulators and spikes out, counted."""
        self.source.pipe.external_pipe_csp_send_port.send(np.append(token, start).astype(np.int32))
        self.supervisor.run(self.clock.period)
        answer: npt.NDArray[np.int32] = self.sink.pipe.external_pipe_csp_recv_port.recv()
        actions = self.network.readout.size
        spikes = self._spikes(answer[actions:])
        self.counter.add(spikes, decisions=0)
        return answer[:actions], spikes

    def _spikes(self, words: npt.NDArray[np.int32]) -> Spikes:
        spikes: Spikes = {}
        first = 0
        for block, count in zip(self.parts.blocks, self.words):
            raster = unpack_raster(words[first : first + count], self.network.ticks, sum(block.sizes))
            columns = np.split(raster, np.cumsum(block.sizes)[:-1], axis=1)
            spikes.update({population.node.name: values for population, values in zip(block.populations, columns)})
            first += count
        return spikes


def _blocks(parts: NetworkParts, clock: Clock, words: list[int], depths: list[int]) -> list[DsfBlock]:
    """The blocks, chained, each at its pipeline depth and with its slice of the raster."""
    blocks: list[DsfBlock] = []
    for index, nodes in enumerate(parts.blocks):
        block = DsfBlock(
            block=nodes,
            first_word=sum(words[:index]),
            words=sum(words),
            clock=clock.at(clock.depth + sum(depths[:index])),
        )
        if blocks:
            blocks[-1].r_out.connect(block.r_in)
        blocks.append(block)
    return blocks


def _build_fused(parts: NetworkParts, clock: Clock, words: list[int]) -> tuple[Any, Any]:
    source = FusedEmbedding(encoder=parts.encoder, embed=parts.embed, residual=parts.embed_residual, clock=clock)
    delays = [block.delay for block in parts.blocks]
    blocks = _blocks(parts, clock, words, delays)
    sink = FusedReadout(readout=parts.readout, words=sum(words), clock=clock.at(sum(delays)))
    _connect_ends(parts, source, source.r_out, blocks, sink.r_in, sink)
    return source, sink


def _build_expanded(parts: NetworkParts, clock: Clock, words: list[int]) -> tuple[Any, Any]:
    source = TokenSource(encoder=parts.encoder, clock=clock)
    embed = stock_synapses(parts.embed, message_bits=MAX_INPUT_BITS)
    first = EmbeddingRelay(bias=parts.embed_residual.bias)
    source.g_out.connect(embed.s_in)
    embed.a_out.connect(first.a_in)
    depths = [block.depth for block in parts.blocks]
    blocks = _blocks(parts, clock.at(DENSE_TICKS), words, depths)
    last = clock.at(DENSE_TICKS + sum(depths))
    total = ResidualSum(readout=parts.readout, clock=last)
    weights = Synapses(parts.readout.name, parts.readout.source, parts.readout.weights, exponent=0)
    head = stock_synapses(weights, message_bits=GRADED_BITS)
    sink = TokenSink(readout=parts.readout, words=sum(words), clock=clock)
    total.g_out.connect(head.s_in)
    head.a_out.connect(sink.y_in)
    _connect_ends(parts, source, first.r_out, blocks, total.r_in, sink)
    return source, sink


def _connect_ends(
    parts: NetworkParts, source: Any, residual: Any, blocks: list[DsfBlock], last: Any, sink: AbstractProcess
) -> None:
    residual.connect(blocks[0].r_in)
    blocks[-1].r_out.connect(last)
    for nodes, block in zip(parts.blocks, blocks):
        if nodes.attention is not None:
            source.start_out.connect(block.start_in)
        block.raster_out.connect(sink.raster_in)

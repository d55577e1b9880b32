"""The Lava backend: an integer network on Lava's Loihi simulator, fused or expanded, in stream or window mode."""

from __future__ import annotations

import contextlib
from collections import deque
from types import TracebackType

import numpy as np
import numpy.typing as npt
from lava.magma.core.run_configs import Loihi2SimCfg

from dsf.export.network.network import Mode, Network
from dsf.hardware_models import SpikeCounter
from dsf.runtime.engines.interface import STOCK_LAVA, HostEncoder, LavaModel, LavaOptions
from dsf.runtime.engines.parity import Spikes
from dsf.runtime.engines.probes import choose_populations
from dsf.runtime.lava_backend.channels import direct_channels
from dsf.runtime.lava_backend.processes.block import DsfBlock
from dsf.runtime.lava_backend.stages.blocks import split_network
from dsf.runtime.lava_backend.stages.layout import CONTINUES
from dsf.runtime.lava_backend.stages.stage import Stage, cut_stages
from dsf.runtime.lava_backend.supervisor import LavaSupervisor
from dsf.shell.arrays import Int64Array


class LavaEngine(HostEncoder):
    """Runs one lane. Use as a context manager: Lava starts operating-system processes.

    ``fused`` has one process per block, ``expanded`` builds each block from stock LIFReset and Dense. A token takes a
    period of T ticks plus the pipeline's depth: T per block whose scores need all ticks (TSSA), and in the expanded
    network 1 per Dense on the way. Both count all spikes, and report those of the probed populations one by one.
    """

    lanes = 1

    def __init__(
        self,
        network: Network,
        model: LavaModel = "fused",
        mode: Mode = "stream",
        options: LavaOptions = STOCK_LAVA,
    ) -> None:
        self.network, self.mode, self.options = network, mode, options
        self.reported = choose_populations(network, options.probes)
        self.expanded = model == "expanded"
        tokens = network.context if mode == "window" else 1
        self.stages = cut_stages(
            split_network(network), network.ticks, self.expanded, frozenset(self.reported), pipe_messages=tokens
        )
        self.blocks = _connected_blocks(self.stages)
        config = Loihi2SimCfg(select_tag="fixed_pt", select_sub_proc_model=self.expanded)
        self.supervisor = LavaSupervisor(self.blocks[0], config)
        self.window: deque[npt.NDArray[np.integer]] = deque(maxlen=network.context)
        self.episode_starts = True
        self.restart_counter()

    @property
    def ticks_per_token(self) -> int:
        """Lava time steps of one period."""
        return self.stages[0].clock.period

    def restart_counter(self) -> None:
        """Forget what was counted."""
        self.counter = SpikeCounter(self.network)

    def __enter__(self) -> LavaEngine:
        with direct_channels() if self.options.fast_channels else contextlib.nullcontext():
            self.supervisor.__enter__()
        first, last = self.blocks[0], self.blocks[-1]
        tokens = first.procs.source.tokens if self.expanded else first.tokens
        answers = last.procs.sink.answers if self.expanded else last.answers
        self.tokens, self.answers = tokens.external_pipe_csp_send_port, answers.external_pipe_csp_recv_port
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
            accumulators (1, actions), and the spikes of every probed population, each (ticks, neurons).

        Raises:
            EngineDied: a Lava process failed.
        """
        answer = self._decide(graded[0] << self.network.encoder.shift)
        self.counter.decisions += 1
        accumulators, message = np.split(answer, [self.network.readout.size])
        spikes: Spikes = {}
        for stage in self.stages:
            spikes.update(stage.report.read(message))
        return accumulators[None].astype(np.int64), spikes

    def _decide(self, token: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """The network's answer to the present token; in window mode after all earlier ones, from an empty history."""
        last_place = self.network.context - 1
        if self.mode == "stream":
            start = 1 + last_place if self.episode_starts else CONTINUES
            self.episode_starts = False
            return self._exchange([token], start)
        self.window.append(token)
        return self._exchange(list(self.window), 1 + last_place - (len(self.window) - 1))

    def _exchange(self, tokens: list[npt.NDArray[np.integer]], start: int) -> npt.NDArray[np.int32]:
        """One period per token, the first with the start flag; counts the spikes of all, returns the last answer."""
        for token in tokens:
            self.tokens.send(np.append(token, start).astype(np.int32))
            start = CONTINUES
        self.supervisor.run(len(tokens) * self.ticks_per_token)
        for _ in tokens:
            answer: npt.NDArray[np.int32] = self.answers.recv()
            self.counter.tokens += 1
            for stage in self.stages:
                stage.report.count(answer[self.network.readout.size :], self.counter)
        return answer


def _connected_blocks(stages: list[Stage]) -> list[DsfBlock]:
    """The processes: residuals run from block to block, start flags from the first, reports to the last."""
    blocks = [DsfBlock(stage=stage) for stage in stages]
    for stage, block, following in zip(stages[1:], blocks, blocks[1:]):
        block.r_out.connect(following.r_in)
        block.report_out.connect(blocks[-1].report_in)
        if stage.block.attention is not None:
            blocks[0].start_out.connect(following.start_in)
    return blocks

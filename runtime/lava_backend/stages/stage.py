"""A network cut into the stages that Lava's hierarchical processes run: one per block, the ends included."""

from __future__ import annotations

from dataclasses import dataclass

from dsf.export.network.nodes import Readout
from dsf.runtime.lava_backend.stages.blocks import BlockNodes, EmbeddingNodes, NetworkParts
from dsf.runtime.lava_backend.stages.layout import DENSE_TICKS, TokenClock
from dsf.runtime.lava_backend.stages.message import BlockReport, lay_out_reports


@dataclass(frozen=True)
class Stage:
    """All that one hierarchical process has to know.

    Attributes:
        block: that it computes.
        clock: at the pipeline depth of the block's input.
        report: where the block's spikes stand in the message of all blocks.
        message_words: length of that message.
        pipe_messages: tokens and answers that the host's pipes hold.
        embedding: in front of the first block.
        readout: behind the last block.
    """

    block: BlockNodes
    clock: TokenClock
    report: BlockReport
    message_words: int
    pipe_messages: int
    embedding: EmbeddingNodes | None
    readout: Readout | None


def cut_stages(
    parts: NetworkParts, ticks: int, expanded: bool, probed: frozenset[str], pipe_messages: int
) -> list[Stage]:
    """The stages in order, each at its depth of the fused or the expanded pipeline."""
    ends = DENSE_TICKS if expanded else 0
    depths = [block.depth if expanded else block.delay for block in parts.blocks]
    clock = TokenClock(ticks, period=ticks + sum(depths) + 2 * ends)
    reports = lay_out_reports(parts.blocks, ticks, probed)
    last = len(parts.blocks) - 1
    return [
        Stage(
            block=block,
            clock=clock.at(ends + sum(depths[:index])),
            report=reports[index],
            message_words=reports[-1].first + reports[-1].words,
            pipe_messages=pipe_messages,
            embedding=parts.embedding if index == 0 else None,
            readout=parts.readout if index == last else None,
        )
        for index, block in enumerate(parts.blocks)
    ]

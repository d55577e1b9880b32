"""Training batches: a function of (seed, step) alone, drawn ahead of time in a thread of their own.

Because nothing but the step number decides what is drawn, a resumed run needs no sampler state, and every rank of a
distributed run can draw the same global batch and take its own share.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsf.shell.processes.background import Background
from dsf.train.data.dataset import OfflineDataset, sample_windows
from dsf.train.quantization.codec import InputCodec


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        integers: (windows, context, features), the codec's output in float32.
        actions: (windows, context, action_size).
        mask: (windows, context), true where a token exists.
        ends: (windows,), step of its episode at which a window ends.
        tokens: valid tokens of the global batch, over all ranks.
    """

    integers: Tensor
    actions: Tensor
    mask: Tensor
    ends: Tensor
    tokens: int


@dataclass(frozen=True)
class BatchSource:
    """Draws the batch of any step.

    Attributes:
        data: where windows come from.
        codec: encodes them.
        windows: windows in a global batch.
        context: tokens in a window.
        seed: of the run.
        rank, ranks: which share of the windows is ours.
    """

    data: OfflineDataset
    codec: InputCodec
    windows: int
    context: int
    seed: int
    rank: int = 0
    ranks: int = 1

    def draw(self, step: int) -> Batch:
        """The batch of one step."""
        generator = np.random.default_rng((self.seed, step))
        drawn = sample_windows(self.data, self.windows, self.context, generator)
        share = slice(self.rank * self.windows // self.ranks, (self.rank + 1) * self.windows // self.ranks)
        integers = self.codec.encode(drawn.tokens[share]).astype(np.float32)
        integers[~drawn.mask[share]] = 0.0
        return Batch(
            integers=torch.from_numpy(integers),
            actions=torch.from_numpy(drawn.actions[share]),
            mask=torch.from_numpy(drawn.mask[share]),
            ends=torch.from_numpy(drawn.ends[share]),
            tokens=int(drawn.mask.sum()),
        )

    def from_step(self, first: int, last: int) -> Iterator[Batch]:
        """Batches of the steps ``first`` .. ``last - 1``, each drawn while the one before is in use."""
        thread: Background[Batch] = Background("dsf-batches")
        with thread:
            thread.begin(functools.partial(self.draw, first))
            for step in range(first, last):
                batch = thread.answer()
                if step + 1 < last:
                    thread.begin(functools.partial(self.draw, step + 1))
                yield batch

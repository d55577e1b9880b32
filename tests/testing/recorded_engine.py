"""The fast engine as proofs drive engines."""

from __future__ import annotations

from dsf.export.network.network import Mode, Network
from dsf.export.network.reference import Observer
from dsf.runtime.engines.fast_engine import FastEngine, SparseForm
from dsf.shell.arrays import Int64Array, IntArray


class RecordedEngine:
    """The fast engine, recording, as :func:`dsf.export.proof.rungs.compare_engines` drives engines."""

    def __init__(self, network: Network, mode: Mode, lanes: int, sparse: SparseForm = "quicker") -> None:
        self.engine = FastEngine(network, lanes, mode, record=True, sparse=sparse)

    def step_graded(self, graded: IntArray, observe: Observer | None = None) -> Int64Array:
        """One decision of every lane; spikes as (ticks, lanes, neurons)."""
        answers = self.engine.step_graded(graded)
        if observe is not None:
            for name, spikes in self.engine.spikes.items():
                observe(name, spikes.swapaxes(0, 1))
        return answers

"""Lava's stock Dense, Sparse and LIFReset with the parameters that make them this network's nodes, exactly."""

from __future__ import annotations

import numpy as np
from lava.proc.dense.process import Dense
from lava.proc.lif.process import LIFReset
from lava.proc.sparse.process import Sparse
from lava.utils.weightutils import SignMode

from dsf.export.network.nodes import LIF, Synapses
from dsf.export.network.sparse import is_sparse
from dsf.runtime.lava_backend.stages.layout import TokenClock
from dsf.train.quantization.integers import WEIGHT_BITS

NO_CURRENT_MEMORY = 4095
"""LIF's du (offset by one in Lava) that makes the current last exactly one tick."""


def stock_synapses(node: Synapses, message_bits: int = 0) -> Dense | Sparse:
    """A stock Dense (of a sparse matrix, Sparse) that computes :class:`~dsf.export.network.nodes.Synapses` exactly.

    A matrix of mixed signs loses its lowest bit in Lava, so the weights go in doubled and the exponent takes it back.
    ``message_bits`` 0 means binary spikes.
    """
    return (Sparse if is_sparse(node.weights) else Dense)(
        weights=2 * node.weights.astype(np.int32),
        weight_exp=node.exponent - 1,
        num_weight_bits=WEIGHT_BITS,
        sign_mode=SignMode.MIXED,
        num_message_bits=message_bits,
    )


def stock_neurons(node: LIF, clock: TokenClock) -> LIFReset:
    """A stock LIFReset that computes :class:`~dsf.export.network.nodes.LIF` exactly (Lava takes arrays of thresholds
    and decays).
    """
    return LIFReset(
        shape=(node.size,),
        du=NO_CURRENT_MEMORY,
        dv=np.asarray(node.decay, np.int32) if isinstance(node.decay, np.ndarray) else node.decay,
        bias_mant=node.bias_mantissa.astype(np.int32),
        bias_exp=node.bias_exponent,
        vth=node.threshold,
        reset_interval=clock.period,
        reset_offset=clock.reset_offset,
    )

"""A network and a chip so small that every message, hop and nanosecond can be counted by hand.

    encoder (2) -> embed -> r0 (3) -> A (3 LIF) -> S -> r1 (3), which adds r0 -> readout (2)

A core holds two neurons, a tile one core, and cores wind through 3 x 2 tiles:

    (0,0) core 0: r0[0]     (1,0) core 1: r0[1, 2]     (2,0) core 2: A[0]
    (0,1) core 5: r1[1, 2]  (1,1) core 4: r1[0]        (2,1) core 3: A[1, 2]
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Encoder, Readout, Residual, Synapses
from dsf.export.placement.chips import LOIHI_2, Figure

TICKS = 2


def _figure(value: int) -> Figure:
    return Figure(value, "inferred", "a test's own")


CHIP = dataclasses.replace(
    LOIHI_2,
    cores=_figure(6),
    neurons_per_core=_figure(2),
    tiles_x=Figure(3, "published", "a test's own"),
    tiles_y=Figure(2, "published", "a test's own"),
    cores_per_tile=Figure(1, "published", "a test's own"),
)


def chain_network() -> Network:
    """See the module; weights do not matter to counts."""
    ones, zeros = np.ones(3, np.int32), np.zeros(3, np.int32)
    return Network(
        task="hopper",
        ticks=TICKS,
        context=4,
        nodes=(
            Encoder("encoder", np.zeros(2), np.ones(2), np.zeros(2, np.int8), bits=8),
            Synapses("embed", "encoder", np.ones((3, 2), np.int8), 0),
            Residual("r0", ("embed",), zeros),
            LIF("A", "r0", ones, zeros, bias_exponent=0, decay=3072),
            Synapses("S", "A", np.ones((3, 3), np.int8), 0),
            Residual("r1", ("r0", "S"), zeros),
            Readout("readout", "r1", np.ones((2, 3), np.int8), np.zeros(2, np.int32), 0, np.ones(2)),
        ),
    )

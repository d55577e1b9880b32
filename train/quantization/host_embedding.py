"""An embedding that ends in a LayerNorm: float64 in one written order of operations, so that all machines agree.

Nothing here calls a library's matrix product or sum: their order of additions differs between processors, and one last
bit can move a rounded integer. Elementwise operations, divisions and square roots are exact by IEEE 754, and
``np.add.accumulate`` adds one value after the other by its definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsf.shell.arrays import FloatArray

OPERATIONS_PER_CHANNEL = 6
"""Float operations for each channel beside multiply-accumulates: the mean's addition, the difference from it, and the
divisions by root and unit, the rounding and the clip."""
MACS_PER_CHANNEL = 2
"""Multiply-accumulates for each channel beside the matrix: the square that the variance adds up, gain and bias."""
VECTORS = 4
"""Numbers for each channel beside the matrix: the bias, the norm's gain and bias, the residual's unit."""
BYTES_PER_WEIGHT = 8


@dataclass(frozen=True)
class NormedEmbedding:
    """LayerNorm(linear_bias + matrix z) * gain + bias.

    Attributes:
        matrix: (channels, features).
        linear_bias: (channels,).
        gain, bias: (channels,), of the norm.
        epsilon: added to the variance.
    """

    matrix: FloatArray
    linear_bias: FloatArray
    gain: FloatArray
    bias: FloatArray
    epsilon: float

    def __call__(self, z: FloatArray) -> FloatArray:
        """Map (..., features) to (..., channels); what float64 cannot hold becomes infinite or NaN.

        The order of operations is that of :class:`dsf.export.network.nodes.HostEmbedding`.
        """
        rows = z.reshape(-1, z.shape[-1]).astype(np.float64)
        sums = np.tile(self.linear_bias, (len(rows), 1))
        with np.errstate(over="ignore", invalid="ignore"):
            for feature in range(self.matrix.shape[1]):
                sums += rows[:, feature, None] * self.matrix[:, feature]
            sums -= _mean_in_order(sums)
            deviation = np.sqrt(_mean_in_order(sums * sums) + self.epsilon)
            normed: FloatArray = sums / deviation * self.gain + self.bias
        return normed.reshape(*z.shape[:-1], len(self.matrix))

    @property
    def largest(self) -> FloatArray:
        """(channels,) magnitudes that no input can exceed: of N values with mean 0 and mean square 1, none is above
        the root of N - 1. A little is added for rounding.
        """
        channels = len(self.matrix)
        return (np.abs(self.gain) * np.sqrt(channels - 1.0) + np.abs(self.bias)) * (1.0 + 1e-9)


def _mean_in_order(values: FloatArray) -> FloatArray:
    """Means (rows, 1) over the last axis, added up from its first value to its last."""
    mean: FloatArray = np.add.accumulate(values, axis=-1)[:, -1:] / values.shape[-1]
    return mean

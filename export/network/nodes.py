"""The integer network: one dataclass per node kind, its docstring IS the integer equation. Needs numpy only.

Conventions: t is a tick within a token (0 .. T-1), i a token, n a neuron. ``>>`` is an arithmetic shift (floor), ``<<``
a left shift. Spikes are 0 or 1; graded values are signed integers. Every membrane starts at 0 for each token.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray, IntArray
from dsf.shell.errors import UserError
from dsf.shell.plain_text import shown
from dsf.tasks.spaces import LARGEST_BOUND
from dsf.train.quantization.host_embedding import (
    BYTES_PER_WEIGHT,
    MACS_PER_CHANNEL,
    OPERATIONS_PER_CHANNEL,
    VECTORS,
    NormedEmbedding,
)
from dsf.train.quantization.integers import (
    BIAS_EXPONENT_BITS,
    BIAS_MANTISSA_BITS,
    DECAY_BITS,
    MAX_EXPONENT,
    MAX_GRADED_BITS,
    MAX_INPUT_BITS,
    THRESHOLD_BITS,
    WEIGHT_BITS,
)

Decay = int | IntArray
"""One for all neurons of a population, or (neurons,) of them."""
HEADS = ("tanh", "choice")
LARGEST_CHOICE = 1 << 31
"""Of numbers that choices have."""
NEVER_FIRES = (1 << THRESHOLD_BITS) - 1
"""A threshold just below the largest membrane."""
ALWAYS_FIRES = -NEVER_FIRES
"""The one threshold that is not positive: a neuron is stuck at 1 (:mod:`dsf.runtime.robustness.network_faults`)."""
MAX_GAIN = (1 << (WEIGHT_BITS - 1)) - 1
"""Largest gain of a count: it takes the place of a weight."""


class NetworkError(UserError):
    """A network that breaks its own rules; the message names node and field."""


def require(condition: bool, node: Any, what: str) -> None:
    """Raise what is wrong with a node, by its name.

    Raises:
        NetworkError: ``condition`` does not hold.
    """
    if not condition:
        raise NetworkError(f"network node '{node.name}': {what}; export the network again")


def require_whole(where: str, name: str, value: Any) -> int:
    """A number that a file gave, as int.

    Raises:
        NetworkError: it is no whole number, only looks like one, or is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise NetworkError(f"{where}: {name} is {shown(value)}, expected a whole number; export the network again")
    return int(value)


def require_number(where: str, name: str, value: Any) -> float:
    """A finite number that a file gave, as float.

    Raises:
        NetworkError: it is none.
    """
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not np.isfinite(value):
        raise NetworkError(f"{where}: {name} is {shown(value)}, expected a finite number; export the network again")
    return float(value)


def require_text(where: str, name: str, value: Any) -> str:
    """A text that a file gave.

    Raises:
        NetworkError: it is something else.
    """
    if not isinstance(value, str):
        raise NetworkError(f"{where}: {name} is {shown(value)}, expected text; export the network again")
    return value


def require_range(node: Any, name: str, bits: int, ndim: int) -> None:
    """Check that an array field is integer, has ``ndim`` axes, and fits ``bits`` signed bits (symmetric)."""
    values = getattr(node, name)
    limit = (1 << (bits - 1)) - 1
    require(np.issubdtype(values.dtype, np.integer), node, f"{name} has dtype {values.dtype}, expected integers")
    require(values.ndim == ndim and values.size > 0, node, f"{name} has shape {values.shape}, expected {ndim} axes")
    require(
        int(np.abs(values.astype(np.int64)).max()) <= limit,
        node,
        f"{name} leaves the range +-{limit} of {bits} bits",
    )


@dataclass(frozen=True)
class Encoder:
    """q = clip(round_half_even((x - offset) / step), -L, L),  L = 2**(bits-1) - 1;  g[t] = q << shift  at every tick.

    ``x`` is rounded to float32 first, as training's tokens are; the rest is float64.
    Runs where the observation arrives; ``g`` enters the chip as graded spikes. ``shift`` gives every feature a power of
    two of its own, so that features with large weights do not coarsen the others' synapses.
    """

    name: str
    offset: FloatArray  # (features,) feature units
    step: FloatArray  # (features,) feature units per integer step
    shift: IntArray  # (features,) power of two between q and g
    bits: int  # signed width of q

    def __post_init__(self) -> None:
        require_range(self, "shift", MAX_INPUT_BITS.bit_length() + 1, 1)
        require(self.shift.shape == self.offset.shape, self, "offset and shift differ in shape")
        require(int(self.shift.min()) >= 0, self, "shift holds a negative value")
        require(self.bits + int(self.shift.max()) <= MAX_INPUT_BITS, self, f"g exceeds {MAX_INPUT_BITS} bits")
        require(self.offset.ndim == 1 and self.offset.shape == self.step.shape, self, "offset and step differ in shape")
        require(bool(np.isfinite(self.offset).all()), self, "offset is not finite")
        require(bool(np.isfinite(self.step).all() and (self.step > 0).all()), self, "step is not positive")
        require(2 <= self.bits <= MAX_INPUT_BITS, self, f"bits is {self.bits}, expected 2 to {MAX_INPUT_BITS}")

    @property
    def size(self) -> int:
        """Number of values that enter the chip: one for each feature."""
        return len(self.offset)

    @property
    def features(self) -> int:
        """Number of features of a token."""
        return len(self.offset)

    @property
    def limit(self) -> int:
        """Largest q."""
        return (1 << (self.bits - 1)) - 1

    @property
    def reach(self) -> FloatArray:
        """How far a feature may lie from its offset before it is clipped, (features,)."""
        return self.limit * self.step

    @property
    def sources(self) -> tuple[str, ...]:
        """No node feeds the encoder."""
        return ()


@dataclass(frozen=True)
class HostEmbedding:
    """Embedding and LayerNorm on the host, in float64; its integers q enter the first residual as graded spikes.

    z[f] = (float32(x[f]) - offset[f]) / step[f];   with input_bits > 0 also z = clip(round_half_even(z), -l, l),
        l = 2**(input_bits-1) - 1;
    y[n] = (((linear_bias[n] + matrix[n, 0] z[0]) + matrix[n, 1] z[1]) + ...) in the order of the features;
    m = ((y[0] + y[1]) + y[2] + ...) / N,   c[n] = y[n] - m,   v = ((c[0] c[0] + c[1] c[1]) + ...) / N;
    q[n] = clip(round_half_even((c[n] / sqrt(v + epsilon) * norm_gain[n] + norm_bias[n]) / unit[n]), -L, L),
        L = 2**(bits-1) - 1;   g[t] = q at every tick.

    Every product, sum, quotient and root is rounded to float64 by itself, in this order (no fused multiply-add, no
    library's sum), so that every machine gets the same integers. A LayerNorm divides per token and cannot become
    spikes; its inputs need not be quantized, because no synapse reads them.
    """

    name: str
    offset: FloatArray  # (features,) feature units
    step: FloatArray  # (features,) feature units per unit of z
    input_bits: int  # signed width of z; 0 where z is not rounded
    matrix: FloatArray  # (channels, features)
    linear_bias: FloatArray  # (channels,)
    norm_gain: FloatArray  # (channels,)
    norm_bias: FloatArray  # (channels,)
    epsilon: float  # added to the variance
    unit: FloatArray  # (channels,) float value of one residual unit
    bits: int  # signed width of q

    def __post_init__(self) -> None:
        require(self.matrix.ndim == 2 and self.matrix.size > 0, self, f"matrix has shape {self.matrix.shape}")
        channels, features = self.matrix.shape
        for name in ("offset", "step", "linear_bias", "norm_gain", "norm_bias", "unit"):
            size = features if name in ("offset", "step") else channels
            shape = getattr(self, name).shape
            require(shape == (size,), self, f"{name} has shape {shape}, expected ({size},)")
        for name in ("offset", "step", "matrix", "linear_bias", "norm_gain", "norm_bias", "unit"):
            require(bool(np.isfinite(getattr(self, name)).all()), self, f"{name} is not finite")
        for name in ("step", "unit"):
            require(bool((getattr(self, name) > 0).all()), self, f"{name} is not positive")
        require(0.0 < self.epsilon < np.inf, self, f"epsilon is {self.epsilon}, it must be positive")
        allowed = self.input_bits == 0 or 2 <= self.input_bits <= MAX_INPUT_BITS
        require(allowed, self, f"input_bits is {self.input_bits}, expected 0 or 2 to {MAX_INPUT_BITS}")
        require(2 <= self.bits <= MAX_GRADED_BITS, self, f"bits is {self.bits}, expected 2 to {MAX_GRADED_BITS}")

    @property
    def size(self) -> int:
        """Number of values that enter the chip: one for each channel of the residual."""
        return len(self.matrix)

    @property
    def features(self) -> int:
        """Number of features of a token."""
        return len(self.offset)

    @property
    def limit(self) -> int:
        """Largest q."""
        return (1 << (self.bits - 1)) - 1

    @property
    def input_limit(self) -> float:
        """Largest z."""
        return float((1 << (self.input_bits - 1)) - 1) if self.input_bits else float("inf")

    @property
    def reach(self) -> FloatArray:
        """How far a feature may lie from its offset before it is clipped, (features,)."""
        return self.input_limit * self.step

    @property
    def shift(self) -> npt.NDArray[np.int8]:
        """(channels,) zeros: q enters as it is."""
        return np.zeros(self.size, np.int8)

    @property
    def embedding(self) -> NormedEmbedding:
        """From z to real values of the residual."""
        return NormedEmbedding(self.matrix, self.linear_bias, self.norm_gain, self.norm_bias, self.epsilon)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for a token, in float64."""
        return self.matrix.size + MACS_PER_CHANNEL * self.size

    @property
    def operations(self) -> int:
        """Other operations for a token, in float64."""
        return OPERATIONS_PER_CHANNEL * self.size

    @property
    def weight_bytes(self) -> int:
        """Bytes of what a token is computed with."""
        return BYTES_PER_WEIGHT * (self.matrix.size + VECTORS * self.size)

    @property
    def sources(self) -> tuple[str, ...]:
        """No node feeds it."""
        return ()


@dataclass(frozen=True)
class Synapses:
    """a[t] = (sum_m weights[n, m] * s[t, m]) << exponent   (>> -exponent where it is negative)."""

    name: str
    source: str
    weights: IntArray  # (neurons, inputs) int8, symmetric
    exponent: int  # power of two on the sum

    def __post_init__(self) -> None:
        require_range(self, "weights", WEIGHT_BITS, 2)
        require(abs(self.exponent) <= MAX_EXPONENT, self, f"exponent is {self.exponent}, limit {MAX_EXPONENT}")

    @property
    def size(self) -> int:
        """Number of target neurons."""
        return len(self.weights)

    @property
    def sources(self) -> tuple[str, ...]:
        """The spiking (or graded) population these synapses read."""
        return (self.source,)


@dataclass(frozen=True)
class Residual:
    """r[t] = sum of all sources' [t] + bias.  No state; relayed as graded spikes."""

    name: str
    sources: tuple[str, ...]
    bias: IntArray  # (neurons,) residual units

    def __post_init__(self) -> None:
        require_range(self, "bias", 24, 1)
        require(len(self.sources) > 0, self, "sources is empty")

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.bias)


@dataclass(frozen=True)
class LIF:
    """Loihi's fixed-point leaky integrate-and-fire neuron, exactly as Lava computes it (du = 4095, reset per token).

    v[t] = trunc_to_zero(v[t-1] * (4096 - decay) / 4096) + 64 * a[t] + (bias_mantissa << bias_exponent);
    v[t] = clip(v[t], -(2**23 - 1), 2**23 - 1);  s[t] = v[t] > 64 * threshold;  v[t] = 0 where s[t].

    ``decay`` is one number, or one for each neuron.
    """

    name: str
    source: str
    threshold: IntArray  # (neurons,) synaptic units
    bias_mantissa: IntArray  # (neurons,) 2**bias_exponent / 64 synaptic units
    bias_exponent: int
    decay: Decay  # of 4096: what the membrane loses per tick

    def __post_init__(self) -> None:
        require_range(self, "threshold", THRESHOLD_BITS + 1, 1)
        valid = (self.threshold > 0) | (self.threshold == ALWAYS_FIRES)
        require(bool(valid.all()), self, "threshold holds a value that is not positive")
        require_range(self, "bias_mantissa", BIAS_MANTISSA_BITS, 1)
        require(self.threshold.shape == self.bias_mantissa.shape, self, "threshold and bias_mantissa differ in shape")
        require(0 <= self.bias_exponent < 1 << BIAS_EXPONENT_BITS, self, f"bias_exponent is {self.bias_exponent}")
        if isinstance(self.decay, np.ndarray):
            require_range(self, "decay", DECAY_BITS + 2, 1)
            require(self.decay.shape == self.threshold.shape, self, "threshold and decay differ in shape")
        low, high = int(np.min(self.decay)), int(np.max(self.decay))
        found = low if low < 0 else high
        require(low >= 0 and high <= 1 << DECAY_BITS, self, f"decay is {found}, expected 0 to {1 << DECAY_BITS}")

    @property
    def size(self) -> int:
        """Number of neurons."""
        return len(self.threshold)

    @property
    def sources(self) -> tuple[str, ...]:
        """The synapses, window or residual whose values are this population's currents."""
        return (self.source,)

    @property
    def decays(self) -> npt.NDArray[np.int64]:
        """(neurons,) each neuron's decay."""
        return np.broadcast_to(np.asarray(self.decay, np.int64), self.threshold.shape)

    @property
    def bias(self) -> npt.NDArray[np.int64]:
        """(neurons,), in 1/64 synaptic units."""
        return self.bias_mantissa.astype(np.int64) << self.bias_exponent


@dataclass(frozen=True)
class Gate:
    """s[t, n] = s_source[t, first + n] AND s_source[t, second + n]   (key AND value)."""

    name: str
    source: str
    first: int
    second: int
    size: int

    def __post_init__(self) -> None:
        require(self.size > 0 and self.first >= 0 and self.second >= 0, self, "size or an offset is out of range")

    @property
    def sources(self) -> tuple[str, ...]:
        """The population that holds both operands."""
        return (self.source,)


@dataclass(frozen=True)
class Window:
    """a_i[t, n] = s_query_i[t, first + n] * sum_k weights[k] * s_gate_{i-k}[t, n],  k = 0 .. w-1   (PSSA).

    s_gate of tokens before the episode's start is 0. State: w * T bits per channel.
    """

    name: str
    query: str
    gate: str
    first: int  # offset of the query neurons within their population
    size: int
    weights: IntArray  # (window,) the relative positional bias

    def __post_init__(self) -> None:
        require_range(self, "weights", WEIGHT_BITS, 1)
        require(self.size > 0 and self.first >= 0, self, "size or first is out of range")

    @property
    def sources(self) -> tuple[str, ...]:
        """Query population and gate."""
        return (self.query, self.gate)

    @property
    def remembered(self) -> str:
        """The population whose past is read."""
        return self.gate

    @property
    def reach(self) -> int:
        """Tokens that are read, the present one included."""
        return len(self.weights)


@dataclass(frozen=True)
class PlacedWindow:
    """a_i[t, n] = s_query_i[t, first + n] * sum_k weights[p_i, k] * s_gate_{i-k}[t, n]   (PSSA with the full bias).

    p_i is token i's place in the replayed window, whose last place belongs to the present token; so only window mode is
    this network. In stream mode every token takes the last place.
    """

    name: str
    query: str
    gate: str
    first: int  # offset of the query neurons within their population
    size: int
    weights: IntArray  # (places, window); [p, k] is the bias of place p on place p - k, 0 where p < k

    def __post_init__(self) -> None:
        require_range(self, "weights", WEIGHT_BITS, 2)
        require(self.size > 0 and self.first >= 0, self, "size or first is out of range")
        require(self.weights.shape[1] <= len(self.weights), self, "weights look back further than there are places")

    @property
    def sources(self) -> tuple[str, ...]:
        """Query population and gate."""
        return (self.query, self.gate)

    @property
    def remembered(self) -> str:
        """The population whose past is read."""
        return self.gate

    @property
    def reach(self) -> int:
        """Tokens that are read, the present one included."""
        return self.weights.shape[1]


@dataclass(frozen=True)
class Count:
    """a_i[t, n] = gain * sum_k s_source_{i-k}[t, n],  k = 0 .. reach-1   (the sum of SDSA-1)."""

    name: str
    source: str
    size: int
    reach: int  # tokens that are read, the present one included
    gain: int

    def __post_init__(self) -> None:
        require(self.size > 0 and self.reach > 0, self, "size or reach is out of range")
        require(0 < self.gain <= MAX_GAIN, self, f"gain is {self.gain}, expected 1 to {MAX_GAIN}")

    @property
    def sources(self) -> tuple[str, ...]:
        """The gate that is counted."""
        return (self.source,)

    @property
    def remembered(self) -> str:
        """The population whose past is read."""
        return self.source


@dataclass(frozen=True)
class Outer:
    """a_i[t, n] = gain * sum_k c_ik[t, h(n)] * s_{i-k}[t, value + n],  k = 0 .. reach-1   (TSSA, SSSA, SDSA-3).

    c_ik[t, h] = sum_m s_i[t, query + m] * s_{i-k}[t, key + m] over head h's channels m; with ``all_ticks`` also over
    ticks, so that c_ik is the same at all of them (and tick 0 needs the token's last spikes).
    """

    name: str
    source: str
    query: int  # offsets of the operands within the source population
    key: int
    value: int
    size: int
    heads: int
    all_ticks: int  # 1: scores are summed over ticks (TSSA); 0: one score per tick (SSSA, SDSA-3)
    reach: int  # tokens that are read, the present one included
    gain: int

    def __post_init__(self) -> None:
        require(self.size > 0 and self.reach > 0, self, "size or reach is out of range")
        require(min(self.query, self.key, self.value) >= 0, self, "an offset is negative")
        require(self.heads > 0 and self.size % self.heads == 0, self, f"heads {self.heads} do not divide {self.size}")
        require(self.all_ticks in (0, 1), self, f"all_ticks is {self.all_ticks}, expected 0 or 1")
        require(0 < self.gain <= MAX_GAIN, self, f"gain is {self.gain}, expected 1 to {MAX_GAIN}")

    @property
    def sources(self) -> tuple[str, ...]:
        """The population that holds all operands."""
        return (self.source,)

    @property
    def remembered(self) -> str:
        """The population whose past is read."""
        return self.source


@dataclass(frozen=True)
class And:
    """s[t, n] = s_query[t, first + n] AND s_source[t, n]   (the query's gate of SDSA-1)."""

    name: str
    query: str
    source: str
    first: int  # offset of the query neurons within their population
    size: int

    def __post_init__(self) -> None:
        require(self.size > 0 and self.first >= 0, self, "size or first is out of range")

    @property
    def sources(self) -> tuple[str, ...]:
        """Query population and the population that is gated."""
        return (self.query, self.source)


@dataclass(frozen=True)
class Readout:
    """g[m] = (sum_t r[t, m] + (1 << shift >> 1)) >> shift;  y[n] = bias[n] + sum_m weights[n, m] * g[m];
    head 'tanh': action = tanh(scale * y).   head 'choice': the choice is the first n with the largest y.

    What the machine gets: command = high where action >= 1, else clip(low + (action + 1) * (high - low) / 2, low,
    high); or the action itself where there are no bounds, which are -1 and 1 then; of choices, the choice's place +
    first_choice. Tokens hold the action.

    g is sent once per token, as graded spikes. y is an integer accumulator; only the product with scale and tanh run in
    floating point, on the host. Choices share one scale, so comparing y decides.
    """

    name: str
    source: str
    weights: IntArray  # (actions, channels) int8, symmetric
    bias: IntArray  # (actions,) accumulator units
    shift: int  # low bits of the summed residual that the head does not see
    scale: FloatArray  # (actions,) per accumulator unit
    head: str = "tanh"
    low: tuple[float, ...] = ()  # (actions,) units of the machine; empty where bounds are -1 and 1
    high: tuple[float, ...] = ()
    first_choice: int = 0

    def __post_init__(self) -> None:
        require_range(self, "weights", WEIGHT_BITS, 2)
        require_range(self, "bias", 24, 1)
        self._require_bounds()
        require(0 <= self.shift <= MAX_EXPONENT, self, f"shift is {self.shift}, expected 0 to {MAX_EXPONENT}")
        require(self.scale.shape == self.bias.shape == self.weights.shape[:1], self, "weights, bias, scale disagree")
        require(bool(np.isfinite(self.scale).all() and (self.scale > 0).all()), self, "scale is not positive")
        require(self.head in HEADS, self, f"head is '{self.head}', expected one of {', '.join(HEADS)}")
        require(self.head != "choice" or bool((self.scale == self.scale[0]).all()), self, "choices differ in scale")

    def _require_bounds(self) -> None:
        """Check low, high and first_choice.

        Raises:
            NetworkError: they are no bounds, not one pair for each action, or belong to the other head.
        """
        bounded = bool(self.low or self.high)
        require(not bounded or self.head != "choice", self, "low and high belong to actions, and these are choices")
        require(self.first_choice == 0 or self.head == "choice", self, "first_choice belongs to choices")
        require(abs(self.first_choice) <= LARGEST_CHOICE, self, f"first_choice is {self.first_choice}")
        require(len(self.low) == len(self.high), self, "low and high differ in length")
        require(not bounded or len(self.low) == len(self.bias), self, "low and high are not one for each action")
        for low, high in zip(self.low, self.high):
            require(-LARGEST_BOUND <= low < high <= LARGEST_BOUND, self, "low is not below high, or one is no bound")

    @property
    def has_commands(self) -> bool:
        """Whether the machine gets something else than actions, or choices counted from 0."""
        return bool(self.low) or self.first_choice != 0

    @property
    def size(self) -> int:
        """Number of actions, or of choices."""
        return len(self.weights)

    @property
    def sources(self) -> tuple[str, ...]:
        """The residual that is read out."""
        return (self.source,)


Node = (
    Encoder | HostEmbedding | Synapses | Residual | LIF | Gate | Window | PlacedWindow | Count | Outer | And | Readout
)
NODE_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in typing.get_args(Node)}
HostNode = Encoder | HostEmbedding
HOST_KINDS = (Encoder, HostEmbedding)
"""Node kinds that turn a token into the integers that enter the chip, on the host; every network begins with one."""
UNPLACED_KINDS = (Encoder, HostEmbedding, Synapses, Readout)
"""Node kinds without neurons on a core: the host's, and synapses, which belong to the neurons that they feed."""
SPIKING_KINDS = (LIF, Gate, And)
"""Node kinds whose outputs are binary spikes."""
HistoryNode = Window | PlacedWindow | Count | Outer
HISTORY_KINDS = (Window, PlacedWindow, Count, Outer)
"""Node kinds that read earlier tokens: ``reach`` tokens of the population ``remembered``."""

ALLOWED_SOURCES: dict[type[Any], tuple[type[Any], ...]] = {
    Synapses: (Encoder, *SPIKING_KINDS),
    Residual: (HostEmbedding, Synapses, Residual),
    LIF: (Synapses, Residual, *HISTORY_KINDS),
    Gate: (LIF,),
    Window: (LIF, Gate),
    PlacedWindow: (LIF, Gate),
    Count: (Gate,),
    Outer: (LIF,),
    And: (LIF,),
    Readout: (Residual,),
}

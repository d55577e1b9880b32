"""From a folded float model to an integer network: the only lossy step, and the scale rules that keep it harmless.

* A Linear that feeds only a LIF takes its own scale per output neuron, chosen so that the threshold is an exact
  integer: thresholds are per neuron on the chip, so nothing else has to know that scale.
* A Linear that writes the residual shares the residual's unit, times a power of two per layer. One common scale fitted
  to the largest of these layers destroys the policy (the fold behind a nearly silent attention population makes its
  weights tens of times larger), so the unit is fine and the exponents do the rest.
* The residual's unit is the finest power-of-two share of the threshold for which overflow is provably impossible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsf.export.bounds import ACCUMULATOR_LIMIT, CURRENT_LIMIT, require_no_overflow
from dsf.export.folded import Affine, FoldedBlock, FoldedModel
from dsf.export.network import (
    BIAS_EXPONENT_BITS,
    BIAS_MANTISSA_BITS,
    DECAY_BITS,
    LIF,
    MAX_EXPONENT,
    MAX_INPUT_BITS,
    MEMBRANE_FRACTION_BITS,
    THRESHOLD_BITS,
    WEIGHT_BITS,
    Encoder,
    Gate,
    Network,
    NetworkError,
    Node,
    Readout,
    Residual,
    Synapses,
    Window,
)
from dsf.tasks import UserError
from dsf.tasks.policy import FloatArray

MIN_BITS = 2
FINE_BIAS_UNITS = 1023
"""Biases up to this many synaptic units keep a resolution of a quarter unit (13-bit mantissa, 1/64 unit, 2**4)."""
FINE_THRESHOLD_UNITS = 64
"""Thresholds below this many synaptic units would round the scale noticeably; an exponent on the sum refines them."""
FINEST_THRESHOLD_UNITS, COARSEST_THRESHOLD_UNITS = 4096, 16
"""Range searched for the residual LIFs' threshold, in residual units (powers of two)."""


@dataclass(frozen=True)
class Scales:
    """What all layers share while a model is quantized.

    Attributes:
        bits: signed width of the weights.
        threshold: firing threshold of the float model.
        threshold_units: the same threshold in residual units; unit = threshold / threshold_units.
        decay: of 4096, what a membrane loses per tick.
    """

    bits: int
    threshold: float
    threshold_units: int
    decay: int

    @property
    def weight_limit(self) -> int:
        """Largest weight: the range is symmetric."""
        return (1 << (self.bits - 1)) - 1

    @property
    def unit(self) -> float:
        """Float value of one residual unit."""
        return self.threshold / self.threshold_units


def quantize(
    model: FoldedModel, task: str, bits: int = WEIGHT_BITS, provenance: dict[str, Any] | None = None
) -> Network:
    """Quantize with the finest residual unit, then the smallest readout shift, whose overflow proof holds.

    Raises:
        UserError: bits out of range, a decay that 12 bits cannot say, or a weight no integer scale can hold.
        NetworkError: even the coarsest unit could overflow; the message names the node.
    """
    if not MIN_BITS <= bits <= WEIGHT_BITS:
        raise UserError(f"--bits is {bits}: synapses have {MIN_BITS} to {WEIGHT_BITS} bits")
    decay = (1.0 - model.decay) * (1 << DECAY_BITS)
    if decay != int(decay):
        raise UserError(
            f"cannot export: decay {model.decay} is no multiple of 1/{1 << DECAY_BITS}; retrain with one that is"
        )
    units, shift = FINEST_THRESHOLD_UNITS, MAX_EXPONENT

    def attempt(units: int, shift: int) -> tuple[Network | None, str]:
        scales = Scales(bits, model.threshold, units, int(decay))
        try:
            network = Network(task, model.ticks, model.context, _build(model, scales, shift), provenance or {})
            require_no_overflow(network)
        except NetworkError as error:
            return None, str(error)
        return network, ""

    network, reason = attempt(units, shift)
    while network is None and units > COARSEST_THRESHOLD_UNITS:
        units //= 2
        network, reason = attempt(units, shift)
    if network is None:
        raise NetworkError(f"cannot export, even with the coarsest residual unit: {reason}")
    while shift > 0 and (finer := attempt(units, shift - 1)[0]) is not None:
        network, shift = finer, shift - 1
    return network


def _build(model: FoldedModel, scales: Scales, shift: int) -> tuple[Node, ...]:
    codec = model.codec
    inputs = feature_shifts(model.embed, codec.bits, scales)
    embed = Affine(model.embed.weight / 2.0**inputs, model.embed.bias)
    nodes: list[Node] = [
        Encoder("encoder", codec.offset, codec.step, inputs, codec.bits),
        residual_synapses("embed", "encoder", embed, scales),
        Residual("residual.0", ("embed",), residual_bias(model.embed, scales)),
    ]
    residual = "residual.0"
    for index, block in enumerate(model.blocks):
        nodes += _block_nodes(index, block, residual, scales)
        residual = nodes[-1].name
    nodes.append(quantize_readout(model, residual, scales, shift))
    return tuple(nodes)


def _block_nodes(index: int, block: FoldedBlock, residual: str, scales: Scales) -> list[Node]:
    """The nodes of one transformer block; names are the torch module paths."""
    attention, mlp = f"blocks.{index}.attention", f"blocks.{index}.mlp"
    width = len(block.project.bias)
    qkv_lif, after = f"{attention}.qkv_lif", f"residual.{index}.attention"
    return [
        residual_lif(f"{attention}.input_lif", residual, width, scales),
        *lif_stage(f"{attention}.qkv", f"{attention}.input_lif", qkv_lif, block.qkv, scales),
        Gate(f"{attention}.coincidence", qkv_lif, first=width, second=2 * width, size=width),
        *window_stage(attention, qkv_lif, width, block.positional_bias, scales),
        residual_synapses(f"{attention}.project", f"{attention}.attention_lif", block.project, scales),
        Residual(after, (residual, f"{attention}.project"), residual_bias(block.project, scales)),
        residual_lif(f"{mlp}.input_lif", after, width, scales),
        *lif_stage(f"{mlp}.expand", f"{mlp}.input_lif", f"{mlp}.hidden_lif", block.expand, scales),
        residual_synapses(f"{mlp}.contract", f"{mlp}.hidden_lif", block.contract, scales),
        Residual(f"residual.{index + 1}", (after, f"{mlp}.contract"), residual_bias(block.contract, scales)),
    ]


def feature_shifts(embed: Affine, input_bits: int, scales: Scales) -> npt.NDArray[np.int8]:
    """A power of two per input feature that evens out the columns of the embedding.

    The widths of graded spikes and of the synaptic accumulator limit the largest shift.
    """
    strongest = np.abs(embed.weight).max(axis=0)
    input_limit = (1 << (input_bits - 1)) - 1
    room = ACCUMULATOR_LIMIT // (scales.weight_limit * input_limit * len(strongest))
    largest = min(int(math.log2(max(room, 1))), MAX_INPUT_BITS - input_bits)
    base = strongest.max() / 2.0**largest
    with np.errstate(divide="ignore"):
        return np.clip(np.ceil(np.log2(strongest / base)), 0, largest).astype(np.int8)


def residual_lif(name: str, source: str, width: int, scales: Scales) -> LIF:
    """A LIF that reads the residual directly: threshold exact by the choice of the unit, no bias."""
    threshold = np.full(width, scales.threshold_units, np.int32)
    return LIF(name, source, threshold, np.zeros(width, np.int16), 0, scales.decay)


def neuron_thresholds(strongest: FloatArray, limit: int, name: str, scales: Scales) -> npt.NDArray[np.int32]:
    """Per-neuron thresholds floor(threshold * limit / max |w|): the scale threshold / theta then fits the weights.

    Args:
        strongest: (neurons,) largest magnitude among each neuron's weights.
        limit: largest integer a weight may become.
        name: node name for the error.
        scales: float threshold.

    Raises:
        UserError: a weight exceeds ``limit`` thresholds, so no integer threshold is left.
    """
    ceiling = (1 << THRESHOLD_BITS) - 1
    with np.errstate(divide="ignore"):
        thresholds = np.minimum(np.floor(scales.threshold * limit / strongest), ceiling)
    if thresholds.min() < 1:
        raise UserError(
            f"cannot export: {name} has a folded weight of {strongest.max():.3g}, above {limit} thresholds; use more "
            "--bits, or retrain: a nearly constant population inflates the weights behind it"
        )
    return thresholds.astype(np.int32)


def threshold_exponent(strongest: FloatArray, inputs: int, scales: Scales) -> int:
    """The exponent that gives every threshold FINE_THRESHOLD_UNITS, as far as the current's range allows."""
    wanted = FINE_THRESHOLD_UNITS * float(strongest.max()) / (scales.threshold * scales.weight_limit)
    room = CURRENT_LIMIT // 2 // (inputs * scales.weight_limit)
    return max(0, min(math.ceil(math.log2(max(wanted, 1.0))), int(math.log2(max(room, 1))), MAX_EXPONENT))


def largest_threshold_for_bias(bias: FloatArray, scales: Scales) -> npt.NDArray[np.int32]:
    """Per-neuron cap on the threshold that keeps biases within FINE_BIAS_UNITS.

    All neurons of a population share one bias exponent. A neuron with tiny weights would otherwise take so fine a
    scale that its bias coarsens everybody's.
    """
    with np.errstate(divide="ignore"):
        cap = np.floor(FINE_BIAS_UNITS * scales.threshold / np.abs(bias))
    return np.clip(cap, FINE_THRESHOLD_UNITS, (1 << THRESHOLD_BITS) - 1).astype(np.int32)


def lif_stage(name: str, source: str, lif: str, affine: Affine, scales: Scales) -> tuple[Synapses, LIF]:
    """Synapses with one scale per neuron, and the LIF that absorbs these scales in threshold and bias."""
    strongest = np.abs(affine.weight).max(axis=1)
    exponent = threshold_exponent(strongest, affine.weight.shape[1], scales)
    thresholds = neuron_thresholds(strongest, scales.weight_limit << exponent, name, scales)
    thresholds = np.minimum(thresholds, largest_threshold_for_bias(affine.bias, scales))
    scale = scales.threshold / thresholds
    weights = np.rint(affine.weight / scale[:, None] / (1 << exponent)).astype(np.int8)
    mantissa, bias_exponent = bias_parts(affine.bias / scale, name)
    return Synapses(name, source, weights, exponent), LIF(lif, name, thresholds, mantissa, bias_exponent, scales.decay)


def bias_parts(bias: FloatArray, name: str) -> tuple[npt.NDArray[np.int16], int]:
    """Split biases (synaptic units) into mantissas and one exponent: bias = mantissa * 2**exponent / 64.

    Raises:
        UserError: the largest bias needs an exponent that Loihi does not have.
    """
    fixed = bias * (1 << MEMBRANE_FRACTION_BITS)
    limit = (1 << (BIAS_MANTISSA_BITS - 1)) - 1
    largest = float(np.abs(fixed).max())
    exponent = max(0, math.ceil(math.log2(largest / limit))) if largest > 0 else 0
    if exponent >= 1 << BIAS_EXPONENT_BITS:
        raise UserError(f"cannot export: {name} has a folded bias of {np.abs(bias).max():.3g} synaptic units; retrain")
    return np.rint(fixed / (1 << exponent)).astype(np.int16), exponent


def window_stage(attention: str, qkv: str, width: int, bias: FloatArray, scales: Scales) -> tuple[Window, LIF]:
    """The PSSA window and its LIF, with a scale of their own."""
    name = f"{attention}.window"
    limit = (1 << (WEIGHT_BITS - 1)) - 1  # w numbers per block: never worth fewer bits
    threshold = int(neuron_thresholds(np.abs(bias).max(keepdims=True), limit, name, scales)[0])
    weights = np.rint(bias * threshold / scales.threshold).astype(np.int8)
    window = Window(name, qkv, f"{attention}.coincidence", first=0, size=width, weights=weights)
    thresholds, no_bias = np.full(width, threshold, np.int32), np.zeros(width, np.int16)
    return window, LIF(f"{attention}.attention_lif", name, thresholds, no_bias, 0, scales.decay)


def residual_synapses(name: str, source: str, affine: Affine, scales: Scales) -> Synapses:
    """Synapses in residual units, times the smallest power of two that fits the weights."""
    wanted = affine.weight / scales.unit
    strongest = float(np.abs(wanted).max()) / scales.weight_limit
    exponent = max(math.ceil(math.log2(strongest)), -MAX_EXPONENT) if strongest > 0 else 0
    return Synapses(name, source, np.rint(wanted / 2.0**exponent).astype(np.int8), exponent)


def residual_bias(affine: Affine, scales: Scales) -> npt.NDArray[np.int32]:
    """The folded bias of a residual-writing layer, in residual units."""
    return np.rint(affine.bias / scales.unit).astype(np.int32)


def quantize_readout(model: FoldedModel, residual: str, scales: Scales, shift: int) -> Readout:
    """The head, with one scale per action."""
    head = model.head
    weight_scale = np.maximum(np.abs(head.weight).max(axis=1), np.finfo(float).tiny) / scales.weight_limit
    weights = np.rint(head.weight / weight_scale[:, None]).astype(np.int8)
    scale = weight_scale * scales.unit * 2.0**shift / model.ticks
    bias = np.rint(head.bias / scale).astype(np.int32)
    return Readout("readout", residual, weights, bias, shift, scale)

"""From a folded float model to an integer network: the numerics of :mod:`dsf.train.quantization`, wrapped into nodes.

This is the only lossy step. The residual's unit is the finest power-of-two share of the threshold for which overflow is
provably impossible; a model from quantization-aware training keeps the unit it was trained with.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dsf.export.bounds import require_no_overflow
from dsf.export.folded import FoldedBlock, FoldedModel
from dsf.export.network import (
    LIF,
    MAX_EXPONENT,
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
from dsf.train.integers import Affine, ResidualIntegers
from dsf.train.quantization import (
    COARSEST_THRESHOLD_UNITS,
    FINEST_THRESHOLD_UNITS,
    Scales,
    decay_units,
    embed_integers,
    head_integers,
    lif_integers,
    residual_integers,
    window_integers,
)


def quantize(
    model: FoldedModel,
    task: str,
    bits: int = WEIGHT_BITS,
    provenance: dict[str, Any] | None = None,
    threshold_units: int | None = None,
) -> Network:
    """Quantize with the finest residual unit, then the smallest readout shift, whose overflow proof holds.

    Args:
        model: folded model.
        task: name of the task it was trained for.
        bits: signed width of the weights.
        provenance: where the network comes from (JSON values).
        threshold_units: the threshold in residual units where training has fixed it; None searches.

    Raises:
        UserError: bits out of range, a decay that 12 bits cannot say, or a weight no integer scale can hold.
        NetworkError: even the coarsest unit, or the fixed one, could overflow; the message names the node.
    """
    decay = decay_units(model.decay)

    def attempt(units: int, shift: int) -> tuple[Network | None, str]:
        scales = Scales(bits, model.threshold, units, decay)
        try:
            network = Network(task, model.ticks, model.context, _build(model, scales, shift), provenance or {})
            require_no_overflow(network)
        except NetworkError as error:
            return None, str(error)
        return network, ""

    units, shift = FINEST_THRESHOLD_UNITS if threshold_units is None else threshold_units, MAX_EXPONENT
    network, reason = attempt(units, shift)
    if network is None and threshold_units is not None:
        raise NetworkError(
            f"cannot export the integers of this quantization-aware training ({threshold_units} residual units per "
            f"threshold): {reason}: train again with --threshold-units {max(units // 2, COARSEST_THRESHOLD_UNITS)}"
        )
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
    embed = embed_integers(model.embed, codec.bits, scales)
    nodes: list[Node] = [
        Encoder("encoder", codec.offset, codec.step, embed.shifts, codec.bits),
        residual_synapses("embed", "encoder", embed.synapses),
        Residual("residual.0", ("embed",), embed.synapses.bias),
    ]
    residual = "residual.0"
    for index, block in enumerate(model.blocks):
        nodes += _block_nodes(index, block, residual, scales)
        residual = nodes[-1].name
    nodes.append(readout(model, residual, scales, shift))
    return tuple(nodes)


def _block_nodes(index: int, block: FoldedBlock, residual: str, scales: Scales) -> list[Node]:
    """The nodes of one transformer block; names are the torch module paths."""
    attention, mlp = f"blocks.{index}.attention", f"blocks.{index}.mlp"
    width = len(block.project.bias)
    qkv_lif, after = f"{attention}.qkv_lif", f"residual.{index}.attention"
    project, contract = residual_integers(block.project, scales), residual_integers(block.contract, scales)
    return [
        residual_lif(f"{attention}.input_lif", residual, width, scales),
        *lif_stage(f"{attention}.qkv", f"{attention}.input_lif", qkv_lif, block.qkv, scales),
        Gate(f"{attention}.coincidence", qkv_lif, first=width, second=2 * width, size=width),
        *window_stage(attention, qkv_lif, width, block, scales),
        residual_synapses(f"{attention}.project", f"{attention}.attention_lif", project),
        Residual(after, (residual, f"{attention}.project"), project.bias),
        residual_lif(f"{mlp}.input_lif", after, width, scales),
        *lif_stage(f"{mlp}.expand", f"{mlp}.input_lif", f"{mlp}.hidden_lif", block.expand, scales),
        residual_synapses(f"{mlp}.contract", f"{mlp}.hidden_lif", contract),
        Residual(f"residual.{index + 1}", (after, f"{mlp}.contract"), contract.bias),
    ]


def residual_lif(name: str, source: str, width: int, scales: Scales) -> LIF:
    """A LIF that reads the residual directly: threshold exact by the choice of the unit, no bias."""
    threshold = np.full(width, scales.threshold_units, np.int32)
    return LIF(name, source, threshold, np.zeros(width, np.int16), 0, scales.decay)


def lif_stage(name: str, source: str, lif: str, affine: Affine, scales: Scales) -> tuple[Synapses, LIF]:
    """Synapses with one scale per neuron, and the LIF that absorbs these scales in threshold and bias."""
    found = lif_integers(affine, scales, name)
    synapses = Synapses(name, source, found.weights, found.exponent)
    return synapses, LIF(lif, name, found.thresholds, found.mantissa, found.bias_exponent, scales.decay)


def window_stage(attention: str, qkv: str, width: int, block: FoldedBlock, scales: Scales) -> tuple[Window, LIF]:
    """The PSSA window and its LIF, with a scale of their own."""
    name = f"{attention}.window"
    found = window_integers(block.positional_bias, scales, name)
    window = Window(name, qkv, f"{attention}.coincidence", first=0, size=width, weights=found.weights)
    thresholds, no_bias = np.full(width, found.threshold_units, np.int32), np.zeros(width, np.int16)
    return window, LIF(f"{attention}.attention_lif", name, thresholds, no_bias, 0, scales.decay)


def residual_synapses(name: str, source: str, integers: ResidualIntegers) -> Synapses:
    """Synapses in residual units; the bias goes to the residual."""
    return Synapses(name, source, integers.weights, integers.exponent)


def readout(model: FoldedModel, residual: str, scales: Scales, shift: int) -> Readout:
    """The head, with one scale per action."""
    head = head_integers(model.head, scales)
    bias, scale = head.readout(scales.unit, model.ticks, shift)
    return Readout("readout", residual, head.weights, bias, shift, scale)

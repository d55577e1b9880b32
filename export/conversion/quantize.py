"""From a folded float model to an integer network: :mod:`dsf.train.quantization.layers`' numerics, wrapped into nodes.

This is the only lossy step. The residual's unit is the finest power-of-two share of the threshold for which overflow is
provably impossible; a model from quantization-aware training keeps the unit it was trained with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dsf.export.conversion.calibrate import Calibration
from dsf.export.conversion.folded import FoldedAttention, FoldedBlock, FoldedModel
from dsf.export.network.attention import lag_rows
from dsf.export.network.bounds import OverflowPossible, last_that_fits, require_no_overflow
from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    LIF,
    And,
    Count,
    Encoder,
    Gate,
    HostEmbedding,
    NetworkError,
    Node,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    Window,
)
from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.train.quantization.codec import InputCodec
from dsf.train.quantization.host_embedding import NormedEmbedding
from dsf.train.quantization.integers import MAX_EXPONENT, WEIGHT_BITS, Affine, ResidualIntegers
from dsf.train.quantization.layers import (
    FINE_EMBEDDING,
    count_integers,
    embed_integers,
    head_integers,
    learned_decays,
    learned_thresholds,
    lif_integers,
    residual_integers,
    window_integers,
)
from dsf.train.quantization.residual_scales import Writer, channel_thresholds
from dsf.train.quantization.rounding import QuantizationConfig
from dsf.train.quantization.scales import (
    COARSEST_THRESHOLD_UNITS,
    FINEST_THRESHOLD_UNITS,
    Scales,
    decay_units,
    feature_shifts,
)

HOST_EMBEDDING, FIRST_RESIDUAL = "host_embedding", "residual.0"


def quantize(
    model: FoldedModel,
    task: str,
    bits: int | None = None,
    provenance: dict[str, Any] | None = None,
    threshold_units: int | None = None,
    *,
    whole_biases: bool = False,
    config: QuantizationConfig | None = None,
    calibration: Calibration | None = None,
) -> Network:
    """Quantize with the finest residual unit, then the smallest readout shift, whose overflow proof holds.

    Args:
        model: folded model.
        task: name of the task it was trained for.
        bits: signed width of the weights, 8 by default; short for a ``config`` of so many bits.
        provenance: where the network comes from (JSON values).
        threshold_units: the threshold in residual units where training has fixed it; None searches.
        whole_biases: round LIF biases to whole synaptic units, the only ones netx knows.
        config: how weights become integers; None takes the defaults.
        calibration: of this model (:func:`dsf.export.conversion.calibrate.calibrate`), for the rules of ``config`` that
            use it.

    Raises:
        UserError: bits out of range, a decay that 12 bits cannot say, a weight no integer scale can hold, an attention
            whose scale no gain can say, a missing calibration, or rules or whole biases that the integers of
            quantization-aware training were not trained with.
        NetworkError: even the coarsest unit, or the fixed one, could overflow; the message names the node.
        ValueError: both ``bits`` and a ``config`` of other bits.
    """
    rules = QuantizationConfig(WEIGHT_BITS if bits is None else bits) if config is None else config
    if bits not in (None, rules.bits):
        raise ValueError(f"bits is {bits}, config.bits is {rules.bits}: give one of them")
    _require_applicable(rules, calibration, threshold_units, whole_biases)
    if rules.embed_synapses > 1 and isinstance(model.embed, NormedEmbedding):
        raise UserError(
            f"--embed-synapses {rules.embed_synapses} requires an embedding of synapses, and this one ends in a "
            "LayerNorm and runs on the host, without rounding: drop it"
        )
    if rules.residual_scales == "channel" and model.learned_thresholds:
        raise UserError(
            "--residual-scales channel requires neurons with one threshold, and this run was trained with "
            "--model.learn-thresholds: drop it"
        )
    inputs = calibration.inputs if calibration else {}
    decay = decay_units(model.decay, only_start=bool(model.decays))

    @functools.cache
    def scales_and_body(units: int) -> tuple[Scales, tuple[Node, ...]]:
        scales = Scales(rules.bits, model.threshold, units, decay, whole_biases, rules, inputs)
        if rules.residual_scales == "channel":
            scales = dataclasses.replace(scales, channel_thresholds=channel_thresholds(_writers(model, scales), scales))
        return scales, _build(model, scales)

    def attempt(units: int) -> Network | NetworkError:
        try:
            scales, body = scales_and_body(units)
            nodes = (*body, readout(model, body[-1].name, scales, MAX_EXPONENT))
            network = Network(task, model.ticks, model.context, nodes, provenance or {})
            require_no_overflow(network)
        except NetworkError as error:
            return error
        return network

    def finer_readouts(units: int) -> Iterator[Readout]:
        scales, body = scales_and_body(units)
        with contextlib.suppress(NetworkError):  # a number of it that no node can hold ends the search
            for shift in reversed(range(MAX_EXPONENT)):
                yield readout(model, body[-1].name, scales, shift)

    network, units = _finest(attempt, threshold_units)
    nodes = (*network.nodes[:-1], last_that_fits(network, finer_readouts(units)))
    return dataclasses.replace(network, nodes=nodes)


def _writers(model: FoldedModel, scales: Scales) -> list[Writer]:
    """What writes the residual, for :func:`~dsf.train.quantization.residual_scales.channel_thresholds`.

    The embedding counts where it has no second synapses: with them it loses nothing to coarser units.
    """
    writers = [Writer.of(affine, scales.inputs_of(name), scales) for name, affine in model.residual_writers().items()]
    if scales.rules.embed_synapses == 1 and isinstance(embed := model.embed, Affine):
        shifts, inputs = feature_shifts(embed, model.codec.bits, scales), scales.inputs_of("embed")
        evened = Affine(embed.weight / 2.0**shifts, embed.bias)
        writers.append(Writer.of(evened, None if inputs is None else inputs.scaled(2.0**shifts), scales))
    return writers


def _require_applicable(
    rules: QuantizationConfig, calibration: Calibration | None, threshold_units: int | None, whole_biases: bool
) -> None:
    """Refuse rules that lack their data, or that would change integers that were trained.

    Raises:
        UserError: either.
    """
    if rules.bias_correction and calibration is None:
        raise UserError("bias correction needs a calibration: name a dataset with --calibration, or drop it")
    if rules.residual_scales == "channel" and calibration is None:
        raise UserError("--residual-scales channel needs a calibration: name a dataset with --calibration, or drop it")
    trained = threshold_units is not None
    if trained and rules != QuantizationConfig(rules.bits, rules.per_channel):
        raise UserError(
            "the integers of quantization-aware training are exported as they were trained: drop all options on "
            "rounding, clipping, bias correction, residual scales and the embedding's synapses"
        )
    if trained and whole_biases:
        raise UserError(
            "the integers of quantization-aware training are exported as they were trained, and their biases are finer "
            "than whole units: drop --whole-biases"
        )


def _finest(attempt: Callable[[int], Network | NetworkError], threshold_units: int | None) -> tuple[Network, int]:
    """The network with the finest residual unit that can be, and its unit: ``attempt`` gives it, or the reason.

    Raises:
        NetworkError: there is none.
    """
    units = FINEST_THRESHOLD_UNITS if threshold_units is None else threshold_units
    found = attempt(units)
    while isinstance(found, NetworkError) and threshold_units is None and units > COARSEST_THRESHOLD_UNITS:
        units //= 2
        found = attempt(units)
    if isinstance(found, NetworkError):
        raise NetworkError(_refusal(found, units, threshold_units is not None))
    return found, units


def _refusal(reason: NetworkError, units: int, trained: bool) -> str:
    """Why there is no network, and what helps: a coarser unit only where it has been fixed and is not the coarsest."""
    what = "cannot export, even with the coarsest residual unit"
    if trained:
        what = f"cannot export the integers of this quantization-aware training ({units} residual units per threshold)"
    if not isinstance(reason, OverflowPossible):
        return f"{what}: {reason}"
    if trained and reason.coarser_unit_helps and units > COARSEST_THRESHOLD_UNITS:
        return f"{what}: {reason.finding}; train again with --threshold-units {units // 2}"
    return f"{what}: {reason.finding}; {reason.remedy}"


def _build(model: FoldedModel, scales: Scales) -> tuple[Node, ...]:
    """All nodes but the readout; the last one is the residual that it reads."""
    nodes = _embedding_nodes(model, scales)
    residual = nodes[-1].name
    for index, block in enumerate(model.blocks):
        nodes += _block_nodes(index, block, residual, model, scales)
        residual = nodes[-1].name
    return tuple(_with_own_decays(node, model) for node in nodes)


def _with_own_decays(node: Node, model: FoldedModel) -> Node:
    """A population with the decays that its neurons have learned; one number where they come to the same."""
    if not isinstance(node, LIF) or node.name not in model.decays:
        return node
    decays = learned_decays(model.decays[node.name])
    same = bool((decays == decays[0]).all())
    return dataclasses.replace(node, decay=int(decays[0]) if same else decays)


def _embedding_nodes(model: FoldedModel, scales: Scales) -> list[Node]:
    """From a token to the first residual."""
    codec = model.codec
    if isinstance(model.embed, NormedEmbedding):
        host = host_embedding(model.embed, codec, scales)
        return [host, Residual(FIRST_RESIDUAL, (host.name,), np.zeros(host.size, np.int32))]
    embed = embed_integers(model.embed, codec.bits, scales)
    nodes: list[Node] = [
        Encoder("encoder", codec.offset, codec.step, embed.shifts, codec.bits),
        residual_synapses("embed", "encoder", embed.synapses),
    ]
    written = ["embed"]
    if embed.fine is not None:
        nodes.append(residual_synapses(FINE_EMBEDDING, "encoder", embed.fine))
        written.append(FINE_EMBEDDING)
    return [*nodes, Residual(FIRST_RESIDUAL, tuple(written), embed.synapses.bias)]


def host_embedding(embed: NormedEmbedding, codec: InputCodec, scales: Scales) -> HostEmbedding:
    """The embedding on the host, in units of the residual, with so many bits that nothing is ever clipped."""
    units = scales.residual_units(len(embed.matrix))
    largest = math.ceil(float((embed.largest / units).max()))
    return HostEmbedding(
        name=HOST_EMBEDDING,
        offset=codec.offset,
        step=codec.step,
        input_bits=codec.bits,
        matrix=embed.matrix,
        linear_bias=embed.linear_bias,
        norm_gain=embed.gain,
        norm_bias=embed.bias,
        epsilon=embed.epsilon,
        unit=units,
        bits=max(largest.bit_length() + 1, 2),
    )


def _block_nodes(index: int, block: FoldedBlock, residual: str, model: FoldedModel, scales: Scales) -> list[Node]:
    """The nodes of one transformer block; names are the torch module paths."""
    nodes, mlp = [], f"blocks.{index}.mlp"
    if block.attention is not None:
        nodes = _attention_nodes(index, block.attention, residual, model, scales)
        residual = nodes[-1].name
    contract = residual_integers(block.contract, scales, f"{mlp}.contract")
    return [
        *nodes,
        residual_lif(f"{mlp}.input_lif", residual, len(contract.bias), scales, block.log_thresholds),
        *lif_stage(f"{mlp}.expand", f"{mlp}.input_lif", f"{mlp}.hidden_lif", block.expand, scales),
        residual_synapses(f"{mlp}.contract", f"{mlp}.hidden_lif", contract),
        Residual(f"residual.{index + 1}", (residual, f"{mlp}.contract"), contract.bias),
    ]


def _attention_nodes(
    index: int, attention: FoldedAttention, residual: str, model: FoldedModel, scales: Scales
) -> list[Node]:
    """The nodes of one attention branch and of the residual behind it."""
    name = f"blocks.{index}.attention"
    project = residual_integers(attention.project, scales, f"{name}.project")
    mixed = _mixing_nodes(name, attention, model, scales)
    return [
        residual_lif(f"{name}.input_lif", residual, len(project.bias), scales, attention.log_thresholds),
        *lif_stage(f"{name}.qkv", f"{name}.input_lif", f"{name}.qkv_lif", attention.qkv, scales),
        *mixed,
        residual_synapses(f"{name}.project", mixed[-1].name, project),
        Residual(f"residual.{index}.attention", (residual, f"{name}.project"), project.bias),
    ]


def _mixing_nodes(name: str, attention: FoldedAttention, model: FoldedModel, scales: Scales) -> list[Node]:
    """From the spikes of query, key and value to those that the projection reads."""
    qkv, width, reach = f"{name}.qkv_lif", len(attention.project.bias), model.context
    coincidence = Gate(f"{name}.coincidence", qkv, first=width, second=2 * width, size=width)
    if attention.kind == "pssa":
        window = window_node(name, qkv, width, attention, scales)
        return [coincidence, *window]
    if attention.kind == "sdsa1":
        found = count_integers(attention.scale, reach, scales, name)
        count = Count(f"{name}.count", coincidence.name, width, reach, found.gain)
        neuron = uniform_lif(f"{name}.attention_lif", count.name, width, found.threshold_units, scales)
        return [coincidence, count, neuron, And(f"{name}.gated", qkv, neuron.name, first=0, size=width)]
    all_ticks = attention.kind == "tssa"
    features = width // attention.heads * (model.ticks if all_ticks else 1)
    found = count_integers(attention.scale, reach * features, scales, name)
    outer = Outer(
        f"{name}.outer",
        qkv,
        query=0,
        key=width,
        value=2 * width,
        size=width,
        heads=attention.heads,
        all_ticks=int(all_ticks),
        reach=reach,
        gain=found.gain,
    )
    return [outer, uniform_lif(f"{name}.attention_lif", outer.name, width, found.threshold_units, scales)]


def uniform_lif(name: str, source: str, width: int, threshold: int, scales: Scales) -> LIF:
    """A LIF population with one threshold and no bias."""
    return LIF(name, source, np.full(width, threshold, np.int32), np.zeros(width, np.int16), 0, scales.decay)


def residual_lif(name: str, source: str, width: int, scales: Scales, log_thresholds: FloatArray | None = None) -> LIF:
    """A LIF that reads the residual directly: thresholds exact by the choice of the units, or the whole numbers of them
    nearest to those that were learned; no bias.
    """
    thresholds = scales.residual_thresholds(width)
    if log_thresholds is not None:
        thresholds = learned_thresholds(log_thresholds, thresholds)
    return LIF(name, source, thresholds, np.zeros(width, np.int16), 0, scales.decay)


def lif_stage(name: str, source: str, lif: str, affine: Affine, scales: Scales) -> tuple[Synapses, LIF]:
    """Synapses with one scale per neuron (or layer), and the LIF that absorbs it in threshold and bias."""
    found = lif_integers(affine, scales, name)
    synapses = Synapses(name, source, found.weights, found.exponent)
    return synapses, LIF(lif, name, found.thresholds, found.mantissa, found.bias_exponent, scales.decay)


def window_node(
    attention: str, qkv: str, width: int, folded: FoldedAttention, scales: Scales
) -> tuple[Window | PlacedWindow, LIF]:
    """The PSSA window and its LIF, with a scale of their own."""
    name, gate = f"{attention}.window", f"{attention}.coincidence"
    assert folded.positional_bias is not None
    found = window_integers(folded.positional_bias, scales, name)
    window: Window | PlacedWindow
    if found.weights.ndim == 1:
        window = Window(name, qkv, gate, first=0, size=width, weights=found.weights)
    else:
        window = PlacedWindow(name, qkv, gate, 0, width, lag_rows(found.weights, folded.window))
    return window, uniform_lif(f"{attention}.attention_lif", name, width, found.threshold_units, scales)


def residual_synapses(name: str, source: str, integers: ResidualIntegers) -> Synapses:
    """Synapses in residual units; the bias goes to the residual."""
    return Synapses(name, source, integers.weights, integers.exponent)


def readout(model: FoldedModel, residual: str, scales: Scales, shift: int) -> Readout:
    """The head, with one scale per action, or one for all."""
    columns = scales.residual_units(model.head.weight.shape[1]) / scales.unit  # 1 where channels share one unit
    head = head_integers(Affine(model.head.weight * columns, model.head.bias), scales, model.discrete)
    bias, scale = head.readout(scales.unit, model.ticks, shift)
    return Readout("readout", residual, head.weights, bias, shift, scale, "choice" if model.discrete else "tanh")

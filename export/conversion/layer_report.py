"""Layer by layer, what quantization did: scales, saturation, errors of weights and sums, spikes that still agree.

A layer's own error is measured on the inputs it has at level L1, through the integers of its node, so that errors of
earlier layers do not count; spike agreement compares whole networks, L1 with L2, and so does count them.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from dsf.export.conversion.calibrate import LayerTrace, run_layers
from dsf.export.conversion.folded import FoldedAttention, FoldedModel, lane_batches, place_weights
from dsf.export.network.attention import lag_rows, lags_of, windowed
from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    LIF,
    Count,
    Encoder,
    NetworkError,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    Window,
)
from dsf.export.network.reference import accumulate, entering, integer_product, replay_window, shift
from dsf.shell.arrays import FloatArray, Int64Array
from dsf.train.quantization.codec import CodedArray
from dsf.train.quantization.integers import MEMBRANE_FRACTION_BITS, WEIGHT_BITS, Affine
from dsf.train.quantization.layers import FINE_EMBEDDING
from dsf.train.quantization.rounding import REACH_TOLERANCE


@dataclass(frozen=True)
class LayerFigures:
    """One layer with weights, or with a gain. All fields are JSON values; None where there is nothing to say.

    Attributes:
        name: of the node.
        scale_min, scale_max: float value of one integer weight, over the layer's weights.
        exponent: power of two on the synaptic sum; of the readout, minus its shift; None for windows and counts.
        saturated: share of the weights that are at the limit of the range.
        clipped: share of the weights whose float lies beyond what that limit stands for.
        weights_db: weights against their rounding error, in dB; None without error.
        sums_db: synaptic sums against the error of sum and bias, in dB; None without sum or error.
        population: the LIF that reads the layer, directly or through the residual.
        agreement: share of that population's spikes that are equal at L1 and L2.
        firing_rate: of that population per tick, at L2.
    """

    name: str
    scale_min: float
    scale_max: float
    exponent: int | None
    saturated: float
    clipped: float
    weights_db: float | None
    sums_db: float | None
    population: str | None
    agreement: float | None
    firing_rate: float | None


Weighted = Synapses | Readout | Window | PlacedWindow | Count | Outer
"""Nodes with weights; of counts, the gain is the only one."""


@dataclass(frozen=True)
class _Layer:
    """A layer's floats, and what its integers stand for: ``steps`` broadcast against the weights."""

    weight: FloatArray
    steps: FloatArray
    sums: FloatArray  # without bias
    error: FloatArray  # of sum and bias, same shape


@dataclass
class _Tally:
    """A layer's weights, and its sums and the spikes behind it added up over batches of lanes."""

    weight: FloatArray
    steps: FloatArray
    power: float = 0.0
    noise: float = 0.0
    equal: int = 0
    fired: int = 0
    slots: int = 0

    def add(self, layer: _Layer, spikes: tuple[FloatArray, Int64Array] | None) -> None:
        """One more batch; ``spikes`` of the population at L1 and L2."""
        self.power += _power(layer.sums)
        self.noise += _power(layer.error)
        if spikes is not None:
            self.equal += int((spikes[0] == spikes[1]).sum())
            self.fired += int(spikes[1].sum())
            self.slots += spikes[1].size


def layer_report(folded: FoldedModel, network: Network, tokens: CodedArray) -> list[LayerFigures]:
    """Figures of every layer with weights or a gain, in evaluation order.

    Args:
        folded: level L1.
        network: level L2 of the same model.
        tokens: what the codec makes of them, (tokens, lanes, features), at most K; a lane is a window of its own.

    Raises:
        NetworkError: tokens do not fit, or the network is not of this model.
    """
    weighted = [node for node in network.nodes if isinstance(node, typing.get_args(Weighted))]
    tallies: dict[str, _Tally] = {}
    for batch in lane_batches(tokens, axis=1):
        activity = _with_fine_embedding(run_layers(folded, batch), network, _residual_units(folded, network))
        _require_same_layers(activity, network)
        values: dict[str, Int64Array] = {}
        replay_window(network, entering(network.encoder, batch), observe=values.__setitem__)
        for node in weighted:
            layer, population = _layer(node, network, folded, activity), _population(network, node.name)
            pair = None if population is None else (activity.spikes[population], values[population])
            tallies.setdefault(node.name, _Tally(layer.weight, layer.steps)).add(layer, pair)
    return [_figures(node, network, tallies[node.name]) for node in weighted]


def _layer(node: Weighted, network: Network, folded: FoldedModel, activity: LayerTrace) -> _Layer:
    units = _residual_units(folded, network)
    if isinstance(node, Synapses):
        return _synapses(node, network, activity, folded.threshold, units)
    if isinstance(node, Readout):
        return _readout(node, activity, folded.ticks, units)
    if isinstance(node, (Count, Outer)):
        return _count(node, network, folded)
    return _window(node, network, folded, activity)


def _figures(node: Weighted, network: Network, tally: _Tally) -> LayerFigures:
    limit, exponent = _weight_limit(network), None
    if isinstance(node, Synapses):
        exponent = node.exponent
    elif isinstance(node, Readout):
        exponent = -node.shift
    else:
        limit = (1 << (WEIGHT_BITS - 1)) - 1
    integers = _integers(node)
    return LayerFigures(
        name=node.name,
        scale_min=float(tally.steps.min()),
        scale_max=float(tally.steps.max()),
        exponent=exponent,
        saturated=float((np.abs(integers) == limit).mean()),
        clipped=float((np.abs(tally.weight) > limit * tally.steps * (1.0 + REACH_TOLERANCE)).mean()),
        weights_db=_decibels(_power(tally.weight), _power(integers * tally.steps - tally.weight)),
        sums_db=_decibels(tally.power, tally.noise),
        population=_population(network, node.name),
        agreement=tally.equal / tally.slots if tally.slots else None,
        firing_rate=tally.fired / tally.slots if tally.slots else None,
    )


def _integers(node: Weighted) -> npt.NDArray[np.integer]:
    """The weights, or a count's gain as the only one."""
    return np.array([node.gain]) if isinstance(node, (Count, Outer)) else node.weights


def _power(values: FloatArray) -> float:
    return float(np.square(values).sum())


def _decibels(power: float, noise: float) -> float | None:
    """Power of a signal against that of its error; None where either has none."""
    return None if power == 0.0 or noise <= power * ROUNDING_POWER else float(10.0 * np.log10(power / noise))


def _with_fine_embedding(activity: LayerTrace, network: Network, units: FloatArray) -> LayerTrace:
    """The embedding's second synapses, if there are any, as a layer whose floats are what the first have lost."""
    if FINE_EMBEDDING not in {node.name for node in network.nodes}:
        return activity
    first, shifts = network["embed"], network.encoder.shift
    assert isinstance(first, Synapses)
    held = first.weights * units[:, None] * 2.0**first.exponent * 2.0**shifts
    lost = Affine(activity.layers["embed"].weight - held, np.zeros(len(held)))
    return dataclasses.replace(
        activity,
        layers={**activity.layers, FINE_EMBEDDING: lost},
        inputs={**activity.inputs, FINE_EMBEDDING: activity.inputs["embed"]},
    )


def _require_same_layers(activity: LayerTrace, network: Network) -> None:
    """Check that a network has exactly the layers of a model.

    Raises:
        NetworkError: one is missing, or one has another size; the message names it.
    """
    found = {node.name: node.weights.shape for node in network.nodes if isinstance(node, (Synapses, Readout))}
    wanted = {name: affine.weight.shape for name, affine in activity.layers.items()}
    different = sorted(name for name, _ in found.items() ^ wanted.items())
    if different:
        raise NetworkError(f"layer '{different[0]}' differs between network and model: fold the model it came from")


def _synapses(
    node: Synapses, network: Network, activity: LayerTrace, threshold: float, residual_units: FloatArray
) -> _Layer:
    affine, inputs = activity.layers[node.name], activity.inputs[node.name]
    source, lif = network[node.source], _reader(network, node.name)
    columns = source.shift if isinstance(source, Encoder) else np.zeros(node.weights.shape[1], np.int8)
    if lif is None:  # it writes the residual
        residual = next(other for other in network.of_kind(Residual) if node.name in other.sources)
        units, bias = residual_units, residual.bias * float(node.name != FINE_EMBEDDING)
    else:
        units, bias = threshold / lif.threshold, lif.bias / (1 << MEMBRANE_FRACTION_BITS)
    integers = shift(integer_product(inputs.astype(np.int64) << columns, node.weights), node.exponent)
    steps, outputs = units[:, None] * 2.0**node.exponent * 2.0**columns, affine(inputs)
    return _Layer(affine.weight, steps, outputs - affine.bias, (integers + bias) * units - outputs)


def _readout(node: Readout, activity: LayerTrace, ticks: int, units: FloatArray) -> _Layer:
    head, residual = activity.layers[node.name], activity.residual
    outputs = head(activity.inputs[node.name])
    integers = accumulate(node, np.rint(residual / units).astype(np.int64))
    steps = node.scale[:, None] * ticks / 2.0**node.shift / units
    return _Layer(head.weight, steps, outputs - head.bias, node.scale * integers - outputs)


def _window(node: Window | PlacedWindow, network: Network, folded: FoldedModel, activity: LayerTrace) -> _Layer:
    branch, lif = node.name.removesuffix(".window"), _reader(network, node.name)
    attention = _attention_of(folded, branch)
    assert attention.positional_bias is not None and lif is not None
    query, key, value = np.split(activity.spikes[f"{branch}.qkv_lif"], 3, axis=-1)
    bias, tokens = attention.positional_bias, query.shape[1]
    weight = bias if bias.ndim == 1 else lag_rows(bias, attention.window)
    rows = node.weights if node.weights.ndim == 1 else node.weights[-tokens:, None]
    unit = folded.threshold / float(lif.threshold[0])
    lagged = lags_of(key * value)
    sums = windowed(query, lagged, place_weights(bias, attention.window, tokens))
    return _Layer(weight, np.full(weight.shape, unit), sums, windowed(query, lagged, rows) * unit - sums)


def _count(node: Count | Outer, network: Network, folded: FoldedModel) -> _Layer:
    """What is counted are whole numbers at both levels, so every sum errs exactly as the scale does."""
    lif = _reader(network, node.name)
    assert lif is not None
    scale = np.array([_attention_of(folded, node.name.rpartition(".")[0]).scale])
    unit = np.array([folded.threshold / float(lif.threshold[0])])
    return _Layer(scale, unit, scale, node.gain * unit - scale)


def _attention_of(folded: FoldedModel, branch: str) -> FoldedAttention:
    """The branch called blocks.<i>.attention."""
    attention = folded.blocks[int(branch.split(".")[1])].attention
    assert attention is not None
    return attention


def _reader(network: Network, name: str) -> LIF | None:
    """The LIF population that reads a node directly, if there is one."""
    return next((lif for lif in network.of_kind(LIF) if lif.source == name), None)


def _population(network: Network, name: str) -> str | None:
    """The LIF population that reads a layer, directly or through the residual that it writes."""
    lif = _reader(network, name)
    if lif is None:
        residual = next((other.name for other in network.of_kind(Residual) if name in other.sources), name)
        lif = _reader(network, residual)
    return None if lif is None else lif.name


def _residual_units(folded: FoldedModel, network: Network) -> FloatArray:
    """Float value (channels,) of one residual unit: the threshold of any LIF that reads a residual says it.

    Learned thresholds are rounded to units, but all channels then share one, a power of two of them per threshold.
    """
    lif = next(lif for lif in network.of_kind(LIF) if isinstance(network[lif.source], Residual))
    first = folded.blocks[0]
    factors = first.log_thresholds if first.attention is None else first.attention.log_thresholds
    if factors is None:
        return folded.threshold / lif.threshold
    shared = float(np.median(lif.threshold / np.exp(factors)))
    return np.full(lif.size, folded.threshold / 2.0 ** round(math.log2(shared)))


def _weight_limit(network: Network) -> int:
    """Largest weight of the narrowest range that holds all: layers that write the residual use more than half of it."""
    weighted: list[Synapses | Readout] = [*network.of_kind(Synapses), network.readout]
    largest = max(int(np.abs(node.weights.astype(np.int64)).max()) for node in weighted)
    return (1 << max(largest, 1).bit_length()) - 1


ROUNDING_POWER = 1e-24
"""Errors of relative power up to this are float64's own, not quantization's."""
_COLUMNS = ("layer", "scale", "exponent", "at limit", "clipped", "weights dB", "sums dB", "spikes agree", "rate")


def print_layers(figures: Sequence[LayerFigures], console: Console) -> None:
    """The report as a table, which needs a console as wide as :func:`dsf.shell.console.table_console`'s."""
    table = Table(title="layers (dB: signal to rounding noise)", title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer in figures:
        low, high = f"{layer.scale_min:.2g}", f"{layer.scale_max:.2g}"
        table.add_row(
            layer.name,
            low if low == high else f"{low}..{high}",
            _shown(layer.exponent, "d"),
            _shown(layer.saturated, ".2%"),
            _shown(layer.clipped, ".2%"),
            _shown(layer.weights_db, ".1f"),
            _shown(layer.sums_db, ".1f"),
            _shown(layer.agreement, ".2%"),
            _shown(layer.firing_rate, ".3f"),
        )
    console.print(table)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

"""What a cell's decision counts, kept with its line, so that any preset can price it later: of exported integers by the
spikes of their own episodes, of a dense rival by the sizes, bits and zeros of its trained integers.

Both sides have the same freedom. Weights are packed at their bits, and zeros are not stored; a dense rival may keep its
keys and values, and may skip the hidden values that its ReLU leaves at zero, as spiking hardware skips neurons that do
not fire.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsf.export.network.network import Network
from dsf.export.network.nodes import Readout, Synapses
from dsf.hardware_models.activity import QUANTITIES, Activity, SpikeCounter, measure_activity
from dsf.hardware_models.dense import (
    CACHED,
    WINDOW,
    DenseWeights,
    Perceptron,
    break_even,
    decision_transformer,
    perceptron,
)
from dsf.hardware_models.weight_memory import WeightMemory, evenly_packed
from dsf.runtime.sweeps.energy import transformer_sizes
from dsf.shell.errors import UserError
from dsf.train.quantization.integers import WEIGHT_BITS

COUNTED_POLICIES = ("dt", "twin", "bc")
"""Dense rivals whose integers are counted."""
WHOLE_WINDOW, KEPT, ZEROS_SKIPPED = "window", "cached", "cached-skipping"
"""How a dense rival comes to a decision: the whole window; one step's tokens, with keys and values of earlier ones
kept; the same on a machine that neither multiplies nor fetches for hidden values of zero, as far as a batch shows them.
"""
ACTIVE_WINDOWS = 64
"""Windows of the training data in which hidden values of zero are counted."""


@dataclass(frozen=True)
class Counts:
    """One decision.

    Attributes:
        memory: how weights are taken to be kept and fetched.
        per_decision: quantities by schedule: the one mode of a spiking network, or those of a dense rival.
        bits: signed width of the weights.
        parameters: of the trained floats.
        weights: entries of all matrices that are kept: with packed weights those that are not zero.
        weight_bytes: that they take, with the index of sparse rows.
        firing_rate: spikes per neuron and tick; None of a dense rival, as the next two.
        spikes_per_synapse: synaptic events per synapse and token, what the published bounds are about.
        tokens: computed per decision.
        active: share of a dense rival's hidden values that are not zero.
    """

    memory: WeightMemory
    per_decision: dict[str, dict[str, float]]
    bits: int
    parameters: int
    weights: int
    weight_bytes: int
    firing_rate: float | None = None
    spikes_per_synapse: float | None = None
    tokens: float | None = None
    active: float | None = None


def spiking_counts(network: Network, counter: SpikeCounter, mode: str, memory: WeightMemory, run: Path) -> Counts:
    """Of exported integers.

    Args:
        network: that ran.
        counter: of the whole run; with the tokens in which neurons fired where rows are fetched token by token.
        mode: in which it ran.
        memory: how weights are kept and fetched.
        run: the training behind the network.
    """
    from dsf.train.checkpoint import load_checkpoint

    activity = measure_activity(counter, memory)
    stored = [memory.stored(node.weights) for node in network.nodes if isinstance(node, (Synapses, Readout))]
    return Counts(
        memory,
        {mode: _per_decision(activity)},
        bits=int(network.provenance["bits"]),
        parameters=load_checkpoint(run).build_model().parameter_count(),
        weights=sum(matrix.synapses for matrix in stored),
        weight_bytes=sum(matrix.total_bytes for matrix in stored),
        firing_rate=activity.firing_rate,
        spikes_per_synapse=break_even(activity, network)[0].value,
        tokens=activity.tokens / max(activity.decisions, 1),
    )


def dense_counts(run: Path, memory: WeightMemory) -> Counts:
    """Of a trained rival's integers: of the bits that it was trained through, or 8.

    Raises:
        UserError: the rival has none that are counted.
    """
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.models.rivals.int8 import int8_copy

    checkpoint = load_checkpoint(run)
    model = checkpoint.build_model()
    if model.kind not in COUNTED_POLICIES:
        raise UserError(f"counts are of policies {', '.join(COUNTED_POLICIES)} and of exported ones, not {model.kind}")
    integers = int8_copy(model)
    zeros = {name: (kept, whole) for name, kept, whole in _kept(integers)}
    bits = model.weight_bits or WEIGHT_BITS
    packed = memory.weights == "packed"
    active = active_share(integers, checkpoint.header)
    kept = DenseWeights(bits, {name: kept / whole for name, (kept, whole) in zeros.items()}) if packed else None
    skipping = DenseWeights(bits, kept.kept, active) if kept is not None else None
    if model.kind == "bc":
        layers = _perceptron_sizes(model)
        ways = {KEPT: kept, ZEROS_SKIPPED: skipping}
        activities = {name: perceptron(layers, "int8", way).activity for name, way in ways.items()}
        activities[WHOLE_WINDOW] = activities[KEPT]  # one observation either way
    else:
        sizes = transformer_sizes(model)
        activities = {
            WHOLE_WINDOW: decision_transformer(sizes, "int8", WINDOW, kept).activity,
            KEPT: decision_transformer(sizes, "int8", CACHED, kept).activity,
            ZEROS_SKIPPED: decision_transformer(sizes, "int8", CACHED, skipping).activity,
        }
    if not packed:
        del activities[ZEROS_SKIPPED]
    return Counts(
        memory,
        {name: _per_decision(activity) for name, activity in activities.items()},
        bits=bits,
        parameters=model.parameter_count(),
        weights=sum(kept if packed else whole for kept, whole in zeros.values()),
        weight_bytes=_stored_bytes(integers, bits, zeros) if packed else sum(whole for _, whole in zeros.values()),
        active=active,
    )


def _perceptron_sizes(model: Any) -> Perceptron:
    from dsf.train.models.rivals.behaviour_cloning import HIDDEN_LAYERS

    return Perceptron(model.observation_size, model.action_size, model.rival.sizes[0], HIDDEN_LAYERS)


def _linears(integers: Any) -> list[tuple[str, str, Any]]:
    """The matrices of a rival: what :mod:`dsf.hardware_models.dense` calls their node, their name, and they."""
    from dsf.train.models.rivals.int8 import Int8Linear

    found = [(name, module) for name, module in integers.named_modules() if isinstance(module, Int8Linear)]
    return [(_node_of(name, integers.kind, index), name, module) for index, (name, module) in enumerate(found)]


def _node_of(name: str, kind: str, index: int) -> str:
    """Node of a matrix; blocks.0.expand and blocks.0.mlp.0 are both of blocks.0.mlp."""
    if kind == "bc":
        return f"layers.{index}"
    parts = name.split(".")
    if parts[0] == "blocks":
        return f"blocks.{parts[1]}.{'attention' if parts[2] == 'attention' else 'mlp'}"
    return "head" if parts[0] == "head" else "embedding"


def _kept(integers: Any) -> list[tuple[str, int, int]]:
    """Nodes, with their weights that are not zero and all of them."""
    kept: dict[str, int] = {}
    whole: dict[str, int] = {}
    for node, _, linear in _linears(integers):
        kept[node] = kept.get(node, 0) + int((linear.weight != 0).sum())
        whole[node] = whole.get(node, 0) + linear.weight.numel()
    return [(node, kept[node], whole[node]) for node in kept]


def _stored_bytes(integers: Any, bits: int, zeros: dict[str, tuple[int, int]]) -> int:
    """Bytes of all matrices, packed as they are fetched."""
    found = 0
    for node, _, linear in _linears(integers):
        targets, inputs = linear.weight.shape
        kept, whole = zeros[node]
        found += evenly_packed(inputs, targets, bits, kept / whole).total_bytes
    return found


def active_share(integers: Any, header: dict[str, Any]) -> float:
    """Share of the hidden values that are not zero as 8-bit integers, in windows of the training data.

    Args:
        integers: a rival of :class:`~dsf.train.models.rivals.int8.Int8Linear`.
        header: of its checkpoint.
    """
    import torch

    from dsf.train.config.training import DataConfig
    from dsf.train.data.batches import BatchSource
    from dsf.train.data.dataset import load_dataset
    from dsf.train.models.rivals.int8 import to_int8

    data = load_dataset(header["dataset"]["id"], DataConfig(**header["train"]["data"]))
    batch = BatchSource(data, integers.codec, ACTIVE_WINDOWS, integers.config.context, seed=0).draw(0)
    whole = batch.mask.all(dim=1)  # no place is padded
    seen: list[tuple[int, int]] = []

    def look(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        codes, _ = to_int8(inputs[0])
        seen.append((int((codes != 0).sum()), codes.numel()))

    behind = [linear for _, name, linear in _linears(integers) if _reads_hidden(name, integers.kind)]
    handles = [linear.register_forward_pre_hook(look) for linear in behind]
    try:
        with torch.no_grad():
            integers(batch.integers[whole], batch.mask[whole], batch.ends[whole])
    finally:
        for handle in handles:
            handle.remove()
    everything = sum(size for _, size in seen)
    return sum(count for count, _ in seen) / everything if everything else 1.0


def _reads_hidden(name: str, kind: str) -> bool:
    """Whether a matrix reads an MLP's hidden values."""
    if kind == "bc":
        return name != "layers.0"
    return name.endswith((".contract", ".mlp.2"))


def _per_decision(activity: Activity) -> dict[str, float]:
    """Every quantity that is counted at all."""
    return {name: activity.per_decision(name) for name in QUANTITIES if activity.total(name)}

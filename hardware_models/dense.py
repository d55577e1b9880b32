"""Dense rivals of a spiking policy: what a Decision Transformer, the dense twin, or the same network without spikes,
costs a decision.

They are Activity records, so every preset prices them: multiply-accumulates (fp32 or integer) and bytes of weights
fetched. Weights of fewer bits, and weights that are zero, save what they save on the spiking side
(:class:`DenseWeights`); a multiply-accumulate keeps the price of its precision, because none is known for fewer bits.
Not counted on either side: softmax, layer norms, biases and activation functions. Keys and values that are read back
are counted apart (:attr:`Rival.key_value_bytes`): no preset has a price for activations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    HISTORY_KINDS,
    LIF,
    And,
    Encoder,
    Gate,
    HostEmbedding,
    Outer,
    Readout,
    Residual,
    Synapses,
)
from dsf.hardware_models.activity import Activity, NodeActivity, embedded_on_host
from dsf.hardware_models.weight_memory import USUAL, WeightMemory, evenly_packed
from dsf.shell.errors import UserError

Precision = Literal["fp32", "int8"]
BYTES: dict[Precision, int] = {"fp32": 4, "int8": 1}
TOKENS_PER_STEP = 3
"""A Decision Transformer reads return-to-go, observation and action as tokens of their own."""


@dataclass(frozen=True)
class Schedule:
    """How a Decision Transformer, or the dense twin, comes to its next action.

    Attributes:
        name: for tables.
        cached: keys and values of earlier tokens are kept, and only a step's tokens are computed (three; the twin has
            one). In an episode longer than the context that is another function than the window: what is kept has seen
            older tokens.
        fetches_per_step: how often a step's tokens fetch the weights, where they are cached: once together, or each.
    """

    name: str
    cached: bool
    fetches_per_step: int = 1


WINDOW = Schedule("whole window", cached=False)
CACHED = Schedule("key-value cache, a step's tokens together", cached=True)
CACHED_SINGLY = Schedule("key-value cache, token by token", cached=True, fetches_per_step=TOKENS_PER_STEP)
SINGLE_TOKEN = "key-value cache, one token per step"
"""What a cache is called where a step is one token."""
SCHEDULES = (WINDOW, CACHED, CACHED_SINGLY)


@dataclass(frozen=True)
class TransformerSizes:
    """Sizes of a Decision Transformer (Chen et al. 2021): GPT-2 blocks of attention and an MLP, no biases counted.

    With one token per step they are those of the dense twin (:mod:`dsf.train.models.rivals.twin`), which embeds a whole
    step as one token.
    """

    observations: int
    actions: int
    width: int = 128
    blocks: int = 3
    context: int = 20
    mlp_hidden: int = 512
    tokens_per_step: int = TOKENS_PER_STEP

    @property
    def title(self) -> str:
        """For tables."""
        return "dense twin" if self.tokens_per_step == 1 else "Decision Transformer"

    @property
    def features(self) -> int:
        """Numbers that a step brings: observation, action, return-to-go."""
        return self.observations + self.actions + 1

    @property
    def attention_weights(self) -> int:
        """Weights of one block's query, key, value and output."""
        return 4 * self.width**2

    @property
    def mlp_weights(self) -> int:
        """Weights of one block's MLP."""
        return 2 * self.width * self.mlp_hidden

    @property
    def weights(self) -> int:
        """Entries of all matrices; the table of timestep embeddings is looked up, not multiplied."""
        blocks = self.blocks * (self.attention_weights + self.mlp_weights)
        return self.features * self.width + blocks + self.width * self.actions


@dataclass(frozen=True)
class DenseWeights:
    """Packed weights of a dense rival, see :func:`~dsf.hardware_models.weight_memory.evenly_packed`.

    Attributes:
        bits: of a weight.
        kept: share of the weights that are not zero: one for all matrices, or one for each of "embedding",
            "blocks.N.attention", "blocks.N.mlp" and "head".
        active: share of the MLP's hidden values that are not zero (a ReLU leaves some): a machine that looks at them
            neither multiplies nor fetches for the others. Tokens that share a fetch are taken to differ in which, the
            most that can be fetched.

    Raises:
        UserError: a share is out of range.
    """

    bits: int = 8
    kept: float | Mapping[str, float] = 1.0
    active: float = 1.0

    def __post_init__(self) -> None:
        shares = [self.active, *(self.kept.values() if isinstance(self.kept, Mapping) else [self.kept])]
        if not all(0.0 <= share <= 1.0 for share in shares) or not 1 <= self.bits <= 32:
            raise UserError(f"dense weights {self}: shares are 0 to 1, bits 1 to 32")

    def kept_of(self, name: str) -> float:
        """Share that a matrix keeps.

        Raises:
            UserError: no share is given for it.
        """
        if not isinstance(self.kept, Mapping):
            return self.kept
        if name not in self.kept:
            raise UserError(f"dense weights give no share for '{name}', only for {', '.join(self.kept)}: add it")
        return self.kept[name]

    @property
    def described(self) -> str:
        """For tables."""
        found = [f"{self.bits} bits"]
        if self.kept != 1.0:
            found.append("pruned" if isinstance(self.kept, Mapping) else f"{self.kept:.0%} of the weights")
        if self.active != 1.0:
            found.append(f"{self.active:.0%} of the hidden values")
        return ", ".join(found)


@dataclass(frozen=True)
class Perceptron:
    """Sizes of behaviour cloning's MLP: one decision is one pass of one observation, no biases counted."""

    observations: int
    actions: int
    width: int = 256
    hidden_layers: int = 2

    @property
    def layers(self) -> tuple[int, ...]:
        """Entries of each matrix."""
        between = (self.hidden_layers - 1) * (self.width**2,)
        return (self.observations * self.width, *between, self.width * self.actions)


@dataclass(frozen=True)
class Rival:
    """A dense way to the same decision.

    Attributes:
        name: for tables.
        precision: of weights and products.
        activity: of one decision.
        schedule: of a Decision Transformer; None for the network itself.
        key_value_bytes: keys and values read from memory, once per fetch of the weights; no preset prices them.
    """

    name: str
    precision: Precision
    activity: Activity
    schedule: Schedule | None = None
    key_value_bytes: int = 0


def rival_transformer(network: Network) -> TransformerSizes:
    """The Decision Transformer with a network's width, depth, context and MLP: the same number of weights."""
    width, actions = network.readout.weights.shape[1], network.readout.size
    blocks = sum(node.name.endswith(".mlp.expand") for node in network.nodes)
    hidden = network["blocks.0.mlp.expand"].size
    observations = network.encoder.features - actions - 1
    return TransformerSizes(observations, actions, width, blocks, network.context, hidden)


def rival_twin(network: Network) -> TransformerSizes:
    """The dense twin with a network's sizes: the same, with one token per step."""
    return dataclasses.replace(rival_transformer(network), tokens_per_step=1)


def rivals(network: Network) -> list[Rival]:
    """All dense rivals of a network: Decision Transformers of its size, and itself without spikes."""
    sizes = rival_transformer(network)
    transformers = [decision_transformer(sizes, precision, schedule) for precision in BYTES for schedule in SCHEDULES]
    return [*transformers, dense_ticks(network), dense_equivalent(network)]


def decision_transformer(
    sizes: TransformerSizes, precision: Precision, schedule: Schedule, weights: DenseWeights | None = None
) -> Rival:
    """Count one decision with a full context, of a Decision Transformer or of the dense twin.

    Attention's products count pairs that the causal mask leaves, once for the scores and once for the values. The head
    sees the last observation's token alone.

    Args:
        sizes: of the model.
        precision: of products, and of weights unless these are packed.
        schedule: window or cache.
        weights: how they are packed; None is the whole bytes of the precision.
    """
    length = sizes.tokens_per_step * sizes.context
    tokens = sizes.tokens_per_step if schedule.cached else length
    pairs = sum(range(length - tokens + 1, length + 1))
    steps, fetches = tokens // sizes.tokens_per_step, min(schedule.fetches_per_step, sizes.tokens_per_step)
    width, hidden = sizes.width, sizes.mlp_hidden

    def linear(name: str, size: int, shapes: list[tuple[int, int]], rows: int, fetches: int) -> NodeActivity:
        whole = [inputs * targets for inputs, targets in shapes]
        if weights is None:
            return _linear(name, size, sum(whole), rows, fetches, precision)
        return _packed_linear(NodeActivity(name, "Linear", size), shapes, rows, fetches, precision, weights)

    nodes = [linear("embedding", width, [(sizes.features, width)], steps, 1)]
    for block in range(sizes.blocks):
        attention, mlp = [(width, 3 * width), (width, width)], [(width, hidden), (hidden, width)]
        for part, shapes in (("attention", attention), ("mlp", mlp)):
            nodes.append(linear(f"blocks.{block}.{part}", width, shapes, tokens, fetches))
        products = NodeActivity(f"blocks.{block}.attention.products", "Attention", width)
        nodes.append(_multiplied(products, 2 * pairs * width, precision))
    nodes.append(linear("head", sizes.actions, [(width, sizes.actions)], 1, 1))
    read = fetches * 2 * length * width * sizes.blocks * BYTES[precision]
    how = SINGLE_TOKEN if schedule.cached and sizes.tokens_per_step == 1 else schedule.name
    packing = "" if weights is None else f", {weights.described}"
    name = f"{sizes.title}, {precision}, {how}{packing}"
    memory = USUAL if weights is None else WeightMemory("packed")
    return Rival(name, precision, Activity(1, tokens, 1, tuple(nodes), memory), schedule, read)


def _packed_linear(
    node: NodeActivity,
    shapes: list[tuple[int, int]],
    rows: int,
    fetches: int,
    precision: Precision,
    weights: DenseWeights,
    first_active: float = 1.0,
) -> NodeActivity:
    """Packed matrices (inputs, targets), one behind the other. Those behind a hidden layer see its zeros."""
    macs = fetched = 0
    for index, (inputs, targets) in enumerate(shapes):
        stored = evenly_packed(inputs, targets, weights.bits, weights.kept_of(node.node))
        active = weights.active if node.node.endswith(".mlp") and index == 1 else first_active
        macs += round(rows * active * stored.synapses)
        fetched += fetches * round(min(1.0, active * (rows // fetches)) * stored.total_bytes)
    return _multiplied(dataclasses.replace(node, weight_bytes=fetched), macs, precision)


def perceptron(sizes: Perceptron, precision: Precision, weights: DenseWeights | None = None) -> Rival:
    """Count one decision: every matrix once.

    Args:
        sizes: of the MLP.
        precision: of products, and of weights unless these are packed.
        weights: how they are packed, their shares by "layers.N"; None is the whole bytes of the precision.
    """
    inputs = (sizes.observations, *[sizes.width] * sizes.hidden_layers)
    outputs = (*[sizes.width] * sizes.hidden_layers, sizes.actions)
    nodes = []
    for index, shape in enumerate(zip(inputs, outputs)):
        name, size = f"layers.{index}", shape[1]
        if weights is None:
            nodes.append(_linear(name, size, shape[0] * size, 1, 1, precision))
        else:
            active = weights.active if index else 1.0
            nodes.append(_packed_linear(NodeActivity(name, "Linear", size), [shape], 1, 1, precision, weights, active))
    packing, memory = ("", USUAL) if weights is None else (f", {weights.described}", WeightMemory("packed"))
    return Rival(f"MLP, {precision}{packing}", precision, Activity(1, 1, 1, tuple(nodes), memory))


def _linear(name: str, size: int, weights: int, rows: int, fetches: int, precision: Precision) -> NodeActivity:
    """A matrix that multiplies some rows, and is fetched so often."""
    node = NodeActivity(name, "Linear", size, weight_bytes=fetches * weights * BYTES[precision])
    return _multiplied(node, rows * weights, precision)


def _multiplied(node: NodeActivity, macs: int, precision: Precision) -> NodeActivity:
    """The node with its multiply-accumulates."""
    return dataclasses.replace(node, macs_fp32=macs) if precision == "fp32" else dataclasses.replace(node, macs=macs)


def dense_ticks(network: Network, memory: WeightMemory = USUAL) -> Rival:
    """The network itself on a machine that skips nothing: every synapse at every tick of one token, every neuron
    updated. Weights are fetched once, for all ticks together; the embedding, the same at every tick, is computed once.
    """
    name = f"the same network, every synapse in all {network.ticks} ticks"
    return Rival(name, "int8", _dense(network, network.ticks, neurons=True, memory=memory))


def dense_equivalent(network: Network, memory: WeightMemory = USUAL) -> Rival:
    """The same matrices as an ordinary int8 network: one pass per token, values instead of spikes. It would have to be
    trained as such; this says what it would cost.
    """
    return Rival(
        "the same network without spikes (one tick, int8 values)",
        "int8",
        _dense(network, 1, neurons=False, memory=memory),
    )


def _dense(network: Network, ticks: int, neurons: bool, memory: WeightMemory) -> Activity:
    """One fetch of every matrix, whatever the schedule of the spiking side."""
    nodes = []
    for node in network.nodes:
        counted = NodeActivity(node.name, type(node).__name__, node.size)
        if isinstance(node, (Synapses, Readout)):
            once = isinstance(node, Readout) or isinstance(network[node.source], Encoder)
            stored = memory.stored(node.weights)
            macs = stored.synapses * (1 if once else ticks)
            counted = dataclasses.replace(counted, macs=macs, weight_bytes=stored.total_bytes)
        elif isinstance(node, HostEmbedding):
            counted = NodeActivity(counted.node, counted.kind, counted.neurons, **embedded_on_host(node))
        elif isinstance(node, (Gate, And)):
            counted = dataclasses.replace(counted, macs=node.size * ticks)
        elif isinstance(node, HISTORY_KINDS):
            products = 2 if isinstance(node, Outer) else 1  # scores, then values
            counted = dataclasses.replace(counted, macs=products * node.size * node.reach * ticks)
        elif isinstance(node, (LIF, Residual)) and neurons:
            counted = dataclasses.replace(counted, active_updates=node.size * ticks)
        nodes.append(counted)
    return Activity(1, 1, ticks, tuple(nodes), WeightMemory(memory.weights))


@dataclass(frozen=True)
class BreakEven:
    """A published bound below which spiking can beat dense arithmetic, and where a run stands.

    Attributes:
        source: of the bound.
        quantity: what is bounded.
        low, high: the bound; two values where it depends on the design.
        value: of the run.
    """

    source: str
    quantity: str
    low: float
    high: float
    value: float

    @property
    def verdict(self) -> str:
        """One line."""
        bound = f"{self.low:.3g}" if self.low == self.high else f"{self.low:.3g} to {self.high:.3g}"
        where = "below: spikes can win" if self.value < self.low else "above: spikes lose"
        if self.low <= self.value <= self.high and self.low < self.high:
            where = "within: it depends on the design"
        return f"{self.value:.3g} {self.quantity}, bound {bound} ({self.source}): {where}"


def break_even(activity: Activity, network: Network) -> list[BreakEven]:
    """The published verdicts on a run. An inference is what one token computes, at all its ticks.

    Where the activity's weights are packed, those of zero are no synapses, and meet no spike.
    """
    behind_spikes = [node for node in network.of_kind(Synapses) if not isinstance(network[node.source], Encoder)]
    synapses = sum(activity.memory.stored(node.weights).synapses for node in behind_spikes)
    per_synapse = activity.total("synaptic_events") / max(activity.tokens, 1) / max(synapses, 1)
    return bounds_on(per_synapse, activity.firing_rate)


def bounds_on(per_synapse: float, firing_rate: float) -> list[BreakEven]:
    """The published verdicts on two figures.

    Args:
        per_synapse: synaptic events per synapse and inference.
        firing_rate: spikes per neuron and tick.
    """
    spikes, rate = "spikes per synapse and inference", "spikes per neuron and tick"
    return [
        BreakEven("Davidson & Furber 2021", spikes, 1.72, 1.72, per_synapse),
        BreakEven("Dampfhoffer et al. 2023", spikes, 0.15, 1.38, per_synapse),
        BreakEven("Yan et al. 2024, v4, a quantized rival, T = 5", rate, 0.057, 0.057, firing_rate),
    ]

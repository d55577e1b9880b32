"""Dense rivals of a spiking policy: what a Decision Transformer, or the same network without spikes, costs a decision.

They are Activity records, so every preset prices them: multiply-accumulates (fp32 or integer) and bytes of weights
fetched. Not counted on either side: softmax, layer norms, biases and activation functions. Keys and values that are
read back are counted apart (:attr:`Rival.key_value_bytes`): no preset has a price for activations.
"""

from __future__ import annotations

import dataclasses
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

Precision = Literal["fp32", "int8"]
BYTES: dict[Precision, int] = {"fp32": 4, "int8": 1}
TOKENS_PER_STEP = 3
"""A Decision Transformer reads return-to-go, observation and action as tokens of their own."""


@dataclass(frozen=True)
class Schedule:
    """How a Decision Transformer comes to its next action.

    Attributes:
        name: for tables.
        cached: keys and values of earlier tokens are kept, and only a step's three tokens are computed. In an episode
            longer than the context that is another function than the window: what is kept has seen older tokens.
        fetches_per_step: how often a step's tokens fetch the weights, where they are cached: once together, or each.
    """

    name: str
    cached: bool
    fetches_per_step: int = 1


WINDOW = Schedule("whole window", cached=False)
CACHED = Schedule("key-value cache, a step's tokens together", cached=True)
CACHED_SINGLY = Schedule("key-value cache, token by token", cached=True, fetches_per_step=TOKENS_PER_STEP)
SCHEDULES = (WINDOW, CACHED, CACHED_SINGLY)


@dataclass(frozen=True)
class TransformerSizes:
    """Sizes of a Decision Transformer (Chen et al. 2021): GPT-2 blocks of attention and an MLP, no biases counted."""

    observations: int
    actions: int
    width: int = 128
    blocks: int = 3
    context: int = 20
    mlp_hidden: int = 512

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


def rivals(network: Network) -> list[Rival]:
    """All dense rivals of a network: Decision Transformers of its size, and itself without spikes."""
    sizes = rival_transformer(network)
    transformers = [decision_transformer(sizes, precision, schedule) for precision in BYTES for schedule in SCHEDULES]
    return [*transformers, dense_ticks(network), dense_equivalent(network)]


def decision_transformer(sizes: TransformerSizes, precision: Precision, schedule: Schedule) -> Rival:
    """Count one decision with a full context.

    Attention's products count pairs that the causal mask leaves, once for the scores and once for the values. The head
    sees the last observation's token alone.
    """
    length = TOKENS_PER_STEP * sizes.context
    tokens = TOKENS_PER_STEP if schedule.cached else length
    pairs = sum(range(length - tokens + 1, length + 1))
    steps = tokens // TOKENS_PER_STEP
    fetches = schedule.fetches_per_step
    nodes = [_linear("embedding", sizes.width, sizes.features * sizes.width, steps, 1, precision)]
    for block in range(sizes.blocks):
        for part, weights in (("attention", sizes.attention_weights), ("mlp", sizes.mlp_weights)):
            nodes.append(_linear(f"blocks.{block}.{part}", sizes.width, weights, tokens, fetches, precision))
        products = NodeActivity(f"blocks.{block}.attention.products", "Attention", sizes.width)
        nodes.append(_multiplied(products, 2 * pairs * sizes.width, precision))
    nodes.append(_linear("head", sizes.actions, sizes.width * sizes.actions, 1, 1, precision))
    read = fetches * 2 * length * sizes.width * sizes.blocks * BYTES[precision]
    name = f"Decision Transformer, {precision}, {schedule.name}"
    return Rival(name, precision, Activity(1, tokens, 1, tuple(nodes)), schedule, read)


def perceptron(sizes: Perceptron, precision: Precision) -> Rival:
    """Count one decision: every matrix once."""
    outputs = (*[sizes.width] * sizes.hidden_layers, sizes.actions)
    layers = enumerate(zip(outputs, sizes.layers))
    nodes = [_linear(f"layers.{index}", size, weights, 1, 1, precision) for index, (size, weights) in layers]
    return Rival(f"MLP, {precision}", precision, Activity(1, 1, 1, tuple(nodes)))


def _linear(name: str, size: int, weights: int, rows: int, fetches: int, precision: Precision) -> NodeActivity:
    """A matrix that multiplies some rows, and is fetched so often."""
    node = NodeActivity(name, "Linear", size, weight_bytes=fetches * weights * BYTES[precision])
    return _multiplied(node, rows * weights, precision)


def _multiplied(node: NodeActivity, macs: int, precision: Precision) -> NodeActivity:
    """The node with its multiply-accumulates."""
    return dataclasses.replace(node, macs_fp32=macs) if precision == "fp32" else dataclasses.replace(node, macs=macs)


def dense_ticks(network: Network) -> Rival:
    """The network itself on a machine that skips nothing: every synapse at every tick of one token, every neuron
    updated. Weights are fetched once, for all ticks together; the embedding, the same at every tick, is computed once.
    """
    name = f"the same network, every synapse in all {network.ticks} ticks"
    return Rival(name, "int8", _dense(network, network.ticks, neurons=True))


def dense_equivalent(network: Network) -> Rival:
    """The same matrices as an ordinary int8 network: one pass per token, values instead of spikes. It would have to be
    trained as such; this says what it would cost.
    """
    return Rival("the same network without spikes (one tick, int8 values)", "int8", _dense(network, 1, neurons=False))


def _dense(network: Network, ticks: int, neurons: bool) -> Activity:
    nodes = []
    for node in network.nodes:
        counted = NodeActivity(node.name, type(node).__name__, node.size)
        if isinstance(node, (Synapses, Readout)):
            once = isinstance(node, Readout) or isinstance(network[node.source], Encoder)
            macs = node.weights.size * (1 if once else ticks)
            counted = dataclasses.replace(counted, macs=macs, weight_bytes=node.weights.size)
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
    return Activity(1, 1, ticks, tuple(nodes))


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
    """The published verdicts on a run. An inference is what one token computes, at all its ticks."""
    behind_spikes = [node for node in network.of_kind(Synapses) if not isinstance(network[node.source], Encoder)]
    synapses = sum(node.weights.size for node in behind_spikes)
    per_synapse = activity.total("synaptic_events") / max(activity.tokens, 1) / max(synapses, 1)
    spikes, rate = "spikes per synapse and inference", "spikes per neuron and tick"
    return [
        BreakEven("Davidson & Furber 2021", spikes, 1.72, 1.72, per_synapse),
        BreakEven("Dampfhoffer et al. 2023", spikes, 0.15, 1.38, per_synapse),
        BreakEven("Yan et al. 2024, v4, a quantized rival, T = 5", rate, 0.057, 0.057, activity.firing_rate),
    ]

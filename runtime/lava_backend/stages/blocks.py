"""A network split for Lava: the nodes of each block, its populations and their pipeline depths."""

from __future__ import annotations

from dataclasses import dataclass

from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    HISTORY_KINDS,
    LIF,
    And,
    Count,
    Encoder,
    Gate,
    HistoryNode,
    HostEmbedding,
    HostNode,
    NetworkError,
    Node,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    Window,
)
from dsf.runtime.lava_backend.stages.layout import DENSE_TICKS

_MIXING_KINDS = ((Gate, Window, LIF), (Gate, PlacedWindow, LIF), (Gate, Count, LIF, And), (Outer, LIF))
_ATTENTION_KINDS = tuple((LIF, Synapses, LIF, *mixing, Synapses, Residual) for mixing in _MIXING_KINDS)
_EMBEDDING_KINDS = (
    (Encoder, Synapses, Residual),
    (Encoder, Synapses, Synapses, Residual),
    (HostEmbedding, Residual),
)
_MLP_KINDS = (LIF, Synapses, LIF, Synapses, Residual)


@dataclass(frozen=True)
class AttentionNodes:
    """The nodes of one attention branch and the residual behind it, in evaluation order.

    Attributes:
        gate: key AND value, of PSSA and SDSA-1.
        gated: the query's gate behind attention's neuron, of SDSA-1.
        delay: ticks that currents lag behind query, key and value: T where tick 0 needs the token's last spikes.
    """

    input_lif: LIF
    qkv: Synapses
    qkv_lif: LIF
    gate: Gate | None
    history: HistoryNode
    attention_lif: LIF
    gated: And | None
    project: Synapses
    output: Residual
    delay: int

    @property
    def mixed(self) -> LIF | And:
        """The population that the projection reads."""
        return self.attention_lif if self.gated is None else self.gated

    @property
    def query(self) -> slice | None:
        """The neurons of ``qkv_lif`` whose spikes ask the history; None where every neuron is answered."""
        history = self.history
        if isinstance(history, Count):
            return None
        first = history.query if isinstance(history, Outer) else history.first
        return slice(first, first + history.size)


@dataclass(frozen=True)
class EmbeddingNodes:
    """The nodes in front of the first block.

    Attributes:
        encoder: what the host computes.
        synapses: the embedding's; None behind a host embedding, whose values are the residual's.
        fine: the embedding's second synapses, if it has them.
        residual: the first.
    """

    encoder: HostNode
    synapses: Synapses | None
    fine: Synapses | None
    residual: Residual

    @property
    def all_synapses(self) -> tuple[Synapses, ...]:
        """What lies between encoder and residual."""
        return tuple(synapses for synapses in (self.synapses, self.fine) if synapses is not None)


@dataclass(frozen=True)
class MlpNodes:
    """The nodes of one MLP branch and the residual behind it, in evaluation order."""

    input_lif: LIF
    expand: Synapses
    hidden_lif: LIF
    contract: Synapses
    output: Residual


@dataclass(frozen=True)
class Population:
    """A spiking population of a block.

    Attributes:
        role: which of the block's populations it is; :class:`~dsf.runtime.lava_backend.processes.parts.Raster` has a
            port each.
        depth: pipeline depth behind the expanded block's input (ticks).
    """

    role: str
    node: LIF | Gate | And
    depth: int


@dataclass(frozen=True)
class BlockNodes:
    """The nodes of one transformer block, with attention or without."""

    attention: AttentionNodes | None
    mlp: MlpNodes

    @property
    def delay(self) -> int:
        """Pipeline depth of the fused block (ticks)."""
        return 0 if self.attention is None else self.attention.delay

    @property
    def mlp_depth(self) -> int:
        """Pipeline depth of the expanded block's attention branch (ticks): Dense stages and delay."""
        return 0 if self.attention is None else 2 * DENSE_TICKS + self.delay

    @property
    def depth(self) -> int:
        """Pipeline depth of the expanded block (ticks)."""
        return self.mlp_depth + 2 * DENSE_TICKS

    @property
    def populations(self) -> tuple[Population, ...]:
        """Every spiking population, in raster order."""
        attention, found = self.attention, []
        if attention is not None:
            scored = DENSE_TICKS + attention.delay
            found += [Population("input", attention.input_lif, 0), Population("qkv", attention.qkv_lif, DENSE_TICKS)]
            found += [] if attention.gate is None else [Population("gate", attention.gate, DENSE_TICKS)]
            found += [Population("attention", attention.attention_lif, scored)]
            found += [] if attention.gated is None else [Population("gated", attention.gated, scored)]
        mlp, depth = self.mlp, self.mlp_depth
        found += [Population("mlp", mlp.input_lif, depth), Population("hidden", mlp.hidden_lif, depth + DENSE_TICKS)]
        return tuple(found)

    @property
    def sizes(self) -> list[int]:
        """Neurons of each population, in raster order."""
        return [population.node.size for population in self.populations]


@dataclass(frozen=True)
class NetworkParts:
    """A DSFormer network, split for Lava."""

    embedding: EmbeddingNodes
    blocks: tuple[BlockNodes, ...]
    readout: Readout


def split_network(network: Network) -> NetworkParts:
    """Recognise encoder, blocks and readout.

    Raises:
        NetworkError: nodes or wiring are no DSFormer.
    """
    first = next((index for index, node in enumerate(network.nodes) if isinstance(node, Residual)), 0) + 1
    head, tail = network.nodes[:first], network.nodes[-1]
    blocks = _split_blocks(network.nodes[first:-1], network.ticks)
    if blocks and _kinds(head) in _EMBEDDING_KINDS:
        encoder, *behind, residual = head
        synapses, fine = (*behind, None, None)[:2]
        embedding = EmbeddingNodes(encoder, synapses, fine, residual)  # type: ignore[arg-type]
        parts = NetworkParts(embedding, blocks, tail)  # type: ignore[arg-type]
        if _wired_as_built(parts):
            return parts
    raise NetworkError(
        "the Lava backend runs DSFormer networks only and these nodes form another one: use --backend reference"
    )


def _split_blocks(nodes: tuple[Node, ...], ticks: int) -> tuple[BlockNodes, ...]:
    """The blocks; none where the nodes form no chain of blocks. Every branch ends with its residual."""
    blocks: list[BlockNodes] = []
    attention: AttentionNodes | None = None
    branch: tuple[Node, ...] = ()
    for node in nodes:
        branch = (*branch, node)
        if not isinstance(node, Residual):
            continue
        if _kinds(branch) == _MLP_KINDS:
            blocks.append(BlockNodes(attention, MlpNodes(*branch)))  # type: ignore[arg-type]
            attention = None
        elif attention is None and _kinds(branch) in _ATTENTION_KINDS:
            attention = _attention_nodes(branch, ticks)
        else:
            return ()
        branch = ()
    return () if branch or attention else tuple(blocks)


def _attention_nodes(branch: tuple[Node, ...], ticks: int) -> AttentionNodes:
    entering, (project, output) = branch[:3], branch[-2:]
    gate, gated = (next((node for node in branch if isinstance(node, kind)), None) for kind in (Gate, And))
    at = next(place for place, node in enumerate(branch) if isinstance(node, HISTORY_KINDS))
    history, neuron = branch[at : at + 2]
    delay = ticks if isinstance(history, Outer) and history.all_ticks else 0
    found = (*entering, gate, history, neuron, gated, project, output, delay)
    return AttentionNodes(*found)  # type: ignore[arg-type]


def _wired_as_built(parts: NetworkParts) -> bool:
    """Whether every node reads what the Lava processes will connect it to."""
    first = parts.embedding
    residual = first.residual
    wires: list[tuple[Node, tuple[Node, ...]]] = [(synapses, (first.encoder,)) for synapses in first.all_synapses]
    wires.append((residual, first.all_synapses or (first.encoder,)))
    for block in parts.blocks:
        if block.attention is not None:
            wires += _attention_wires(block.attention, residual)
            residual = block.attention.output
        mlp = block.mlp
        wires += [
            (mlp.input_lif, (residual,)),
            (mlp.expand, (mlp.input_lif,)),
            (mlp.hidden_lif, (mlp.expand,)),
            (mlp.contract, (mlp.hidden_lif,)),
            (mlp.output, (residual, mlp.contract)),
        ]
        residual = mlp.output
    wires.append((parts.readout, (residual,)))
    return all(node.sources == tuple(source.name for source in sources) for node, sources in wires)


def _attention_wires(nodes: AttentionNodes, residual: Residual) -> list[tuple[Node, tuple[Node, ...]]]:
    """What each node of an attention branch has to read."""
    query, gate = nodes.qkv_lif, () if nodes.gate is None else (nodes.gate,)
    wires: list[tuple[Node, tuple[Node, ...]]] = [
        (nodes.input_lif, (residual,)),
        (nodes.qkv, (nodes.input_lif,)),
        (query, (nodes.qkv,)),
        *((node, (query,)) for node in gate),
        (nodes.history, gate if isinstance(nodes.history, Count) else (query, *gate)),
        (nodes.attention_lif, (nodes.history,)),
        (nodes.project, (nodes.mixed,)),
        (nodes.output, (residual, nodes.project)),
    ]
    return wires if nodes.gated is None else [*wires, (nodes.gated, (query, nodes.attention_lif))]


def _kinds(nodes: tuple[Node, ...]) -> tuple[type, ...]:
    return tuple(type(node) for node in nodes)

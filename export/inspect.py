"""What is inside a network: every node's widths, margins and synapses, and what a chip would make of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsf.export.network.bounds import compute_bounds
from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    HISTORY_KINDS,
    HOST_KINDS,
    LIF,
    SPIKING_KINDS,
    UNPLACED_KINDS,
    And,
    Count,
    Encoder,
    Gate,
    HostEmbedding,
    Node,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    Window,
)
from dsf.export.network.sparse import is_sparse, stored_bytes
from dsf.export.placement.chips import Chip, Violation, checked, needed_bits, unchecked, verdict, violations
from dsf.export.placement.connections import fan_in
from dsf.export.placement.placement import Placement, place
from dsf.export.proof.tables import print_ladder

COLUMNS = {
    "name": "node",
    "kind": "kind",
    "shape": "shape",
    "weight_bits": "bits",
    "scale": "scale",
    "thresholds": "thresholds",
    "fan_in": "fan-in",
    "margin": "margin",
    "synapses": "synapses",
    "zero_share": "zeros",
    "stored_bytes": "stored bytes",
    "cores": "cores",
}
"""Keys of a node's description, in the table's order, and their headings."""


def describe_nodes(network: Network, placement: Placement | None = None) -> list[dict[str, Any]]:
    """One dictionary of JSON values per node, in evaluation order; None where a node has no such thing.

    Keys: ``name``, ``kind``, ``shape``, ``weight_bits`` (signed width that the largest weight or gain needs),
    ``scale`` (power of two on a sum, or what else scales), ``threshold_min`` and ``threshold_max`` (synaptic units),
    ``fan_in`` (axons per neuron), ``margin`` (times that the tightest proven bound could grow), ``synapses`` (weights),
    ``zero_share`` (of the weights), ``form`` (``sparse`` where the file leaves out zeros, else ``dense``),
    ``stored_bytes`` (of the weights in that form, before the file packs them), ``cores`` (with a placement: how many
    hold the node's neurons).
    """
    margins: dict[str, float] = {}
    for bound in compute_bounds(network):
        margins[bound.node] = min(bound.margin, margins.get(bound.node, np.inf))
    return [_describe(network, node, margins.get(node.name), placement) for node in network.nodes]


def _describe(network: Network, node: Node, margin: float | None, placement: Placement | None) -> dict[str, Any]:
    weights = _weights(node)
    stored = weights if isinstance(node, (Synapses, Readout)) else None
    thresholds = node.threshold if isinstance(node, LIF) else None
    cores = None if placement is None else len(placement.cores_of(node.name)) or None
    return {
        "name": node.name,
        "kind": type(node).__name__,
        "shape": [node.size] if stored is None else list(stored.shape),
        "weight_bits": None if weights is None else needed_bits(int(np.abs(weights.astype(np.int64)).max())),
        "scale": _scale(node),
        "threshold_min": None if thresholds is None else int(thresholds.min()),
        "threshold_max": None if thresholds is None else int(thresholds.max()),
        "fan_in": None if isinstance(node, HOST_KINDS) else fan_in(network, node),
        "margin": margin,
        "synapses": None if stored is None else stored.size,
        "zero_share": None if stored is None else float((stored == 0).mean()),
        "form": None if stored is None else "sparse" if is_sparse(stored) else "dense",
        "stored_bytes": None if stored is None else stored_bytes(stored),
        "cores": cores,
    }


def _weights(node: Node) -> npt.NDArray[np.integer] | None:
    """Integers that multiply spikes or graded values: weights, or the gain of a count."""
    if isinstance(node, (Synapses, Readout, Window, PlacedWindow)):
        return node.weights
    return np.array([node.gain]) if isinstance(node, (Count, Outer)) else None


def _scale(node: Node) -> str | None:
    """The powers of two and gains of a node, in words."""
    if isinstance(node, Encoder):
        return f"{node.bits} bits << {int(node.shift.min())}..{int(node.shift.max())}"
    if isinstance(node, HostEmbedding):
        inputs = f"{node.input_bits} bits" if node.input_bits else "floats"
        return f"on the host: {node.features} {inputs} -> LayerNorm -> {node.bits} bits"
    if isinstance(node, Synapses):
        return f"2^{node.exponent}"
    if isinstance(node, Readout):
        return f"2^-{node.shift}, {node.head}"
    if isinstance(node, LIF):
        low, high = int(node.decays.min()), int(node.decays.max())
        return f"bias 2^{node.bias_exponent}, decay {low if low == high else f'{low}..{high}'}/4096"
    if isinstance(node, (Window, PlacedWindow)):
        return f"{node.reach} tokens"
    return f"gain {node.gain}, {node.reach} tokens" if isinstance(node, (Count, Outer)) else None


def count_totals(network: Network) -> dict[str, int]:
    """Totals over nodes: neurons (of populations with a core) and their kinds, those that spike, synapses (weights),
    how many of their matrices are sparse, and their bytes as a file keeps them.

    ``neurons`` is the sum of ``lif_neurons``, ``gates``, ``attention_sums`` and ``adders``.
    """
    populations = [node for node in network.nodes if not isinstance(node, UNPLACED_KINDS)]
    matrices = [node.weights for node in network.nodes if isinstance(node, (Synapses, Readout))]
    return {
        "nodes": len(network.nodes),
        "neurons": sum(node.size for node in populations),
        "spiking_neurons": sum(node.size for node in populations if isinstance(node, SPIKING_KINDS)),
        "lif_neurons": sum(node.size for node in populations if isinstance(node, LIF)),
        "gates": sum(node.size for node in populations if isinstance(node, (Gate, And))),
        "attention_sums": sum(node.size for node in populations if isinstance(node, HISTORY_KINDS)),
        "adders": sum(node.size for node in populations if isinstance(node, Residual)),
        "synapses": sum(weights.size for weights in matrices),
        "zero_weights": sum(int((weights == 0).sum()) for weights in matrices),
        "sparse_matrices": sum(map(is_sparse, matrices)),
        "stored_bytes": sum(map(stored_bytes, matrices)),
    }


def neuron_words(totals: dict[str, int]) -> str:
    """How many neurons a network has, by kind; :func:`count_totals` has counted them."""
    return (
        f"{totals['neurons']:,} neurons ({totals['lif_neurons']:,} LIF, {totals['gates']:,} gates, "
        f"{totals['attention_sums']:,} sums of attention, {totals['adders']:,} adders of the residual)"
    )


def inspect_network(
    network: Network, chip: Chip | None = None, digest: str | None = None, share_cores: bool = False
) -> dict[str, Any]:
    """Everything that :func:`print_network` shows, as JSON values.

    Args:
        network: to inspect.
        chip: to check and to place on; None leaves that out.
        digest: SHA-256 of the file it came from, see :func:`dsf.export.network.file.file_digest`.
        share_cores: see :func:`dsf.export.placement.placement.place`.

    Raises:
        NetworkError: one neuron exceeds a core of the chip.
    """
    placement = None if chip is None else place(network, chip, share_cores)
    found: dict[str, Any] = {
        "task": network.task,
        "ticks": network.ticks,
        "context": network.context,
        "receptive_field": network.receptive_field,
        "stream_is_exact": network.stream_is_exact,
        "target_return": network.target_return,
        "digest": digest,
        "actions": _ends(network.readout),
        "provenance": network.provenance,
        "totals": count_totals(network),
        "nodes": describe_nodes(network, placement),
        "verification": network.verification,
    }
    if chip is not None and placement is not None:
        found["chip"] = chip.to_json()
        found["violations"] = [dataclasses.asdict(violation) for violation in violations(network, chip)]
        found["checked"] = checked(chip)
        found["unchecked"] = unchecked(chip)
        found["placement"] = placement.to_json()
        if isinstance(network.encoder, HostEmbedding):
            found["placement"]["host"] = found["placement"]["host"].replace("encoder", "host embedding")
    return found


def print_network(
    network: Network,
    console: Console,
    chip: Chip | None = None,
    digest: str | None = None,
    share_cores: bool = False,
) -> None:
    """Print header, nodes, totals, the chip's verdict and the verification ladder; see :func:`inspect_network`.

    Raises:
        NetworkError: one neuron exceeds a core of the chip.
    """
    found = inspect_network(network, chip, digest, share_cores)
    lines = _header(found)
    console.print(*map(escape, lines), sep="\n", soft_wrap=True)
    console.print(_node_table(found["nodes"]))
    console.print(_totals_line(found["totals"]), soft_wrap=True)
    if chip is not None:
        _print_chip(found, chip, console)
    rungs = found["verification"].get("rungs", [])
    if rungs:
        print_ladder(rungs, console)
    else:
        console.print("no verification is stored in this network")


def _totals_line(totals: dict[str, int]) -> str:
    """Neurons and synapses, and what the sparse matrices among them save."""
    line = f"{neuron_words(totals)}, {totals['synapses']:,} synapses, {totals['zero_weights']:,} of them zero"
    if not totals["sparse_matrices"]:
        return line
    existing = totals["synapses"] - totals["zero_weights"]
    return (
        f"{line}: {existing:,} exist; {totals['sparse_matrices']} matrices are sparse, and all weights take "
        f"{totals['stored_bytes']:,} bytes for {totals['synapses']:,}"
    )


def _ends(readout: Readout) -> str | None:
    """What a machine gets, in words; None where that is numbers between -1 and 1, or choices counted from 0."""
    if not readout.has_commands:
        return None
    if readout.head == "choice":
        return f"choices {readout.first_choice} to {readout.first_choice + readout.size - 1}"
    return ", ".join(f"{low:g} to {high:g}" for low, high in zip(readout.low, readout.high))


def _header(found: dict[str, Any]) -> list[str]:
    """Task, sizes, provenance in short, digest: one line each."""
    mode = "equals" if found["stream_is_exact"] else "differs from"
    target = "the task's first" if found["target_return"] is None else f"{found['target_return']:g}"
    lines = [
        f"task {found['task']}, T {found['ticks']}, K {found['context']}, target return {target}",
        f"stream mode {mode} window mode (receptive field {found['receptive_field']})",
    ]
    if found["actions"] is not None:
        lines.append(f"actions: {found['actions']}")
    provenance = found["provenance"]
    dataset, train, model = (provenance.get(key) for key in ("dataset", "train_steps", "model"))
    known = {
        "dataset": dataset.get("id") if isinstance(dataset, dict) else dataset,
        "attention": model.get("attention") if isinstance(model, dict) else model,
        "steps": train,
        "bits": provenance.get("bits"),
        "trained at": provenance.get("train_revision"),
        "exported at": provenance.get("export_revision"),
    }
    short = ", ".join(f"{key} {value}" for key, value in known.items() if value is not None)
    lines.append(f"from {short}" if short else "from nothing recorded")
    return [*lines, f"sha256 {found['digest']}"] if found["digest"] else lines


def _node_table(nodes: list[dict[str, Any]]) -> Table:
    table = Table()
    left_out = set() if any(node["cores"] is not None for node in nodes) else {"cores"}
    left_out |= set() if any(node["form"] == "sparse" for node in nodes) else {"stored_bytes"}
    shown = [key for key in COLUMNS if key not in left_out]
    for key in shown:
        table.add_column(COLUMNS[key], justify="left" if key in ("name", "kind", "scale") else "right", overflow="fold")
    for node in nodes:
        table.add_row(*(escape(_cell(node, key)) for key in shown))
    return table


def _cell(node: dict[str, Any], key: str) -> str:
    """A description's value as text; empty where the node has no such thing."""
    if key == "thresholds":
        low, high = node["threshold_min"], node["threshold_max"]
        return "" if low is None else str(low) if low == high else f"{low}..{high}"
    value = node[key]
    if value is None:
        return ""
    if key == "shape":
        return " x ".join(map(str, value))
    formats = {"margin": "{:.1f}x", "zero_share": "{:.1%}", "synapses": "{:,}", "stored_bytes": "{:,}"}
    return formats.get(key, "{}").format(value)


def _print_chip(found: dict[str, Any], chip: Chip, console: Console) -> None:
    """Cores, and every rule that is broken, grouped by rule; then what nobody can check."""
    placement, broken = found["placement"], found["violations"]
    busiest, limit = placement["busiest"], placement["busiest"]["limit"].replace("_", " ")
    sharing = "populations share cores" if placement["shared_cores"] else "every population on cores of its own"
    console.print(
        f"{chip.title}: {placement['total_cores']} cores on {placement['total_chips']} chip(s), {sharing}; "
        f"fullest core {busiest['core']}: {busiest['fraction']:.0%} of its {limit}\n{placement['host']}",
        soft_wrap=True,
    )
    text = verdict([Violation(**item) for item in broken], chip)
    console.print(f"{chip.title}: {text}: {', '.join(found['unchecked'])}", soft_wrap=True)
    if not broken:
        return
    table = Table()
    for column in ("rule", "node", "found", "limit", "source"):
        table.add_column(column, overflow="fold")
    for item in sorted(broken, key=lambda item: str(item["rule"])):
        cells = (item["rule"], item["node"], item["found"], item["limit"], item["grade"])
        table.add_row(*(escape(str(cell)) for cell in cells))
    console.print(table)

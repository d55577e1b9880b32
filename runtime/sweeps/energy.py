"""Energy per decision of a sweep's cell: from counted spikes, from a model's sizes, or from its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsf.export.network.network import Mode
from dsf.hardware_models.activity import Activity, NodeActivity
from dsf.hardware_models.dense import (
    BYTES,
    CACHED,
    TOKENS_PER_STEP,
    WINDOW,
    Perceptron,
    Precision,
    TransformerSizes,
    decision_transformer,
    perceptron,
)
from dsf.hardware_models.energy import estimate_energy
from dsf.hardware_models.preset import load_preset
from dsf.shell.file_values import parse_json, read_text
from dsf.shell.typed_values import read_record
from dsf.shell.units import MICROJOULE
from dsf.tasks import Task

PRESETS = ("paper_45nm", "int8_45nm")
"""Arithmetic alone at fp32 prices, and 8-bit arithmetic with its memory."""
FP32_SPIKES = "paper_45nm"
"""The only one of them that prices a synaptic event at fp32: the paper's own figure."""
DENSE = {"decision-transformer": ("dt",), "mlp": ("bc", "cql")}
"""Rules that price by sizes, and the policies whose sizes they read."""
PRODUCTS = {"fcnet": (1, 0), "spikegpt": (1, 0), "spikebert": (0, 2), "strl": (0, 2), "twin": (2, 0)}
"""Operations for a pair of tokens, per channel and block: multiply-accumulates (the filter's tap; the weighted value;
score and value), and per tick ANDs or additions where an operand is spikes (scores, then values)."""
DIGITS = 6


@dataclass(frozen=True)
class LoggedEvents:
    """What a row of a training's metrics says of spikes.

    Attributes:
        events_per_token: synaptic events behind spikes, of all Linears together; None in most rows.
    """

    events_per_token: float | None = None


def not_priced(reason: str) -> dict[str, Any]:
    """Why there is no energy."""
    return {"not_priced": reason}


def spiking_energy(
    joules_per_decision: Mapping[str, float], mode: Mode, events_per_decision: float | None = None
) -> dict[str, Any]:
    """Microjoules and synaptic events per decision of the exported integers, by the counts of their own episodes.

    Args:
        joules_per_decision: by preset.
        mode: in which the episodes ran.
        events_per_decision: synaptic events, where they were kept.
    """
    priced = {name: round(joules_per_decision[name] / MICROJOULE, DIGITS) for name in PRESETS}
    figures = {"int8": priced, "fp32": {FP32_SPIKES: priced[FP32_SPIKES]}}
    counted = {} if events_per_decision is None else {"events_per_decision": round(events_per_decision, 1)}
    return {"microjoules": figures, "how": f"counted spikes, {mode} mode", **counted}


def rival_energy(rule: str, header: dict[str, Any], task: Task, run: Path) -> dict[str, Any]:
    """Energy of a rival, at either width.

    Args:
        rule: of the cell's method, neither spiking nor none.
        header: of the checkpoint; it says the sizes that were trained.
        task: its task.
        run: its directory.
    """
    return layers_energy(run) if rule == "layers" else dense_energy(rule, header, task)


def layers_energy(run: Path) -> dict[str, Any]:
    """Energy of a rival in :data:`~dsf.runtime.sweeps.spec.LAYER_PRICED`, by what its layers do in a whole window.

    The rival decides on whole windows here; the head runs once. Beside the dense twin stands one that keeps keys and
    values and computes one token, which in an episode longer than the context is another function.

    A Linear behind spikes counts the synaptic events that training has logged with its last evaluation (one byte of
    weight each, as everywhere), any other Linear its multiply-accumulates, with its weights fetched once. A spiking
    neuron's update counts as active. Norms, exponentials, activation functions and products channel by channel with a
    token's own gate are left out, as in Decision Transformer's count.
    """
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.run_directory import METRICS_NAME

    lines = read_text(run / METRICS_NAME, "metrics").splitlines()
    rows = [read_record(LoggedEvents, parse_json(line, METRICS_NAME), METRICS_NAME, "train again") for line in lines]
    events = next((row.events_per_token for row in reversed(rows) if row.events_per_token is not None), 0.0)
    model = load_checkpoint(run).build_model()
    counted: dict[Precision, Activity] = {width: layer_counts(model, events, width) for width in BYTES}
    figures = {width: _prices(activity) for width, activity in counted.items()}
    if events:
        figures["fp32"] = {FP32_SPIKES: figures["fp32"][FP32_SPIKES]}
    found = {"microjoules": figures, "how": WINDOW.name + (", counted spikes" if events else "")}
    if model.kind == "twin":
        sizes = transformer_sizes(model)
        cached = {width: _prices(decision_transformer(sizes, width, CACHED).activity) for width in BYTES}
        found["cached_microjoules"] = cached
    return found


def transformer_sizes(model: Any) -> TransformerSizes:
    """Sizes of a Decision Transformer or dense twin, as :func:`~dsf.hardware_models.dense.decision_transformer` counts
    them.
    """
    width, hidden = model.rival.sizes
    actions, features = model.head.out_features, len(model.codec.unit)
    tokens = 1 if model.kind == "twin" else TOKENS_PER_STEP
    shape = (width, model.config.blocks, model.config.context, hidden)
    return TransformerSizes(features - actions - 1, actions, *shape, tokens)


def layer_counts(model: Any, events_per_token: float, width: Precision) -> Activity:
    """What a :class:`~dsf.train.models.decision_model.DecisionModel` does in one decision with a full context.

    Args:
        model: a rival.
        events_per_token: synaptic events behind spikes, of all Linears together.
        width: of the multiply-accumulates and the weights.
    """
    import torch
    from torch import nn

    from dsf.train.models.neurons import LIF

    nodes: list[NodeActivity] = []

    def hook(name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, LIF):
                nodes.append(NodeActivity(name, "LIF", output.shape[-1], active_updates=output.numel()))
                return
            times = 1 if name.startswith("head") else inputs[0].numel() // inputs[0].shape[-1]
            size, weights = output.shape[-1], inputs[0].shape[-1] * output.shape[-1]
            macs = {"macs_fp32" if width == "fp32" else "macs": times * weights}
            nodes.append(NodeActivity(name, "Linear", size, weight_bytes=weights * BYTES[width], **macs))

        return count

    counted = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, LIF) or (isinstance(module, nn.Linear) and not model.counts_events(name))
    ]
    handles = [module.register_forward_hook(hook(name)) for name, module in counted]
    context = model.config.context
    try:
        with torch.no_grad():
            window = torch.zeros(1, context, len(model.codec.unit))
            model(window, torch.ones(1, context, dtype=torch.bool))
    finally:
        for handle in handles:
            handle.remove()
    seen = context * (context + 1) // 2 if model.causal else context**2
    pairs = model.config.blocks * seen * model.rival.sizes[0]
    dense = model.kind == "strl" and model.rival.strl.neurons == "off"  # scores and values are then what the twin's are
    of_values, of_spikes = PRODUCTS["twin" if dense else model.kind]
    products, additions = of_values * pairs, of_spikes * pairs * model.ticks
    mixed = {"macs_fp32" if width == "fp32" else "macs": products}
    nodes.append(NodeActivity("attention", "Attention", model.rival.sizes[0], dynamic_operations=additions, **mixed))
    events = round(events_per_token * context)
    nodes.append(NodeActivity("behind spikes", "Linear", 0, synaptic_events=events, weight_bytes=events * BYTES[width]))
    return Activity(1, context, model.ticks, tuple(nodes))


def dense_energy(rule: str, header: dict[str, Any], task: Task) -> dict[str, Any]:
    """Energy of a rival with the sizes that its checkpoint's header says were trained, at either width."""
    policy = header.get("policy", "dsformer")
    if policy not in DENSE[rule]:
        return not_priced(f"{rule} prices {' and '.join(DENSE[rule])}, and this is {policy}")
    if rule == "mlp":
        return perceptron_energy(header["rival"], task)
    return transformer_energy(header["model"], header["rival"], task)


def perceptron_energy(rival: dict[str, Any], task: Task) -> dict[str, Any]:
    """Energy of behaviour cloning, or of CQL's actor."""
    from dsf.train.models.rivals.behaviour_cloning import HIDDEN_LAYERS

    layers = rival.get("hidden_layers", HIDDEN_LAYERS)
    sizes = Perceptron(task.observation_size, task.action_size, rival["width"], layers)
    figures = {width: _prices(perceptron(sizes, width).activity) for width in BYTES}
    return {"microjoules": figures, "how": "one observation"}


def transformer_energy(model: dict[str, Any], rival: dict[str, Any], task: Task) -> dict[str, Any]:
    """Energy of a Decision Transformer that computes its whole window for every decision.

    Beside it stands one that keeps keys and values, which in an episode longer than the context is another function.
    """
    widths = {name: rival[name] for name in ("width", "mlp_hidden")}
    depths = {name: model[name] for name in ("blocks", "context")}
    sizes = TransformerSizes(task.observation_size, task.action_size, **widths, **depths)
    figures, cached = (
        {width: _prices(decision_transformer(sizes, width, schedule).activity) for width in BYTES}
        for schedule in (WINDOW, CACHED)
    )
    return {"microjoules": figures, "how": WINDOW.name, "cached_microjoules": cached}


def _prices(activity: Activity) -> dict[str, float]:
    estimates = {name: estimate_energy(activity, load_preset(name)) for name in PRESETS}
    return {name: round(estimate.nominal / MICROJOULE, DIGITS) for name, estimate in estimates.items()}

"""Builds rivals: their sizes follow from DSFormer's, so that both have the same number of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from dsf.shell.errors import UserError
from dsf.tasks import Task
from dsf.train.config.rivals import RIVAL_NAMES, PolicyKind, RivalConfig
from dsf.train.config.training import ModelConfig
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.rivals.behaviour_cloning import CLONING_WIDTH, BehaviourCloning
from dsf.train.models.rivals.decision_transformer import DecisionTransformer
from dsf.train.models.rivals.fourier_controller import FourierController, default_modes
from dsf.train.models.rivals.int8 import ACTIVATION_BITS
from dsf.train.models.rivals.spikebert import SpikeBERT
from dsf.train.models.rivals.spikegpt import SpikeGPT
from dsf.train.models.rivals.strl import Strl
from dsf.train.models.rivals.twin import Twin
from dsf.train.quantization.codec import InputCodec

LEAST_WIDTH = 16
"""No rival is made narrower than this to match a count (or than --model.width, where that is smaller)."""

MODELS: dict[PolicyKind, Callable[[RivalConfig, ModelConfig, InputCodec, int, bool], DecisionModel]] = {
    "bc": BehaviourCloning,
    "fcnet": FourierController,
    "spikegpt": SpikeGPT,
    "spikebert": SpikeBERT,
    "twin": Twin,
}
"""Rivals that need nothing but sizes, the codec and the actions."""


def make_rival(
    policy: PolicyKind, rival: RivalConfig, config: ModelConfig, codec: InputCodec, task: Task
) -> DecisionModel:
    """A rival with random weights; its ``rival`` says every size that was chosen.

    Raises:
        UserError: the sizes do not fit each other.
    """
    return build_sized(policy, sized(policy, rival, config, codec, task), config, codec, task)


def build_sized(
    policy: PolicyKind, rival: RivalConfig, config: ModelConfig, codec: InputCodec, task: Task
) -> DecisionModel:
    """The model of a config that names every size.

    Raises:
        UserError: the policy is no rival.
    """
    shapes = (config, codec, task.action_size, task.discrete)
    if policy == "dt":
        return DecisionTransformer(rival, *shapes, steps=task.max_steps)
    if policy == "strl":
        return Strl(rival, *shapes, steps=task.max_steps)
    if policy not in MODELS:
        raise UserError(f"{policy} is no rival of DSFormer")
    return MODELS[policy](rival, *shapes)


def sized(policy: PolicyKind, rival: RivalConfig, config: ModelConfig, codec: InputCodec, task: Task) -> RivalConfig:
    """The config with every size chosen.

    The twin has DSFormer's width and MLP. The rule for the others: the width is DSFormer's and the MLP's hidden
    channels bring the count of parameters to DSFormer's. Where that would leave an MLP narrower than the stream
    (Decision Transformer's table of steps is large beside a small network), the width is lowered until it does not.

    Raises:
        UserError: the sizes do not fit each other.
    """
    if policy == "bc":
        return dataclasses.replace(rival, width=rival.width or CLONING_WIDTH)
    if policy == "twin":
        width = rival.width or config.width
        return dataclasses.replace(rival, width=width, mlp_hidden=rival.mlp_hidden or width * config.mlp_ratio)
    if policy == "fcnet":
        window = rival.fourier_window or config.context
        modes = rival.fourier_modes or default_modes(window)
        rival = dataclasses.replace(rival, fourier_window=window, fourier_modes=modes)
    if rival.width is not None and rival.mlp_hidden is not None:
        return rival
    widths = [rival.width] if rival.width else list(range(config.width, min(LEAST_WIDTH, config.width) - 1, -1))
    widths = [width for width in widths if width % rival.heads == 0]
    if not widths:
        raise UserError(f"rival.heads is {rival.heads}: it divides no width up to model.width {config.width}")
    if rival.mlp_hidden is not None:
        return dataclasses.replace(rival, width=widths[0])
    wanted = dsformer_parameters(config, codec, task)

    def count(width: int, hidden: int) -> int:
        candidate = dataclasses.replace(rival, width=width, mlp_hidden=hidden)
        return _count(lambda: build_sized(policy, candidate, config, codec, task))

    for width in widths:
        first, per_channel = count(width, 1), count(width, 2) - count(width, 1)
        hidden = 1 + round((wanted - first) / per_channel)
        if hidden >= width:
            break
    return dataclasses.replace(rival, width=width, mlp_hidden=max(hidden, width))


def dsformer_parameters(config: ModelConfig, codec: InputCodec, task: Task) -> int:
    """Parameters of the DSFormer with the same inputs and outputs."""
    return _count(lambda: DSFormer(config, codec, task.action_size, task.discrete))


def _count(build: Callable[[], DecisionModel]) -> int:
    """Parameters of a model that is built to be counted: the random numbers of the run stay where they are."""
    with torch.random.fork_rng(devices=[]):
        return build().parameter_count()


def describe_model(model: DecisionModel, task: Task) -> str:
    """One phrase for the start of a run: what is trained, its parameters, and beside a rival's DSFormer's, as the paper
    prints them (0.3 % fewer, 0.08 % more); after that the integers that a rival is trained through.
    """
    count, attention = model.parameter_count(), f"DSFormer-{model.config.attention.upper()}"
    if model.rival is None:
        return f"{attention}, {count:,} parameters"
    other = dsformer_parameters(model.config, model.codec, task)
    width, hidden = model.rival.sizes
    sizes = f"width {width}" + ("" if model.kind == "bc" else f", MLP {hidden}")
    sizes += f", {model.rival.strl.attention}" if model.kind == "strl" else ""
    integers = ""
    if model.weight_bits is not None:
        integers = f", trained and scored at {model.weight_bits}-bit weights and {ACTIVATION_BITS}-bit activations"
    return (
        f"{RIVAL_NAMES[model.kind]} ({sizes}), {count:,} parameters ({attention} of this --model: {other:,}, "
        f"{100 * abs(other - count) / count:.2f} % {'fewer' if other < count else 'more'}){integers}"
    )

"""Configuration of the rivals: models that train and are scored exactly as DSFormer, to be compared with it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dsf.shell.errors import UserError
from dsf.train.config.strl import StrlConfig, strl_from_json

PolicyKind = Literal["dsformer", "dt", "bc", "fcnet", "spikegpt", "spikebert", "strl", "twin"]
Activation = Literal["relu", "gelu"]
EvaluationPrecision = Literal["fp32", "int8"]
"""What a trained model is scored at; training is apart."""

LARGEST_SIZE = 1 << 16
"""Of a rival: channels, heads, tokens."""

RIVAL_NAMES: dict[PolicyKind, str] = {
    "dt": "Decision Transformer",
    "bc": "behaviour cloning (MLP)",
    "fcnet": "Fourier Controller Network",
    "spikegpt": "SpikeGPT-style model",
    "spikebert": "SpikeBERT-style model",
    "strl": "STRL",
    "twin": "dense twin",
}
"""What each rival is called where a person reads it."""
OBSTACLES: dict[PolicyKind, str] = {
    "dt": "its softmax and LayerNorm divide per token and its activations are no spikes",
    "bc": "its activations are no spikes",
    "fcnet": "its LayerNorm divides per token and its activations are no spikes",
    "spikegpt": "its LayerNorm and its weighted mean over tokens divide per token, and its matrices read no spikes",
    "spikebert": "its LayerNorm divides per token and its residual adds spikes up",
    "strl": "its softmax over the scores and its float LayerNorm both divide per token",
    "twin": "its softmax and LayerNorm divide per token and its activations are no spikes",
}
"""Why each rival cannot become a network of integer spikes."""
USED_BY: dict[str, tuple[PolicyKind, ...]] = {
    "mlp_hidden": ("dt", "fcnet", "spikegpt", "spikebert", "strl", "twin"),
    "heads": ("dt", "spikebert", "strl", "twin"),
    "activation": ("dt", "bc"),
    "dropout": ("dt", "strl"),
    "fourier_window": ("fcnet",),
    "fourier_modes": ("fcnet",),
    "strl": ("strl",),
}
"""Settings that only some rivals know; the others are everybody's but DSFormer's."""


@dataclass(frozen=True)
class RivalConfig:
    """Sizes of a rival. Blocks, context, input bits, ticks and neurons are those of --model.

    Raises:
        UserError: a value is out of its range.
    """

    width: int | None = None
    """Channels. None is --model.width, or the most below it at which the MLP can make the count of parameters
    DSFormer's; bc has 256, twin --model.width."""
    mlp_hidden: int | None = None
    """Hidden channels of each block's MLP. None makes the count of parameters that of the DSFormer of the same --model,
    as nearly as whole channels can; not for bc, whose hidden layers have its width, and not for twin, whose MLP is
    DSFormer's."""
    heads: int = 1
    """Attention heads of dt, spikebert, strl and twin; STRL's paper has 8."""
    activation: Activation = "relu"
    """Activation of dt's and bc's hidden layers; Decision Transformer's code has relu for Gym and gelu for Atari."""
    dropout: float = 0.1
    """Share of values that training drops: dt's embeddings, attention weights and branches, strl's embeddings."""
    fourier_window: int | None = None
    """Tokens in fcnet's sliding Fourier transform, the present one included; None is --model.context."""
    fourier_modes: int | None = None
    """Lowest frequencies that fcnet keeps, at most (window + 1) // 2; None is that, up to 10."""
    strl: StrlConfig = field(default_factory=StrlConfig)

    def __post_init__(self) -> None:
        if self.activation not in get_args(Activation):
            raise UserError(f"rival.activation is {self.activation!r}: use one of {', '.join(get_args(Activation))}")
        for name in ("width", "mlp_hidden", "heads", "fourier_window", "fourier_modes"):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and 1 <= value <= LARGEST_SIZE):
                raise UserError(f"rival.{name} is {value!r}: it must be a whole number, 1 to {LARGEST_SIZE:,}")
        if not (isinstance(self.dropout, (int, float)) and 0.0 <= self.dropout < 1.0):
            raise UserError(f"rival.dropout is {self.dropout!r}: it is a share, 0 up to but not 1")
        if self.width is not None and self.width % self.heads:
            raise UserError(f"rival.heads is {self.heads}: it must divide rival.width {self.width}")

    @property
    def sizes(self) -> tuple[int, int]:
        """Width and hidden channels, of a config that names both (or none to be had: 0)."""
        return self.width or 0, self.mlp_hidden or 0

    def refuse_unused(self, policy: PolicyKind) -> None:
        """Refuse settings that would change nothing.

        Raises:
            UserError: naming the first of them.
        """
        for item in dataclasses.fields(self):
            users = USED_BY.get(item.name, tuple(RIVAL_NAMES))
            if policy not in users and getattr(self, item.name) != getattr(RivalConfig(), item.name):
                raise UserError(f"--policy {policy} does not use rival.{item.name}: drop it")


def rival_from_json(values: Any) -> RivalConfig:
    """Rebuild a rival's config from a checkpoint's header.

    Raises:
        UserError: a field is unknown, or its value is wrong or missing.
    """
    if not isinstance(values, dict):
        raise UserError("its header does not say the rival's sizes: train it again")
    unknown = ", ".join(sorted(set(values) - {item.name for item in dataclasses.fields(RivalConfig)}))
    if unknown:
        raise UserError(f"rival config does not fit this version of dsf (fields: {unknown}): use the one that wrote it")
    # Rivals older than STRL name none of its settings.
    return RivalConfig(**{**values, "strl": strl_from_json(values.get("strl", {}))})


def cannot_become_spikes(policy: PolicyKind) -> str:
    """One line for ``dsf-export``: why a rival cannot be exported, and what can."""
    return (
        f"{RIVAL_NAMES[policy]} (--policy {policy}) cannot become spikes: {OBSTACLES[policy]}; "
        "train with --policy dsformer to export"
    )

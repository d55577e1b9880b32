"""Configuration of the rivals: models that train and are scored exactly as DSFormer, to be compared with it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dsf.tasks import UserError

RivalKind = Literal["none", "dt", "bc", "fcnet", "spikegpt", "spikebert"]
Activation = Literal["relu", "gelu"]

RIVAL_NAMES: dict[RivalKind, str] = {
    "dt": "Decision Transformer",
    "bc": "behaviour cloning (MLP)",
    "fcnet": "Fourier Controller Network",
    "spikegpt": "SpikeGPT-style model",
    "spikebert": "SpikeBERT-style model",
}
"""What each rival is called where a person reads it."""
OBSTACLES: dict[RivalKind, str] = {
    "dt": "its softmax and LayerNorm divide per token and its activations are no spikes",
    "bc": "its activations are no spikes",
    "fcnet": "its LayerNorm divides per token and its activations are no spikes",
    "spikegpt": "its LayerNorm and its weighted mean over tokens divide per token, and its matrices read no spikes",
    "spikebert": "its LayerNorm divides per token and its residual adds spikes up",
}
"""Why each rival cannot become a network of integer spikes."""
USED_BY: dict[str, tuple[RivalKind, ...]] = {
    "heads": ("dt", "spikebert"),
    "activation": ("dt", "bc"),
    "dropout": ("dt",),
    "fourier_window": ("fcnet",),
    "fourier_modes": ("fcnet",),
}
"""Settings that only some rivals know."""


@dataclass(frozen=True)
class RivalConfig:
    """A rival in DSFormer's place. Blocks, context, input bits, ticks and neurons are those of --model."""

    kind: RivalKind = "none"
    """dt: Decision Transformer (Chen et al. 2021); bc: an MLP on the observation alone (10%-BC: --data.top-percent 10);
    fcnet: Fourier Controller Network (Tan et al. 2024); spikegpt, spikebert: after Zhu et al. 2023 and Lv et al. 2023;
    none: DSFormer."""
    width: int | None = None
    """Channels. None is --model.width, or the most below it at which the MLP can make the count of parameters
    DSFormer's; bc has 256."""
    mlp_hidden: int | None = None
    """Hidden channels of each block's MLP. None makes the count of parameters that of the DSFormer of the same --model,
    as nearly as whole channels can; not for bc, whose hidden layers have its width."""
    heads: int = 1
    """Attention heads of dt and spikebert."""
    activation: Activation = "relu"
    """Of dt's and bc's hidden layers; Decision Transformer's code has relu for Gym and gelu for Atari."""
    dropout: float = 0.1
    """Share of dt's values that training drops: embeddings, attention weights and branches."""
    fourier_window: int | None = None
    """Tokens in fcnet's sliding Fourier transform, the present one included; None is --model.context."""
    fourier_modes: int | None = None
    """Lowest frequencies that fcnet keeps, at most (window + 1) // 2; None is that, up to 10."""

    def __post_init__(self) -> None:
        for name, kind in (("kind", RivalKind), ("activation", Activation)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise UserError(f"rival.{name} is {getattr(self, name)!r}: use one of {known}")
        for name in ("width", "mlp_hidden", "heads", "fourier_window", "fourier_modes"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UserError(f"rival.{name} is {value!r}: it must be a whole number, at least 1")
        if not (isinstance(self.dropout, (int, float)) and 0.0 <= self.dropout < 1.0):
            raise UserError(f"rival.dropout is {self.dropout!r}: it is a share, 0 up to but not 1")
        if self.width is not None and self.width % self.heads:
            raise UserError(f"rival.heads is {self.heads}: it must divide rival.width {self.width}")
        self._refuse_unused()

    @property
    def sizes(self) -> tuple[int, int]:
        """Width and hidden channels, of a config that names both (or none to be had: 0)."""
        return self.width or 0, self.mlp_hidden or 0

    def _refuse_unused(self) -> None:
        """Refuse settings that would change nothing."""
        for item in dataclasses.fields(self):
            users = USED_BY.get(item.name, tuple(RIVAL_NAMES))
            if self.kind not in users and item.name != "kind" and getattr(self, item.name) != item.default:
                raise UserError(f"rival.{item.name} has no use for rival.kind {self.kind}: leave it out")
        if self.kind == "bc" and self.mlp_hidden is not None:
            raise UserError("rival.mlp_hidden has no use for rival.kind bc: its hidden layers have rival.width")


def rival_from_json(values: dict[str, Any]) -> RivalConfig:
    """Rebuild a rival's config from a checkpoint's header.

    Raises:
        UserError: a field is unknown, or its value is wrong.
    """
    unknown = ", ".join(sorted(set(values) - {item.name for item in dataclasses.fields(RivalConfig)}))
    if unknown:
        raise UserError(f"rival config does not fit this version of dsf (fields: {unknown}): use the one that wrote it")
    return RivalConfig(**values)


def cannot_become_spikes(kind: RivalKind) -> str:
    """One line for ``dsf-export``: why a rival cannot be exported, and what can."""
    return (
        f"a {RIVAL_NAMES[kind]} (rival.kind {kind}) cannot become spikes: {OBSTACLES[kind]}; "
        "export a DSFormer, trained without --rival.kind"
    )

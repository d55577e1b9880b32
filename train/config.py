"""Configuration of models and training runs: the one source for the command line, config.json and the docs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dsf.tasks import UserError

NormKind = Literal["ptbn", "layernorm"]

MIN_INPUT_BITS, MAX_INPUT_BITS = 4, 16


@dataclass(frozen=True)
class ModelConfig:
    """DSFormer with PSSA (arXiv 2504.03800, section 4). Defaults are the paper's Hopper setting.

    The paper's head count is absent on purpose: PSSA works channel by channel with one positional bias shared by
    all heads, so splitting channels into heads changes nothing.
    """

    width: int = 128
    """Channels D of the residual stream."""
    blocks: int = 3
    """Transformer blocks L, each PSSA then MLP."""
    ticks: int = 4
    """Inner simulation ticks T per token."""
    context: int = 20
    """Tokens K in a training window and in window-mode inference."""
    window: int = 7
    """Tokens w that PSSA looks back on, the present one included. 1 + L*(w-1) <= K makes stream mode exact."""
    mlp_ratio: int = 4
    """Hidden channels of the MLP, as a multiple of the width."""
    threshold: float = 0.5
    """Membrane potential above which (strictly) a neuron fires; also the initial gain of every norm."""
    decay: float = 0.25
    """Share of the membrane potential that survives one tick."""
    norm: NormKind = "ptbn"
    """Norm behind every Linear in the blocks; only ptbn can be exported."""
    embed_norm: NormKind = "ptbn"
    """Norm behind the embedding; layernorm is the paper's and cannot become spikes."""
    input_bits: int = 8
    """Width of the integers (graded spikes) into which observations, actions and return-to-go are quantized."""

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "ticks", "context", "window", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        if self.window > self.context:
            raise UserError(f"model.window is {self.window}, longer than model.context {self.context}: shorten it")
        if not 0.0 <= self.decay < 1.0:
            raise UserError(f"model.decay is {self.decay}: it must be in [0, 1)")
        if self.threshold <= 0.0:
            raise UserError(f"model.threshold is {self.threshold}: it must be positive")
        if not MIN_INPUT_BITS <= self.input_bits <= MAX_INPUT_BITS:
            raise UserError(f"model.input_bits is {self.input_bits}: use {MIN_INPUT_BITS} to {MAX_INPUT_BITS}")

    @property
    def receptive_field(self) -> int:
        """Tokens that can influence one decision: 1 + L * (w - 1)."""
        return 1 + self.blocks * (self.window - 1)

    @property
    def stream_is_exact(self) -> bool:
        """Whether feeding one token per step gives the same actions as replaying the last K tokens."""
        return self.receptive_field <= self.context


_LEAST = {
    "steps": 1,
    "batch_size": 2,  # batch norm needs two tokens
    "threads": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "eval_episodes": 0,
    "eval_seed": 0,
    "seed": 0,
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Schedule defaults follow the paper's released configuration."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Minari dataset id, such as dsf/hopper/medium-expert-v0 (make it with dsf-data collect hopper-medium-expert)."""
    out: Path = Path("runs/latest")
    """Run directory: config.json, metrics.jsonl, TensorBoard events, checkpoint.safetensors."""
    model: ModelConfig = field(default_factory=ModelConfig)
    steps: int = 20_000
    """Optimizer steps."""
    batch_size: int = 64
    """Token windows per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW."""
    gradient_clip: float = 0.25
    """Largest allowed norm of the whole gradient."""
    warmup_fraction: float = 0.1
    """Share of the steps over which the learning rate rises linearly; it then falls as a cosine."""
    blend_fraction: float = 0.1
    """Share of the steps over which PTBN moves from LayerNorm to BatchNorm (lambda 1 -> 0)."""
    seed: int = 0
    """Seeds the weights and the sampling. Evaluation episodes use --eval-seed."""
    threads: int = 2
    """CPU threads for torch."""
    log_every: int = 100
    """Steps between two rows of metrics."""
    checkpoint_every: int = 1_000
    """Steps between two checkpoints."""
    eval_episodes: int = 10
    """Closed-loop episodes behind the last checkpoint; 0 leaves the run unscored."""
    eval_seed: int = 1_000
    """Reset seed of the first evaluation episode. Reported scores use other seeds than this."""
    resume: bool = False
    """Continue the run in --out from its checkpoint, bit for bit as if it had not been interrupted."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least {least}")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0.0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be positive")
        if not self.weight_decay >= 0.0:
            raise UserError(f"--weight-decay is {self.weight_decay}: it must be 0 or more")
        for name in ("warmup_fraction", "blend_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it is a share, 0 to 1")


def to_json(config: ModelConfig | TrainConfig) -> dict[str, Any]:
    """The config as plain JSON values."""
    values = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def model_config_from_json(values: dict[str, Any]) -> ModelConfig:
    """Rebuild a model config from JSON.

    Raises:
        UserError: a field is unknown or missing: the checkpoint comes from another version.
    """
    names = {item.name for item in dataclasses.fields(ModelConfig)}
    if set(values) != names:
        wrong = ", ".join(sorted(set(values) ^ names))
        raise UserError(f"model config does not fit this version of dsf (fields: {wrong}): retrain or use that version")
    return ModelConfig(**values)

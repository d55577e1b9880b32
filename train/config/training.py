"""Configuration of models and training runs: the one source for the command line, config.json and the docs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from dsf.shell.errors import UserError
from dsf.train.config.levers import LEVER_SETTINGS, Levers
from dsf.train.config.rivals import PolicyKind, RivalConfig
from dsf.train.quantization.integers import MAX_INPUT_BITS, WEIGHT_BITS
from dsf.train.quantization.rounding import MIN_BITS
from dsf.train.quantization.scales import COARSEST_THRESHOLD_UNITS, FINEST_THRESHOLD_UNITS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AttentionKind = Literal["pssa", "tssa", "sssa", "sdsa1", "sdsa3", "none"]
BiasKind = Literal["relative", "full"]
NormKind = Literal["ptbn", "tdbn", "tdln", "reptbn", "none"]
EmbedNormKind = Literal["ptbn", "layernorm"]
NeuronKind = Literal["fused", "snntorch"]
Precision = Literal["auto", "fp32", "bf16"]
DeviceKind = Literal["auto", "cpu", "cuda"]
PresetName = Literal["dsf", "paper-pssa", "paper-tssa"]

CONFIG_NAME = "config.json"
"""Where a run directory keeps its TrainConfig."""
MIN_INPUT_BITS = 4
UNQUANTIZED = 0
"""Value of model.input_bits for tokens that enter as standardised floats."""
LARGEST = {"width": 1 << 14, "blocks": 1 << 10, "ticks": 1 << 10, "context": 1 << 14, "mlp_ratio": 1 << 6}
"""Far beyond what fits a chip or a day; a checkpoint's header may ask for any number."""
SDSA3_SCALE = 0.125
"""Factor on SDSA-3's sum before its neuron, as in Spike-driven Transformer v2's code (Yao et al., ICLR 2024)."""
FEATURES_PER_UNIT = 8
"""Features of a query behind one unit of tssa's and sssa's scaled scores. Unscaled, as in the paper's release, a score
counts coincidences in hundreds of features and attention's neuron saturates (docs/results.md)."""
ADDED_FIELDS = {
    "attention": "pssa",
    "positional_bias": "relative",
    "heads": 1,
    "attention_surrogate_width": 1.0,
    "attention_scale": 1.0,
    "key_value_offset": 0.0,
    "learn_thresholds": False,
    "learn_decays": False,
}
"""Fields of ModelConfig younger than checkpoint format 1, with what the models were that do not name them."""
ADDED_TO_MODEL = {"learn_thresholds": False, "learn_decays": False}
"""Those of them that are younger than sweeps and resumed runs, too."""
ADDED_SETTINGS = {
    "policy": "dsformer",
    "rival": dataclasses.asdict(RivalConfig()),
    "ema": None,
    "norm_batches": 0,
    "preset": None,
    "task": None,
    **LEVER_SETTINGS,
}
"""The same for TrainConfig."""


@dataclass(frozen=True)
class ModelConfig:
    """The DSFormer family (arXiv 2504.03800, section 4).

    Defaults have the paper's size (D = 128, 3 blocks, T = 4, K = 20) with PSSA; docs/architecture.md says where they
    differ: window 7 instead of 8, a foldable embedding norm, 8-bit inputs, a relative bias, attention's surrogate.
    """

    width: int = 128
    """Channels D of the residual stream."""
    blocks: int = 3
    """Transformer blocks L, each attention then MLP."""
    attention: AttentionKind = "pssa"
    """pssa and tssa are the paper's, sssa its per-tick baseline; sdsa1 and sdsa3 are Spike-driven Transformer's (v1 and
    v2) made causal; none leaves the attention branch out (ablation)."""
    positional_bias: BiasKind = "relative"
    """PSSA's bias: a vector over lags (the paper's Eq. 7), or the full K x K matrix of the paper's release."""
    heads: int = 1
    """Heads of tssa, sssa and sdsa3. pssa and sdsa1 work channel by channel: heads change nothing there."""
    ticks: int = 4
    """Inner simulation ticks T per token."""
    context: int = 20
    """Tokens K in a training window and in window-mode inference."""
    window: int = 7
    """Tokens w that PSSA looks back on, the present one included. 1 + L*(w-1) <= K makes stream mode exact."""
    attention_surrogate_width: float = 2.0
    """Full width of the surrogate gradient's rectangle at attention's own neuron (membrane units). That neuron adds up
    coincidences, so its membranes are whole numbers at first: the paper's width 1 ends exactly at 0 and at 1, and no
    gradient ever reaches queries, keys and values. All other neurons have the paper's width."""
    attention_scale: float | None = None
    """Factor on attention's sum before its neuron. None is the rule's own: 1 for sdsa1, 1/8 for sdsa3 (its source), and
    for tssa and sssa 8 over the features of a query, T * D / heads or D / heads, as a power of two: 1/64 and 1/16 at
    the paper's size. 1 is the paper's. On a chip it divides a threshold. Not for pssa: its bias does."""
    key_value_offset: float = 0.0
    """Initial offset of the norms before the key and value neurons (membrane units). 0 is the paper's: keys and values
    then coincide in about 1 % of the ticks and attention is nearly silent; half the threshold makes that 10 %."""
    mlp_ratio: int = 4
    """Hidden channels of the MLP, as a multiple of the width."""
    threshold: float = 0.5
    """Membrane potential above which (strictly) a neuron fires; also the initial gain of every norm."""
    decay: float = 0.25
    """Share of the membrane potential that survives one tick."""
    learn_thresholds: bool = False
    """Learn a threshold for each neuron that reads the residual, a factor on the common one that starts at 1. All other
    neurons have a norm or a weight in front of them, which says the same."""
    learn_decays: bool = False
    """Learn for each neuron the share of its membrane that survives a tick, between 0 and 1, from the common decay on.
    On a chip it is the nearest multiple of 1/4096."""
    norm: NormKind = "ptbn"
    """Norm behind every Linear in the blocks: ptbn, tdbn (batch norm alone), tdln (layer norm alone, cannot become
    spikes), reptbn (ptbn plus a learned share of its input, the release's Adroit variant), or none."""
    embed_norm: EmbedNormKind = "ptbn"
    """Norm behind the embedding; layernorm is the paper's: it cannot become spikes, so that dsf-export leaves the
    embedding on the host, in float64, and its output enters the chip as integers."""
    input_bits: int = 8
    """Width of the integers (graded spikes) into which observations, actions and return-to-go are quantized. 0 leaves
    them standardised floats, as the paper does; such a run can be exported with --model.embed-norm layernorm only."""

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("width", "blocks", "ticks", "context", "window", "mlp_ratio", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        for name, limit in LARGEST.items():
            if getattr(self, name) > limit:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be at most {limit:,}")
        if self.window > self.context:
            raise UserError(f"model.window is {self.window}, longer than model.context {self.context}: shorten it")
        if self.width % self.heads:
            raise UserError(f"model.heads is {self.heads}: it must divide model.width {self.width}")
        if not 0.0 <= self.decay < 1.0:
            raise UserError(f"model.decay is {self.decay}: it must be in [0, 1)")
        if self.learn_decays and (self.decay == 0.0 or self.ticks == 1):
            which = "model.decay is 0" if self.decay == 0.0 else "model.ticks is 1"
            raise UserError(f"model.learn_decays needs neurons that keep a membrane, and {which}: drop one of them")
        if self.key_value_offset and self.norm == "none":
            raise UserError("model.key_value_offset needs a norm to offset: choose another --model.norm than none")
        if self.attention_surrogate_width <= 0.0:
            raise UserError(f"model.attention_surrogate_width is {self.attention_surrogate_width}: it must be positive")
        if self.attention_scale is not None and self.attention_scale <= 0.0:
            raise UserError(f"model.attention_scale is {self.attention_scale}: it must be positive")
        if self.attention in ("pssa", "none") and self.attention_scale not in (None, 1.0):
            raise UserError(f"model.attention {self.attention} does not use model.attention_scale: drop it")
        if self.threshold <= 0.0:
            raise UserError(f"model.threshold is {self.threshold}: it must be positive")
        if self.input_bits != UNQUANTIZED and not MIN_INPUT_BITS <= self.input_bits <= MAX_INPUT_BITS:
            raise UserError(
                f"model.input_bits is {self.input_bits}: use {MIN_INPUT_BITS} to {MAX_INPUT_BITS}, or {UNQUANTIZED} "
                "for inputs that are not quantized"
            )

    def _check_types(self) -> None:
        """Refuse what a checkpoint's header may hold where the command line has looked already."""
        kinds = {"attention": AttentionKind, "positional_bias": BiasKind, "norm": NormKind, "embed_norm": EmbedNormKind}
        for name, kind in kinds.items():
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise UserError(f"model.{name} is {value!r}: use one of {', '.join(known)}")
        for name in ("width", "blocks", "heads", "ticks", "context", "window", "mlp_ratio", "input_bits"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"model.{name} is {value!r}: it must be a whole number")
        for name in ("learn_thresholds", "learn_decays"):
            if not isinstance(value := getattr(self, name), bool):
                raise UserError(f"model.{name} is {value!r}: it must be true or false")
        for name in ("attention_surrogate_width", "attention_scale", "key_value_offset", "threshold", "decay"):
            value = getattr(self, name)
            unset = value is None and name == "attention_scale"
            if not unset and not (isinstance(value, (int, float)) and math.isfinite(value)):
                raise UserError(f"model.{name} is {value!r}: it must be a finite number")

    @property
    def scale_of_attention(self) -> float:
        """Factor on attention's sum: ``attention_scale``, or the rule's own."""
        if self.attention_scale is not None:
            return self.attention_scale
        if self.attention in ("tssa", "sssa"):
            features = self.width // self.heads * (self.ticks if self.attention == "tssa" else 1)
            return min(1.0, 2.0 ** round(math.log2(FEATURES_PER_UNIT / features)))
        return SDSA3_SCALE if self.attention == "sdsa3" else 1.0

    @property
    def receptive_field(self) -> int:
        """Tokens that can influence one decision: 1 + L * (w - 1) for PSSA, the whole context for the others."""
        if self.attention == "none":
            return 1
        return 1 + self.blocks * (self.window - 1) if self.attention == "pssa" else self.context

    @property
    def stream_is_exact(self) -> bool:
        """Whether feeding one token per step gives the same actions as replaying the last K tokens."""
        if self.attention == "pssa":
            return self.positional_bias == "relative" and self.receptive_field <= self.context
        return self.attention == "none"


UNSET_MODEL = ModelConfig()
"""The model of a config that names none, told from one that names the same values by its identity."""
PRESET_FLAG = "--preset"
_PAPER = ModelConfig(
    positional_bias="full",
    window=8,
    attention_surrogate_width=1.0,
    embed_norm="layernorm",
    input_bits=UNQUANTIZED,
)
PRESETS: dict[str, ModelConfig] = {
    "dsf": ModelConfig(),
    "paper-pssa": _PAPER,
    "paper-tssa": dataclasses.replace(_PAPER, attention="tssa", attention_scale=1.0),
}
"""Models by name. The paper's are those of its text; docs/training.md says where its released code differs."""


@dataclass(frozen=True)
class DataConfig:
    """What a run takes from its dataset."""

    delayed_reward: bool = False
    """Move every reward to the last step of its episode (DSFormer's delayed-reward experiment)."""
    top_percent: float = 100.0
    """Keep only the episodes with the highest returns, this share of them in percent (10 for 10%-BC)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.top_percent <= 100.0:
            raise UserError(f"--data.top-percent is {self.top_percent}: it is a share, above 0 and up to 100")


QAT_LEARNING_RATE_SHARE = 0.1
"""Quantization-aware training fine-tunes: its learning rate is this share of an ordinary run's."""

THRESHOLD_UNITS = 256
"""Default of --threshold-units."""

_LEAST = {
    "steps": 1,
    "qat_steps": 0,
    "norm_batches": 0,
    "batch_size": 2,  # batch norm needs two tokens
    "threads": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "eval_every": 0,
    "eval_episodes": 0,
    "eval_seed": 0,
    "seed": 0,
}


@dataclass(frozen=True)
class TrainConfig(Levers):
    """One training run. Schedule defaults follow the paper's released configuration."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Minari dataset id, such as dsf/hopper/medium-expert-v1 (make it with dsf-data collect hopper-medium-expert), or
    a D4RL name (dsf-data list)."""
    out: Path = Path("runs/latest")
    """Run directory: config.json, metrics.jsonl, TensorBoard events, checkpoint.safetensors."""
    model: ModelConfig = field(default_factory=lambda: UNSET_MODEL)
    policy: PolicyKind = "dsformer"
    """dsformer: the spiking policy that --model describes; for comparison, dt: Decision Transformer (Chen et al. 2021);
    bc: an MLP on the observation alone, with no return (10%-BC: --data.top-percent 10); fcnet: Fourier Controller
    Network (Tan et al. 2024); spikegpt, spikebert: in the style of Zhu et al. 2023 and Lv et al. 2023; strl: the
    spiking transformer with softmax of arXiv 2505.14533, bidirectional or causal (--rival.strl.attention); twin:
    DSFormer's own layers without spikes."""
    rival: RivalConfig = field(default_factory=RivalConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: Path | None = None
    """YAML file that describes the task where the dataset belongs to no registered one, or to another than it seems:
    whatever it leaves out, dataset and environment say (dsf-data task DATASET writes a draft; docs/training.md). A run
    that is resumed goes on with the task that it began with."""
    preset: PresetName | None = None
    """A whole model by its name: dsf is this project's default; paper-pssa and paper-tssa are the paper's own (full
    pair-wise bias, window 8, LayerNorm behind the embedding, surrogate width 1, no scale on tssa, inputs that are not
    quantized). Options of --model that it sets may be repeated, and not contradicted."""
    steps: int = 20_000
    """Optimizer steps."""
    batch_size: int = 64
    """Token windows per step, over all processes."""
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
    ema: float | None = None
    """Share that averaged weights keep of themselves at every step (exponential moving average), such as 0.998. The
    averaged weights are then what is scored, kept as the checkpoint and exported; None: the last ones."""
    norm_batches: int = 0
    """Batches of training data on which batch-norm statistics are estimated anew, for the very weights that are scored,
    kept and exported. 0: the running statistics of training."""
    seed: int = 0
    """Seeds the weights and the sampling. Evaluation episodes use --eval-seed."""
    threads: int = 2
    """CPU threads for torch."""
    device: DeviceKind = "auto"
    """Where to train; auto takes a GPU if there is one."""
    precision: Precision = "auto"
    """Precision of the matrix products between spikes; auto is bf16 where the processor multiplies it natively, else
    fp32, which rivals always have."""
    neuron: NeuronKind = "fused"
    """How LIF neurons compute: fused (one pass), or snntorch (its Leaky, tick by tick). Equal results in fp32."""
    init: Path | None = None
    """Run directory or checkpoint of a trained float model to go on from: fine-tuning in floats over --steps, also with
    fewer --model.ticks than it has or with --model.learn-thresholds or --model.learn-decays; or quantization-aware
    training over --qat-steps."""
    qat_steps: int = 0
    """Steps of quantization-aware training from --init, in place of --steps: every norm is folded, and the forward pass
    computes with the integers' values. A rival of Linears (dt, bc, twin) keeps its norms, and is trained through the
    integers of dsf-train evaluate --precision int8. The learning rate is then a tenth of --learning-rate. 0: an
    ordinary run."""
    bits: int = WEIGHT_BITS
    """Signed width of the weights in quantization-aware training, 2 to 8; a rival's activations have 8."""
    per_channel: bool = True
    """One scale per neuron in quantization-aware training where thresholds can absorb it, else one per layer."""
    threshold_units: int = THRESHOLD_UNITS
    """Firing threshold in units of the residual in quantization-aware training, a power of two: finer is larger, and
    dsf-export must be able to prove that no sum overflows."""
    compile: bool = False
    """Let torch.compile fuse the neurons where no C kernel computes them, as on a GPU: worth its start-up there."""
    log_every: int = 100
    """Steps between two rows of metrics."""
    checkpoint_every: int = 1_000
    """Steps between two checkpoints."""
    eval_every: int = 0
    """Steps between two evaluations, of which the best weights are kept in best.safetensors; 0 scores only the last."""
    eval_episodes: int = 10
    """Closed-loop episodes per evaluation and target return; 0 leaves the run unscored."""
    eval_targets: tuple[float, ...] = ()
    """Returns to ask for (reward units). None means the task's declared ones for the paper's datasets (dsf-data list)
    and those of dsf-data collect, and for any other what its episodes hold: the 90 % quantile of their returns, then
    the median."""
    eval_seed: int = 1_000
    """Reset seed of the first evaluation episode. Reported scores use other seeds than this."""
    resume: bool = False
    """Continue the run in --out from its checkpoint, bit for bit as if it had not been interrupted."""

    @classmethod
    def starting_point(cls, words: Sequence[str]) -> TrainConfig | None:
        """What a command line's options change: the model of the preset that it names, so that every option that is
        given shows; None where it names none that is known.
        """
        named = None
        for word, following in zip(words, [*words[1:], ""]):
            if word == PRESET_FLAG or word.startswith(f"{PRESET_FLAG}="):
                named = following if word == PRESET_FLAG else word.removeprefix(f"{PRESET_FLAG}=")
        model = PRESETS.get(named or "")
        return None if model is None else cls(dataset=tyro.MISSING, model=model)

    def _settle_model(self) -> None:
        """The preset's model where none was given; else they must be the same.

        Raises:
            UserError: naming preset and option.
        """
        if self.preset is None:
            return
        wanted = PRESETS[self.preset]
        if self.model is UNSET_MODEL:
            object.__setattr__(self, "model", wanted)
        for name, value in vars(wanted).items():
            if (given := getattr(self.model, name)) != value:
                option = f"--model.{name.replace('_', '-')}"
                raise UserError(
                    f"--preset {self.preset} sets {option} to {value}, and {option} {given} contradicts it: drop one "
                    "of them"
                )
        if self.policy != "dsformer":
            raise UserError(f"--preset {self.preset} requires --policy dsformer, not {self.policy}: drop one of them")

    def __post_init__(self) -> None:
        self._settle_model()
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least {least}")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0.0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be positive")
        for name in ("weight_decay", "rate_penalty"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be 0 or more")
        for name in ("warmup_fraction", "blend_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it is a share, 0 to 1")
        if self.ema is not None and not 0.0 < self.ema < 1.0:
            raise UserError(f"--ema is {self.ema}: it is a share, above 0 and below 1 (drop it for the last weights)")
        self._check_quantization()
        self.check_levers(self.phase_steps)
        for target in self.eval_targets:
            if not math.isfinite(target):
                raise UserError(f"--eval-targets is {target}: a return to ask for must be a finite number")
        self.rival.refuse_unused(self.policy)
        if self.policy != "dsformer":
            self._check_rival()

    def _check_rival(self) -> None:
        """Refuse what only DSFormer has."""
        of_dsformer = {
            "--rate-penalty": self.rate_penalty,
            "--prune-channels": self.prune_channels,
            "--model.learn-decays": self.model.learn_decays,
            "--no-per-channel": not self.per_channel,
            "--threshold-units": self.threshold_units != THRESHOLD_UNITS,
        }
        for option, asked in of_dsformer.items():
            if asked:
                raise UserError(f"{option} requires --policy dsformer, not {self.policy}: drop it")
        if self.precision == "bf16":
            raise UserError(
                f"--precision bf16 requires --policy dsformer, which multiplies spikes, not {self.policy}: drop it"
            )

    def _check_quantization(self) -> None:
        if not MIN_BITS <= self.bits <= WEIGHT_BITS:
            raise UserError(f"--bits is {self.bits}: synapses have {MIN_BITS} to {WEIGHT_BITS} bits")
        least, most, units = COARSEST_THRESHOLD_UNITS, FINEST_THRESHOLD_UNITS, self.threshold_units
        if not least <= units <= most or units & (units - 1):
            raise UserError(f"--threshold-units is {units}: it must be a power of two, {least} to {most}")
        if self.qat_steps and self.init is None and not self.resume:
            raise UserError("--qat-steps needs a trained float model to start from: name its run with --init")

    @property
    def phase_steps(self) -> int:
        """Steps that the trainer makes."""
        return self.qat_steps or self.steps

    @property
    def fine_tunes(self) -> bool:
        """Whether a trained float model is trained on in floats."""
        return self.init is not None and not self.qat_steps

    def of_phase(self) -> TrainConfig:
        """What the trainer follows: this config, but for quantization-aware training its own steps and learning rate.

        Its precision is never lowered unasked: bf16 cannot tell the values of 8-bit integers apart. Nor is a rival's,
        whose activations are no spikes.
        """
        precision: Precision = "fp32" if self.policy != "dsformer" else self.precision
        if not self.qat_steps:
            return dataclasses.replace(self, precision=precision)
        rate = self.learning_rate * QAT_LEARNING_RATE_SHARE
        precision = "fp32" if precision == "auto" else precision
        return dataclasses.replace(self, steps=self.qat_steps, learning_rate=rate, precision=precision)


def export_obstacles(config: ModelConfig) -> list[str]:
    """What keeps a trained network from becoming a network of integer spikes, each with the way out.

    ``dsf-train`` shows them before it trains, ``dsf-export`` and quantization-aware training refuse with them.
    """
    never = "is a LayerNorm, which divides per token and cannot become spikes"
    found = []
    if config.norm == "tdln":
        first = "mlp.expand_norm" if config.attention == "none" else "attention.qkv_norm"
        layers = f"blocks.0.{first}, like every norm behind it,"
        found.append(f"model.norm is tdln: {layers} {never}; use --model.norm ptbn")
    if config.input_bits == UNQUANTIZED and config.embed_norm != "layernorm":
        found.append(
            f"model.input_bits is {UNQUANTIZED}: an embedding of synapses reads integers; use --model.input-bits 8, or "
            "--model.embed-norm layernorm, whose embedding runs on the host"
        )
    return found


def quantization_obstacles(config: ModelConfig) -> list[str]:
    """What keeps a network from quantization-aware training, each with the way out: all that keeps it from export, and
    an embedding that no integers compute.
    """
    found = export_obstacles(config)
    if config.embed_norm == "layernorm":
        found.append(
            "model.embed_norm is layernorm: its embedding runs on the host in floats, and quantization-aware training "
            "folds every norm; use --model.embed-norm ptbn"
        )
    return found


def to_json(config: DataclassInstance) -> dict[str, Any]:
    """The config as plain JSON values."""
    values = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def model_config_from_json(values: dict[str, Any]) -> ModelConfig:
    """Rebuild a model config from JSON.

    Raises:
        UserError: a field is unknown or missing, or its value is wrong: another version of dsf wrote it, perhaps.
    """
    names = {item.name for item in dataclasses.fields(ModelConfig)}
    wrong = ", ".join(sorted((set(values) - names) | (names - set(values) - set(ADDED_FIELDS))))
    if wrong:
        raise UserError(f"model config does not fit this version of dsf (fields: {wrong}): retrain or use that version")
    return ModelConfig(**{**ADDED_FIELDS, **values})

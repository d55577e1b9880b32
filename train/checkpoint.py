"""Checkpoints: one safetensors file per run, replaced atomically. No pickle anywhere.

Tensors carry the model (``model.*``) and the optimizer (``optimizer.*``); the header's ``dsf`` entry is JSON with
everything else: config, codec, step, provenance and scores.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from dsf.shell.errors import UNREADABLE, UserError
from dsf.shell.file_values import parse_json
from dsf.shell.files import replacing
from dsf.shell.plain_text import plain, shown
from dsf.shell.typed_values import read_record
from dsf.tasks import Task
from dsf.tasks.registry import described_task
from dsf.train.config.rivals import PolicyKind, RivalConfig, cannot_become_spikes, rival_from_json
from dsf.train.config.training import MIN_INPUT_BITS, UNQUANTIZED, ModelConfig, model_config_from_json
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.qat import QuantizedDSFormer, deployed
from dsf.train.models.rivals.build import build_sized
from dsf.train.models.rivals.int8 import ACTIVATION_BITS
from dsf.train.models.rivals.qat import quantization_aware_rival
from dsf.train.quantization.codec import InputCodec
from dsf.train.quantization.integers import MAX_INPUT_BITS, WEIGHT_BITS
from dsf.train.quantization.rounding import MIN_BITS
from dsf.train.quantization.scales import COARSEST_THRESHOLD_UNITS, FINEST_THRESHOLD_UNITS

Model = TypeVar("Model", bound=DecisionModel)
Fixed = TypeVar("Fixed", "TrainedQuantization", "TrainedRivalQuantization")

CHECKPOINT_NAME = "checkpoint.safetensors"
FORMAT_VERSION = 1
HEADER_KEY = "dsf"
UNREADABLE_TENSORS: tuple[type[Exception], ...] = (SafetensorError, *UNREADABLE)
REMEDY = "train again, or get an undamaged copy"


@dataclass(frozen=True)
class _Dataset:
    """That the run was trained on."""

    id: str | None = None
    sha256: str | None = None
    steps: int | None = None


@dataclass(frozen=True)
class _Score:
    """One entry of a header's scores, see :class:`~dsf.train.evaluation.score.Score`."""

    engine: str = "torch"
    checkpoint: str = "last"
    target_return: float = 0.0
    seeds: tuple[int, ...] = ()
    returns: tuple[float, ...] = ()
    return_mean: float = 0.0
    return_interval_95: tuple[float, float] = (0.0, 0.0)
    score_mean: float | None = 0.0
    success_rate: float | None = None
    steps_over_shortest: float | None = None
    step: int = 0


@dataclass(frozen=True)
class TrainedQuantization:
    """What quantization-aware training has fixed."""

    bits: int
    threshold_units: int
    per_channel: bool = True


@dataclass(frozen=True)
class TrainedRivalQuantization:
    """The same for a rival, see :mod:`dsf.train.models.rivals.qat`."""

    bits: int
    activation_bits: int = ACTIVATION_BITS


@dataclass(frozen=True)
class _Codec:
    """See :func:`codec_to_json`."""

    offset: list[float]
    step: list[float]
    unit: list[float]
    bits: int
    constant: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Header:
    """The fields of a header that commands read; others may stand beside them. Only the first are in all headers."""

    model: dict[str, Any]
    train: dict[str, Any]
    codec: _Codec
    dataset: _Dataset
    task: str
    step: int
    scores: list[_Score]
    policy: str = "dsformer"
    rival: dict[str, Any] | None = None
    precision: str | None = None
    ranks: int | None = None
    quantization: dict[str, int | bool] | None = None
    revision: str | None = None
    git_revision: str | None = None
    torch: str | None = None
    best: _Score | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: ``tensors`` by name and the JSON ``header``."""

    path: Path
    tensors: dict[str, Tensor]
    header: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with ``prefix.``, without it."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(f"{prefix}.")}

    def model_config(self) -> ModelConfig:
        """Architecture of the model.

        Raises:
            UserError: another version of dsf wrote it.
        """
        try:
            return model_config_from_json(self.header["model"])
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        except UNREADABLE as error:
            raise UserError(f"{self.path}: the header's model is none of this dsf's ({error}): {REMEDY}") from None

    def task(self) -> Task:
        """The task it was trained for, in the environment of its data, with the targets that these hold.

        Raises:
            UserError: this dsf knows none, or the header describes no environment.
        """
        try:
            return described_task(self.header["task"], self.header)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None

    def policy(self) -> PolicyKind:
        """Which policy this is; headers older than rivals name none, for they are all DSFormer's.

        Raises:
            UserError: this version of dsf does not know it.
        """
        found = self.header.get("policy", "dsformer")
        for kind in get_args(PolicyKind):
            if kind == found:
                return cast(PolicyKind, kind)
        known = ", ".join(get_args(PolicyKind))
        raise UserError(f"{self.path}: its policy is {found!r}, and this version of dsf knows {known}")

    def rival_config(self) -> RivalConfig:
        """The sizes of a rival.

        Raises:
            UserError: another version of dsf wrote it, or the values are wrong.
        """
        try:
            return rival_from_json(self.header.get("rival"))
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        except UNREADABLE as error:
            raise UserError(f"{self.path}: the header's rival is none of this dsf's ({error}): {REMEDY}") from None

    def quantization(self) -> TrainedQuantization | None:
        """What quantization-aware training of a DSFormer has fixed; None of an ordinary run, and of a rival.

        Raises:
            UserError: another version of dsf wrote it, or a value is out of its range.
        """
        if self.policy() != "dsformer" or (fixed := self._fixed(TrainedQuantization)) is None:
            return None
        units, fits = fixed.threshold_units, MIN_BITS <= fixed.bits <= WEIGHT_BITS
        if not fits or not COARSEST_THRESHOLD_UNITS <= units <= FINEST_THRESHOLD_UNITS or units & (units - 1):
            raise UserError(f"{self._misfit}: bits is {fixed.bits} and threshold_units {units}: {REMEDY}")
        return fixed

    def rival_quantization(self) -> TrainedRivalQuantization | None:
        """What quantization-aware training of a rival has fixed; None of an ordinary run, and of a DSFormer.

        Raises:
            UserError: another version of dsf wrote it, or a value is out of its range.
        """
        if self.policy() == "dsformer" or (fixed := self._fixed(TrainedRivalQuantization)) is None:
            return None
        if not MIN_BITS <= fixed.bits <= WEIGHT_BITS or fixed.activation_bits != ACTIVATION_BITS:
            found = f"bits is {fixed.bits} and activation_bits {fixed.activation_bits}"
            raise UserError(f"{self._misfit}: {found}: {REMEDY}")
        return fixed

    def _fixed(self, kind: type[Fixed]) -> Fixed | None:
        """The header's quantization as a record; None where there is none.

        Raises:
            UserError: a field is unknown or missing, or of another type.
        """
        found = self.header.get("quantization")
        if found is None:
            return None
        if unknown := sorted(set(found) - {item.name for item in dataclasses.fields(kind)}):
            raise UserError(f"{self._misfit} ({', '.join(unknown)}): {REMEDY}")
        return read_record(kind, found, self._misfit, REMEDY)

    @property
    def _misfit(self) -> str:
        """How a refusal of the header's quantization begins."""
        return f"{self.path}: the header's quantization does not fit this dsf"

    def require_dsformer(self) -> None:
        """Refuse a rival where only a DSFormer will do.

        Raises:
            UserError: saying why.
        """
        if (policy := self.policy()) != "dsformer":
            raise UserError(f"{self.path}: {cannot_become_spikes(policy)}")

    def build_model(self) -> DecisionModel:
        """The trained policy in evaluation mode, DSFormer or a rival; after quantization-aware training it computes
        with its integers' values (a rival bit for bit what the integers answer).

        Raises:
            UserError: config, codec or quantization are wrong, or the tensors do not fit them or are not finite.
        """
        policy = self.policy()
        if policy == "dsformer":
            return deployed(self.build_trained())
        rival, config, codec, task = self.rival_config(), self.model_config(), self._codec(), self.task()
        width, hidden = rival.sizes
        mixing = config.blocks * (rival.fourier_modes or 0) ** 2
        self._require_held(width * (hidden * config.blocks or width) + width * (mixing + len(codec.unit)))
        model, fixed = build_sized(policy, rival, config, codec, task), self.rival_quantization()
        return self._filled(model if fixed is None else quantization_aware_rival(model, fixed.bits))

    def build_trained(self) -> DSFormer:
        """The DSFormer with the very parameters that were trained; they differ from :meth:`build_model`'s where a
        :class:`~dsf.train.models.qat.QuantizedDSFormer` was: export quantizes these.

        Raises:
            UserError: see :meth:`build_model`; or it is a rival.
        """
        self.require_dsformer()
        config, codec, task, fixed = self.model_config(), self._codec(), self.task(), self.quantization()
        shapes = (config, codec, task.action_size, task.discrete)
        biases = config.context**2 if config.attention == "pssa" and config.positional_bias == "full" else 0
        block = config.mlp_ratio * config.width**2 + biases
        self._require_held(config.blocks * block + config.width * len(codec.unit))
        if fixed is None:
            return self._filled(DSFormer(*shapes))
        return self._filled(QuantizedDSFormer(*shapes, **dataclasses.asdict(fixed)))

    def _codec(self) -> InputCodec:
        codec, asked = codec_from_json(self.header["codec"]), self.model_config().input_bits
        if (codec.bits == UNQUANTIZED) != (asked == UNQUANTIZED):
            raise UserError(
                f"{self.path}: its codec has {codec.bits} bits and its model.input_bits is {asked}: train again"
            )
        return codec

    def _require_held(self, least: int) -> None:
        """Refuse sizes before anything of them is made: a header may claim any, and the tensors say which one it is.

        Raises:
            UserError: the file holds fewer than ``least`` parameters.
        """
        held = sum(tensor.numel() for tensor in self.group("model").values())
        if held < least:
            raise UserError(
                f"{self.path}: tensors do not fit the config: its sizes need at least {least:,} parameters, and the "
                f"file holds {held:,}: {REMEDY}"
            )

    def _filled(self, model: Model) -> Model:
        """``model`` with the checkpoint's tensors, in evaluation mode."""
        tensors = self.group("model")
        if isinstance(model, DSFormer) and model.embed.bias is not None:  # older ones had none
            tensors.setdefault("embed.bias", torch.zeros_like(model.embed.bias))
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(f"{self.path}: tensors do not fit the config: {' '.join(str(error).split())}") from None
        for name, tensor in model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise UserError(f"{self.path}: tensor {name} is not finite, the training diverged: train again")
            if name.endswith("running_var") and (tensor < 0).any():
                raise UserError(f"{self.path}: tensor {name} is negative, no variance can be: train again")
        return model.eval()


def codec_to_json(codec: InputCodec) -> dict[str, Any]:
    """The codec as JSON; float64 survives a round trip through repr exactly."""
    values = {
        "offset": codec.offset.tolist(),
        "step": codec.step.tolist(),
        "unit": codec.unit.tolist(),
        "bits": codec.bits,
    }
    return {**values, "constant": list(codec.constant)} if codec.constant else values


def codec_from_json(values: dict[str, Any]) -> InputCodec:
    """Inverse of :func:`codec_to_json`.

    Raises:
        KeyError, TypeError, ValueError: something is missing, or no number.
        UserError: the numbers are no codec.
    """
    arrays = {name: np.array(values[name], np.float64) for name in ("offset", "step", "unit")}
    bits, most = values["bits"], MAX_INPUT_BITS
    if type(bits) is not int or not (bits == UNQUANTIZED or MIN_INPUT_BITS <= bits <= most):
        raise TypeError(f"codec's bits is {shown(bits)}, expected {MIN_INPUT_BITS} to {most}, or {UNQUANTIZED}")
    constant = values.get("constant", [])
    if not (isinstance(constant, list) and all(type(feature) is int for feature in constant)):
        raise TypeError(f"codec's constant is {shown(constant)}, expected a list of ints")
    return InputCodec(**arrays, bits=values["bits"], constant=tuple(constant))


def save_checkpoint(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write whole or not at all: a crash leaves the previous checkpoint.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps({"format": FORMAT_VERSION, **header}, sort_keys=True)
    data = serialize({name: tensor.contiguous() for name, tensor in tensors.items()}, {HEADER_KEY: text})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def load_checkpoint(run: Path) -> Checkpoint:
    """Load a run directory's checkpoint, or a checkpoint file.

    Raises:
        UserError: there is none, it is damaged, or another version wrote it.
    """
    path = run / CHECKPOINT_NAME if run.is_dir() else run
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: train one with dsf-train DATASET --out {run}")
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {})[HEADER_KEY], "header")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        if header.get("format") == FORMAT_VERSION:
            _require_header(header)
    except UserError as error:
        raise UserError(f"{path} is no dsf checkpoint, or is damaged ({error})") from None
    except UNREADABLE_TENSORS as error:
        told = plain(" ".join(f"{type(error).__name__}: {error}".split()))
        raise UserError(f"{path} is no dsf checkpoint, or is damaged ({told}): {REMEDY}") from None
    if header.get("format") != FORMAT_VERSION:
        raise UserError(
            f"{path} has checkpoint format {shown(header.get('format'))}, this dsf reads {FORMAT_VERSION}: retrain"
        )
    return Checkpoint(path, tensors, header)


def _require_header(header: dict[str, Any]) -> None:
    """Check what everybody relies on.

    Raises:
        KeyError, TypeError, ValueError, UserError: something is missing or of another type; the message names it.
    """
    found = read_record(_Header, header, "header", REMEDY)
    if found.step < 0:
        raise UserError(f"header: step is {found.step}, expected 0 or more: {REMEDY}")
    codec_from_json(header["codec"])


def git_revision() -> str:
    """Revision of the source tree this module runs from, or 'unknown' outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return answer.stdout.strip() or "unknown"


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments, flattened to ``optimizer.<parameter index>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of :func:`optimizer_tensors`, on names without the prefix.

    Raises:
        UserError: the tensors are not those of this optimizer's parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        known = index.isdecimal() and int(index) < len(parameters)
        if not known or tensor.shape not in (torch.Size(), parameters[int(index)].shape):
            raise UserError(f"the checkpoint's tensor optimizer.{plain(name)} fits no parameter: {REMEDY}")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

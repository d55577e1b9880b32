"""Checkpoints: one safetensors file per run, replaced atomically. No pickle anywhere.

Tensors carry the model (``model.*``) and the optimizer (``optimizer.*``); the header's ``dsf`` entry is JSON with
everything else: config, codec, step, provenance and scores.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from dsf.shell.errors import UserError
from dsf.shell.files import replacing
from dsf.tasks.registry import get_task
from dsf.train.config.rivals import PolicyKind, RivalConfig, cannot_become_spikes, rival_from_json
from dsf.train.config.training import ModelConfig, model_config_from_json
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.qat import QuantizedDSFormer, deployed
from dsf.train.models.rivals.build import build_sized
from dsf.train.quantization.codec import InputCodec

Model = TypeVar("Model", bound=DecisionModel)

CHECKPOINT_NAME = "checkpoint.safetensors"
FORMAT_VERSION = 1
HEADER_KEY = "dsf"
HEADER_TYPES: dict[str, type] = {
    "model": dict,
    "train": dict,
    "codec": dict,
    "dataset": dict,
    "task": str,
    "step": int,
    "scores": list,
}
"""What every checkpoint's header holds."""


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

    def require_dsformer(self) -> None:
        """Refuse a rival where only a DSFormer will do.

        Raises:
            UserError: saying why.
        """
        if (policy := self.policy()) != "dsformer":
            raise UserError(f"{self.path}: {cannot_become_spikes(policy)}")

    def build_model(self) -> DecisionModel:
        """The trained policy in evaluation mode, DSFormer or a rival; after quantization-aware training, with its
        integers' values.

        Raises:
            UserError: config, codec or quantization are wrong, or the tensors do not fit them or are not finite.
        """
        policy = self.policy()
        if policy == "dsformer":
            return deployed(self.build_trained())
        return self._filled(
            build_sized(policy, self.rival_config(), self.model_config(), self._codec(), get_task(self.header["task"]))
        )

    def build_trained(self) -> DSFormer:
        """The DSFormer with the very parameters that were trained; they differ from :meth:`build_model`'s where a
        :class:`~dsf.train.models.qat.QuantizedDSFormer` was: export quantizes these.

        Raises:
            UserError: see :meth:`build_model`; or it is a rival.
        """
        self.require_dsformer()
        header, codec = self.header, self._codec()
        task = get_task(header["task"])
        config = self.model_config()
        quantization = header.get("quantization")
        if quantization is None:
            model = DSFormer(config, codec, task.action_size, task.discrete)
        else:
            try:
                model = QuantizedDSFormer(config, codec, task.action_size, task.discrete, **quantization)
            except TypeError as error:
                raise UserError(f"{self.path}: the header's quantization does not fit this dsf ({error})") from None
        return self._filled(model)

    def _codec(self) -> InputCodec:
        return codec_from_json(self.header["codec"])

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
    if not isinstance(values["bits"], int):
        raise TypeError(f"codec's bits is {values['bits']!r}, expected an int")
    constant = values.get("constant", [])
    if not (isinstance(constant, list) and all(type(feature) is int for feature in constant)):
        raise TypeError(f"codec's constant is {constant!r}, expected a list of ints")
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
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        header = json.loads(metadata[HEADER_KEY])
        if header.get("format") == FORMAT_VERSION:
            _require_header(header)
    except (SafetensorError, KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(f"{path} is no dsf checkpoint, or is damaged ({type(error).__name__}: {error})") from None
    if header.get("format") != FORMAT_VERSION:
        raise UserError(
            f"{path} has checkpoint format {header.get('format')}, this dsf reads {FORMAT_VERSION}: retrain"
        )
    return Checkpoint(path, tensors, header)


def _require_header(header: dict[str, Any]) -> None:
    """Check what everybody relies on.

    Raises:
        KeyError, TypeError, ValueError, UserError: something is missing or of another type; the message names it.
    """
    for name, kind in HEADER_TYPES.items():
        if not isinstance(header[name], kind):
            raise TypeError(f"header's {name} is {header[name]!r}, expected a {kind.__name__}")
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
    """Inverse of :func:`optimizer_tensors`, on names without the prefix."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

"""Where and how precisely the matrix products of training are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from dsf.shell.errors import UserError
from dsf.train.config.training import DeviceKind, Precision


def resolve_device(kind: DeviceKind) -> torch.device:
    """The device a config asks for; auto is a GPU where there is one.

    Raises:
        UserError: cuda was asked for, and there is none.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, and torch finds no GPU here: use --device cpu")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(kind)


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """What a config's precision means on this machine: auto is bf16 where the processor multiplies it natively.

    Only the Linears between spikes run in bf16; embedding, head, residual stream, norms, neurons' membranes, the
    optimizer and every evaluation stay in fp32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"

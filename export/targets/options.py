"""The targets of dsf-export, and what only some of them read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsf.export.network.file import SUFFIX
from dsf.export.network.network import Network
from dsf.export.targets.netx_directory import planned_stages, require_directory
from dsf.shell.errors import UserError
from dsf.shell.installed import require_installed

Target = Literal["loihi", "onnx", "nir", "torch"]
OnnxMode = Literal["auto", "stream", "window"]
SUFFIXES: dict[Target, str] = {"loihi": SUFFIX, "onnx": ".onnx", "nir": ".nir", "torch": ".safetensors"}
EXTRAS: dict[Target, tuple[str, ...]] = {
    "loihi": (),
    "onnx": ("onnx", "onnx", "onnxruntime"),
    "nir": ("nir", "nir"),
    "torch": ("train", "torch", "safetensors"),
}
"""The extra that each target needs, and its modules."""

NIR_LEAVES_OUT = (
    "the encoder (or HostEmbedding), the readout, the gates (Gate, And) and sums of attention (Window, PlacedWindow, "
    "Count, Outer), a residual that adds one source twice, and the reset of all membranes before each token"
)
"""All that :data:`dsf.export.targets.nir_graph.REASONS` and its graphs leave out, known without the nir package."""


@dataclass(frozen=True)
class TargetOptions:
    """What only some targets read.

    Attributes:
        onnx_mode: stream or window mode of the ONNX graph; auto is stream mode where that is exact.
        float_onnx: write the folded float network instead of the integers.
        partial: let NIR leave out what it cannot say.
        netx: directory for lava-dl files of the dense stages.
        source: network file that the network was read from; the target's file names its digest.
    """

    onnx_mode: OnnxMode = "auto"
    float_onnx: bool = False
    partial: bool = False
    netx: Path | None = None
    source: Path | None = None


def require_own_options(target: Target, options: TargetOptions) -> None:
    """Refuse options that do not fit a target.

    Raises:
        UserError: naming the option.
    """
    for flag, given, own in (
        ("--onnx-mode", options.onnx_mode != "auto", "onnx"),
        ("--precision float", options.float_onnx, "onnx"),
        ("--partial", options.partial, "nir"),
        ("--netx", options.netx is not None, "loihi"),
    ):
        if given and target != own:
            raise UserError(f"{flag} requires --target {own}, not {target}: drop it")
    if options.float_onnx and options.onnx_mode == "stream":
        raise UserError("--precision float requires windows, which --onnx-mode stream does not use: drop one")
    if target == "nir" and not options.partial:
        raise UserError(f"--target nir cannot say {NIR_LEAVES_OUT}: add --partial to leave them out")


def require_target(target: Target, options: TargetOptions) -> None:
    """Refuse targets whose packages are missing, and directories that cannot be written.

    Raises:
        UserError: naming the option.
    """
    if EXTRAS[target]:
        require_installed(*EXTRAS[target])
    if options.netx is not None:
        require_directory(options.netx)


def require_writable(network: Network, options: TargetOptions) -> None:
    """Refuse a network of which an option has nothing to write, before it is proven.

    Raises:
        NetworkError: naming the option and the node.
    """
    if options.netx is not None:
        planned_stages(network, options.netx)

"""Writing a proven network for each target, in files that say what they were proven to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsf.export.file import SUFFIX, file_digest, write_network
from dsf.export.folded import FoldedModel
from dsf.export.network import Network
from dsf.tasks import UserError
from dsf.tasks.console import require_installed

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


def require_target(target: Target, options: TargetOptions) -> None:
    """Refuse options that do not fit a target, and targets whose packages are missing.

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
            raise UserError(f"{flag} belongs to --target {own}, not to {target}: drop it")
    if EXTRAS[target]:
        require_installed(*EXTRAS[target])


def write_target(
    target: Target, network: Network, folded: FoldedModel | None, path: Path, options: TargetOptions
) -> str:
    """Write one target; returns a line that says what the file is.

    Args:
        target: to write.
        network: proven.
        folded: its float form, where there is a checkpoint.
        path: of the file.
        options: see there.

    Raises:
        NetworkError: the target cannot say the network; the message names what.
        UserError: the float network was asked for without a checkpoint.
    """
    if target == "onnx" and options.float_onnx:
        return _write_float(network, folded, path)
    return WRITERS[target](network, path, options)


def _write_loihi(network: Network, path: Path, options: TargetOptions) -> str:
    write_network(network, path)
    if options.netx is None:
        return "network file"
    from dsf.export.netx_file import dense_stages, write_net

    options.netx.mkdir(parents=True, exist_ok=True)
    stages = dense_stages(network)
    for stage in stages:
        write_net(network, stage.name, options.netx / f"{stage.name}.net")
    return f"network file, and {len(stages)} dense stages for netx in {options.netx}"


def _write_onnx(network: Network, path: Path, options: TargetOptions) -> str:
    from dsf.export.onnx_graph import write_onnx

    window = options.onnx_mode == "window" or (options.onnx_mode == "auto" and not network.stream_is_exact)
    write_onnx(network, path, window, options.source)
    return f"integer ONNX graph, {'window' if window else 'stream'} mode"


def _write_float(network: Network, folded: FoldedModel | None, path: Path) -> str:
    from dsf.export.onnx_float import write_onnx_float

    if folded is None:
        raise UserError("--precision float needs the trained run: give its directory instead of a network file")
    write_onnx_float(folded, path, network.task)
    return "float32 ONNX graph of the folded network, window mode"


def _write_nir(network: Network, path: Path, options: TargetOptions) -> str:
    from dsf.export.nir_graph import write_nir

    omitted = write_nir(network, path, options.partial, file_digest(options.source) if options.source else None)
    return f"NIR graph without {len(omitted)} parts that NIR cannot say (the file lists them)"


def _write_torch(network: Network, path: Path, _options: TargetOptions) -> str:
    from dsf.export.torch_module import write_torch

    write_torch(network, path)
    return "torch module, for dsf.export.torch_module.read_torch"


WRITERS: dict[Target, Callable[[Network, Path, TargetOptions], str]] = {
    "loihi": _write_loihi,
    "onnx": _write_onnx,
    "nir": _write_nir,
    "torch": _write_torch,
}

"""Writing a proven network for each target, in files that say what they were proven to be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from dsf.export.conversion.folded import FoldedModel
from dsf.export.network.file import file_digest, write_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import HostEmbedding
from dsf.export.proof.rungs import random_proof_tokens
from dsf.export.proof.written import compare_written
from dsf.export.targets.netx_directory import Stages, writing_stages
from dsf.export.targets.options import Target, TargetOptions
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.files import replacing

WRITTEN_DECISIONS = 160
"""Random decisions on which a written file is compared."""


def write_target(
    target: Target, network: Network, folded: FoldedModel | None, path: Path, options: TargetOptions
) -> str:
    """Write one target, read it back and compare it before it gets its name; returns a line that says what the file is.

    It is compared on random tokens, see :func:`dsf.export.proof.written.compare_written`.

    Args:
        target: to write.
        network: proven.
        folded: its float form, where there is a checkpoint.
        path: of the file.
        options: see there.

    Raises:
        NetworkError: the target cannot say the network; the message names what.
        UserError: the float network was asked for without a checkpoint.
        CommandFailed: the file does not compute what was proven; nothing is left of it.
    """
    tokens = random_proof_tokens(network, WRITTEN_DECISIONS, seed=0)
    with contextlib.ExitStack() as files:  # of which the last gets its name first: where that fails, none does
        stages = "" if options.netx is None else _said_of(files.enter_context(writing_stages(network, options.netx)))
        temporary = files.enter_context(replacing(path))
        if target == "onnx" and options.float_onnx:
            what = _write_float(network, folded, temporary)
        else:
            what = WRITERS[target](network, temporary, options)
        rungs = compare_written(target, temporary, network, folded, tokens)
        if failed := [rung for rung in rungs if rung.passed is False]:
            raise CommandFailed(f"nothing written: {failed[0].name} fails on {path.name}: {failed[0].summary}")
    return "; ".join([what + stages, *(f"{rung.name}: {rung.summary}" for rung in rungs)])


def _said_of(stages: Stages) -> str:
    """What was written for netx, and what was not."""
    left_out = "".join(f"; left out: {reason}" for reason in stages.reasons)
    return f", and {len(stages.writable)} dense stages for netx in {stages.directory}{left_out}"


def _write_loihi(network: Network, path: Path, _options: TargetOptions) -> str:
    write_network(network, path)
    return "network file"


def _write_onnx(network: Network, path: Path, options: TargetOptions) -> str:
    from dsf.export.targets.onnx_graph import HOST_EMBEDDING_LEFT_OUT, write_onnx

    window = options.onnx_mode == "window" or (options.onnx_mode == "auto" and not network.stream_is_exact)
    write_onnx(network, path, window, options.source)
    what = f"integer ONNX graph, {'window' if window else 'stream'} mode"
    return f"{what}, without {HOST_EMBEDDING_LEFT_OUT}" if isinstance(network.encoder, HostEmbedding) else what


def _write_float(network: Network, folded: FoldedModel | None, path: Path) -> str:
    from dsf.export.targets.onnx_float import write_onnx_float

    if folded is None:
        raise UserError("--precision float needs the trained run: give its directory instead of a network file")
    write_onnx_float(folded, network, path)
    return "float32 ONNX graph of the folded network, window mode"


def _write_nir(network: Network, path: Path, options: TargetOptions) -> str:
    from dsf.export.targets.nir_graph import write_nir

    omitted = write_nir(network, path, options.partial, file_digest(options.source) if options.source else None)
    return f"NIR graph without {len(omitted)} parts that NIR cannot say (the file lists them)"


def _write_torch(network: Network, path: Path, _options: TargetOptions) -> str:
    from dsf.export.targets.torch_module import write_torch

    write_torch(network, path)
    return "torch module, for dsf.export.targets.torch_module.read_torch"


WRITERS: dict[Target, Callable[[Network, Path, TargetOptions], str]] = {
    "loihi": _write_loihi,
    "onnx": _write_onnx,
    "nir": _write_nir,
    "torch": _write_torch,
}

"""All dense stages of a network as ``.net`` files in one directory: those that netx can hold, or none at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsf.export.network.network import Network
from dsf.export.network.nodes import NetworkError
from dsf.export.targets.netx_file import DenseStage, compare_net, dense_stages, netx_bias, netx_weights, write_net
from dsf.shell.errors import UserError
from dsf.shell.files import replacing

SUFFIX = ".net"


@dataclass(frozen=True)
class Stages:
    """The dense stages of a network, sorted.

    Attributes:
        directory: where their files go.
        writable: those that netx computes exactly.
        reasons: one line for each of the others.
    """

    directory: Path
    writable: tuple[DenseStage, ...]
    reasons: tuple[str, ...]


def planned_stages(network: Network, directory: Path) -> Stages:
    """What netx can hold of a network, and why not the rest.

    Raises:
        NetworkError: it can hold nothing, or files of another network would stay between the new ones.
    """
    writable, reasons = [], []
    for stage in dense_stages(network):
        try:
            netx_weights(stage.synapses)
            netx_bias(stage.lif)
        except NetworkError as error:
            reasons.append(str(error))
        else:
            writable.append(stage)
    if not writable:
        why = reasons[0] if reasons else "it has no synapses between spikes"
        raise NetworkError(f"--netx can write none of the {len(reasons)} dense stages, for instance: {why}")
    stale = {path.name for path in directory.glob(f"*{SUFFIX}")} - {f"{stage.name}{SUFFIX}" for stage in writable}
    if stale:
        raise NetworkError(
            f"--netx {directory} holds {min(stale)}, which is not of this network: remove it or name another directory"
        )
    return Stages(directory, tuple(writable), tuple(reasons))


def require_directory(directory: Path) -> None:
    """Refuse a place for ``.net`` files early, before any work is done.

    Raises:
        UserError: it is no directory, or cannot be made or written.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--netx {directory} is a file: name a directory, it is made if there is none")
    above = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--netx {directory}: cannot write in {above}; choose another place")


@contextlib.contextmanager
def writing_stages(network: Network, directory: Path) -> Iterator[Stages]:
    """Write every stage that netx can hold under a temporary name, read it back and compare it with its nodes.

    The files get their names when the block ends; where it fails they vanish, and so does a directory made for them.

    Raises:
        NetworkError: see :func:`planned_stages`, or a file does not hold what it should.
        OSError: the directory cannot be written.
    """
    stages = planned_stages(network, directory)
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            for stage in stages.writable:
                temporary = stack.enter_context(replacing(directory / f"{stage.name}{SUFFIX}"))
                write_net(network, stage.name, temporary)
                compare_net(temporary, network, stage)
            yield stages
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # somebody else's file is in it by now
                path.rmdir()
        raise

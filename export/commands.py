"""What ``dsf-export`` does with written files: verify, inspect, diff."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro
from rich.console import Console

from dsf.export.chips import get_chip
from dsf.export.difference import compare, print_differences
from dsf.export.episodes import dataset_episodes
from dsf.export.file import file_digest, read_network
from dsf.export.inspect import inspect_network, print_network
from dsf.export.network import Network
from dsf.export.nodes import IntArray
from dsf.export.proof import LANES, prove_network, random_tokens, steps_for, versions
from dsf.export.reference import encode
from dsf.tasks import UserError, run_command
from dsf.tasks.console import CommandFailed, require_installed
from dsf.tasks.files import require_writable_parent, write_json

TABLE_WIDTH = 140
"""Columns that the table of nodes needs; narrower terminals wrap its lines."""


@dataclass(frozen=True)
class VerifyConfig:
    """Prove a network file again: no overflow, stream equals window, torch and ONNX Runtime equal the reference."""

    file: Annotated[Path, tyro.conf.Positional]
    """Network file."""
    dataset: str | None = None
    """Dataset whose tokens to decide on; without it, random ones over the encoder's whole range."""
    decisions: int = 1_000
    """Tokens to decide on, at least one context for each of 8 lanes."""
    seed: int = 0
    """Of random tokens."""
    json: Path | None = None
    """Also write the table here."""


@dataclass(frozen=True)
class InspectConfig:
    """Print a network file layer by layer."""

    file: Annotated[Path, tyro.conf.Positional]
    """Network file."""
    chip: str = "loihi2"
    """Chip to place it on and to check it against: loihi1 or loihi2."""
    share_cores: bool = False
    """Let populations share a core: the fewest cores, instead of the most even load."""
    json: Path | None = None
    """Also write everything here."""


@dataclass(frozen=True)
class DiffConfig:
    """Compare two network files; the exit code is 1 where they differ."""

    first: Annotated[Path, tyro.conf.Positional]
    """Network file."""
    second: Annotated[Path, tyro.conf.Positional]
    """Another one."""
    json: Path | None = None
    """Also write the differences here."""


def tokens_for(config: VerifyConfig, network: Network) -> IntArray:
    """(steps, lanes, features) encoder integers.

    Raises:
        UserError: no such dataset, one of another task, or one whose episodes are all shorter than the context.
    """
    if config.dataset is None:
        return random_tokens(network, config.decisions, config.seed)
    require_installed("train", "torch", "minari")
    from dsf.export.verify import spread_windows

    episodes = dataset_episodes(config.dataset, lambda v: encode(network.encoder, v), network.encoder.size)
    return spread_windows(episodes, steps_for(network, config.decisions), LANES).swapaxes(0, 1)


def verify(config: VerifyConfig) -> None:
    """``dsf-export verify``."""
    from dsf.export.cli import print_ladder

    if config.decisions < 1:
        raise UserError(f"--decisions is {config.decisions}: it must be at least 1")
    if config.seed < 0:
        raise UserError(f"--seed is {config.seed}: it must be 0 or more")
    if config.json is not None:
        require_writable_parent(config.json)
    network = read_network(config.file)
    rungs = prove_network(network, tokens_for(config, network))
    print_ladder(rungs, Console())
    if config.json is not None:
        proof = {
            "file": str(config.file),
            "sha256": file_digest(config.file),
            "rungs": [dataclasses.asdict(rung) for rung in rungs],
            "tokens": config.dataset or "random tokens",
            "seed": config.seed,
            "versions": versions(),
        }
        write_json(config.json, proof)
    failed = [rung.name for rung in rungs if rung.passed is False]
    if failed:
        raise CommandFailed(f"{config.file} fails at {', '.join(failed)}")


def inspect(config: InspectConfig) -> None:
    """``dsf-export inspect``."""
    chip = get_chip(config.chip)
    if config.json is not None:
        require_writable_parent(config.json)
    network, digest = read_network(config.file), file_digest(config.file)
    print_network(network, Console(width=max(Console().width, TABLE_WIDTH)), chip, digest, config.share_cores)
    if config.json is not None:
        write_json(config.json, inspect_network(network, chip, digest, config.share_cores))


def diff(config: DiffConfig) -> int:
    """``dsf-export diff``."""
    if config.json is not None:
        require_writable_parent(config.json)
    differences = compare(read_network(config.first), read_network(config.second))
    print_differences(differences, Console())
    if config.json is not None:
        write_json(config.json, [dataclasses.asdict(difference) for difference in differences])
    return int(bool(differences))


COMMANDS: dict[str, tuple[Callable[[Any], int | None], type[Any], str]] = {
    "verify": (verify, VerifyConfig, "Prove a network file again."),
    "inspect": (inspect, InspectConfig, "Print a network file layer by layer."),
    "diff": (diff, DiffConfig, "Compare two network files."),
}


def main(name: str) -> NoReturn:
    """Run one of the commands with the arguments that are left in ``sys.argv``."""
    action, config, description = COMMANDS[name]
    run_command(action, config, f"dsf-export {name}", description)

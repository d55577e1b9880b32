"""What ``dsf-export`` does with written files: verify, inspect, diff."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from dsf.export.inspect import inspect_network, print_network
from dsf.export.network.difference import compare_networks, print_differences
from dsf.export.network.file import file_digest, read_network
from dsf.export.options import is_network_file
from dsf.export.placement.chips import DEFAULT_CHIP, get_chip
from dsf.export.proof.episodes import proof_tokens, source_name
from dsf.export.proof.rungs import Rung, proof_versions, prove_network
from dsf.export.proof.tables import print_ladder
from dsf.export.targets.options import EXTRAS, SUFFIXES, Target
from dsf.shell.command import Command, Commands
from dsf.shell.console import table_console
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.files import require_writable_parent, write_json
from dsf.shell.installed import require_installed


@dataclass(frozen=True)
class VerifyConfig:
    """Prove a network file again: no overflow, stream equals window, torch and ONNX Runtime equal the reference. Or run
    a file of another target, and compare it with the network it was written from.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """Network file, or one of --target onnx, nir or torch."""
    network: Path | None = None
    """Network file that another target's file was written from."""
    dataset: str | None = None
    """Dataset whose tokens to decide on; without it, random ones over the encoder's whole range."""
    decisions: int = 1_000
    """Tokens to decide on, at least one context for each of 8 lanes."""
    seed: int = 0
    """Seed of the random tokens."""
    json: Path | None = None
    """Also write the table here."""

    def __post_init__(self) -> None:
        if self.decisions < 1:
            raise UserError(f"--decisions is {self.decisions}: it must be at least 1")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}: it must be 0 or more")

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What is read."""
        return (self.file,) if self.network is None else (self.file, self.network)


@dataclass(frozen=True)
class InspectConfig:
    """Print a network file layer by layer."""

    file: Annotated[Path, tyro.conf.Positional]
    """Network file."""
    chip: str = DEFAULT_CHIP
    """Chip to place it on and to check it against: loihi1 or loihi2."""
    share_cores: bool = False
    """Let populations share a core: the fewest cores, instead of the most even load."""
    json: Path | None = None
    """Also write everything here."""

    def __post_init__(self) -> None:
        get_chip(self.chip)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What is read."""
        return (self.file,)


@dataclass(frozen=True)
class DiffConfig:
    """Compare two network files; the exit code is 1 where they differ."""

    first: Annotated[Path, tyro.conf.Positional]
    """Network file."""
    second: Annotated[Path, tyro.conf.Positional]
    """Another one."""
    json: Path | None = None
    """Also write the differences here."""

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What is read."""
        return self.first, self.second


def require_possible(config: VerifyConfig | InspectConfig | DiffConfig) -> None:
    """Refuse a file of figures that cannot be written, before anything is read.

    Raises:
        UserError: naming it.
    """
    if config.json is not None:
        require_writable_parent(config.json, *config.inputs)


def verify(config: VerifyConfig) -> None:
    """``dsf-export verify``."""
    require_possible(config)
    rungs = prove_file(config)
    print_ladder([dataclasses.asdict(rung) for rung in rungs], Console())
    if config.json is not None:
        proof = {
            "file": str(config.file),
            "sha256": digest_of(config.file),
            "rungs": [dataclasses.asdict(rung) for rung in rungs],
            "tokens": source_name(config.dataset),
            "seed": config.seed,
            "versions": proof_versions(),
        }
        write_json(config.json, proof)
    failed = [rung.name for rung in rungs if rung.passed is False]
    if failed:
        raise CommandFailed(f"{config.file} fails at {', '.join(failed)}")
    if not any(rung.passed for rung in rungs):
        raise CommandFailed(f"nothing could be proven of {config.file}: {'; '.join(rung.summary for rung in rungs)}")


def prove_file(config: VerifyConfig) -> list[Rung]:
    """The rungs of a network file, or of another target's file against the network file behind it.

    Raises:
        UserError: the file is of no target, or --network is missing or one too many.
    """
    target = target_of(config.file)
    if target == "loihi":
        if config.network is not None:
            raise UserError(f"{config.file} is a network file itself: drop --network")
        network = read_network(config.file)
        return prove_network(network, proof_tokens(network, config.dataset, config.decisions, config.seed))
    if config.network is None:
        raise UserError(f"{config.file} is proven against the network it was written from: name that with --network")
    require_installed(*EXTRAS[target])
    from dsf.export.proof.written import compare_written

    network = read_network(config.network)
    tokens = proof_tokens(network, config.dataset, config.decisions, config.seed)
    return compare_written(target, config.file, network, None, tokens)


def target_of(path: Path) -> Target:
    """Which target's file a path is: a network file by its content, others by their suffix.

    Raises:
        UserError: of none.
    """
    if is_network_file(path):
        return "loihi"
    if not path.is_file():
        raise UserError(f"cannot read {path}: there is no such file; write one with dsf-export RUN -o FILE")
    for target, suffix in SUFFIXES.items():
        if target != "loihi" and path.name.endswith(suffix):
            return target
    raise UserError(f"{path} is no dsf network file, and its name ends in none of {', '.join(SUFFIXES.values())}")


def digest_of(path: Path) -> str:
    """SHA-256: what a network file says of itself, or of all bytes of another file."""
    return file_digest(path) if is_network_file(path) else hashlib.sha256(path.read_bytes()).hexdigest()


def inspect(config: InspectConfig) -> None:
    """``dsf-export inspect``."""
    require_possible(config)
    chip, network, digest = get_chip(config.chip), read_network(config.file), file_digest(config.file)
    print_network(network, table_console(), chip, digest, config.share_cores)
    if config.json is not None:
        write_json(config.json, inspect_network(network, chip, digest, config.share_cores))


def diff(config: DiffConfig) -> int:
    """``dsf-export diff``."""
    require_possible(config)
    differences = compare_networks(read_network(config.first), read_network(config.second))
    print_differences(differences, Console())
    if config.json is not None:
        write_json(config.json, [dataclasses.asdict(difference) for difference in differences])
    return int(bool(differences))


COMMANDS: Commands = {
    "verify": Command(verify, VerifyConfig, "Prove a network file again."),
    "inspect": Command(inspect, InspectConfig, "Print a network file layer by layer."),
    "diff": Command(diff, DiffConfig, "Compare two network files."),
}

"""``dsf-sim-run robustness``: return curves of a deployed network under disturbances and faults."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from dsf.export.network.file import file_digest, read_network
from dsf.export.placement.chips import DEFAULT_CHIP, get_chip
from dsf.runtime.artifacts import network_path
from dsf.runtime.loop.closed_loop import check_fits
from dsf.runtime.robustness.levels import (
    ALL_KINDS,
    KINDS,
    KindName,
    Point,
    Sweep,
    measure_level,
    prepare_level,
    undisturbed,
)
from dsf.runtime.robustness.report import RobustnessReport, markdown, plot, print_table
from dsf.shell.console import table_console
from dsf.shell.errors import UserError
from dsf.shell.files import require_writable_parent, write_each, write_json
from dsf.shell.generated_section import replace_section, require_section
from dsf.shell.installed import require_installed
from dsf.tasks.registry import described_task

PLOT_SUFFIX = ".png"
SECTION = "robustness"
"""Name of the section that is written."""


@dataclass(frozen=True)
class RobustnessConfig:
    """Run a network closed-loop under growing disturbances and faults, on the fast engine, and print return curves."""

    network: Annotated[Path | None, tyro.conf.Positional] = None
    """Network file of dsf-export; without one, the shipped Hopper network runs."""
    kind: tuple[KindName, ...] = ALL_KINDS
    """What to sweep. Between environment and policy: observation-noise (Gaussian, in fifths of the encoder's range),
    observation-dropout, sensor-dropout (the last value is held), action-latency. In the network: stuck-at-0, stuck-at-1
    (neurons), weight-bit-flips, dead-cores."""
    levels: tuple[float, ...] = ()
    """Levels of a single kind, in its unit; default: each kind's own."""
    episodes: int = 20
    """Closed-loop episodes per level and fault seed."""
    seed: int = 0
    """Reset seed of the first episode; the others follow."""
    fault_seeds: int = 5
    """Seeds 0 .. N-1 of disturbances and faults; every episode runs with each."""
    target_return: float | None = None
    """Return to ask for (reward units); default: the one the network was verified at."""
    chip: str = DEFAULT_CHIP
    """Chip whose cores die: loihi1 or loihi2."""
    json: Path | None = None
    """Write everything here."""
    markdown: Path | None = None
    """Write the table here, in place of what lies between the markers robustness:begin and robustness:end."""
    plot: Path | None = None
    """Write the curves here, as PNG."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: naming the option.
        """
        for name in ("episodes", "fault_seeds"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}: it must be 0 or more")
        if self.target_return is not None and not math.isfinite(self.target_return):
            raise UserError(f"--target-return is {self.target_return}: it must be a finite number")
        if not self.kind or len(set(self.kind)) < len(self.kind):
            raise UserError("--kind names a kind twice, or none: name each once")
        if self.levels and len(self.kind) > 1:
            raise UserError(f"--levels needs a single --kind, whose unit they are in: here are {len(self.kind)}")
        if self.plot is not None and self.plot.suffix != PLOT_SUFFIX:
            raise UserError(f"--plot is {self.plot}: it writes PNG, so let the name end in {PLOT_SUFFIX}")


def require_possible(config: RobustnessConfig) -> None:
    """Refuse files that cannot be written on this machine, before anything starts.

    Raises:
        UserError: naming the file.
    """
    outputs = [path for path in (config.json, config.markdown, config.plot) if path is not None]
    for path in outputs:
        require_writable_parent(path, config.network or network_path())
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UserError("two of --json, --markdown and --plot write the same file: name one for each")
    if config.plot is not None:
        require_installed("report", "matplotlib")
    if config.markdown is not None:
        require_section(config.markdown, SECTION)


def sweep_of(config: RobustnessConfig, path: Path) -> Sweep:
    """What stays the same at every level.

    Raises:
        UserError: the file, its task or the chip.
    """
    network = read_network(path)
    task = described_task(network.task, network.provenance)
    check_fits(network, task)
    target = network.target_return if config.target_return is None else config.target_return
    return Sweep(
        task=task,
        network=network,
        target_return=task.target_returns[0] if target is None else target,
        seeds=range(config.seed, config.seed + config.episodes),
        fault_seeds=range(config.fault_seeds),
        chip=get_chip(config.chip),
    )


def sweep_levels(config: RobustnessConfig, sweep: Sweep, console: Console) -> list[Point]:
    """All levels, the undisturbed one first; those that are impossible are refused before any episode runs."""
    wanted = [(kind, level) for kind in config.kind for level in config.levels or KINDS[kind].levels]
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("injecting faults", total=len(wanted))
        prepared = [undisturbed(sweep)]
        for kind, level in wanted:
            prepared.append(prepare_level(sweep, kind, level))
            progress.advance(bar)
        points: list[Point] = []
        runs = sum(len(one.conditions) for one in prepared)
        steps = len(sweep.seeds) * sweep.task.max_steps
        bar = progress.add_task(
            f"{escape(sweep.task.env_id)}, {runs} x {len(sweep.seeds)} episodes", total=runs * steps
        )
        done = 0
        for one in prepared:
            points.append(measure_level(sweep, one, lambda running: progress.advance(bar, running)))
            done += len(one.conditions)
            progress.update(bar, completed=done * steps)  # episodes that ended early
    return points


def run(config: RobustnessConfig) -> None:
    """``dsf-sim-run robustness``."""
    console = Console(markup=False, emoji=False)
    require_possible(config)
    path = config.network or network_path()
    sweep = sweep_of(config, path)
    points = sweep_levels(config, sweep, console)
    report = RobustnessReport(sweep, points, path.name, file_digest(path))
    writing: list[Callable[[], None]] = [functools.partial(print_table, report, table_console())]
    if config.json is not None:
        writing.append(functools.partial(write_json, config.json, report.to_json()))
    if config.markdown is not None:
        writing.append(functools.partial(replace_section, config.markdown, SECTION, markdown(report)))
    if config.plot is not None:
        writing.append(functools.partial(plot, report, config.plot))
    write_each(*writing)

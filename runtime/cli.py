"""``dsf-sim-run``: drive a robot closed-loop with an integer network on simulated neuromorphic cores."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from dsf.runtime.loop.closed_loop import OnStep
from dsf.runtime.loop.record import write_recording
from dsf.runtime.options import SimRunConfig
from dsf.runtime.report.pictures import prepare_matplotlib
from dsf.runtime.report.run_report import RunReport
from dsf.runtime.report.terminal import print_report
from dsf.runtime.simulate import Run, execute, prepare
from dsf.shell.command import Command, run_commands
from dsf.shell.files import write_each, write_json


def run(config: SimRunConfig) -> None:
    """Run, report, and fail if a single spike differs from the reference."""
    console = Console(markup=False, emoji=False)  # names of files and environments may look like either

    @contextlib.contextmanager
    def progress(what: str, steps: int) -> Iterator[OnStep]:
        with Progress(console=console, transient=True) as bars:
            bar = bars.add_task(escape(what), total=steps)
            yield lambda made: bars.advance(bar, made)

    plan = prepare(config)
    console.print(f"{plan.path.name} (sha256 {plan.digest[:12]}) on {plan.backend}", soft_wrap=True)
    for note in plan.notes:
        console.print(f"note: {note}", soft_wrap=True)
    found = execute(plan, progress)
    write_each(*writers(found), functools.partial(print_report, found.report, console))
    found.require_exact()


def writers(found: Run) -> list[Callable[[], None]]:
    """What writes the files that the run's configuration names."""
    config, report = found.plan.config, found.report
    writing: list[Callable[[], None]] = []
    if config.probe_file is not None and found.spikes is not None:
        writing.append(functools.partial(found.spikes.save, config.probe_file))
    if config.record is not None:
        writing.append(functools.partial(write_recording, found.recording, config.record))
    if config.json is not None:
        writing.append(functools.partial(_write_report, config.json, report))
    if config.html is not None:
        writing.append(functools.partial(_write_page, config.html, found))
    return writing


def _write_report(path: Path, report: RunReport) -> None:
    write_json(path, report.to_json())


def _write_page(path: Path, found: Run) -> None:
    prepare_matplotlib()
    from dsf.runtime.report.html import write_html

    write_html(path, found.plan.network, found.report)


def main() -> NoReturn:
    """Console script."""
    from dsf.runtime.commands import COMMANDS

    others = ", ".join(f"dsf-sim-run {name}" for name in COMMANDS)
    description = f"Run an exported network closed-loop on simulated cores. Other commands: {others}."
    run_commands("dsf-sim-run", Command(run, SimRunConfig, description), COMMANDS)

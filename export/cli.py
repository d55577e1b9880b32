"""``dsf-export``: fold, quantize, prove, and write one file for a target; and the commands on written files."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console

from dsf.export.commands import COMMANDS
from dsf.export.exporting import export
from dsf.export.options import ExportConfig
from dsf.export.terminal import TerminalExport, describe
from dsf.shell.allocator import keep_freed_memory
from dsf.shell.command import Command, run_commands


def run(config: ExportConfig) -> None:
    """Export one run, and print how that goes."""
    console = Console()
    describe(export(config, TerminalExport(console)), console)


def main() -> NoReturn:
    """Console script."""
    keep_freed_memory()
    default = Command(run, ExportConfig, "Fold, quantize and verify a trained policy.")
    run_commands("dsf-export", default, COMMANDS)

"""What ``dsf-sim-run`` does besides running a network: one command per entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from dsf.runtime.loop.replay import ReplayConfig, replay
from dsf.runtime.robustness import command
from dsf.shell.command import run_command

COMMANDS: dict[str, tuple[Callable[[Any], int | None], type[Any], str]] = {
    "replay": (replay, ReplayConfig, "Replay a recorded run and compare it bit for bit."),
    "robustness": (command.run, command.RobustnessConfig, "Return curves under disturbances and faults."),
}


def main(name: str) -> NoReturn:
    """Run one of the commands with the arguments that are left in ``sys.argv``."""
    action, config, description = COMMANDS[name]
    run_command(action, config, f"dsf-sim-run {name}", description)

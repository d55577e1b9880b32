"""What ``dsf-sim-run`` does besides running a network: one command per entry."""

from __future__ import annotations

from dsf.runtime.loop.replay import ReplayConfig, replay
from dsf.runtime.robustness import command
from dsf.shell.command import Command, Commands

COMMANDS: Commands = {
    "replay": Command(replay, ReplayConfig, "Replay a recorded run and compare it bit for bit."),
    "robustness": Command(command.run, command.RobustnessConfig, "Return curves under disturbances and faults."),
}

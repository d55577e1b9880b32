"""``dsf-train``: train a spiking policy on an offline dataset."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console

from dsf.shell.command import Command, Commands, run_commands
from dsf.train import conservative_q_learning
from dsf.train.config.training import TrainConfig
from dsf.train.evaluation import command as evaluation
from dsf.train.terminal import TerminalTraining
from dsf.train.training import train


def run(config: TrainConfig) -> None:
    """Train, evaluate, and say where the checkpoint is."""
    train(config, TerminalTraining(Console(soft_wrap=True, markup=False, emoji=False)))


COMMANDS: Commands = {
    "cql": Command(
        conservative_q_learning.run,
        conservative_q_learning.CQLConfig,
        "Train CQL, the value-based rival, through d3rlpy.",
    ),
    "evaluate": Command(
        evaluation.run,
        evaluation.EvaluateConfig,
        "Score a finished run again, a dense rival also at int8.",
    ),
}


def main() -> NoReturn:
    """Console script."""
    description = "Train a spiking policy (DSFormer), or a rival of it, on an offline dataset."
    others = "; ".join(f"dsf-train {name}: {command.description}" for name, command in COMMANDS.items())
    run_commands("dsf-train", Command(run, TrainConfig, f"{description} {others}"), COMMANDS)

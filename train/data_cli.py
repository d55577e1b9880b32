"""``dsf-data``: make and inspect datasets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NoReturn

import tyro
from rich.console import Console
from rich.progress import Progress

from dsf.tasks import UserError, run_command
from dsf.tasks.console import require_installed
from dsf.train.data import OfflineDataset, load_dataset


@dataclass(frozen=True)
class Collect:
    """Roll out the shipped behaviour policies into a Minari dataset."""

    name: Annotated[str, tyro.conf.Positional]
    """hopper-medium, hopper-medium-replay, hopper-medium-expert or hopper-expert."""
    steps: int = 100_000
    """Environment steps in all."""
    seed: int = 0
    """Seeds resets and action noise: the same seed gives the same content hash."""
    overwrite: bool = False
    """Replace a dataset of the same id."""


@dataclass(frozen=True)
class Info:
    """Print what a dataset holds."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Minari dataset id."""


Command = Annotated[Collect, tyro.conf.subcommand("collect")] | Annotated[Info, tyro.conf.subcommand("info")]


def collect(config: Collect, console: Console) -> None:
    """Collect, write and describe one dataset."""
    from dsf.train.collect import collect_episodes, get_recipe, require_free_place, write_dataset

    if config.steps < 1:
        raise UserError(f"--steps is {config.steps}: it must be at least 1")
    if config.seed < 0:
        raise UserError(f"--seed is {config.seed}: it must be 0 or more")
    recipe = get_recipe(config.name)
    require_free_place(recipe, config.overwrite)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"collecting {recipe.dataset_id}", total=config.steps)
        episodes = collect_episodes(recipe, config.steps, config.seed, lambda: progress.advance(bar))
    description = f"dsf-data collect {config.name} --steps {config.steps} --seed {config.seed}"
    path = write_dataset(recipe, episodes, description, config.overwrite)
    describe(load_dataset(recipe.dataset_id), console)
    console.print(f"written to {path}", soft_wrap=True)


def describe(data: OfflineDataset, console: Console) -> None:
    """Print size, returns and content hash."""
    returns = data.episode_returns
    console.print(
        f"{data.dataset_id}: {len(data.tokens)} steps, {len(returns)} episodes of {data.task.env_id}, "
        f"return {returns.mean():.0f} +- {returns.std():.0f} (best {returns.max():.0f}), "
        f"D4RL-normalised {data.task.score(float(returns.mean())):.1f}",
        soft_wrap=True,
    )
    console.print(f"content sha256 {data.content_hash}", soft_wrap=True)


def run(config: Collect | Info) -> None:
    """Dispatch a subcommand."""
    console = Console()
    require_installed("train", "minari")
    if isinstance(config, Collect):
        collect(config, console)
    else:
        describe(load_dataset(config.dataset), console)


def main() -> NoReturn:
    """Console script."""
    run_command(run, Command, "dsf-data", "Make and inspect offline datasets.")

"""``dsf-data``: list, inspect, make and import datasets."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import numpy as np
import tyro
import yaml
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dsf.shell.command import Command, Commands, one_of, run_commands
from dsf.shell.console import table_console
from dsf.shell.errors import UserError
from dsf.shell.files import replacing, require_writable_parent, write_json
from dsf.shell.installed import require_installed
from dsf.shell.plain_text import plain
from dsf.tasks import get_task
from dsf.tasks.data_returns import SHOWN_DIGITS
from dsf.tasks.definition import TaskDefinition
from dsf.tasks.maze_experts import EXPERTS, MazeExpert
from dsf.tasks.maze_tasks import MAZE_TASKS
from dsf.tasks.maze_views import MazeObservation
from dsf.tasks.mazes import Split
from dsf.tasks.registry import recorded_note
from dsf.train.data.dataset import OfflineDataset, load_dataset
from dsf.train.data.episode_ends import MOST_HORIZONS
from dsf.train.data.maze_sets import DEFAULT_MAZES, MazeSet
from dsf.train.data.minari_files import METADATA_NAME, read_metadata
from dsf.train.data.minari_store import store_directory
from dsf.train.data.own_task import PART_NAMES
from dsf.train.data.recipes import MAZE
from dsf.train.data.registry import REGISTRY, resolve
from dsf.train.data.user_places import expanded

DEFAULT_STEPS = 100_000
FEW_REWARDS = 100.0
"""Returns of one's own robot that are all smaller are shown with digits behind the point."""
END_OF_YAML = "..."
"""What a document of a single value ends with."""
HIDDEN_PREFIX = "."
DEEPEST_ID = 8
"""Namespaces in one another that the list looks into."""

Config = TypeVar("Config")


@dataclass(frozen=True)
class Collect:
    """Roll out behaviour policies into a Minari dataset."""

    name: Annotated[str, tyro.conf.Positional]
    """{hopper,walker2d,halfcheetah}-{medium,medium-replay,medium-expert,expert}, pointmaze-{open,umaze,medium,large},
    each also with -dense, cartpole-expert, or maze."""
    steps: int | None = None
    """Environment steps in all (default 100000); not of a maze."""
    seed: int = 0
    """Seeds resets and action noise, or mazes: the same seed gives the same content hash."""
    workers: int = 1
    """Processes; each rolls out one behaviour policy at a time (medium-replay has 8, medium-expert 2, others 1)."""
    overwrite: bool = False
    """Replace a dataset of the same id."""
    mazes: int | None = None
    """How many mazes, one episode each (maze only; default 50000)."""
    observation: MazeObservation | None = None
    """What the agent sees (maze only; default walls): position is x and y, walls adds the four neighbouring walls and
    the goal's offset, view is a window of 5 x 5 cells."""
    expert: MazeExpert | None = None
    """Who walks (maze only): the right-hand rule (default), or the shortest path, which uses the whole map."""
    split: Split | None = None
    """Which mazes (maze only; default train): its walls alone decide to which split a maze belongs."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("seed", 0), ("workers", 1), ("mazes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}: it must be at least {least}")
        others = ("mazes", "observation", "expert", "split") if self.name != MAZE else ("steps",)
        for name in others:
            if getattr(self, name) is not None:
                raise UserError(f"dataset {self.name} does not use --{name}: drop it")
        if self.name == MAZE and self.workers > 1:
            raise UserError("dataset maze does not use --workers, because one process makes it: drop it")


@dataclass(frozen=True)
class Import:
    """Turn an npz or D4RL-style hdf5 file into a Minari dataset."""

    file: Annotated[Path, tyro.conf.Positional]
    """npz or hdf5 with observations, actions, rewards, terminations, truncations (or D4RL's terminals and timeouts)."""
    dataset_id: str
    """Minari id to give it, such as dsf/hopper/imported-v0."""
    task: str | None = None
    """Task that the data belong to, where the file names no known environment: a registered one's name, or a YAML file
    that describes one (dsf-data task writes a draft from a dataset)."""
    clip_actions: bool = False
    """Clip actions that leave their bounds, [-1, 1] of a registered task; they are reported either way."""
    rescale_actions: bool = False
    """The file's actions lie in [-1, 1]: stretch them to the task's bounds."""
    max_steps: int | None = None
    """Steps of the longest episode: what is longer is cut after every so many, as truncations (default: the task's
    horizon, and what is longer is refused)."""
    overwrite: bool = False
    """Replace a dataset of the same id."""

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise UserError(f"--max-steps is {self.max_steps}: it must be at least 1")


@dataclass(frozen=True)
class Info:
    """Print what a dataset holds."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Minari dataset id, or D4RL name."""


@dataclass(frozen=True)
class DescribeTask:
    """Write a first draft of a task file for a dataset: what dsf-train takes it for, and why."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Minari dataset id."""
    out: Path | None = None
    """File to write (YAML), for dsf-train --task; without it, the draft is printed."""


@dataclass(frozen=True)
class ListSets:
    """Show the paper's datasets, where each comes from, and what the local store holds."""

    json: Path | None = None
    """Write the list to this file, too."""


@dataclass(frozen=True)
class Reference:
    """Measure the returns that a task's score is normalised by: random actions, and its controller without noise."""

    task: Annotated[str, tyro.conf.Positional]
    """cartpole, a maze or a pointmaze task."""
    episodes: int = 100
    """Episodes of each, reset seeds 0 upwards."""

    def __post_init__(self) -> None:
        get_task(self.task)
        if self.episodes < 1:
            raise UserError(f"--episodes is {self.episodes}: it must be at least 1")


def collect_maze_set(config: Collect, console: Console) -> None:
    """Collect, write and describe a dataset of mazes."""
    from dsf.train.data.collect import require_free_place, write_dataset
    from dsf.train.data.maze_walks import collect_mazes

    chosen = {name: getattr(config, name) for name in ("observation", "expert", "split")}
    maze_set = MazeSet(**{name: value for name, value in chosen.items() if value is not None})
    count = DEFAULT_MAZES if config.mazes is None else config.mazes
    require_free_place(maze_set.dataset_id, config.overwrite)
    description = f"dsf-data collect {maze_set.options} --mazes {count} --seed {config.seed}"
    started = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        making = progress.add_task(f"walking through {count} mazes", total=count)
        episodes = collect_mazes(maze_set, count, config.seed, lambda done: progress.advance(making, done))
        made = time.perf_counter()
        writing = progress.add_task(f"writing {maze_set.dataset_id}", total=count)
        on_episode = lambda done: progress.advance(writing, done)  # noqa: E731
        path = write_dataset(maze_set, episodes, description, config.overwrite, maze_set.metadata, on_episode)
        written = time.perf_counter()
    console.print(
        f"{count} {maze_set.split} mazes walked through in {made - started:.1f} s, written in {written - made:.1f} s",
        soft_wrap=True,
    )
    describe(load_dataset(maze_set.dataset_id, written=episodes), console)
    console.print(f"written to {plain(str(path))}", soft_wrap=True)


def collect(config: Collect, console: Console) -> None:
    """Collect, write and describe one dataset."""
    from dsf.train.data.collect import collect_episodes, get_recipe, require_free_place, write_dataset

    if config.name == MAZE:
        collect_maze_set(config, console)
        return
    recipe, steps = get_recipe(config.name), DEFAULT_STEPS if config.steps is None else config.steps
    require_free_place(recipe.dataset_id, config.overwrite)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"collecting {recipe.dataset_id}", total=steps)
        on_step = lambda: progress.advance(bar)  # noqa: E731
        episodes = collect_episodes(recipe, steps, config.seed, on_step, config.workers)
    description = f"dsf-data collect {config.name} --steps {steps} --seed {config.seed}"
    path = write_dataset(recipe, episodes, description, config.overwrite)
    describe(load_dataset(recipe.dataset_id), console)
    console.print(f"written to {plain(str(path))}", soft_wrap=True)


def import_dataset(config: Import, console: Console) -> None:
    """Import, write and describe one file."""
    from dsf.train.data.collect import require_free_place, write_dataset
    from dsf.train.data.importing import import_file

    require_free_place(config.dataset_id, config.overwrite)
    file = Path(expanded(str(config.file)))
    imported = import_file(
        file, config.dataset_id, config.task, config.clip_actions, config.max_steps, config.rescale_actions
    )
    description = "; ".join((imported.algorithm, *imported.notes))
    path = write_dataset(
        imported,
        imported.episodes,
        description,
        config.overwrite,
        imported.facts,
        max_steps=config.max_steps,
        own=imported.own,
    )
    for note in imported.notes:
        console.print(plain(note), soft_wrap=True)
    describe(load_dataset(config.dataset_id), console)
    console.print(f"written to {plain(str(path))}", soft_wrap=True)


def draft_task(config: DescribeTask, console: Console) -> None:
    """Print or write a dataset's task as YAML, each field with its reason."""
    if config.out is not None:
        require_writable_parent(config.out)
    name = resolve(config.dataset)
    text = drafted(load_dataset(name, definition=TaskDefinition()))
    if config.out is None:
        console.print(text, end="", soft_wrap=True, highlight=False)
        return
    with replacing(config.out) as temporary:
        temporary.write_text(text)
    console.print(
        f"written to {plain(str(config.out))}: dsf-train {name} --task {plain(str(config.out))}", soft_wrap=True
    )


def drafted(data: OfflineDataset) -> str:
    """A task file, as text: every field that is known, then the others, in comments."""
    definition = data.task.definition
    assert definition is not None
    lines = [f"# task of {data.dataset_id}, as dsf-train takes it; every field may be changed or left out"]
    if data.unscored:
        lines.append(f"# policies of it cannot be scored here: {plain(data.unscored)}")
    values = definition.to_json()
    for item in fields(TaskDefinition):
        if item.name not in values:
            lines.append(f"# {item.name}: not known")
            continue
        reason = data.reasons.get(item.name, "")
        lines += [f"# {plain(reason)}"] if reason else []
        value = yaml.safe_dump(values[item.name], default_flow_style=True, width=sys.maxsize)
        field = f"{item.name}: {value.strip().removesuffix(END_OF_YAML).strip()}"
        made = item.name == "observation_names" and reason == PART_NAMES  # of the parts in this very order
        lines.append(f"# {field}" if made else field)
    return "\n".join(lines) + "\n"


def describe(data: OfflineDataset, console: Console) -> None:
    """Print size, returns and content hash."""
    returns, longest, horizon = data.episode_returns, int(data.lengths.max()), data.task.max_steps
    few = data.task.definition is not None and bool(np.abs(returns).max() < FEW_REWARDS)
    amount = lambda value: f"{value:.{SHOWN_DIGITS}g}" if few else f"{value:.0f}"  # noqa: E731
    score = data.task.shown_score(float(returns.mean()))
    scored = "" if score is None else f", {data.task.score_label} {score:.1f}"
    if score is not None and longest > MOST_HORIZONS * horizon:
        scored = f", no {data.task.score_label} score, which is of {horizon} steps: episodes have up to {longest}"
    elif score is not None and longest > horizon:
        scored += f" (which is of {horizon} steps: episodes have up to {longest})"
    world = data.task.env_id or "no environment"
    console.print(
        f"{data.dataset_id}: {len(data.tokens)} steps, {len(returns)} episodes of {world}"
        f", return {amount(returns.mean())} +- {amount(returns.std())} (best {amount(returns.max())}){scored}",
        soft_wrap=True,
    )
    if data.task.recorded is not None:
        console.print(recorded_note(data.task), markup=False, soft_wrap=True)
    if data.unscored:
        console.print(f"policies of it cannot be scored here: {data.unscored}", soft_wrap=True)
    if targets := data.data_returns.targets:
        held = ", ".join(f"{target:g}" for target in targets)
        console.print(f"target returns, from these episodes: {held}", soft_wrap=True)
    if data.out_of_range_actions:
        outside = "its bounds" if data.task.action_low else "[-1, 1]"
        console.print(f"{data.out_of_range_actions} steps hold an action outside {outside}", soft_wrap=True)
    console.print(f"content sha256 {data.content_hash}", soft_wrap=True)


def show_list(config: ListSets, console: Console) -> None:
    """Print the registry and the store."""
    store = store_directory()
    rows = list(stored(store))
    here = {row["dataset_id"] for row in rows}
    table = Table("D4RL name", "task", "stands for it here", "in the store", "note", box=box.SIMPLE)
    notes = list(dict.fromkeys(entry.note for entry in REGISTRY.values()))
    for entry in REGISTRY.values():
        present = "yes" if entry.source in here else entry.alternative if entry.alternative in here else "no"
        table.add_row(entry.d4rl_name, entry.task, entry.source, present, str(notes.index(entry.note) + 1))
    table_console().print(table)  # no id is cut short, in a pipe too
    for number, note in enumerate(notes, start=1):
        console.print(f"{number}: {note}", soft_wrap=True)
    where = plain(str(store))
    console.print(f"in {where}:" if rows else f"no dataset in {where}", soft_wrap=True)
    for row in rows:
        console.print(f"  {row['dataset_id']}: {row['steps']} steps, {row['episodes']} episodes", soft_wrap=True)
    if config.json is not None:
        paper = [
            {**asdict(entry), "has_d4rl_references": entry.has_d4rl_references, "here": entry.source in here}
            for entry in REGISTRY.values()
        ]
        write_json(config.json, {"paper": paper, "store": rows})


def stored(store: Path) -> Iterator[dict[str, Any]]:
    """Every dataset of a Minari store: its id, and its numbers of steps and episodes (None where unreadable)."""
    for directory in sorted(dataset_directories(store)):
        try:
            values = read_metadata(directory / "data")
        except (OSError, UserError):
            values = {}
        counts = (values.get(name) for name in ("total_steps", "total_episodes"))
        steps, episodes = (count if isinstance(count, int) else None for count in counts)
        yield {"dataset_id": plain(str(directory.relative_to(store))), "steps": steps, "episodes": episodes}


def dataset_directories(store: Path) -> Iterator[Path]:
    """Every dataset of a store, also behind links; what is hidden is being written, or derived."""
    above: dict[str, tuple[tuple[int, int], ...]] = {str(store): ()}
    for place, names, _ in os.walk(store, followlinks=True):
        found = os.stat(place)  # noqa: PTH116 (os.walk gives texts)
        here = (found.st_dev, found.st_ino)
        way = above.pop(place, ())
        if here in way or len(way) > DEEPEST_ID:  # a link that leads back, or many that lead everywhere
            names.clear()
            continue
        if (Path(place) / "data" / METADATA_NAME).exists():
            names.clear()
            yield Path(place)
            continue
        names[:] = [name for name in names if not name.startswith(HIDDEN_PREFIX)]
        above |= {os.path.join(place, name): (*way, here) for name in names}  # noqa: PTH118


def measure_references(config: Reference, console: Console) -> None:
    """Print the returns of random actions and of the controller."""
    from dsf.train.data.controllers import CONTROLLERS, episode_returns
    from dsf.train.data.recipes import RECIPES

    task = get_task(config.task)
    actors = {actor for recipe in RECIPES.values() if recipe.task == task.name for actor, _ in recipe.actors}
    if task in MAZE_TASKS:
        actors = set(EXPERTS)
    for behaviour in ("random", *(name for name in CONTROLLERS if name in actors)):
        returns = episode_returns(task, behaviour, config.episodes)
        spread = f"sd {returns.std():.4g}, lowest {returns.min():.4g}, highest {returns.max():.4g}"
        console.print(f"{task.name}, {behaviour}: return {returns.mean():.6g} ({spread}), {config.episodes} episodes")


def show_info(config: Info, console: Console) -> None:
    """Describe one dataset."""
    describe(load_dataset(resolve(config.dataset)), console)


def require_possible(config: object) -> None:
    """Refuse what cannot work on this machine.

    Raises:
        UserError: packages are missing, or a list cannot be written.
    """
    require_installed("train", "minari")
    if isinstance(config, ListSets) and config.json is not None:
        require_writable_parent(config.json)


def printing(action: Callable[[Config, Console], None]) -> Callable[[Config], None]:
    """The action of a command that prints, and reads or writes the store."""

    def act(config: Config) -> None:
        require_possible(config)
        action(config, Console(markup=False, emoji=False))  # paths and ids may look like either

    return act


COMMANDS: Commands = {
    "list": Command(printing(show_list), ListSets, ListSets.__doc__ or ""),
    "info": Command(printing(show_info), Info, Info.__doc__ or ""),
    "collect": Command(printing(collect), Collect, Collect.__doc__ or ""),
    "import": Command(printing(import_dataset), Import, Import.__doc__ or ""),
    "task": Command(printing(draft_task), DescribeTask, DescribeTask.__doc__ or ""),
    "reference": Command(printing(measure_references), Reference, Reference.__doc__ or ""),
}


def main() -> NoReturn:
    """Console script."""
    run_commands("dsf-data", one_of(COMMANDS, "List, inspect, describe, make and import offline datasets."), {})

"""The paper's datasets under their D4RL names: where each comes from, and what it is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from dsf.shell.errors import UserError
from dsf.tasks import get_task
from dsf.train.data.maze_sets import MAZE_SETS, MazeSet
from dsf.train.data.recipes import MAZE, RECIPES

REMOTE, LOCAL = "remote", "local"

VERSION = re.compile(r"-v\d+$")


@dataclass(frozen=True)
class RegisteredDataset:
    """One dataset of the paper.

    Attributes:
        d4rl_name: what D4RL and the paper call it.
        task: name of the task.
        source: Minari id that stands for it here.
        kind: "remote" (Minari's hub has it) or "local" (``dsf-data collect`` makes it).
        alternative: another Minari id with a similar role, remote or local; empty where there is none.
        note: what a score on it can be compared with.
    """

    d4rl_name: str
    task: str
    source: str
    kind: str
    alternative: str
    note: str

    @property
    def has_d4rl_references(self) -> bool:
        """Whether its score is D4RL's normalisation, not ours."""
        return get_task(self.task).reference == "D4RL"


_NO_TWIN = "Minari has no twin; made from the shipped SAC snapshots in D4RL's role: scores are not D4RL's"
_NOT_D4RL = "Minari's set of this name is not D4RL's (new v5 data, other returns); ours stands for D4RL's role"
_ADROIT = "D4RL's episodes; gymnasium-robotics 1.4.2 scores door, hammer and relocate about 0.3 points differently"
_ANT = "new data in D4RL's role (v4 ants); recorded episodes go on at the goal and return more than 1"
_MAZE = "new data in D4RL's role with random goals, references are ours; dsf/pointmaze/* stand in without a network"


def _entries() -> list[RegisteredDataset]:
    entries = []
    for task in ("hopper", "walker2d", "halfcheetah"):
        for role in ("medium", "medium-replay", "medium-expert", "expert"):
            remote = f"mujoco/{task}/{role}-v0" if role in ("medium", "expert") else ""
            note = _NOT_D4RL if remote else _NO_TWIN
            source = RECIPES[f"{task}-{role}"].dataset_id
            entries.append(RegisteredDataset(f"{task}-{role}-v2", task, source, LOCAL, remote, note))
    for task in ("pen", "door", "hammer", "relocate"):
        for role in ("human", "cloned", "expert"):
            entries.append(RegisteredDataset(f"{task}-{role}-v1", task, f"D4RL/{task}/{role}-v2", REMOTE, "", _ADROIT))
    for role in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"):
        task = f"antmaze-{role.split('-')[0]}"
        entries.append(RegisteredDataset(f"antmaze-{role}-v2", task, f"D4RL/antmaze/{role}-v1", REMOTE, "", _ANT))
    for maze in ("open", "umaze", "medium", "large"):
        for role in (maze, f"{maze}-dense"):
            name = f"maze2d-{role}-v{0 if maze == 'open' else 1}"
            local = RECIPES[f"pointmaze-{role}"].dataset_id
            entries.append(
                RegisteredDataset(name, f"pointmaze-{role}", f"D4RL/pointmaze/{role}-v2", REMOTE, local, _MAZE)
            )
    return entries


REGISTRY: dict[str, RegisteredDataset] = {entry.d4rl_name: entry for entry in _entries()}
"""By D4RL name, in the paper's order."""


def resolve(name: str) -> str:
    """The Minari id for a D4RL name, with or without its version, or for a name that ``dsf-data collect`` takes.

    Anything else, such as a Minari id, is returned as it is.

    Raises:
        UserError: a D4RL name with a version that is not registered.
    """
    if name in REGISTRY:
        return REGISTRY[name].source
    if name in RECIPES:
        return RECIPES[name].dataset_id
    if name == MAZE:
        return MazeSet().dataset_id
    for known, entry in REGISTRY.items():
        if VERSION.sub("", known) == name:
            return entry.source
        if VERSION.sub("", known) == VERSION.sub("", name):
            raise UserError(f"dataset '{name}' is registered as {known}: use that name")
    return name


def has_declared_targets(dataset_id: str) -> bool:
    """Whether a task's declared target returns hold for a dataset: the paper's own sets (D4RL's and Minari's, by the
    ids in this registry), and those that ``dsf-data collect`` makes in their roles.
    """
    return (
        dataset_id in MAZE_SETS
        or any(dataset_id in (entry.source, entry.alternative) for entry in REGISTRY.values())
        or any(dataset_id == recipe.dataset_id for recipe in RECIPES.values())
    )


def way_to_make(dataset_id: str, is_here: Callable[[str], bool] = lambda _id: False) -> str:
    """What to do where a dataset is neither here nor reachable: name what stands in for it, or the command that makes
    that.

    Args:
        dataset_id: that is missing.
        is_here: whether a dataset of this id is in the store.
    """
    if dataset_id in MAZE_SETS:
        return f"make it with 'dsf-data collect {MAZE_SETS[dataset_id].options}'"
    local = {recipe.dataset_id: recipe for recipe in RECIPES.values()}
    stand_ins = [dataset_id]
    for entry in REGISTRY.values():
        if dataset_id in (entry.source, entry.alternative):
            stand_ins += [entry.source, entry.alternative]
    for stand_in in stand_ins[1:]:
        if stand_in and stand_in != dataset_id and is_here(stand_in):
            return f"'{stand_in}' is here, in the same role with other data: name that"
    for stand_in in stand_ins:
        if stand_in in local:
            return f"make a local one with 'dsf-data collect {local[stand_in].name}' (id {stand_in})"
    return "'dsf-data list' shows what there is, and what 'dsf-data collect' can make here"

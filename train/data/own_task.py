"""The task of a dataset that belongs to no registered one: what its metadata and its environment say, and what its
episodes add.

The metadata are a stranger's text. Its environment is looked up by id among those that are installed here, and no
module is imported because it stands there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dsf.shell.arrays import FloatArray, Int64Array
from dsf.shell.errors import UserError
from dsf.tasks import Task
from dsf.tasks.data_returns import held_targets
from dsf.tasks.definition import MINARI_LABEL, NAME, NO_ENVIRONMENT, TaskDefinition
from dsf.tasks.own_environment import find, missing, without_module
from dsf.tasks.recorded import (
    ENV_ID,
    LONGEST_HORIZON,
    STEPS_PER_DECISION,
    require_arguments,
)
from dsf.tasks.registry import TASKS, own_task
from dsf.tasks.spaces import SEPARATOR, ActionLayout, PartPath, action_layout, observation_layout
from dsf.train.data.env_spec import FOR_VIEWERS, SMALLEST_PERIOD_S, printable, wrappers_of

TASK_METADATA = "dsf_task"
"""Metadata of an imported dataset: the definition of its task (JSON text)."""
REFERENCES = ("ref_min_score", "ref_max_score")
"""Minari's names for the mean returns that a score is 0 and 1 at."""
PERIODS, MOVED_BY = ("dt", "tau"), ("point_env", "ant_env")
"""What environments call their control period, and where a maze of Gymnasium-Robotics keeps the robot that has one."""
UNUSUAL = re.compile(r"[^A-Za-z0-9_./:-]+")
"""What a name cannot hold."""
PART_NAMES = "the parts' names"
NOTHING_STATED = TaskDefinition()


@dataclass(frozen=True)
class Draft:
    """What is known before an episode is read.

    Attributes:
        definition: without the return scale, targets and horizon that only episodes say.
        reasons: of its fields, where each comes from.
        unscored: why no policy of it can be scored; empty where one can.
    """

    definition: TaskDefinition
    reasons: Mapping[str, str] = field(default_factory=dict)
    unscored: str = ""

    @property
    def unsettled(self) -> Task:
        """The task, with numbers in place of those that episodes will say; sizes and bounds are final."""
        stated = self.definition
        return own_task(
            dataclasses.replace(
                stated,
                return_scale=stated.return_scale or 1.0,
                target_returns=stated.target_returns or (0.0,),
                horizon=stated.horizon or LONGEST_HORIZON,
            ),
            f"task {stated.name}",
        )


def read_task_file(path: Path) -> TaskDefinition:
    """A user's own definition. A module that it names before its environment's id is imported.

    Raises:
        UserError: see :meth:`~dsf.tasks.definition.TaskDefinition.read`, or the module cannot be imported.
    """
    stated = TaskDefinition.read(path)
    if not stated.env_id:
        return stated
    return dataclasses.replace(stated, environment=without_module(stated.env_id))


def draft(dataset_id: str, dataset: Any, stated: TaskDefinition = NOTHING_STATED, where: str | None = None) -> Draft:
    """What a Minari dataset says of its task.

    Args:
        dataset_id: of it.
        dataset: Minari's.
        stated: what its user says; that comes before what the dataset says.
        where: what is read, for messages, if not a dataset of the store.

    Raises:
        UserError: a policy cannot have its observations or actions, or what is stated contradicts them.
    """
    where = where or f"dataset '{dataset_id}'"
    stated = _merged(stated, _carried(where, dataset.storage.metadata))
    reasons = dict.fromkeys(stated.to_json(), "stated")
    layout = observation_layout(where, dataset.observation_space)
    actions = _actions(where, dataset.action_space, stated)
    found = _of_spaces(where, layout, actions, stated, reasons)
    found = _references(dataset.storage.metadata, found, reasons)
    return _environment(where, dataset_id, dataset.env_spec, found, reasons)


def _merged(first: TaskDefinition, second: TaskDefinition) -> TaskDefinition:
    """The fields of both; the first one's where both say something."""
    said = {item.name: getattr(first, item.name) for item in dataclasses.fields(first)}
    pairs = (("random_return", "expert_return", "reference"), ("action_low", "action_high", "choices", "first_choice"))
    held = {name for group in pairs if any(said[one] is not None for one in group) for name in group}
    others = {name: getattr(second, name) for name, value in said.items() if value is None and name not in held}
    return dataclasses.replace(first, **others)


def _carried(where: str, metadata: Mapping[str, Any]) -> TaskDefinition:
    """The definition that an imported dataset carries."""
    text = metadata.get(TASK_METADATA)
    if text is None:
        return NOTHING_STATED
    try:
        values = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise UserError(f"{where}: its {TASK_METADATA} is no JSON: import it again") from None
    return TaskDefinition.from_json(values, f"{where}: {TASK_METADATA}")


def _actions(where: str, space: Any, stated: TaskDefinition) -> ActionLayout:
    """What actions of the dataset are, with the bounds that its user states."""
    from gymnasium.spaces import Box

    if stated.choices is None and stated.action_low is not None and isinstance(space, Box) and len(space.shape) == 1:
        size = int(space.shape[0])
        with contextlib.suppress(ValueError):
            low, high = (
                tuple(map(float, np.broadcast_to(np.array(bound, np.float64), (size,))))
                for bound in (stated.action_low, stated.action_high)
            )
            return ActionLayout(low=low, high=high)
        raise UserError(
            f"{where} has actions of {size} numbers, and action_low or action_high other ones: correct them"
        )
    actions = action_layout(where, space)
    if stated.discrete is not None and stated.discrete != bool(actions.choices):
        kinds = ("choices", "numbers between bounds")
        own, other = kinds if actions.choices else kinds[::-1]
        raise UserError(f"{where} has {own} as actions, and {other} are stated: correct the task")
    for name, number in (("choices", actions.choices), ("first_choice", actions.first_choice)):
        value = getattr(stated, name)
        if value is not None and value != number:
            raise UserError(f"{where} has {name} {number}, and {value} is stated: correct the task")
    return actions


def _of_spaces(
    where: str, layout: dict[PartPath, int], actions: ActionLayout, stated: TaskDefinition, reasons: dict[str, str]
) -> TaskDefinition:
    """What the dataset's spaces say, and the user's choice among the parts of an observation."""
    found: dict[str, Any] = {}
    sizes = {SEPARATOR.join(path): size for path, size in layout.items()}
    nested = set(layout) != {()}
    if stated.observation_parts is not None:
        if unknown := [part for part in stated.observation_parts if part not in sizes or not nested]:
            raise UserError(
                f"{where} has no observation '{unknown[0]}': its parts are {printable(', '.join(sizes)) or 'none'}"
            )
        sizes = {part: sizes[part] for part in stated.observation_parts}
    elif nested:
        found["observation_parts"] = tuple(sizes)
        reasons["observation_parts"] = "the dataset's observation space, keys sorted at every level"
    size = sum(sizes.values())
    if stated.observation_size is not None and stated.observation_size != size:
        raise UserError(
            f"{where} has observations of {size} numbers, and observation_size {stated.observation_size} is stated: "
            "correct the task, or name its own dataset"
        )
    found["observation_size"] = size
    reasons.setdefault("observation_size", "the dataset's observation space")
    names = stated.observation_names
    if names is not None and len(names) != size:
        raise UserError(f"{where} has observations of {size} numbers, and {len(names)} observation_names are stated")
    if nested and names is None:
        found["observation_names"] = tuple(f"{part}[{i}]" for part, count in sizes.items() for i in range(count))
        reasons["observation_names"] = PART_NAMES
    if actions.choices:
        found |= {"choices": actions.choices, "first_choice": actions.first_choice}
        reasons.setdefault("choices", "the dataset's action space")
        reasons.setdefault("first_choice", "the dataset's action space")
    else:
        found |= {"action_low": actions.low, "action_high": actions.high}
        reasons.setdefault("action_low", "the dataset's action space")
        reasons.setdefault("action_high", "the dataset's action space")
    if stated.action_names is not None and len(stated.action_names) != actions.size:
        raise UserError(f"{where} has {actions.size} actions, and {len(stated.action_names)} action_names are stated")
    return dataclasses.replace(stated, **found)


def _references(metadata: Mapping[str, Any], found: TaskDefinition, reasons: dict[str, str]) -> TaskDefinition:
    """The returns that Minari's metadata state for the ends of a score."""
    low, high = (metadata.get(name) for name in REFERENCES)
    numbers = all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        for value in (low, high)
    )
    if found.random_return is not None or not numbers or low is None or high is None or not low < high:
        return found
    reasons["random_return"] = reasons["expert_return"] = "Minari's metadata (ref_min_score, ref_max_score)"
    return dataclasses.replace(
        found, random_return=float(low), expert_return=float(high), reference=found.reference or MINARI_LABEL
    )


def _environment(where: str, dataset_id: str, spec: Any, found: TaskDefinition, reasons: dict[str, str]) -> Draft:
    """The environment, if there is one that can run here, and what it says of horizon and control period."""
    unscored, asked = "", found.environment is not None
    if not asked and spec is None:
        found = dataclasses.replace(found, environment=NO_ENVIRONMENT)
        reasons["environment"] = unscored = "the dataset names no environment"
    elif not asked:
        try:
            found = dataclasses.replace(found, **_told_environment(spec))
            reasons["environment"] = "the dataset's env_spec"
        except UserError as error:
            found = dataclasses.replace(found, environment=NO_ENVIRONMENT)
            reasons["environment"] = unscored = f"the dataset's environment cannot be built again: {error}"
    elif not found.env_id:
        unscored = "its task file says that there is no environment"
    steps = None if spec is None else spec.max_episode_steps
    if (
        found.horizon is None
        and isinstance(steps, int)
        and not isinstance(steps, bool)
        and 0 < steps <= LONGEST_HORIZON
    ):
        found = dataclasses.replace(found, horizon=steps)
        reasons["horizon"] = "the dataset's env_spec"
    found = _named(found, dataset_id, reasons)
    if not unscored and find(found.env_id) is None:
        unscored = missing(found.env_id)
    if unscored:
        return Draft(found, reasons, unscored)
    return _built(where, found, reasons, asked)


def _told_environment(spec: Any) -> dict[str, Any]:
    """A dataset's account of its environment, as a definition has it.

    Raises:
        UserError: there are arguments that nothing should be made with, or a wrapper that no file describes.
    """
    if not isinstance(spec.id, str) or not ENV_ID.fullmatch(spec.id):
        raise UserError(f"its id is {printable(spec.id)}, which is none")
    arguments = {name: value for name, value in dict(spec.kwargs).items() if name not in FOR_VIEWERS}
    try:  # arrays of a map, for example, are lists in a file
        arguments = json.loads(json.dumps(arguments, default=np.ndarray.tolist))
    except (TypeError, ValueError, RecursionError):
        raise UserError("its arguments are no plain values") from None
    require_arguments("environment", arguments)
    wrappers = []
    for name, kwargs, _ in wrappers_of(spec):
        if kwargs is None:
            raise UserError(f"its wrapper {printable(name)} is not described by its arguments")
        require_arguments(name, kwargs)
        wrappers.append({"name": name, "kwargs": kwargs})
    told: dict[str, Any] = {"environment": spec.id}
    return {
        **told,
        **({"environment_arguments": arguments} if arguments else {}),
        **({"environment_wrappers": tuple(wrappers)} if wrappers else {}),
    }


def _named(found: TaskDefinition, dataset_id: str, reasons: dict[str, str]) -> TaskDefinition:
    """A name: the user's, the environment's id, or the dataset's."""
    if found.name is not None:
        return found
    for name, why in ((found.env_id, "the environment's id"), (dataset_id, "the dataset's id")):
        shown = UNUSUAL.sub("-", name)
        if shown and NAME.fullmatch(shown) and shown not in TASKS:
            reasons["name"] = why
            return dataclasses.replace(found, name=shown)
    return dataclasses.replace(found, name="own-task")


def _built(where: str, found: TaskDefinition, reasons: dict[str, str], asked: bool) -> Draft:
    """The draft, with the horizon and control period of its environment.

    Raises:
        UserError: the environment that the user names does not fit the dataset. One that only the dataset names is left
            aside then, and the reason is kept.
    """
    try:
        with contextlib.closing(Draft(found).unsettled.make_env()) as env:
            period, steps = _period(env, found), None if env.spec is None else env.spec.max_episode_steps
    except UserError as error:
        if asked:
            raise UserError(f"{where}: {error}") from None
        return Draft(dataclasses.replace(found, environment=NO_ENVIRONMENT), reasons, str(error))
    if found.control_period is None and period is not None:
        found = dataclasses.replace(found, control_period=f"{period:.9g} s")
        reasons["control_period"] = "the environment's dt or tau"
    registered = find(found.env_id)
    usual = None if registered is None else registered.max_episode_steps
    if found.horizon is None and usual is not None and 0 < usual <= LONGEST_HORIZON and steps is not None:
        found = dataclasses.replace(found, horizon=usual)
        reasons["horizon"] = "the environment's registration"
    return Draft(found, reasons)


def _period(env: Any, found: TaskDefinition) -> float | None:
    """Simulated seconds between two decisions, where the environment says so."""
    worlds = [getattr(env.unwrapped, name, None) for name in MOVED_BY]
    stated = [getattr(world, name, None) for world in (env.unwrapped, *worlds) for name in PERIODS]
    period = next((value for value in stated if value is not None), None)
    if isinstance(period, bool) or not isinstance(period, (int, float, np.number)):
        return None
    if not SMALLEST_PERIOD_S < float(period) < math.inf:
        return None
    repeats = [wrapping.kwargs.get(STEPS_PER_DECISION.get(wrapping.name, ""), 1) for wrapping in found.wrappers]
    return float(period) * math.prod(repeats)


def scale_of(returns: FloatArray) -> float:
    """The return scale of episodes: the power of ten at or below the largest return in magnitude; 1 where all are 0."""
    largest = float(np.abs(returns).max(initial=0.0))
    return 1.0 if largest == 0.0 or not math.isfinite(largest) else float(10.0 ** math.floor(math.log10(largest)))


def returns_of(rewards: Iterable[Any]) -> FloatArray:
    """The returns of episodes, (episodes,), summed as :mod:`dsf.train.data.flatten` does; what is no reward counts 0,
    for it is refused there.
    """
    found = []
    for episode in rewards:
        try:
            values = np.asarray(episode, np.float64)
        except (TypeError, ValueError):
            continue
        usable = values.ndim == 1 and values.size and np.isfinite(values).all()
        found.append(float(np.cumsum(values[::-1])[-1]) if usable else 0.0)
    return np.array(found)


def settled(
    draft: Draft, returns: FloatArray, lengths: Int64Array, kept: Int64Array
) -> tuple[TaskDefinition, dict[str, str]]:
    """The whole definition, and where each of its fields comes from.

    Args:
        draft: without what episodes say.
        returns: of all episodes (reward units).
        lengths: steps of all episodes.
        kept: episodes that a run takes; their returns say which targets make sense.
    """
    definition, reasons = draft.definition, dict(draft.reasons)
    found: dict[str, Any] = {}
    if definition.return_scale is None:
        found["return_scale"] = scale_of(returns)
        reasons["return_scale"] = "the power of ten at or below the episodes' largest return in magnitude"
    if definition.target_returns is None:
        found["target_returns"] = held_targets(returns[kept])
        reasons["target_returns"] = "the 90 % quantile of the episodes' returns, then their median"
    if definition.horizon is None:
        found["horizon"] = int(min(lengths.max(), LONGEST_HORIZON))
        reasons["horizon"] = "the longest episode"
    return dataclasses.replace(definition, **found), reasons

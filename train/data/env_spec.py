"""A Minari dataset's account of its environment, against the registered task: what is the same, and what differs.

The account is a stranger's text. It is compared with what Gymnasium has registered here under the task's own id; no
module, class or wrapper is imported because it stands there.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dsf.shell.errors import UserError
from dsf.tasks import Task
from dsf.tasks.recorded import (
    ENV_ID,
    LONGEST_HORIZON,
    REBUILT,
    STEPS_PER_DECISION,
    WITHOUT_EFFECT,
    RecordedEnvironment,
    Wrapping,
    require_arguments,
)
from dsf.tasks.registry import task_for_env

if TYPE_CHECKING:
    from gymnasium.spaces import Box

FOR_VIEWERS = (
    "render_mode",
    "width",
    "height",
    "camera_id",
    "camera_name",
    "default_camera_config",
    "max_geom",
    "visual_options",
    "screen_size",
)
"""Arguments that decide about pictures alone."""
FOR_COLLECTING = ("continuing_task", "reset_target", "split")
"""How episodes of goal tasks and mazes start and end while data are collected; a task has its own way to evaluate."""
MAZE_MAP = "maze_map"
TAKEN_FOR = "dsf_taken_for_task"
"""Metadata of an imported dataset: what its file called the environment, where only the user has said what it is."""
WRAPPERS_MODULE = "gymnasium.wrappers"
SHOWN_CHARACTERS = 80
"""Of a name that a file holds."""
SMALLEST_PERIOD_S = 1e-6
"""Control periods below this are none."""


def registered_task(dataset_id: str, spec: Any) -> Task:
    """The registered task whose environment a dataset names.

    Raises:
        UserError: no task has this environment.
    """
    if not isinstance(spec.kwargs, dict) or not isinstance(spec.id, str):
        raise UserError(f"dataset '{dataset_id}' describes its environment as Gymnasium does not: write it again")
    return task_for_env(spec.id, spec.kwargs)


def recorded_task(dataset_id: str, task: Task, spec: Any, metadata: Mapping[str, Any]) -> Task:
    """The task of a dataset: the registered one, or that in the environment which the dataset names.

    Args:
        dataset_id: for messages.
        task: the registered one, of :func:`registered_task`.
        spec: Gymnasium's ``EnvSpec``, as Minari has read it.
        metadata: of the dataset; imported ones say whose environment was taken for the task's.

    Raises:
        UserError: the environment cannot be built again as the dataset says.
    """
    where = f"dataset '{dataset_id}'"
    try:
        found = RecordedEnvironment(
            kwargs=_differing_arguments(where, task, spec),
            wrappers=_wrappings(where, task, spec),
            max_steps=_horizon(task, spec),
            observation_size=task.observation_size,
            action_size=task.action_size,
            control_period_s=task.control_period_s,
            other_id=_other_id(metadata),
        )
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(where) else f"{where}: {text}; {way_out(task)}") from None
    if not (found.kwargs or found.wrappers or found.max_steps or found.other_id):
        return task
    try:
        return task.as_recorded(measured(where, task, found))
    except UserError as error:
        raise UserError(f"{where}: {error}; {way_out(task)}") from None


def way_out(task: Task) -> str:
    """What somebody can do whose environment cannot be built again."""
    return f"if its steps are those of {task.env_id} as registered, write it again with that as its environment"


def printable(text: Any) -> str:
    """A name from a file, safe for a screen."""
    shown = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in str(text))
    return shown.replace("[", "(").replace("]", ")")[:SHOWN_CHARACTERS]


def measured(where: str, task: Task, found: RecordedEnvironment) -> RecordedEnvironment:
    """The environment with the sizes, bounds and control period that it has when it is built.

    Raises:
        UserError: it cannot be built, or its observations and actions are of a kind that no policy of this task has.
    """
    from gymnasium.spaces import Box, Discrete

    with contextlib.closing(task.as_recorded(found).make_env()) as env:
        actions, observations = env.action_space, env.observation_space
        if isinstance(actions, Discrete) != task.discrete or not isinstance(actions, (Box, Discrete)):
            world = found.describe(task.env_id)
            raise UserError(f"the actions of {world} are a {type(actions).__name__}: no policy of {task.name} fits")
        if not task.observation_keys and (not isinstance(observations, Box) or len(observations.shape) != 1):
            world = found.describe(task.env_id)
            raise UserError(f"the observations of {world} are {observations}, no vector: no policy of {task.name} fits")
        low, high = ((), ()) if isinstance(actions, Discrete) else _bounds(actions)
        return replace(
            found,
            observation_size=task.observation_size if task.observation_keys else math.prod(observations.shape or ()),
            action_size=int(actions.n) if isinstance(actions, Discrete) else math.prod(actions.shape),
            control_period_s=_period(task, env, found),
            low=low,
            high=high,
        )


def _bounds(actions: Box) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lowest and highest actions; empty where they are -1 and 1, or where all is allowed and clipped (ClipAction)."""
    usual = np.all((actions.low == -1.0) & (actions.high == 1.0))
    if usual or np.all(np.isinf(actions.low) & np.isinf(actions.high)):
        return (), ()
    low, high = (tuple(map(float, bound.ravel())) for bound in (actions.low, actions.high))
    return low, high


def _period(task: Task, env: Any, found: RecordedEnvironment) -> float:
    """Simulated seconds between two decisions; not a number where the environment does not say."""
    period = getattr(env.unwrapped, "dt", None)
    if not isinstance(period, (int, float, np.number)) or not SMALLEST_PERIOD_S < float(period) < math.inf:
        return task.control_period_s if not (found.kwargs or found.wrappers) else math.nan
    repeats = [wrapping.kwargs.get(STEPS_PER_DECISION.get(wrapping.name, ""), 1) for wrapping in found.wrappers]
    return float(period) * math.prod(repeats)


def _differing_arguments(where: str, task: Task, spec: Any) -> dict[str, Any]:
    """Arguments of the environment that are others than those of the task's.

    Raises:
        UserError: it is made by another class, or an argument is a path, or no value.
    """
    import gymnasium

    task.register()
    registered = gymnasium.spec(task.env_id)
    _require_same_class(where, task, spec.entry_point, registered.entry_point)
    ignored = {*FOR_VIEWERS, *(FOR_COLLECTING if task.observation_keys or task.registered_by else ())}
    stated = {name: value for name, value in spec.kwargs.items() if name not in ignored}
    known = {**registered.kwargs, **task.env_kwargs}
    if all(name in known and _same(name, value, known[name]) for name, value in stated.items()):
        return {}
    known = {**_defaults(registered.entry_point), **known}
    differing = {
        name: value for name, value in stated.items() if not (name in known and _same(name, value, known[name]))
    }
    require_arguments(task.env_id, differing)
    return differing


def _same(name: Any, stated: Any, known: Any) -> bool:
    """Whether two arguments are equal once they are JSON; of mazes, the walls count: goals and starts are a task's."""
    if name == MAZE_MAP:
        stated, known = _walls(stated), _walls(known)
    return _plain(stated) == _plain(known)


def _walls(maze: Any) -> Any:
    """A maze's walls alone: 1, and 0 elsewhere."""
    try:
        return [[int(cell == 1) for cell in row] for row in maze]
    except TypeError:
        return maze


def _plain(value: Any) -> Any:
    """A value as JSON gives it back; one that JSON cannot hold equals nothing."""
    try:
        return json.loads(json.dumps(value, default=np.ndarray.tolist))
    except (TypeError, ValueError, RecursionError):
        return object()


def _defaults(entry_point: Any) -> dict[str, Any]:
    """Arguments that the registered class has anyway."""
    from gymnasium.envs.registration import load_env_creator

    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    parameters = inspect.signature(creator).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def _require_same_class(where: str, task: Task, stated: Any, registered: Any) -> None:
    """Refuse an environment that only has the name of the task's.

    The module may be another of the same package: packages move their classes about.

    Raises:
        UserError: package or class differ.
    """
    if stated is None or not isinstance(registered, str):
        return
    (package, name), (own_package, own_name) = (
        (text.partition(".")[0].partition(":")[0], text.rpartition(":")[2]) for text in (str(stated), registered)
    )
    if (package, name) != (own_package, own_name):
        raise UserError(
            f"{where} names {task.env_id}, but made by {printable(stated)}, and here that id is {registered}: "
            f"{way_out(task)}"
        )


def wrappers_of(spec: Any) -> Iterator[tuple[str, dict[str, Any] | None, bool]]:
    """The wrappers around a dataset's environment, without those that change nothing.

    Args:
        spec: Gymnasium's, or what a file has in its place.

    Yields:
        name, the arguments that it can be built again with (None where none say what it does), and whether it is one
        of Gymnasium's.
    """
    for wrapper in spec.additional_wrappers:
        module, _, name = str(wrapper.entry_point).partition(":")
        own = module == WRAPPERS_MODULE or module.startswith(f"{WRAPPERS_MODULE}.")
        if own and name in WITHOUT_EFFECT:
            continue
        described = own and name in REBUILT and isinstance(wrapper.kwargs, dict)
        yield name or wrapper.name, dict(wrapper.kwargs) if described else None, own


def _wrappings(where: str, task: Task, spec: Any) -> tuple[Wrapping, ...]:
    """Gymnasium's wrappers around the environment, without those that change nothing.

    Raises:
        UserError: one is not Gymnasium's, or its arguments do not say what it does.
    """
    found = []
    for name, kwargs, is_gymnasiums in wrappers_of(spec):
        if kwargs is None:
            reason = (
                "holds code or statistics that the dataset does not have"
                if is_gymnasiums
                else "is not one of Gymnasium's"
            )
            raise UserError(
                f"{where} was recorded behind {printable(name)}, which {reason}, so that its "
                f"environment cannot be built again; {way_out(task)}"
            )
        found.append(Wrapping(name, kwargs))
    return tuple(found)


def _horizon(task: Task, spec: Any) -> int:
    """Steps after which the dataset's environment cuts an episode, where that is neither the task's horizon nor the
    registered one; 0 where it is, and of goal tasks and mazes, whose data may be collected in any pieces.
    """
    import gymnasium

    steps = spec.max_episode_steps
    if task.observation_keys or task.registered_by or isinstance(steps, bool) or not isinstance(steps, int):
        return 0
    usual = (task.max_steps, gymnasium.spec(task.env_id).max_episode_steps)
    return 0 if steps in usual or not 0 < steps <= LONGEST_HORIZON else steps


def _other_id(metadata: Mapping[str, Any]) -> str:
    """What an imported file called its environment, where nobody but the user has said that it is the task's."""
    stated = metadata.get(TAKEN_FOR, "")
    return stated if isinstance(stated, str) and ENV_ID.fullmatch(stated) else ""

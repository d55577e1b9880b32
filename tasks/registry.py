"""Registered control tasks: reference returns, targets, horizons, and which environment ids belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsf.shell.errors import UserError
from dsf.tasks.data_returns import DataReturns
from dsf.tasks.definition import OWN_LABEL, TaskDefinition
from dsf.tasks.maze_tasks import MAZE_TASKS, require_task_mazes
from dsf.tasks.recorded import RecordedEnvironment
from dsf.tasks.task import DELAYED, ROBOTICS_EXTRA, Task

__all__ = ["TASKS", "Task", "described_task", "get_task", "notes_on", "own_task", "same_robot", "task_for_env"]

# Reference returns: D4RL infos.py. Targets and scales: DSFormer's released configuration.
_LOCOMOTION = (
    # Hopper-v5 and Walker2d-v5 decide every 4 frames of 2 ms, HalfCheetah-v5 every 5 frames of 10 ms.
    Task("hopper", "Hopper-v5", 11, 3, 1000.0, (3600.0, 1800.0), -20.272305, 3234.3, 0.008, 1000),
    Task("walker2d", "Walker2d-v5", 17, 6, 1000.0, (5000.0, 4000.0, 2500.0), 1.629008, 4592.3, 0.008, 1000),
    Task("halfcheetah", "HalfCheetah-v5", 17, 6, 1000.0, (12000.0, 9000.0, 6000.0), -280.178953, 12135.0, 0.05, 1000),
)


def _adroit(
    name: str,
    sizes: tuple[int, int],
    scale: float,
    targets: tuple[float, ...],
    references: tuple[float, float],
    max_steps: int,
) -> Task:
    """A dexterous-hand task with D4RL's horizon (AdroitHandPen-v1 registers 200 steps, D4RL cuts at 100).

    These environments never terminate: every episode lasts the whole horizon. In gymnasium-robotics 1.4.2 the reward's
    reach term has the wrong sign in door, hammer and relocate, worth about 0.3 points of the normalised score.
    """
    env_id = f"AdroitHand{name.capitalize()}-v1"
    return Task(
        name,
        env_id,
        *sizes,
        scale,
        targets,
        *references,
        0.01,
        max_steps,
        extra=ROBOTICS_EXTRA,
        never_terminates=True,
    )


_ADROIT = (
    _adroit("pen", (45, 24), 1000.0, (12000.0, 6000.0), (96.262799, 3076.83), 100),
    _adroit("door", (39, 28), 100.0, (2000.0, 1000.0, 500.0), (-56.512833, 2880.57), 200),
    _adroit("hammer", (46, 26), 1000.0, (12000.0, 6000.0, 3000.0), (-274.856578, 12794.13), 200),
    _adroit("relocate", (39, 30), 1000.0, (3000.0, 1000.0), (-6.425911, 4233.88), 200),
)

_START, _GOAL = "r", "g"
_ANT_MAPS: dict[str, list[list[int | str]]] = {
    # D4RL evaluates from one start to one goal. Minari's evaluation map of umaze is its mirror image: not this maze.
    "UMaze": [[1, 1, 1, 1, 1], [1, _GOAL, 0, 0, 1], [1, 1, 1, 0, 1], [1, _START, 0, 0, 1], [1, 1, 1, 1, 1]],
    "Medium": [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, _START, 0, 1, 1, 0, 0, 1],
        [1, 0, 0, 1, 0, 0, 0, 1],
        [1, 1, 0, 0, 0, 1, 1, 1],
        [1, 0, 0, 1, 0, 0, 0, 1],
        [1, 0, 1, 0, 0, 1, 0, 1],
        [1, 0, 0, 0, 1, 0, _GOAL, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ],
    "Large": [
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, _START, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1],
        [1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1],
        [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        [1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1],
        [1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1],
        [1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1],
        [1, 0, 0, 1, 0, 0, 0, 1, 0, _GOAL, 0, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ],
}


def _ant_maze(maze: str, max_steps: int) -> Task:
    """An ant in a maze: return 1 if it reaches the goal, which ends the episode, as in D4RL; else 0.

    Version 4 is the one that Minari's datasets hold (v5 adds contact forces). Their episodes go on at the goal and
    collect more than 1. The ant's position is only in achieved_goal.
    """
    return Task(
        f"antmaze-{maze.lower()}",
        f"AntMaze_{maze}-v4",
        observation_size=27 + 2 + 2,
        action_size=8,
        return_scale=1.0,
        target_returns=(1.0, 0.3),
        random_return=0.0,
        expert_return=1.0,
        control_period_s=0.05,
        max_steps=max_steps,
        observation_keys=("observation", "achieved_goal", "desired_goal"),
        env_kwargs={"maze_map": _ANT_MAPS[maze], "continuing_task": False},
        extra=ROBOTICS_EXTRA,
    )


_POINT_HORIZONS = {"Open": 300, "UMaze": 300, "Medium": 600, "Large": 800}
# D4RL has no reference for mazes with a random goal. Ours: 100 episodes each of uniformly random actions and of the
# waypoint controller without noise: dsf-data reference TASK --episodes 100 (reset seeds 0 to 99).
_POINT_REFERENCES: dict[tuple[str, bool], tuple[float, float]] = {
    ("Open", False): (8.5, 247.4),
    ("Open", True): (53.8, 252.7),
    ("UMaze", False): (9.6, 245.4),
    ("UMaze", True): (61.9, 252.0),
    ("Medium", False): (9.3, 502.7),
    ("Medium", True): (63.7, 512.1),
    ("Large", False): (6.3, 634.6),
    ("Large", True): (44.7, 645.1),
}


def _point_maze(maze: str, dense: bool) -> Task:
    """A ball in a maze, D4RL's maze2d with a random goal: the goal stays, and every step spent there earns 1.

    Dense: every step earns exp(-distance to the goal).
    """
    return Task(
        f"pointmaze-{maze.lower()}" + ("-dense" if dense else ""),
        f"PointMaze_{maze}" + ("Dense" if dense else "") + "-v3",
        observation_size=4 + 2,
        action_size=2,
        return_scale=10.0,
        target_returns=(300.0, 20.0),
        random_return=_POINT_REFERENCES[maze, dense][0],
        expert_return=_POINT_REFERENCES[maze, dense][1],
        control_period_s=0.01,
        max_steps=_POINT_HORIZONS[maze],
        reference="dsf",
        observation_keys=("observation", "desired_goal"),
        env_kwargs={"continuing_task": True, "reset_target": False},
        extra=ROBOTICS_EXTRA,
        never_terminates=True,
    )


# Random: 1000 episodes (dsf-data reference cartpole --episodes 1000); expert: the horizon, one point per step.
_CART_POLE = Task(
    "cartpole", "CartPole-v1", 4, 2, 100.0, (500.0,), 22.6, 500.0, 0.02, 500, discrete=True, reference="dsf"
)

ENVIRONMENT_FACT = "environment"
"""Name of what a checkpoint's header and a network's provenance say of an environment that is no registered one."""
TASK_FACT = "task_definition"
"""The same of a task that is no registered one, see :class:`~dsf.tasks.definition.TaskDefinition`."""

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *_LOCOMOTION,
        *_ADROIT,
        *(_ant_maze(maze, steps) for maze, steps in {"UMaze": 700, "Medium": 1000, "Large": 1000}.items()),
        *(_point_maze(maze, dense) for maze in _POINT_HORIZONS for dense in (False, True)),
        _CART_POLE,
        *MAZE_TASKS,
    )
}

_SAME_DYNAMICS = {
    # Returns of the two versions agree within a point.
    "Hopper-v4": "hopper",
    "HalfCheetah-v4": "halfcheetah",
    # The same mazes, with more starts and goals to collect data from.
    "AntMaze_Medium_Diverse_GR-v4": "antmaze-medium",
    "AntMaze_Large_Diverse_GR-v4": "antmaze-large",
    # What D4RL's Adroit data were recorded in, and what Gymnasium-Robotics called that: its door, hammer and relocate
    # score about 0.3 points differently (a sign in the reach term).
    **{f"{name}-v0": name for name in ("pen", "door", "hammer", "relocate")},
    **{f"AdroitHand{name.capitalize()}-v0": name for name in ("pen", "door", "hammer", "relocate")},
}
OTHER_DYNAMICS = {
    "Walker2d-v4": "its foot friction is 0.9 and that of Walker2d-v5 is 1.9, so they do not mix: use Walker2d-v5 data",
}
"""Environments that look like a registered task's and behave otherwise."""


def get_task(name: str) -> Task:
    """Look a task up by name, which may end with -delayed.

    Raises:
        UserError: no task has this name.
    """
    base = name.removesuffix(DELAYED)
    if base not in TASKS:
        raise UserError(f"unknown task '{name}': choose one of {', '.join(sorted(TASKS))}")
    return TASKS[base] if base == name else TASKS[base].delayed()


def described_task(name: str, facts: Mapping[str, Any]) -> Task:
    """The task of a policy, in the environment that its data were recorded in, with the targets that these hold.

    Args:
        name: of the registered task.
        facts: a checkpoint's header or a network's provenance. Where it says nothing of environment and returns, the
            registered task is meant.

    Raises:
        UserError: no task has this name, or what is said describes no environment.
    """
    task = get_task(name) if facts.get(TASK_FACT) is None else _stated_task(name, facts[TASK_FACT])
    if (environment := facts.get(ENVIRONMENT_FACT)) is not None:
        task = task.as_recorded(RecordedEnvironment.from_json(environment))
    returns = DataReturns.stated(facts)
    return task if returns is None else task.with_data(returns.lowest, returns.highest, returns.targets)


def _stated_task(name: str, stated: Any) -> Task:
    """The task that a checkpoint or a network carries.

    Raises:
        UserError: it is not complete, or another one than it is called.
    """
    task = own_task(TaskDefinition.from_json(stated, TASK_FACT), TASK_FACT)
    task = task.delayed() if name == f"{task.name}{DELAYED}" else task
    if task.name != name:
        raise UserError(f"{TASK_FACT}: it defines task '{task.name}', and '{name}' is meant: make the file again")
    return task


def own_task(definition: TaskDefinition, where: str) -> Task:
    """A task that no registry holds.

    Args:
        definition: of it, complete but for the environment's arguments, names, control period and references.
        where: it stands, for messages.

    Raises:
        UserError: something is missing, or the name is a registered task's.
    """
    name, size, scale = definition.name, definition.observation_size, definition.return_scale
    targets, horizon, discrete = definition.target_returns, definition.horizon, definition.discrete
    needed = {
        "name": name,
        "observation_size": size,
        "action_low and action_high, or choices": discrete,
        "return_scale": scale,
        "target_returns": targets,
        "horizon": horizon,
    }
    if lacking := [field for field, value in needed.items() if value is None]:
        raise UserError(f"{where}: {', '.join(lacking)} is missing: add it")
    assert name is not None and size is not None and scale is not None and targets is not None and horizon is not None
    if name.removesuffix(DELAYED) in TASKS or name.endswith(DELAYED):
        raise UserError(f"{where}: name is '{name}', and dsf has a task of that name: choose another")
    low, high = ((), ()) if discrete else definition.bounds
    components = len(low)
    if not discrete and len(high) != components:
        raise UserError(f"{where}: action_low and action_high differ in length: give one number for each component")
    usual = all(value == -1.0 for value in low) and all(value == 1.0 for value in high)
    count = definition.choices if definition.choices is not None else components
    for field, names, wanted in (
        ("observation_names", definition.observation_names, size),
        ("action_names", definition.action_names, count),
    ):
        if names is not None and len(names) != wanted:
            raise UserError(f"{where}: {field} are {len(names)}, expected {wanted}: correct it")
    references = definition.random_return is not None and definition.expert_return is not None
    return Task(
        name=name,
        env_id=definition.env_id,
        observation_size=size,
        action_size=count,
        return_scale=scale,
        target_returns=targets,
        random_return=0.0 if definition.random_return is None else definition.random_return,
        expert_return=1.0 if definition.expert_return is None else definition.expert_return,
        control_period_s=definition.control_period_s,
        max_steps=horizon,
        discrete=bool(discrete),
        reference=(definition.reference or OWN_LABEL) if references else "",
        definition=definition,
        observation_parts=definition.paths,
        action_low=() if usual else low,
        action_high=() if usual else high,
        first_choice=definition.first_choice or 0,
    )


def notes_on(task: Task, targets: Sequence[float], facts: Mapping[str, Any]) -> list[str]:
    """What a reader of scores has to know, a line each: of the environment, and of targets.

    Args:
        task: that is scored on.
        targets: returns that are asked for (reward units).
        facts: a checkpoint's header, or a network's provenance.

    Raises:
        UserError: the facts state no returns where they should.
    """
    notes = [] if task.recorded is None else [recorded_note(task)]
    if task.definition is not None and not task.reference:
        notes.append(
            f"task {task.name} has no reference returns: its returns are reported as they are, without a score"
        )
    returns = DataReturns.stated(facts)
    if returns is not None and (note := returns.note(targets)) is not None:
        notes.append(note)
    return notes


def recorded_note(task: Task) -> str:
    """That a task runs in the environment of its data, or in place of one that nobody knows, which has no scores."""
    assert task.recorded is not None
    if task.recorded.other_id:
        return (
            f"the data say that they were recorded in {task.recorded.other_id}: {task.env_id} stands for it, unscored"
        )
    return f"the data were recorded in {task.world}: it runs like that, and has no reference returns, so no score"


def same_robot(one: Task, other: Task) -> bool:
    """Whether two tasks differ in the delay of their rewards at most, so that a score means the same of both."""
    names = {task.name.removesuffix(DELAYED) for task in (one, other)}
    if len(names) > 1 or one.recorded != other.recorded:
        return False
    return (one.definition is None) == (other.definition is None) and same_interface(one, other)


def same_interface(one: Task, other: Task) -> bool:
    """Whether policies of two tasks read and answer the same: sizes, order, bounds and the scale of returns."""

    def interface(task: Task) -> tuple[Any, ...]:
        sizes = (task.observation_size, task.action_size, task.discrete, task.return_scale)
        return (*sizes, task.paths, task.action_low, task.action_high, task.first_choice)

    return interface(one) == interface(other)


def task_for_env(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> Task:
    """Look a task up by the Gymnasium id that a dataset names; another horizon there makes no difference.

    Args:
        env_id: Gymnasium id.
        env_kwargs: what that environment was made with; tells dense from sparse rewards.

    Raises:
        UserError: no registered task uses this environment, or another version of it behaves differently.
    """
    by_env = {task.env_id: task for task in TASKS.values()}
    if env_id in _SAME_DYNAMICS:
        return TASKS[_SAME_DYNAMICS[env_id]]
    if env_id in OTHER_DYNAMICS:
        raise UserError(f"environment '{env_id}' cannot stand for a registered task: {OTHER_DYNAMICS[env_id]}")
    reward = (env_kwargs or {}).get("reward_type")
    base, _, version = env_id.rpartition("-")
    if reward == "dense" and env_id.startswith("PointMaze") and not base.endswith("Dense"):
        env_id = f"{base}Dense-{version}"
    require_task_mazes(env_id, env_kwargs or {})
    if env_id in by_env and not (reward == "sparse" and env_id.startswith("AdroitHand")):
        return by_env[env_id]
    known = ", ".join(sorted(by_env))
    raise UserError(f"environment '{env_id}' belongs to no registered task: known environments are {known}")

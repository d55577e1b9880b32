"""Any Gymnasium environment as a task for a network: the network's way of asking for returns, no reference scores."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsf.export.network.network import Network
from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.tasks import Task
from dsf.tasks.recorded import stretched
from dsf.tasks.registry import described_task
from dsf.tasks.task import import_mujoco

if TYPE_CHECKING:
    import gymnasium

LARGEST_BOUND = 1e9
"""Bounds of actions beyond this mean that there are none, as float32's largest number does."""
NO_REFERENCE = math.nan
"""Nobody has measured random and expert returns of an environment that is no registered task."""


@dataclass(frozen=True)
class EnvTask(Task):
    """An environment that is no registered task; its name is its id, and it has no scores.

    Attributes:
        rescaled: actions in [-1, 1] are stretched to the environment's own bounds.
        notes: what a reader of a run's figures has to know.
    """

    rescaled: bool = False
    notes: tuple[str, ...] = ()

    def make_env(self) -> gymnasium.Env:
        """Create a fresh environment.

        Raises:
            UserError: it cannot be made.
        """
        try:
            env = super().make_env()
        except Exception as error:  # of Gymnasium, of a missing dependency, or anything in the environment's own code
            raise UserError(f"--env {self.env_id} cannot be made: {_told(error)}") from None
        return stretched(env) if self.rescaled else env


def env_task(env_id: str, network: Network) -> EnvTask:
    """The task of running a network in an environment.

    Args:
        env_id: Gymnasium id, or module:id for one that a module registers.
        network: whose own task says how returns are asked for, and the horizon where the environment has none.

    Raises:
        UserError: there is no such environment, it cannot be made, or its spaces do not fit the network.
    """
    own, horizon = described_task(network.task, network.provenance), _horizon(env_id)
    actions = network.readout.size
    draft = EnvTask(
        name=env_id,
        env_id=env_id,
        observation_size=network.encoder.features - actions - 1,
        action_size=actions,
        return_scale=own.return_scale,
        target_returns=own.target_returns,
        random_return=NO_REFERENCE,
        expert_return=NO_REFERENCE,
        control_period_s=math.nan,
        max_steps=horizon or own.max_steps,
        discrete=network.readout.head == "choice",
        reference="",
        delayed_reward=own.delayed_reward,
    )
    with contextlib.closing(draft.make_env()) as env:
        _require_observations(env.observation_space, draft, network)
        bounds, period = _action_bounds(env.action_space, draft, network), _control_period(env)
    rescaled = bounds is not None and not (np.all(bounds[0] == -1.0) and np.all(bounds[1] == 1.0))
    notes = [f"{env_id} is run as it is, not as a registered task: its returns have no scores"]
    if horizon is None:
        notes.append(f"{env_id} states no horizon: episodes are cut after {own.max_steps} steps, as in {own.name}")
    if rescaled:
        assert bounds is not None
        low, high = (", ".join(f"{value:g}" for value in np.unique(end)) for end in bounds)
        notes.append(f"actions in [-1, 1] are stretched to the bounds of {env_id}: low {low}, high {high}")
    return dataclasses.replace(draft, rescaled=rescaled, control_period_s=period, notes=tuple(notes))


def _horizon(env_id: str) -> int | None:
    """Steps after which the environment's registration cuts an episode; None where it never does (0 and -1 mean that).

    Raises:
        UserError: nothing is registered under this id, or its module cannot be imported.
    """
    import gymnasium

    import_mujoco()  # before the module does
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            _import_named(module)
        horizon = gymnasium.spec(name).max_episode_steps
        return horizon if horizon is not None and horizon > 0 else None
    except Exception as error:
        raise UserError(f"--env {env_id}: {_told(error)}; module:id imports a module that registers it") from None


def _import_named(module: str) -> None:
    """Import a module that the command line names, from the working directory first, as ``python -m`` does.

    The directory stays the last place to look, for what the module imports later; workers inherit it.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        importlib.import_module(module)
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def _told(error: Exception) -> str:
    """What an exception says, on one line; its type, too, where Gymnasium did not word it."""
    from gymnasium.error import Error

    text = " ".join(str(error).split())
    return text if isinstance(error, (Error, ImportError)) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _require_observations(space: gymnasium.Space, task: EnvTask, network: Network) -> None:
    """Check that a network can read an environment.

    Raises:
        UserError: its observations are no vector, or one of another length.
    """
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or len(space.shape) != 1:
        shape = f" of shape {space.shape}" if isinstance(space, Box) else ""
        raise UserError(
            f"--env {task.env_id}: its observations are a {type(space).__name__}{shape}, a network reads a vector: "
            "register it with gymnasium.wrappers.FlattenObservation around it"
        )
    if space.shape[0] != task.observation_size:
        raise UserError(
            f"--env {task.env_id}: its observations have {space.shape[0]} numbers, this network (of task "
            f"{network.task}) reads {task.observation_size}: take a network that fits"
        )


def _action_bounds(space: gymnasium.Space, task: EnvTask, network: Network) -> tuple[FloatArray, FloatArray] | None:
    """Lowest and highest actions of an environment; None for one of choices.

    Raises:
        UserError: the network's answers are no actions of it.
    """
    from gymnasium.spaces import Box, Discrete

    told = f"--env {task.env_id}: its actions are {space}, this network (of task {network.task}) gives"
    if task.discrete:
        if not isinstance(space, Discrete) or (int(space.n), int(space.start)) != (task.action_size, 0):
            raise UserError(f"{told} one of {task.action_size} choices, counted from 0: take a network that fits")
        return None
    if not isinstance(space, Box) or space.shape != (task.action_size,):
        raise UserError(f"{told} {task.action_size} numbers in [-1, 1]: take a network that fits")
    if not np.issubdtype(space.dtype, np.floating):
        raise UserError(f"{told} numbers in [-1, 1]: whole numbers are no scale for them, wrap it to round as it needs")
    if not (space.is_bounded("both") and np.all(space.low < space.high)):
        raise UserError(f"{told} numbers in [-1, 1]: actions without bounds have no scale, wrap it to give it some")
    if not np.abs((space.low, space.high)).max() <= LARGEST_BOUND:
        raise UserError(
            f"{told} numbers in [-1, 1]: bounds beyond {LARGEST_BOUND:g} are no scale, wrap it to give it some"
        )
    return space.low, space.high


def _control_period(env: gymnasium.Env) -> float:
    """Simulated seconds between two decisions; not a number where the environment does not say."""
    period: Any = getattr(env.unwrapped, "dt", None)
    known = isinstance(period, (int, float, np.number)) and not isinstance(period, bool)
    return float(period) if known and math.isfinite(period) and period > 0 else math.nan

"""Any Gymnasium environment as a task for a network: the network's way of asking for returns, no reference scores."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsf.export.network.network import Network
from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.tasks import Task
from dsf.tasks.mujoco_import import import_mujoco
from dsf.tasks.own_environment import import_named
from dsf.tasks.own_environment import told as _told
from dsf.tasks.recorded import stretched
from dsf.tasks.registry import described_task
from dsf.tasks.spaces import LARGEST_BOUND, SEPARATOR, observation_layout

if TYPE_CHECKING:
    import gymnasium

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
        observation_keys=own.observation_keys,
        observation_parts=own.observation_parts,
    )
    with contextlib.closing(draft.make_env()) as env:
        nested = _require_observations(env.observation_space, draft, network)
        kept = own.definition is not None and not own.discrete
        if kept:
            _require_bounds_inside(env.action_space, own, draft)
            draft = dataclasses.replace(draft, action_low=own.action_low, action_high=own.action_high)
        bounds = None if kept else _action_bounds(env.action_space, draft, network)
        period = _control_period(env)
        first_choice = int(getattr(env.action_space, "start", 0)) if draft.discrete else 0
    rescaled = bounds is not None and not (np.all(bounds[0] == -1.0) and np.all(bounds[1] == 1.0))
    notes = [f"{env_id} is run as it is, not as a registered task: its returns have no scores"]
    if horizon is None:
        notes.append(f"{env_id} states no horizon: episodes are cut after {own.max_steps} steps, as in {own.name}")
    if rescaled:
        assert bounds is not None
        low, high = (", ".join(f"{value:g}" for value in np.unique(end)) for end in bounds)
        notes.append(f"actions in [-1, 1] are stretched to the bounds of {env_id}: low {low}, high {high}")
    if not nested:
        draft = dataclasses.replace(draft, observation_keys=(), observation_parts=())
    return dataclasses.replace(
        draft, rescaled=rescaled, control_period_s=period, first_choice=first_choice, notes=tuple(notes)
    )


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
            import_named(module)
        horizon = gymnasium.spec(name).max_episode_steps
        return horizon if horizon is not None and horizon > 0 else None
    except Exception as error:
        raise UserError(f"--env {env_id}: {_told(error)}; module:id imports a module that registers it") from None


def _require_observations(space: gymnasium.Space, task: EnvTask, network: Network) -> bool:
    """Check that a network can read an environment.

    Returns:
        whether its observations have the parts that the network's own task has.

    Raises:
        UserError: its observations are neither these parts nor a vector, or have another length.
    """
    from gymnasium.spaces import Box, Dict, Tuple

    if task.paths and isinstance(space, (Dict, Tuple)):
        layout = observation_layout(f"--env {task.env_id}", space)
        lacking = [SEPARATOR.join(path) for path in task.paths if path not in layout]
        size = sum(layout.get(path, 0) for path in task.paths)
        if lacking or size != task.observation_size:
            parts = f"lack {', '.join(lacking)}" if lacking else f"have {size} numbers in these parts"
            raise UserError(
                f"--env {task.env_id}: its observations {parts}, this network (of task {network.task}) reads "
                f"{task.observation_size}: take a network that fits"
            )
        return True
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
    return False


def _require_bounds_inside(space: gymnasium.Space, own: Task, task: EnvTask) -> None:
    """Check that an environment takes whatever a network of one's own robot commands: what that means is a matter of
    units, so it is not stretched to other bounds.

    Raises:
        UserError: the actions have another kind or number, or the network's bounds lie beyond the environment's.
    """
    from gymnasium.spaces import Box

    told = f"--env {task.env_id}: its actions are {space}, this network (of task {own.name}) gives"
    if not isinstance(space, Box) or space.shape != (task.action_size,):
        raise UserError(f"{told} {task.action_size} numbers: take a network that fits")
    low, high = (np.array(end) for end in own.command_bounds or ((-1.0,), (1.0,)))
    if not (np.all(low >= space.low) and np.all(high <= space.high)):
        ends = f"{', '.join(f'{value:g}' for value in low)} and {', '.join(f'{value:g}' for value in high)}"
        raise UserError(f"{told} numbers between {ends}, which lie beyond them: take a network that fits")


def _action_bounds(space: gymnasium.Space, task: EnvTask, network: Network) -> tuple[FloatArray, FloatArray] | None:
    """Lowest and highest actions of an environment; None for one of choices.

    Raises:
        UserError: the network's answers are no actions of it.
    """
    from gymnasium.spaces import Box, Discrete

    told = f"--env {task.env_id}: its actions are {space}, this network (of task {network.task}) gives"
    if task.discrete:
        if not isinstance(space, Discrete) or int(space.n) != task.action_size:
            raise UserError(f"{told} one of {task.action_size} choices: take a network that fits")
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

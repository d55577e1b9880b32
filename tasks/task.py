"""What one control task is: its environment, how a policy talks to it, and how its returns are scored."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.shell.installed import require_installed
from dsf.tasks.definition import TaskDefinition
from dsf.tasks.mujoco_import import import_mujoco
from dsf.tasks.own_environment import built
from dsf.tasks.recorded import RecordedEnvironment
from dsf.tasks.spaces import (
    ActionLayout,
    PartPath,
    action_layout,
    observation_layout,
    part_of,
    shrunk,
    stretched,
)

if TYPE_CHECKING:
    import gymnasium

SCORE_SCALE = 100.0
"""D4RL scores are percentages: 0 is a random policy, 100 the reference expert."""
DELAYED = "-delayed"
"""Ends the name of a task whose rewards are delayed."""
ROBOTICS_EXTRA = "robotics"
LONGEST_REASON = 200
"""Characters of an environment's own account of why it cannot be built."""
KNOWN_MODEL_WARNING = "settotalmass"
"""MuJoCo 3.17 finds this attribute of Gymnasium's HalfCheetah deprecated; nothing here can change that."""


@dataclass(frozen=True)
class Task:
    """One closed-loop control task.

    Attributes:
        name: short name used on the command line.
        env_id: Gymnasium id; empty where there is no environment.
        observation_size: length of the flat observation vector.
        action_size: length of the action vector, every action in [-1, 1] as policies answer and tokens hold it; of a
            discrete task, the number of choices.
        return_scale: returns-to-go are divided by this before a policy sees them (reward units).
        target_returns: returns to ask for, best first (reward units); the first is the default.
        random_return: mean return of the reference's random policy (reward units).
        expert_return: mean return of the reference's expert (reward units).
        control_period_s: simulated seconds between two decisions.
        max_steps: decisions after which an episode is cut.
        discrete: policies return one score per choice, the best is executed, and tokens hold it one-hot.
        reference: whose random and expert returns these are: "D4RL", or "dsf" where D4RL has none for this environment;
            empty where nobody has measured any, or a score would mislead: it is then not shown.
        observation_keys: parts of a Dict observation (goal environments), in the order of the flat vector.
        env_kwargs: what the environment is made with, beside its horizon.
        delayed_reward: rewards come with the last step only (DSFormer's delayed-reward experiment), so that the
            return-to-go stays at the target all along. Such a task is called NAME-delayed.
        extra: the optional part of dsf that brings the environment; empty where none is needed.
        registered_by: the module that registers the environment; empty where Gymnasium knows it.
        recorded: what differs where this is the environment that some data were recorded in, and no registered one.
        never_terminates: the environment itself never ends an episode, only the horizon does.
        definition: what a dataset or a user says of a task that no registry holds; it travels with checkpoint and
            network.
        observation_parts: paths into a nested observation, in the order of the flat vector.
        action_low, action_high: bounds of the environment's actions where policies' answers in [-1, 1] are stretched to
            them.
        first_choice: the number that the environment has for the first choice.
    """

    name: str
    env_id: str
    observation_size: int
    action_size: int
    return_scale: float
    target_returns: tuple[float, ...]
    random_return: float
    expert_return: float
    control_period_s: float
    max_steps: int
    discrete: bool = False
    reference: str = "D4RL"
    observation_keys: tuple[str, ...] = ()
    env_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    delayed_reward: bool = False
    extra: str = ""
    registered_by: str = ""
    never_terminates: bool = False
    recorded: RecordedEnvironment | None = field(default=None, hash=False)
    definition: TaskDefinition | None = field(default=None, hash=False)
    observation_parts: tuple[PartPath, ...] = ()
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
    first_choice: int = 0

    @property
    def command_bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lowest and highest actions of the environment behind all its wrappers; empty where they are -1 and 1, and
        where actions are choices.
        """
        if self.recorded is not None and self.recorded.low:
            return self.recorded.low, self.recorded.high
        return self.action_low, self.action_high

    @property
    def world(self) -> str:
        """The environment in words, on one line: its id, and how it differs from the registered one."""
        if self.definition is not None:
            return self.env_id or "no environment"
        return self.env_id if self.recorded is None else self.recorded.describe(self.env_id)

    @property
    def score_label(self) -> str:
        """How a score of this task is named wherever it is shown, such as D4RL-normalised."""
        return f"{self.reference}-normalised"

    def score(self, episode_return: float) -> float:
        """Normalised score: 100 * (return - random) / (expert - random) (Fu et al. 2020, section 5)."""
        return SCORE_SCALE * (episode_return - self.random_return) / (self.expert_return - self.random_return)

    def shown_score(self, episode_return: float) -> float | None:
        """The score where there are references to score by, else None."""
        return self.score(episode_return) if self.reference else None

    def without_score(self) -> Task:
        """This task, its scores not shown; they still compare levels, in points of the same size."""
        return replace(self, reference="")

    def as_recorded(self, recorded: RecordedEnvironment) -> Task:
        """This task in the environment that data were recorded in; it has no scores."""
        return replace(
            self,
            observation_size=recorded.observation_size,
            action_size=recorded.action_size,
            control_period_s=recorded.control_period_s,
            max_steps=recorded.max_steps or self.max_steps,
            env_kwargs={**self.env_kwargs, **recorded.kwargs},
            reference="",
            recorded=recorded,
        )

    def with_data(self, lowest: float, highest: float, targets: tuple[float, ...] = ()) -> Task:
        """This task as data know it.

        Args:
            lowest: return of their episodes (reward units).
            highest: likewise.
            targets: returns to ask for, if not the registered ones.
        """
        task = replace(self, target_returns=targets) if targets else self
        if task.definition is not None and not task.reference:
            # Nobody has said what a good return is, nor where returns begin: one point is one percent of their span.
            return replace(task, random_return=lowest, expert_return=highest if highest > lowest else lowest + 1.0)
        if task.recorded is None:
            return task
        # Reference returns are of another environment: one point is one percent of the best that the data hold.
        scale = max(abs(lowest), abs(highest)) or 1.0
        return replace(task, random_return=0.0, expert_return=scale)

    def delayed(self) -> Task:
        """This task with its rewards delayed to the end of the episode."""
        return self if self.delayed_reward else replace(self, name=f"{self.name}{DELAYED}", delayed_reward=True)

    def feature(self, index: int) -> str:
        """What a token's number is, by its place, such as observation[3], counted from 0."""
        stated = self.definition
        observations = None if stated is None else stated.observation_names
        actions = None if stated is None else stated.action_names
        if index < self.observation_size:
            return f"observation[{index}]" if observations is None else observations[index]
        action = index - self.observation_size
        if action >= self.action_size:
            return "return-to-go"
        return f"previous action[{action}]" if actions is None else f"previous {actions[action]}"

    def flat_observation(self, observation: Any) -> FloatArray:
        """The observation as float64 (..., observation_size): one step's, or a dataset's dict of (..., d) arrays.

        Raises:
            UserError: a part of a Dict observation is missing.
        """
        if not self.paths:
            return np.asarray(observation, np.float64)
        parts, missing = self.parts_of(observation)
        if missing:
            raise UserError(
                f"an observation of {self.env_id or self.name} lacks {', '.join(missing)}: task {self.name} requires "
                "them"
            )
        return np.concatenate([np.asarray(part, np.float64) for part in parts.values()], axis=-1)

    @property
    def paths(self) -> tuple[PartPath, ...]:
        """The parts of an observation in the order of the flat vector; empty where it is a vector."""
        return self.observation_parts or tuple((key,) for key in self.observation_keys)

    def parts_of(self, observation: Any) -> tuple[dict[str, Any], list[str]]:
        """The parts of a nested observation by their names, as the flat vector has them, and names of missing ones."""
        found: dict[str, Any] = {}
        missing = []
        for path in self.paths:
            name = "/".join(path)
            try:
                found[name] = part_of(observation, path)
            except (KeyError, IndexError, TypeError, ValueError):
                missing.append(name)
        return found, missing

    def policy_actions(self, recorded: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Recorded actions (steps, action_size) as a policy has to answer: other bounds of the environment become -1
        and 1.
        """
        if self.action_low:
            return shrunk(recorded, self.action_low, self.action_high)
        return recorded if self.recorded is None else self.recorded.shrunk(recorded)

    def env_action(self, action: FloatArray) -> Any:
        """What the environment gets for a policy's answer (action_size,): clipped to [-1, 1] and stretched to bounds
        that are others; or the number of the best choice. A task of one's own gets 32-bit floats, which its bounds are.
        """
        if self.discrete:
            return int(np.argmax(action)) + self.first_choice
        if self.action_low:
            return stretched(action, self.action_low, self.action_high).astype(np.float32)
        clipped = np.clip(action, -1.0, 1.0)
        return clipped if self.definition is None else clipped.astype(np.float32)

    def executed(self, action: FloatArray) -> FloatArray:
        """What the next token holds as previous action (action_size,): clipped to [-1, 1], or one-hot."""
        if self.discrete:
            return np.eye(self.action_size)[np.argmax(action)]
        return np.clip(action, -1.0, 1.0)

    def register(self) -> None:
        """Make Gymnasium know the environment.

        Raises:
            UserError: the optional part of dsf that brings it is not installed.
        """
        import gymnasium

        import_mujoco()
        if self.extra:
            require_installed(self.extra, "gymnasium_robotics")
            # Importing it registers its environments; it prints a notice about tasks that are none of ours.
            with contextlib.redirect_stderr(io.StringIO()):
                import gymnasium_robotics
            gymnasium.register_envs(gymnasium_robotics)
        if self.registered_by:
            importlib.import_module(self.registered_by)

    def make_env(self) -> gymnasium.Env:
        """Create a fresh environment. MuJoCo is imported here, so that naming a task stays cheap.

        Raises:
            UserError: the optional part of dsf that brings it is not installed, or data name an environment that cannot
                be built here.
        """
        if self.definition is not None:
            return self._own()
        self.register()
        if self.recorded is None:
            return self._made()
        try:
            with warnings.catch_warnings():
                # Whole bounds in a file become 64-bit floats, actions have 32 bits.
                warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
                return self.recorded.wrapped(self._made())
        except Exception as error:  # whatever a constructor makes of arguments that come from a file
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"{self.world} cannot be built here ({reason[:LONGEST_REASON]})") from None

    def _own(self) -> gymnasium.Env:
        """The environment of a task that no registry holds.

        Raises:
            UserError: there is none, or see :meth:`require_fits`.
        """
        assert self.definition is not None
        import_mujoco()
        with _quiet_construction():
            env = built(self.name, self.definition, self.max_steps)
        try:
            self.require_fits(env)
        except UserError:
            env.close()
            raise
        return env

    def require_fits(self, env: gymnasium.Env) -> None:
        """Refuse an environment that a policy of this task cannot read or must not drive.

        Raises:
            UserError: its observations or actions have other sizes, or its bounds lie inside the task's.
        """
        where = f"task {self.name}: environment {self.env_id}"
        layout = observation_layout(where, env.observation_space)
        missing = ["/".join(path) for path in self.paths if path not in layout]
        size = sum(layout[path] for path in self.paths) if self.paths and not missing else sum(layout.values())
        nested = set(layout) != {()}
        if missing or size != self.observation_size or nested != bool(self.paths):
            found = (
                f"lacks {', '.join(missing)}"
                if missing
                else f"gives {size} numbers" + (" in parts" if nested and not self.paths else "")
            )
            raise UserError(
                f"{where} {found} as observation, and the task has {self.observation_size}: name the environment of "
                "these data"
            )
        try:
            actions = action_layout(where, env.action_space)
        except UserError:
            if self.discrete or not _is_vector(env.action_space, self.action_size):
                raise
            return  # the task's bounds are narrower than none
        if bool(actions.choices) != self.discrete or actions.size != self.action_size:
            kind = "choices" if actions.choices else "numbers"
            own = "choices" if self.discrete else "numbers"
            raise UserError(
                f"{where} takes {actions.size} {kind} as action, and the task has {self.action_size} {own}: name the "
                "environment of these data"
            )
        if self.discrete and actions.first_choice != self.first_choice:
            raise UserError(
                f"{where} counts its choices from {actions.first_choice}, and the task from {self.first_choice}: "
                "correct first_choice, or name the environment of these data"
            )
        self._require_inside(where, actions)

    def _require_inside(self, where: str, actions: ActionLayout) -> None:
        """Refuse bounds that the environment does not take."""
        if self.discrete:
            return
        low, high = (self.action_low, self.action_high) if self.action_low else ((-1.0,), (1.0,))
        beyond = (np.array(low) < np.array(actions.low)) | (np.array(high) > np.array(actions.high))
        if beyond.any():
            index = int(np.argmax(beyond))
            ends = f"{actions.low[index]:g} and {actions.high[index]:g}"
            raise UserError(
                f"{where} takes action[{index}] between {ends}, and the task's bounds lie beyond: correct "
                "action_low and action_high"
            )

    def _made(self) -> gymnasium.Env:
        """The environment alone."""
        import gymnasium

        with _quiet_construction():
            env = gymnasium.make(self.env_id, max_episode_steps=self.max_steps, **self.env_kwargs)
        # Mazes write their model to a file in the temporary directory, load it, and leave it there.
        model_file = getattr(env.unwrapped, "tmp_xml_file_path", None)
        if model_file is not None:
            with contextlib.suppress(OSError):
                Path(model_file).unlink()
        return env


def _is_vector(space: Any, size: int) -> bool:
    from gymnasium.spaces import Box

    return isinstance(space, Box) and space.shape == (size,) and np.issubdtype(space.dtype, np.floating)


@contextlib.contextmanager
def _quiet_construction() -> Iterator[None]:
    """Keep the two warnings that these environments always raise away from the screen and from MUJOCO_LOG.TXT."""
    import mujoco

    def pass_on(message: str) -> None:
        if KNOWN_MODEL_WARNING not in message:
            print(f"MuJoCo: {message}", file=sys.stderr)

    mujoco.set_mju_user_warning(pass_on)
    try:
        with warnings.catch_warnings():
            # D4RL's mazes hold AntMaze v4, whose observation lacks the contact forces that v5 adds.
            warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
            yield
    finally:
        mujoco.set_mju_user_warning(None)

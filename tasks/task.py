"""What one control task is: its environment, how a policy talks to it, and how its returns are scored."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.shell.installed import require_installed

if TYPE_CHECKING:
    import gymnasium

SCORE_SCALE = 100.0
"""D4RL scores are percentages: 0 is a random policy, 100 the reference expert."""
DELAYED = "-delayed"
"""Ends the name of a task whose rewards are delayed."""
ROBOTICS_EXTRA = "robotics"
GRAPHICS_VARIABLE, NO_GRAPHICS = "MUJOCO_GL", "disabled"
"""What MuJoCo draws with; it reads that when it is imported."""
KNOWN_MODEL_WARNING = "settotalmass"
"""MuJoCo 3.17 finds this attribute of Gymnasium's HalfCheetah deprecated; nothing here can change that."""


@dataclass(frozen=True)
class Task:
    """One closed-loop control task.

    Attributes:
        name: short name used on the command line.
        env_id: Gymnasium id.
        observation_size: length of the flat observation vector.
        action_size: length of the action vector, every action in [-1, 1]; of a discrete task, the number of choices.
        return_scale: returns-to-go are divided by this before a policy sees them (reward units).
        target_returns: returns to ask for, best first (reward units); the first is the default.
        random_return: mean return of the reference's random policy (reward units).
        expert_return: mean return of the reference's expert (reward units).
        control_period_s: simulated seconds between two decisions.
        max_steps: decisions after which an episode is cut.
        discrete: policies return one score per choice, the best is executed, and tokens hold it one-hot.
        reference: whose random and expert returns these are: "D4RL", or "dsf" where D4RL has none for this environment.
        observation_keys: parts of a Dict observation (goal environments), in the order of the flat vector.
        env_kwargs: what the environment is made with, beside its horizon.
        delayed_reward: rewards come with the last step only (DSFormer's delayed-reward experiment), so that the
            return-to-go stays at the target all along. Such a task is called NAME-delayed.
        extra: the optional part of dsf that brings the environment; empty where none is needed.
        registered_by: the module that registers the environment; empty where Gymnasium knows it.
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

    @property
    def score_label(self) -> str:
        """How a score of this task is named wherever it is shown, such as D4RL-normalised."""
        return f"{self.reference}-normalised"

    def score(self, episode_return: float) -> float:
        """Normalised score: 100 * (return - random) / (expert - random) (Fu et al. 2020, section 5)."""
        return SCORE_SCALE * (episode_return - self.random_return) / (self.expert_return - self.random_return)

    def delayed(self) -> Task:
        """This task with its rewards delayed to the end of the episode."""
        return self if self.delayed_reward else replace(self, name=f"{self.name}{DELAYED}", delayed_reward=True)

    def feature(self, index: int) -> str:
        """What a token's number is, by its place, such as observation[3], counted from 0."""
        if index < self.observation_size:
            return f"observation[{index}]"
        action = index - self.observation_size
        return f"previous action[{action}]" if action < self.action_size else "return-to-go"

    def flat_observation(self, observation: Any) -> FloatArray:
        """The observation as float64 (..., observation_size): one step's, or a dataset's dict of (..., d) arrays.

        Raises:
            UserError: a part of a Dict observation is missing.
        """
        if not self.observation_keys:
            return np.asarray(observation, np.float64)
        missing = [key for key in self.observation_keys if key not in observation]
        if missing:
            raise UserError(
                f"an observation of {self.env_id} lacks {', '.join(missing)}: task {self.name} requires them"
            )
        return np.concatenate([np.asarray(observation[key], np.float64) for key in self.observation_keys], axis=-1)

    def env_action(self, action: FloatArray) -> Any:
        """What the environment gets for a policy's answer (action_size,): clipped to [-1, 1], or the best choice."""
        return int(np.argmax(action)) if self.discrete else np.clip(action, -1.0, 1.0)

    def executed(self, action: FloatArray) -> FloatArray:
        """What the next token holds as previous action (action_size,): clipped to [-1, 1], or one-hot."""
        if self.discrete:
            return np.eye(self.action_size)[np.argmax(action)]
        return np.clip(action, -1.0, 1.0)

    def make_env(self) -> gymnasium.Env:
        """Create a fresh environment. MuJoCo is imported here, so that naming a task stays cheap.

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
        with _quiet_construction():
            env = gymnasium.make(self.env_id, max_episode_steps=self.max_steps, **self.env_kwargs)
        # Mazes write their model to a file in the temporary directory, load it, and leave it there.
        model_file = getattr(env.unwrapped, "tmp_xml_file_path", None)
        if model_file is not None:
            with contextlib.suppress(OSError):
                Path(model_file).unlink()
        return env


def import_mujoco() -> None:
    """Import MuJoCo, also where the graphics that :data:`GRAPHICS_VARIABLE` asks for are not there, or are nonsense.

    Nothing here needs them, so they are switched off then, with a line that says so.
    """
    try:
        import mujoco
    except Exception as error:  # whatever the library behind it raises
        asked = os.environ.get(GRAPHICS_VARIABLE)
        if not asked or asked == NO_GRAPHICS:
            raise
        os.environ[GRAPHICS_VARIABLE] = NO_GRAPHICS
        import mujoco  # noqa: F401

        if multiprocessing.parent_process() is None:
            reason = " ".join(str(error).split())
            print(f"note: {GRAPHICS_VARIABLE}={asked} is left aside ({reason}): nothing here needs it", file=sys.stderr)


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

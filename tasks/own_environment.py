"""Environments of tasks that no registry holds: found by their id, never by a module that a file names.

An id is looked up among what Gymnasium knows once the installed packages have registered theirs. A module that
registers one when it is imported is named by the user: in a task file (``environment: module:Id``), or for every
command in :data:`MODULES_VARIABLE`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsf.shell.errors import UserError
from dsf.tasks.definition import TaskDefinition
from dsf.tasks.mujoco_import import import_mujoco

if TYPE_CHECKING:
    import gymnasium

MODULES_VARIABLE = "DSF_ENVIRONMENTS"
"""Names modules, commas between them, that register environments."""
MODULE = ":"
"""Between a module and an id."""
ROBOTICS_PACKAGE = "gymnasium_robotics"
LONGEST_REASON = 200
"""Characters of an environment's own account of what is wrong."""


def import_named(module: str) -> None:
    """Import a module that the user names, from the working directory first, as ``python -m`` does.

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


def without_module(text: str) -> str:
    """The id in what a user's own file says of an environment, after its module was imported, which every process that
    this one starts does, too.

    Raises:
        UserError: the module cannot be imported.
    """
    module, _, env_id = text.rpartition(MODULE)
    if module:
        import_mujoco()
        known = [one for one in os.environ.get(MODULES_VARIABLE, "").split(",") if one]
        os.environ[MODULES_VARIABLE] = ",".join(dict.fromkeys([*known, module]))
        _import_all()
    return env_id


def _import_all() -> None:
    """Import the modules that the user names.

    Raises:
        UserError: one cannot be imported.
    """
    for module in os.environ.get(MODULES_VARIABLE, "").split(","):
        if module and module not in sys.modules:
            try:
                import_named(module)
            except Exception as error:  # whatever the module's own code raises
                raise UserError(f"module '{module}' of an environment cannot be imported: {told(error)}") from None


def find(env_id: str) -> gymnasium.envs.registration.EnvSpec | None:
    """What is registered under an id here; None where nothing is.

    Raises:
        UserError: a module that the user names cannot be imported.
    """
    import gymnasium

    import_mujoco()  # before a module or package does
    _import_all()
    if MODULE in env_id or not env_id:  # Gymnasium would import what stands before the colon
        return None
    if env_id not in gymnasium.registry:
        with contextlib.suppress(ImportError), contextlib.redirect_stderr(io.StringIO()):
            gymnasium.register_envs(importlib.import_module(ROBOTICS_PACKAGE))
    return gymnasium.registry.get(env_id)


def missing(env_id: str) -> str:
    """What to do about an environment that is not registered here."""
    return (
        f"environment '{env_id}' is not installed here: install the package that brings it, or name the module that "
        f"registers it, as {MODULES_VARIABLE}=module"
    )


def built(name: str, definition: TaskDefinition, max_steps: int) -> gymnasium.Env[Any, Any]:
    """The environment of a task.

    Args:
        name: of the task.
        definition: of it.
        max_steps: decisions after which an episode is cut.

    Raises:
        UserError: the task has none, it is not installed here, or cannot be made.
    """
    import gymnasium
    import gymnasium.wrappers

    if not definition.env_id:
        raise UserError(
            f"task {name} names no environment to run: give one with --env where there is that option, or as "
            "environment in its task file"
        )
    if find(definition.env_id) is None:
        raise UserError(f"task {name}: {missing(definition.env_id)}")
    try:
        arguments = definition.environment_arguments or {}
        env = gymnasium.make(definition.env_id, max_episode_steps=max_steps, **arguments)
        for wrapping in definition.wrappers:
            env = getattr(gymnasium.wrappers, wrapping.name)(env, **wrapping.kwargs)
    except Exception as error:  # of Gymnasium, of a missing dependency, or anything in the environment's own code
        raise UserError(f"task {name}: environment {definition.env_id} cannot be made: {told(error)}") from None
    return env


def told(error: Exception) -> str:
    """What an exception says, on one line; its type, too, where Gymnasium did not word it."""
    from gymnasium.error import Error

    text = " ".join(str(error).split())[:LONGEST_REASON]
    return text if isinstance(error, (Error, ImportError)) and text else f"{type(error).__name__}: {text}".rstrip(": ")

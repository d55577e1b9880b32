"""Recipes of the datasets that ``dsf-data collect`` makes: which behaviour policies, in which order, how noisy."""

from __future__ import annotations

from dataclasses import dataclass

from dsf.shell.errors import UserError
from dsf.train.data.names import LOCAL_NAMESPACE

REPLAY_SNAPSHOTS = 8
"""Actors, in the order of training, that stand for D4RL's replay buffer up to the medium policy."""
LOCOMOTION = ("hopper", "walker2d", "halfcheetah")
VERSIONS = {("hopper", "expert"): 1, ("hopper", "medium-expert"): 1}
"""Versions of the sets, where not 0: version 0 of these two had another expert (return 3110, now 3258)."""
FIRST_HOPPER_EXPERT = ("hopper_expert_v0", 0.3)
"""The expert of version 0, with its noise: the shipped network was trained on it."""
WAYPOINT_NOISE = 0.5
"""Standard deviation of the Gaussian on a waypoint controller's actions; D4RL's maze2d sets have the same."""
BALANCE_NOISE = 0.1
"""Share of random pushes among CartPole's."""

MAZE = "maze"
"""What ``dsf-data collect`` calls its sets of mazes, which have no recipe: see :mod:`dsf.train.data.maze_sets`."""

SAC = "SAC snapshots shipped with dsf"
CONTROLLER = "controller written by hand, part of dsf"


@dataclass(frozen=True)
class Recipe:
    """Which actors make a dataset, in which order; each contributes an equal share of the steps.

    Attributes:
        task: name of the task.
        family: first word of the dataset's name.
        role: the rest of it.
        actors: shipped actors or controllers, each with its noise. An actor's scales the standard deviation of its
            Gaussian (1 is the policy as it was trained); for a controller's see its class.
        algorithm: how Minari is told where the actions come from.
        version: of the Minari id.
    """

    task: str
    family: str
    role: str
    actors: tuple[tuple[str, float], ...]
    algorithm: str = SAC
    version: int = 0

    @property
    def name(self) -> str:
        """What ``dsf-data collect`` calls it; an old version says which."""
        old = self.version < VERSIONS.get((self.family, self.role), 0)
        return f"{self.family}-{self.role}" + (f"-v{self.version}" if old else "")

    @property
    def dataset_id(self) -> str:
        """Minari id of the dataset."""
        return f"{LOCAL_NAMESPACE}/{self.family}/{self.role}-v{self.version}"


def _locomotion(task: str) -> tuple[Recipe, ...]:
    """D4RL's roles: medium stops short of the expert, replay is the way there, medium-expert half of each."""
    medium, expert = (f"{task}_medium", 1.0), (f"{task}_expert", 1.0)
    replay = tuple((f"{task}_replay_{index}", 1.0) for index in range(REPLAY_SNAPSHOTS))
    actors = {"medium": (medium,), "medium-replay": replay, "medium-expert": (medium, expert), "expert": (expert,)}
    return tuple(Recipe(task, task, role, who, version=VERSIONS.get((task, role), 0)) for role, who in actors.items())


def _point_maze(role: str) -> Recipe:
    return Recipe(f"pointmaze-{role}", "pointmaze", role, (("waypoint", WAYPOINT_NOISE),), CONTROLLER)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(recipe for task in LOCOMOTION for recipe in _locomotion(task)),
        Recipe("hopper", "hopper", "medium-expert", (("hopper_medium", 1.0), FIRST_HOPPER_EXPERT)),
        *(_point_maze(maze + reward) for maze in ("open", "umaze", "medium", "large") for reward in ("", "-dense")),
        Recipe("cartpole", "cartpole", "expert", (("balance", BALANCE_NOISE),), CONTROLLER),
    )
}


def get_recipe(name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        UserError: no recipe has this name.
    """
    if name not in RECIPES:
        known = ", ".join(sorted([*RECIPES, MAZE]))
        raise UserError(f"unknown dataset '{name}': dsf-data can collect {known}")
    return RECIPES[name]

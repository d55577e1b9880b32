"""Datasets of experts' walks through mazes: which there are, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsf.tasks.maze_experts import EXPERTS, MazeExpert, check_expert
from dsf.tasks.maze_tasks import maze_task_name
from dsf.tasks.maze_views import OBSERVATIONS, MazeObservation, check_observation
from dsf.tasks.mazes import DEFAULT_SIZE, SPLIT_ENDS, SPLITS, Split, check_split
from dsf.train.data.names import LOCAL_NAMESPACE
from dsf.train.data.recipes import MAZE

DEFAULT_MAZES = 50_000
"""Mazes of the paper's data (STRL, arXiv 2505.14533)."""
SPLIT_RULE = "BLAKE2b-64 of the walls, eight cells to a byte, modulo 100"


@dataclass(frozen=True)
class MazeSet:
    """One dataset.

    Attributes:
        observation: what the tokens show.
        expert: who walks.
        split: where the mazes come from.

    Raises:
        UserError: one of the three is unknown.
    """

    observation: MazeObservation = "walls"
    expert: MazeExpert = "wall_follower"
    split: Split = "train"

    def __post_init__(self) -> None:
        check_observation(self.observation)
        check_expert(self.expert)
        check_split(self.split)

    @property
    def dataset_id(self) -> str:
        """Minari id; training sets do not say so."""
        split = "" if self.split == "train" else f"-{self.split}"
        return f"{LOCAL_NAMESPACE}/{MAZE}/{self.observation}-{self.expert}{split}-v0"

    @property
    def task(self) -> str:
        """Name of the task."""
        return maze_task_name(self.observation)

    @property
    def algorithm(self) -> str:
        """Where the actions come from."""
        return f"maze expert {self.expert}, part of dsf"

    @property
    def options(self) -> str:
        """What follows ``dsf-data collect`` on the command line."""
        return f"{MAZE} --observation {self.observation} --expert {self.expert} --split {self.split}"

    @property
    def metadata(self) -> dict[str, Any]:
        """What the dataset's metadata say beside Minari's own: which mazes are in it, and which cannot be."""
        shares = {split: end - begin for split, begin, end in zip(SPLITS, (0, *SPLIT_ENDS), SPLIT_ENDS)}
        facts = {"size": DEFAULT_SIZE, "observation": self.observation, "expert": self.expert}
        return {"maze": {**facts, "split": self.split, "split_rule": SPLIT_RULE, "split_percent": shares}}


MAZE_SETS = {
    maze_set.dataset_id: maze_set
    for maze_set in (
        MazeSet(observation, expert, split) for observation in OBSERVATIONS for expert in EXPERTS for split in SPLITS
    )
}
"""All of them, by Minari id."""

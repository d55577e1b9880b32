"""Tasks: environments, reference scores, return conditioning and the closed loop. Imports the ground room only."""

from dsf.tasks.disturbances import Disturbances
from dsf.tasks.lane import Episode, Lane
from dsf.tasks.policy import Policy, Token
from dsf.tasks.registry import TASKS, get_task
from dsf.tasks.rollout import rollout
from dsf.tasks.scores import ConfidenceInterval, mean_confidence_interval
from dsf.tasks.task import Task

__all__ = [
    "TASKS",
    "ConfidenceInterval",
    "Disturbances",
    "Episode",
    "Lane",
    "Policy",
    "Task",
    "Token",
    "get_task",
    "mean_confidence_interval",
    "rollout",
]

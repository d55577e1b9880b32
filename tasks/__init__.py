"""Tasks: environments, reference scores, return conditioning and the closed loop. The bottom room: imports no other."""

from dsf.tasks.console import UserError, run_command
from dsf.tasks.definition import Task
from dsf.tasks.disturbances import Disturbances
from dsf.tasks.lane import Episode, Lane
from dsf.tasks.policy import Policy, Token
from dsf.tasks.rollout import rollout
from dsf.tasks.scores import ConfidenceInterval, mean_confidence_interval
from dsf.tasks.task import TASKS, get_task

__all__ = [
    "TASKS",
    "ConfidenceInterval",
    "Disturbances",
    "Episode",
    "Lane",
    "Policy",
    "Task",
    "Token",
    "UserError",
    "get_task",
    "mean_confidence_interval",
    "rollout",
    "run_command",
]

"""The closed loop: environments and a policy in lockstep, one lane per environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dsf.tasks.disturbances import UNDISTURBED, Disturbances
from dsf.tasks.lane import Episode, Lane, stack_tokens
from dsf.tasks.policy import Policy
from dsf.tasks.task import Task


def rollout(
    task: Task,
    policy: Policy,
    seeds: Sequence[int],
    target_return: float,
    on_step: Callable[[int], None] | None = None,
    disturbances: Disturbances = UNDISTURBED,
) -> list[Episode]:
    """Run one episode per seed and return them in the order of ``seeds``.

    Args:
        task: environment and return scale.
        policy: decides for ``policy.lanes`` episodes at a time.
        seeds: environment reset seeds, one episode each.
        target_return: return asked for at the first step (reward units); lowered by each reward received.
        on_step: called with the number of running lanes after every lockstep decision (progress bars).
        disturbances: between every environment and the policy.

    Raises:
        UserError: the disturbances are another task's.
    """
    lanes = [Lane(task, disturbances) for _ in range(min(policy.lanes, len(seeds)))]
    idle = policy.lanes - len(lanes)
    waiting, finished = list(seeds), []
    try:
        while waiting or any(lane.running for lane in lanes):
            for index, lane in enumerate(lanes):
                if not lane.running and waiting:
                    lane.start(waiting.pop(0), target_return)
                    policy.reset(index)
            actions = policy.act(stack_tokens(lanes, task, idle))
            running = [(lane, action) for lane, action in zip(lanes, actions) if lane.running]
            finished += [episode for lane, action in running if (episode := lane.step(action)) is not None]
            if on_step is not None:
                on_step(len(running))
    finally:
        for lane in lanes:
            lane.close()
    return sorted(finished, key=lambda episode: list(seeds).index(episode.seed))

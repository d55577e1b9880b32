"""Score the shipped behaviour policies as dsf-data rolls them out: 20 episodes each, reset seeds 0 to 19."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from dsf.shell.arrays import FloatArray
from dsf.tasks import Token, get_task, mean_confidence_interval, rollout
from dsf.tasks.behaviour import load_actor
from dsf.train.data.recipes import RECIPES, SAC

EPISODES, QUICK_EPISODES = 20, 3


class ActorPolicy:
    """A behaviour policy in the closed loop; it ignores return-to-go and previous action."""

    lanes = 1

    def __init__(self, name: str, noise: float) -> None:
        self.actor, self.generator = load_actor(name, noise), np.random.default_rng(0)

    def reset(self, lane: int) -> None:
        """No memory."""

    def act(self, token: Token) -> FloatArray:
        """Sample one action."""
        return self.actor.sample(token.observation[0], self.generator)[None].astype(np.float64)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EPISODES} episodes each")
    parser.add_argument("--task", help="only the actors of this task")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: dict[str, dict[str, object]] = {}
    episodes = QUICK_EPISODES if arguments.quick else EPISODES
    print("| actor | noise | return, mean [95 %] | std | D4RL-normalised |\n|---|---|---|---|---|")
    shipped = {
        (recipe.task, *actor) for recipe in RECIPES.values() if recipe.algorithm == SAC for actor in recipe.actors
    }
    for task_name, name, noise in sorted(shipped):
        if arguments.task not in (None, task_name):
            continue
        task = get_task(task_name)
        results = rollout(task, ActorPolicy(name, noise), range(episodes), task.target_returns[0])
        returns = [episode.episode_return for episode in results]
        interval = mean_confidence_interval(returns)
        rows[name] = {"noise": noise, "returns": returns}
        print(
            f"| {name} | {noise} | {interval} | {np.std(returns):.0f} | {task.score(interval.mean):.1f} |", flush=True
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

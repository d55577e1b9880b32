"""Where a policy errs: on its data, early in its own episodes, late in them; runs of one set side by side.

    python experiments/off_data.py runs/pssa runs/fcnet --actor hopper_medium --json off_data.json

The behaviour policies ship with dsf, so an action can be compared with the mean action of the policy that made the
data, instead of its noisy sample. What is measured, for each run, with the weights that it reports:

* error: mean squared difference to the behaviour policy's mean action, on windows of the data and on the states of the
  policy's own episodes (the first 100 steps, and all);
* distance: of those states to the nearest state of the data, each feature divided by its standard deviation there; the
  median, over that of data left out of the search;
* change: mean absolute difference between consecutive actions; beside it that of the behaviour's mean action there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from dsf.shell.arrays import FloatArray
from dsf.tasks import Policy, Token, rollout
from dsf.tasks.behaviour import Actor, load_actor
from dsf.train.checkpoint import load_checkpoint
from dsf.train.data.batches import BatchSource
from dsf.train.data.dataset import OfflineDataset, load_dataset
from dsf.train.data.registry import resolve
from dsf.train.evaluation.stream_policy import float_policy
from dsf.train.models.decision_model import DecisionModel

EPISODES, QUICK_EPISODES = 20, 2
EVAL_SEED = 9_300
"""Reset seeds that stand in no table."""
WINDOWS, BATCH, DRAW_SEED = 320, 32, 7
EARLY = 100
"""Steps of an episode that count as early."""
SEARCHED = 2_000
"""States whose nearest neighbours are looked for."""
LEFT_OUT = 20
"""Every so many states of the data are left out of the search, to say how far data are from data."""


@dataclass(frozen=True)
class Figures:
    """One run's; see the module."""

    run: str
    policy: str
    return_mean: float
    error_on_data: float
    error_early: float
    error_own: float
    distance_early: float
    distance_own: float
    change: float
    change_of_behaviour: float


class Recording:
    """A policy that keeps what each lane saw and did, episode by episode, in order."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.lanes = policy, policy.lanes
        self.episodes: list[list[tuple[FloatArray, FloatArray]]] = []
        self._current: dict[int, list[tuple[FloatArray, FloatArray]]] = {}

    def reset(self, lane: int) -> None:
        """A new episode."""
        self.policy.reset(lane)
        self._current[lane] = []
        self.episodes.append(self._current[lane])

    def act(self, token: Token) -> FloatArray:
        """Pass on."""
        actions = self.policy.act(token)
        for lane, steps in self._current.items():
            steps.append((token.observation[lane], np.clip(actions[lane], -1.0, 1.0)))
        return actions


def mean_action(actor: Actor, observations: FloatArray) -> FloatArray:
    """Behaviour's action without its noise, (steps, action_size)."""
    return np.stack([actor.sample(row, np.random.default_rng(0)) for row in observations]).astype(np.float64)


def squared(one: FloatArray, other: FloatArray) -> float:
    """Mean squared difference."""
    return float(np.mean((one - other) ** 2))


def error_on_data(model: DecisionModel, data: OfflineDataset, actor: Actor, windows: int) -> float:
    """At the last step of windows of the data, where the policy sees as much as it ever does."""
    source = BatchSource(data, model.codec, BATCH, model.config.context, DRAW_SEED, 0, 1)
    found = []
    for number in range(max(1, windows // BATCH)):
        batch = source.draw(number)
        with torch.inference_mode():
            actions = model(batch.integers, batch.mask, batch.ends)[:, -1].double().numpy()
        tokens = batch.integers[:, -1].double().numpy() * model.codec.step + model.codec.offset
        observations = tokens[:, : data.task.observation_size]
        found.append(squared(np.clip(actions, -1.0, 1.0), mean_action(actor, observations)))
    return float(np.mean(found))


def figures(run: Path, actor: Actor, episodes: int, windows: int) -> Figures:
    """Play a run's policy and look at it."""
    checkpoint = load_checkpoint(run)
    task, model = checkpoint.task(), checkpoint.build_model().eval()
    data = load_dataset(resolve(checkpoint.header["train"]["dataset"]))
    recording = Recording(float_policy(model, episodes))
    played = rollout(task, recording, range(EVAL_SEED, EVAL_SEED + episodes), task.target_returns[0])
    own = [
        steps[: episode.decisions] for steps, episode in zip(recording.episodes, played)
    ]  # a lane goes on after its end
    states = np.array(data.tokens[:, : task.observation_size], np.float64)
    spread = states.std(axis=0)
    known = np.arange(len(states)) % LEFT_OUT != 0
    data_states = torch.from_numpy(states[known] / spread)

    def distance(rows: FloatArray) -> float:
        some = torch.from_numpy(rows[:: max(1, len(rows) // SEARCHED)] / spread)
        return float(np.median([torch.cdist(part, data_states).amin(dim=1).numpy() for part in some.split(1)]))

    at_home = distance(states[~known])
    seen = [np.array([observation for observation, _ in steps]) for steps in own]
    done = [np.array([action for _, action in steps]) for steps in own]
    wanted = [mean_action(actor, rows) for rows in seen]
    early = [rows[:EARLY] for rows in seen]
    return Figures(
        run=run.name,
        policy=model.kind,
        return_mean=float(np.mean([episode.episode_return for episode in played])),
        error_on_data=error_on_data(model, data, actor, windows),
        error_early=squared(np.concatenate([x[:EARLY] for x in done]), np.concatenate([x[:EARLY] for x in wanted])),
        error_own=squared(np.concatenate(done), np.concatenate(wanted)),
        distance_early=distance(np.concatenate(early)) / at_home,
        distance_own=distance(np.concatenate(seen)) / at_home,
        change=float(np.mean(np.abs(np.concatenate([np.diff(x, axis=0) for x in done])))),
        change_of_behaviour=float(np.mean(np.abs(np.concatenate([np.diff(x, axis=0) for x in wanted])))),
    )


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--actor", default="hopper_medium", help="the behaviour policy that made the set")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EPISODES} episodes each")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    actor, rows = load_actor(options.actor, noise=0.0), []
    print(
        "| run | return | error on the data | error, first 100 steps | error, all | distance, early | distance, all | "
        "change of action (behaviour's there) |\n|---|---|---|---|---|---|---|---|"
    )
    for run in options.runs:
        found = figures(run, actor, QUICK_EPISODES if options.quick else EPISODES, BATCH if options.quick else WINDOWS)
        rows.append(asdict(found))
        print(
            f"| {found.run} | {found.return_mean:.0f} | {found.error_on_data:.4f} | {found.error_early:.4f} | "
            f"{found.error_own:.4f} | {found.distance_early:.2f} | {found.distance_own:.2f} | {found.change:.3f} "
            f"({found.change_of_behaviour:.3f}) |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

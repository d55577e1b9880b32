"""The recipe of the sweeps: which weights are scored, and at which learning rate, the same for every policy.

    python experiments/recipe.py --workers 2        # trains, scores and writes docs/recipe.jsonl, then docs/results.md

Training seeds from 100 on and reset seeds from 9200 on: neither stands in any table. One training of a policy gives up
to four scores: its last weights or their moving average, each with the running batch-norm statistics or with new ones.
A finished cell is not run again, an interrupted one goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dsf.shell.child_processes import die_with_parent
from dsf.shell.files import write_text
from dsf.shell.generated_section import replace_section

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCUMENT = ROOT / "docs" / "recipe.jsonl", ROOT / "docs" / "results.md"
LEARNING_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SETS = ("hopper-medium-replay-v2", "hopper-medium-v2")
"""Where there is room to lose: on medium-expert nearly every policy reaches the expert."""
POLICIES = ("dsformer", "fcnet", "dt", "twin")
SEEDS = (100, 101)
STEPS, BATCH = 4_000, 32
EMA, NORM_BATCHES = 0.995, 60
"""The average is over about the last 200 steps."""
EPISODES, EVAL_SEED, TARGET = 40, 9_200, 3_600.0
VARIANTS = ("last", "last, new statistics", "average", "average, new statistics")
CHECKPOINT_EVERY = 500


@dataclass(frozen=True)
class Cell:
    """One training."""

    dataset: str
    policy: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Directory name."""
        return f"{self.dataset}_{self.policy}_lr{self.learning_rate:g}_seed{self.seed}"


def cells(policies: tuple[str, ...], seeds: tuple[int, ...]) -> list[Cell]:
    """Every cell, in an order that compares learning rates first."""
    return [
        Cell(dataset, policy, rate, seed)
        for seed in seeds
        for dataset in SETS
        for policy in policies
        for rate in LEARNING_RATES
    ]


def run(cell: Cell, out: Path, steps: int, episodes: int) -> dict[str, Any]:
    """Train one cell (or go on with it) and score its weights in every way; returns its line of results."""
    from dsf.train import TrainConfig, train
    from dsf.train.checkpoint import CHECKPOINT_NAME, load_checkpoint
    from dsf.train.run_directory import LOSS

    place = out / f"{steps}" / cell.name
    config = TrainConfig(
        cell.dataset,
        out=place,
        policy=cell.policy,  # type: ignore[arg-type]
        steps=steps,
        batch_size=BATCH,
        learning_rate=cell.learning_rate,
        ema=EMA,
        norm_batches=NORM_BATCHES,
        seed=cell.seed,
        threads=1,
        eval_episodes=0,
        checkpoint_every=CHECKPOINT_EVERY,
        resume=(place / CHECKPOINT_NAME).exists(),
    )
    train(config)
    metrics = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    losses = [row[LOSS] for row in metrics if LOSS in row]
    header = load_checkpoint(place).header
    return {
        **vars(cell),
        "steps": steps,
        "batch": BATCH,
        "ema": EMA,
        "norm_batches": NORM_BATCHES,
        "dataset_sha256": header["dataset"]["sha256"],
        "revision": header["revision"],
        "torch": header["torch"],
        "loss": losses[-1],
        "returns": scored(place, episodes),
    }


def scored(place: Path, episodes: int) -> dict[str, list[float]]:
    """Returns of a finished run's episodes, by which of its weights decided."""
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.evaluation.closed_loop import evaluate
    from dsf.train.models.decision_model import DecisionModel
    from dsf.train.trainer import TRAINED

    checkpoint = load_checkpoint(place)
    reported, trained = checkpoint.group("model"), checkpoint.group(TRAINED)
    parameters = {name for name, _ in checkpoint.build_model().named_parameters()}

    def playing(weights: dict[str, Any], statistics: dict[str, Any]) -> list[float]:
        model: DecisionModel = checkpoint.build_model()
        model.load_state_dict({name: (weights if name in parameters else statistics)[name] for name in weights})
        seeds = range(EVAL_SEED, EVAL_SEED + episodes)
        (score,) = evaluate(model, checkpoint.task(), "last", checkpoint.header["step"], (TARGET,), seeds)
        return [float(value) for value in score.returns]

    found = {VARIANTS[0]: playing(trained, trained), VARIANTS[2]: playing(reported, trained)}
    if any(not np.array_equal(trained[name], reported[name]) for name in set(trained) - parameters):
        found[VARIANTS[1]] = playing(trained, new_statistics(place))
        found[VARIANTS[3]] = playing(reported, reported)
    return {name: found[name] for name in VARIANTS if name in found}


def new_statistics(place: Path) -> dict[str, Any]:
    """State of a run's last weights with statistics of their own, on the batches that the trainer draws for them."""
    from dsf.train.averaging import reported_copy
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.data.batches import BatchSource
    from dsf.train.data.dataset import load_dataset
    from dsf.train.data.registry import resolve
    from dsf.train.trainer import STATISTICS_SEED, TRAINED

    checkpoint = load_checkpoint(place)
    model = checkpoint.build_model()
    model.load_state_dict(checkpoint.group(TRAINED))
    data = load_dataset(resolve(checkpoint.header["train"]["dataset"]))
    seed = checkpoint.header["train"]["seed"] + STATISTICS_SEED
    source = BatchSource(data, model.codec, BATCH, model.config.context, seed, 0, 1)
    drawn = (source.draw(number) for number in range(NORM_BATCHES))
    return reported_copy(model, None, ((b.integers, b.mask, b.ends) for b in drawn)).state_dict()


def render(lines: list[dict[str, Any]]) -> str:
    """The section of docs/results.md: per policy and learning rate, what each way to choose weights scores."""
    from dsf.tasks import get_task

    task = get_task("hopper")
    names = {"dsformer": "PSSA", "fcnet": "FCNet", "dt": "Decision Transformer", "twin": "dense twin"}
    last = EVAL_SEED + EPISODES - 1
    text = [
        f"{len(lines)} trainings of {STEPS:,} steps of {BATCH} windows, training seeds {SEEDS[0]} and up, {EPISODES} "
        f"episodes on reset seeds {EVAL_SEED} to {last}, target return {TARGET:g}; neither seeds stand in any other "
        "table. Mean D4RL-normalised score over training seeds (each seed's). Average: moving average of the weights, "
        f"{EMA}; new statistics: batch norm's, estimated on {NORM_BATCHES} batches.",
    ]
    for dataset in SETS:
        text += [
            "",
            f"**{dataset}**",
            "",
            "| policy, learning rate | loss | " + " | ".join(VARIANTS) + " |",
            "|---" * 6 + "|",
        ]
        for policy in POLICIES:
            for rate in LEARNING_RATES:
                found = [x for x in lines if (x["dataset"], x["policy"], x["learning_rate"]) == (dataset, policy, rate)]
                if not found:
                    text.append(f"| {names[policy]}, {rate:g} | not run" + " |" * 5)
                    continue
                row = []
                for variant in VARIANTS:
                    means = [
                        float(np.mean([task.score(value) for value in x["returns"][variant]]))
                        for x in sorted(found, key=lambda x: int(x["seed"]))
                        if variant in x["returns"]
                    ]
                    each = f" ({', '.join(f'{mean:.1f}' for mean in means)})" if len(means) > 1 else ""
                    row.append(f"{np.mean(means):.1f}{each}" if means else "-")
                loss = np.mean([x["loss"] for x in found])
                text.append(f"| {names[policy]}, {rate:g} | {loss:.4f} | " + " | ".join(row) + " |")
    return "\n".join(text)


def main() -> None:
    """Run what is missing, then render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "recipe")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS), choices=SEEDS)
    parser.add_argument("--render", action="store_true", help="only write docs/results.md from the results")
    parser.add_argument("--quick", action="store_true", help="one cell, 20 steps, 2 episodes, nothing written to docs")
    parser.add_argument("--json", type=Path, help="also write all lines of results here")
    options = parser.parse_args()
    console, chosen = Console(), cells(tuple(options.policies), tuple(options.seeds))
    steps, episodes = (20, 2) if options.quick else (STEPS, EPISODES)
    if options.quick:
        chosen, options.results = chosen[:1], options.out / "quick.jsonl"
    lines = [json.loads(x) for x in options.results.read_text().splitlines()] if options.results.exists() else []
    done = {(x["dataset"], x["policy"], x["learning_rate"], x["seed"], x["steps"]) for x in lines}
    todo = [cell for cell in chosen if (cell.dataset, cell.policy, cell.learning_rate, cell.seed, steps) not in done]
    if not options.render:
        options.out.mkdir(parents=True, exist_ok=True)
        os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: each has one core
        spawn = multiprocessing.get_context("spawn")
        # A worker that outlived this process would go on writing into a run that the next call continues.
        with ProcessPoolExecutor(options.workers, spawn, die_with_parent, (os.getpid(),)) as pool:
            for future in as_completed([pool.submit(run, cell, options.out, steps, episodes) for cell in todo]):
                line = future.result()
                lines.append(line)
                write_text(options.results, "".join(json.dumps(x) + "\n" for x in lines))
                means = {name: round(float(np.mean(values))) for name, values in line["returns"].items()}
                console.print(
                    f"{line['dataset']} {line['policy']} {line['learning_rate']:g} seed {line['seed']}: {means}"
                )
    if options.json:
        options.json.write_text(json.dumps(lines, indent=2) + "\n")
    if not options.quick:
        replace_section(DOCUMENT, "recipe", render(lines))


if __name__ == "__main__":
    main()

"""Learning evidence: train and score every cell of docs/results.md, in parallel, resumable, then write the tables.

    python experiments/learning.py --workers 2

Each cell is one run of ``dsf-train`` on a locally made Hopper dataset, one thread each, in ``--out`` (a finished cell
is not run again, an interrupted one goes on from its checkpoint). Scores are those of the last checkpoint at the
task's first target return. ``docs/learning.jsonl`` keeps one line per cell;
the tables are made from it alone (``--render``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dsf.shell.files import write_text
from dsf.shell.generated_section import replace_section
from dsf.tasks import get_task

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCUMENT = ROOT / "docs" / "learning.jsonl", ROOT / "docs" / "results.md"
SETS = {"medium-expert": "v1", "medium": "v0", "medium-replay": "v0"}
"""Roles and versions of dsf/hopper's sets."""
SEEDS = (0, 1, 2)
ABLATION_SEEDS = (0, 1)
NORMS = ("tdbn", "tdln", "none")
PENALTIES = (0.1, 0.3)
LONGER = 3
"""PSSA on medium-expert is also trained this many times as long."""
RESAMPLES = 10_000
EPISODES, EVAL_SEED = 20, 8_000
"""Reset seeds 8000 .. 8019: no run was scored on them before steps, learning rate and datasets were settled."""
DATASET_STEPS = 100_000
LEARNING_RATE, BATCH = 2e-3, 32
"""Chosen before the first run, for short runs: those of `make demo`."""


@dataclass(frozen=True)
class Cell:
    """One training run: what differs from ``dsf-train``'s defaults."""

    role: str
    seed: int
    options: dict[str, str] = field(default_factory=dict)
    longer: int = 1
    """Its steps, as a multiple of ``--steps``."""

    @property
    def name(self) -> str:
        """Directory name."""
        return "_".join([self.role, *(f"{k.split('.')[-1]}-{v}" for k, v in self.options.items()), f"seed{self.seed}"])


def dataset_id(role: str) -> str:
    """Minari id of a role's set."""
    return f"dsf/hopper/{role}-{SETS[role]}"


def cells() -> list[Cell]:
    """Every cell, PSSA on every set first."""
    chosen = [Cell(role, seed, {"model.attention": "pssa"}) for seed in SEEDS for role in SETS]
    for seed in ABLATION_SEEDS:
        chosen += [Cell("medium-expert", seed, {"model.attention": "pssa", "model.norm": n}) for n in NORMS]
        chosen.append(Cell("medium-expert", seed, {"model.attention": "none"}))
    chosen += [Cell("medium-expert", seed, {"model.attention": "pssa"}, LONGER) for seed in SEEDS]
    chosen += [Cell(role, seed, {"model.attention": "tssa"}) for seed in SEEDS for role in SETS]
    variants = [{"rate-penalty": str(penalty)} for penalty in PENALTIES] + [{"precision": "fp32"}]
    chosen += [Cell("medium-expert", SEEDS[0], {"model.attention": "pssa", **variant}) for variant in variants]
    chosen.append(Cell("medium-expert", SEEDS[0], {"model.attention": "pssa", "model.norm": "tdln"}, LONGER))
    return chosen


def collect(roles: list[str], store: Path, console: Console) -> None:
    """Make the datasets where they are missing."""
    for role in roles:
        if not (store / dataset_id(role)).exists():
            console.print(f"collecting hopper-{role}")
            run(["dsf-data", "collect", f"hopper-{role}", "--steps", str(DATASET_STEPS), "--seed", "0"], store, None)


def run(command: list[str], store: Path, log: Path | None) -> None:
    """Run one of dsf's commands.

    Raises:
        RuntimeError: it failed.
    """
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(store), "OMP_NUM_THREADS": "1"}
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([str(program), *command[1:]], env=environment, capture_output=True, text=True)
    if log is not None:
        log.write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"{command[0]} ended with {done.returncode}")


def train(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one cell; returns its line of results."""
    steps = options.steps * cell.longer
    out = options.out / f"{steps}" / cell.name
    settings = {"seed": cell.seed, "steps": steps, "batch-size": BATCH, "learning-rate": LEARNING_RATE}
    settings |= {"threads": 1, "eval-episodes": EPISODES, "eval-seed": EVAL_SEED, "checkpoint-every": 250}
    settings |= {"eval-targets": get_task("hopper").target_returns[0], **cell.options}
    arguments = [item for name, value in settings.items() for item in (f"--{name}", str(value))]
    resume = ["--resume"] if (out / "checkpoint.safetensors").exists() else []
    started = time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    dataset = dataset_id(cell.role)
    run(["dsf-train", dataset, "--out", str(out), *arguments, *resume], options.store, out.with_suffix(".log"))
    return result_line(cell, out, dataset, steps, time.monotonic() - started)


def result_line(cell: Cell, out: Path, dataset: str, steps: int, seconds: float) -> dict[str, Any]:
    """What a table needs of one run."""
    from dsf.train.checkpoint import load_checkpoint

    header = load_checkpoint(out).header
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    activity = next(row for row in reversed(metrics) if "events_per_token" in row)
    return {
        "dataset": dataset,
        "dataset_sha256": header["dataset"]["sha256"],
        "seed": cell.seed,
        "options": cell.options,
        "steps": steps,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "precision": header["precision"],
        "revision": header["revision"],
        "score": next(s for s in header["scores"] if s["checkpoint"] == "last" and s["seeds"][0] == EVAL_SEED),
        "loss": next(row["train/loss"] for row in reversed(metrics) if "train/loss" in row),
        "events_per_token": activity["events_per_token"],
        "attention_rate": [v for k, v in activity.items() if k.endswith("attention_lif")],
        "seconds": round(seconds),
    }


def pooled(lines: list[dict[str, Any]]) -> str:
    """Mean normalised score, [95 % bootstrap that draws training seeds, then reset seeds], and each seed's mean."""
    task, generator = get_task("hopper"), np.random.default_rng(0)
    scores = np.array([[task.score(value) for value in line["score"]["returns"]] for line in lines])
    seeds, episodes = scores.shape
    means = [
        scores[generator.integers(seeds, size=seeds)][:, generator.integers(episodes, size=episodes)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    each = ", ".join(f"{line['score']['score_mean']:.1f}" for line in lines)
    return f"{scores.mean():.1f} [{low:.1f}, {high:.1f}] ({each})"


def select(lines: list[dict[str, Any]], role: str, options: dict[str, str], steps: int) -> list[dict[str, Any]]:
    """The lines of one cell of a table, by seed."""
    found = (dataset_id(role), options, steps)
    chosen = [x for x in lines if (x["dataset"], x["options"], x["steps"]) == found]
    return sorted(chosen, key=lambda line: int(line["seed"]))


def table(head: str, rows: list[tuple[str, list[list[dict[str, Any]]]]]) -> list[str]:
    """Markdown rows; a cell without runs says so."""
    out = [head, "|" + "---|" * (head.count("|") - 1)]
    return out + [f"| {name} | " + " | ".join(pooled(x) if x else "not run" for x in row) + " |" for name, row in rows]


def render(lines: list[dict[str, Any]], steps: int) -> str:
    """The tables of docs/results.md."""
    pssa, tssa, none = ({"model.attention": name} for name in ("pssa", "tssa", "none"))

    def on_medium_expert(options: dict[str, str], longer: int = 1) -> list[dict[str, Any]]:
        return select(lines, "medium-expert", options, steps * longer)

    norms = [("PTBN", pssa), *((n, {**pssa, "model.norm": n.lower()}) for n in ("tdBN", "tdLN", "none"))]
    text = ["### Attention", ""]
    rows = [
        (name, [select(lines, role, key, steps) for role in SETS]) for name, key in (("PSSA", pssa), ("TSSA", tssa))
    ]
    rows.append((f"PSSA, {steps * LONGER:,} steps", [on_medium_expert(pssa, LONGER), [], []]))
    text += table("| D4RL-normalised | " + " | ".join(f"hopper-{role}" for role in SETS) + " |", rows)
    text += ["", "### Norms (PSSA, hopper-medium-expert)", ""]
    compared = [(n, [on_medium_expert(key), on_medium_expert(key, LONGER)]) for n, key in norms]
    text += table(f"| norm | {steps:,} steps | {steps * LONGER:,} steps |", compared)
    text += ["", "### Without attention (hopper-medium-expert)", ""]
    text += table(
        "| network | D4RL-normalised |",
        [(n, [on_medium_expert(key)]) for n, key in (("PSSA", pssa), ("no attention branch", none))],
    )
    text += ["", "### Rate penalty (PSSA, hopper-medium-expert, seed 0)", ""]
    text += ["| --rate-penalty | synaptic events per decision | D4RL-normalised | loss |", "|---|---|---|---|"]
    for penalty in (0.0, *PENALTIES):
        key = {**pssa, "rate-penalty": str(penalty)} if penalty else pssa
        for line in on_medium_expert(key)[:1]:
            events = f"{line['events_per_token']:,.0f}"
            text.append(f"| {penalty} | {events} | {pooled([line])} | {line['loss']:.4f} |")
    text += ["", "### Precision of the training's products (PSSA, hopper-medium-expert, seed 0)", ""]
    text += ["| --precision | D4RL-normalised | loss |", "|---|---|---|"]
    for key in (pssa, {**pssa, "precision": "fp32"}):
        text += [f"| {x['precision']} | {pooled([x])} | {x['loss']:.4f} |" for x in on_medium_expert(key)[:1]]
    return "\n".join(text)


def write_document(lines: list[dict[str, Any]], steps: int) -> None:
    """Replace the generated part of docs/results.md."""
    target, last = get_task("hopper").target_returns[0], EVAL_SEED + EPISODES - 1
    head = (
        f"{len(lines)} runs of {steps:,} steps (where no other number is given) of {BATCH} windows; last checkpoint, "
        f"target return {target:g}, {EPISODES} episodes per training seed, reset seeds {EVAL_SEED} to {last}; mean "
        f"[95 % bootstrap over training seeds and episodes], then each training seed's mean.\n"
    )
    replace_section(DOCUMENT, "learning", f"{head}\n{render(lines, steps)}")


def main() -> None:
    """Run what is missing, then render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "learning")
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "minari", help="where the datasets are made")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="only write the tables from the results")
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS), help="run the cells of these sets")
    parser.add_argument("--quick", action="store_true", help="one cell, 20 steps, nothing written to docs")
    parser.add_argument("--json", type=Path, help="also write all lines of results here")
    options = parser.parse_args()
    console, chosen = Console(), cells()
    if options.quick:
        options.steps, chosen, options.results = 20, chosen[:1], options.out / "quick.jsonl"
    lines = [json.loads(x) for x in options.results.read_text().splitlines()] if options.results.exists() else []
    done = {(x["dataset"], x["seed"], json.dumps(x["options"]), x["steps"]) for x in lines}
    chosen = [cell for cell in chosen if cell.role in options.only]
    todo = [
        c for c in chosen if (dataset_id(c.role), c.seed, json.dumps(c.options), options.steps * c.longer) not in done
    ]
    if not options.render:
        options.store.mkdir(parents=True, exist_ok=True)
        collect(options.only, options.store, console)
        with ThreadPoolExecutor(options.workers) as pool:
            for line in pool.map(lambda cell: train(cell, options), todo):
                lines.append(line)
                options.results.parent.mkdir(parents=True, exist_ok=True)
                write_text(options.results, "".join(json.dumps(x) + "\n" for x in lines))
                console.print(f"{line['dataset']} {line['options']} seed {line['seed']}: {pooled([line])}")
    if options.json:
        options.json.write_text(json.dumps(lines, indent=2) + "\n")
    if not options.quick:
        write_document(lines, options.steps)


if __name__ == "__main__":
    main()

"""STRL-spike from mazes to simulated cores: data, training, export, Lava, with the dense rival beside it; one command.

    python experiments/maze_on_cores.py [--seeds 0 1] [--json FILE]
    python experiments/maze_on_cores.py --quick     # seconds; networks that have learnt nothing: it shows that all runs

Everything runs through the commands that a user has: ``dsf-data collect maze`` (walls, wall follower; training and test
mazes), ``dsf-train`` (STRL-spike, then ``--policy dt`` with the same budget), ``dsf-export --target loihi`` with its
whole ladder, ``dsf-sim-run`` on the fast engine (all unseen mazes) and on Lava (some of them, every decision compared
with the reference, spike by spike), ``dsf-train evaluate`` for the rival.

``--out`` keeps datasets, runs and network files, one directory per budget: what is there is not made again, and an
interrupted training goes on. docs/maze_on_cores.jsonl keeps a line per training seed and budget; section "On simulated
cores" of docs/strl.md and its picture are made from it.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import maze_report
from maze_measures import measure
from rich.console import Console
from strl_protocol import EVAL_SEED, dataset_id, run

from dsf.export.network.file import read_network
from dsf.export.network.nodes import NetworkError
from dsf.shell.files import write_text
from dsf.testing.measurement import ROOT, when_and_what
from dsf.train.checkpoint import Checkpoint, load_checkpoint

RESULTS = ROOT / "docs" / "maze_on_cores.jsonl"
OBSERVATION, EXPERT = "walls", "wall_follower"
BUDGET = (
    "mazes",
    "steps",
    "batch",
    "learning_rate",
    "width",
    "blocks",
    "context",
    "unseen",
    "rival_mazes",
    "lava_mazes",
)
"""Options that a figure depends on beside the training seed."""
MODELS = {"spike": "dsformer", "dense": "dt"}
"""Run directories, and what ``--policy`` calls their models."""


def budget(options: argparse.Namespace) -> dict[str, Any]:
    """What a figure depends on beside the training seed."""
    return {name: getattr(options, name) for name in BUDGET}


def arguments_of(policy: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What ``dsf-train`` is told."""
    settings = {"policy": policy, "steps": options.steps, "batch-size": options.batch, "seed": seed}
    settings |= {"learning-rate": options.learning_rate, "model.width": options.width}
    settings |= {"model.blocks": options.blocks, "model.context": options.context}
    return settings


def require_budget(checkpoint: Checkpoint, settings: dict[str, Any]) -> None:
    """Refuse a run that stands in the place of ours and is another one.

    Raises:
        SystemExit: naming the first setting that differs.
    """
    trained = checkpoint.header["train"]
    for name, wanted in settings.items():
        values, key = trained, name.replace("-", "_")
        if "." in name:
            group, key = name.split(".")
            values = trained[group]
        if values[key] != wanted:
            raise SystemExit(f"{checkpoint.path} was trained with --{name} {values[key]}, not {wanted}: move it away")


def collect(options: argparse.Namespace, console: Console) -> None:
    """Make the datasets where they are missing: training mazes, and test mazes for the token accuracy."""
    options.store.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", options.mazes), ("test", options.unseen)):
        name = dataset_id(OBSERVATION, EXPERT, split)
        if not (options.store / name).exists():
            console.print(f"collecting {count:,} {split} mazes: {name}")
            asked = ["--mazes", str(count), "--observation", OBSERVATION, "--expert", EXPERT, "--split", split]
            run(["dsf-data", "collect", "maze", *asked], options, options.home / f"collect-{split}.log")


def train(out: Path, policy: str, seed: int, options: argparse.Namespace, console: Console) -> Checkpoint:
    """A run's last checkpoint: what is there, or trained on to its last step."""
    settings, resume = arguments_of(policy, seed, options), []
    if (out / "checkpoint.safetensors").exists():
        checkpoint = load_checkpoint(out)
        require_budget(checkpoint, settings)
        if checkpoint.header["step"] == options.steps:
            return checkpoint
        resume = ["--resume"]
    console.print(f"training {out.name}, seed {seed}: {options.steps:,} steps")
    told = [item for name, value in settings.items() for item in (f"--{name}", str(value))]
    told += ["--threads", str(options.threads), "--device", "cpu", "--eval-episodes", "0", "--checkpoint-every", "250"]
    command = ["dsf-train", dataset_id(OBSERVATION, EXPERT, "train"), "--out", str(out), *told, *resume]
    run(command, options, out.with_suffix(".log"))
    return load_checkpoint(out)


def export(checkpoint: Checkpoint, network: Path, options: argparse.Namespace, console: Console) -> None:
    """The integers of a checkpoint with the whole ladder, unless they are there."""
    if network.exists():
        made_of = read_network(network).provenance
        if (made_of["dataset"], made_of["train"]) == (checkpoint.header["dataset"], checkpoint.header["train"]):
            return
        network.unlink()
    console.print(f"exporting {network.name}")
    command = ["dsf-export", str(checkpoint.path.parent), "--target", "loihi", "-o", str(network)]
    if options.quick:  # nothing learnt: no closed loop in the ladder
        command += ["--episodes", "0", "--dataset", dataset_id(OBSERVATION, EXPERT, "test")]
    run(command, options, network.with_suffix(".log"))


def measured_seed(seed: int, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The whole road of one training seed; returns its line of results."""
    home = options.home / f"seed{seed}"
    home.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(MODELS)) as pool:  # side by side
        started = {name: pool.submit(train, home / name, kind, seed, options, console) for name, kind in MODELS.items()}
    runs = {name: training.result() for name, training in started.items()}
    network = home / "maze.dsf.h5"
    export(runs["spike"], network, options, console)
    console.print(f"measuring, seed {seed}")
    found = measure(home, runs["spike"], runs["dense"], network, dataset_id(OBSERVATION, EXPERT, "test"), options)
    line = {"seed": seed, "budget": budget(options), "measured": when_and_what(), **found}
    picture = maze_report.PICTURE if options.shown == seed else home / maze_report.PICTURE.name
    line["picture"] = maze_report.draw_walk(picture, network, home / "lava.record", home / "lava.npz")
    return line


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mazes", type=int, default=5_000, help="training mazes")
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--context", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of training")
    parser.add_argument("--unseen", type=int, default=1_000, help="test mazes walked through, and as many recorded")
    parser.add_argument("--rival-mazes", type=int, default=200, help="of them the dense rival walks through")
    parser.add_argument("--first-maze", type=int, default=EVAL_SEED, help="reset seed of the first one walked through")
    parser.add_argument("--lava-mazes", type=int, default=20, help="of them in Lava, every decision compared")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "maze_on_cores")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--render", action="store_true", help="only write docs/strl.md again from the results")
    parser.add_argument("--quick", action="store_true", help="tiny and untrained; nothing is written to docs")
    parser.add_argument("--json", type=Path, help="also write the lines of this budget and these seeds here")
    options = parser.parse_args()
    if options.quick:
        options.mazes, options.unseen, options.lava_mazes, options.rival_mazes = 60, 2, 1, 2
        options.steps, options.batch = 3, 8
        options.width, options.blocks = 32, 2
        options.seeds = [0]
    options.home = options.out / f"{options.mazes}-mazes-{options.steps}-steps-width-{options.width}"
    options.store = options.out / f"minari-{options.mazes}-{options.unseen}"
    declared = all(value == parser.get_default(name) for name, value in budget(options).items())
    options.shown = options.seeds[0] if declared else None  # whose walk the page shows
    return options


def main() -> None:
    """Measure the seeds that have no line yet, then render."""
    options, console = parse(), Console(soft_wrap=True)
    results = options.home / "quick.jsonl" if options.quick else RESULTS
    os.environ["MINARI_DATASETS_PATH"] = str(options.store)
    lines = maze_report.read_lines(results)
    mine = [line for line in lines if line["budget"] == budget(options)]
    if options.quick:
        console.print(
            "quick: a few steps of training, so the networks have learnt NOTHING; no figure here means anything"
        )
    missing = [seed for seed in options.seeds if seed not in {line["seed"] for line in mine}]
    if missing and not options.render:
        collect(options, console)
        for seed in missing:
            try:
                line = measured_seed(seed, options, console)
            except (RuntimeError, NetworkError) as error:
                raise SystemExit(f"maze_on_cores: {error}") from error
            lines, mine = [*lines, line], [*mine, line]
            write_text(results, "".join(json.dumps(each) + "\n" for each in lines))
    text = maze_report.section(mine, budget(options))
    console.print(text, markup=False, highlight=False)
    if options.json:
        write_text(options.json, json.dumps([line for line in mine if line["seed"] in options.seeds], indent=2) + "\n")
    if not options.quick:
        maze_report.write_document(text)


if __name__ == "__main__":
    main()

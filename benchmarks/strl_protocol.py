"""STRL's protocol and its honest form: every cell of docs/strl.md, resumable, one command.

    python benchmarks/strl_protocol.py --steps 2000 --mazes 20000 --seeds 0 1 2 3 4

Each cell trains one policy with ``dsf-train`` on mazes of the training split and answers four questions about mazes it
has never seen: how often its best choice is the recorded one with the recorded past given (token accuracy, test split),
how often it reaches the goal by itself, how long its ways are, and how much it fires. Beside them stand look-up tables,
the most that the observation can tell (chosen on the validation split). STRL-spike, the DSFormer family with a head of
choices, is exported too and its integers answer the same questions (``--no-integers`` leaves that out).

Without training seeds (``--seeds`` and ``--sweep-seeds`` with nothing behind) only the look-up tables are made.

``--results`` keeps one line per cell with its budget; a line that is there is not made again, an interrupted training
goes on from its checkpoint, and the tables are made from the lines alone (``--render``): cells without one say so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import strl_tables
import torch
from rich.console import Console

from dsf.tasks.files import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "strl.jsonl"
OBSERVATIONS, EXPERTS = ("position", "walls", "view"), ("shortest", "wall_follower")
MODELS = (("strl", "bidirectional"), ("strl", "causal"), ("dt", "causal"), ("strl-spike", "causal"))
SWEEPS: dict[str, tuple[str, ...]] = {
    "ticks": ("1", "2", "4", "8"),
    "threshold": ("0.25", "0.5", "1.0", "2.0"),
    "tau": ("1.25", "2.0", "4.0", "8.0"),
}
SWEPT_ON = ("walls", "wall_follower")
EVAL_SEED = 20_000
"""Reset seed of the first maze that a policy walks through by itself."""


@dataclass(frozen=True)
class Cell:
    """One trained policy. ``changed`` is what a sweep sets beside the paper's values."""

    observation: str
    expert: str
    model: str
    attention: str
    seed: int
    changed: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its run directory."""
        parts = [
            self.observation,
            self.expert,
            self.model,
            self.attention,
            *(f"{k}{v}" for k, v in self.changed.items()),
        ]
        return "-".join([*parts, f"seed{self.seed}"])


def cells(seeds: list[int], sweep_seeds: list[int]) -> list[Cell]:
    """Every cell: a whole table per seed, then the sweeps of causal STRL."""
    chosen = [
        Cell(observation, expert, *model, seed)
        for seed in seeds
        for observation in OBSERVATIONS
        for expert in EXPERTS
        for model in MODELS
    ]
    for seed in sweep_seeds:
        for name, values in SWEEPS.items():
            chosen += [Cell(*SWEPT_ON, "strl", "causal", seed, {name: value}) for value in values]
    return chosen


def budget(options: argparse.Namespace) -> dict[str, Any]:
    """What a figure depends on beside its cell."""
    names = ("mazes", "held_out", "steps", "batch", "learning_rate", "width", "blocks", "heads", "context")
    return {name: getattr(options, name) for name in (*names, "episodes")}


def run(command: list[str], options: argparse.Namespace, log: Path) -> None:
    """Run one of dsf's commands.

    Raises:
        RuntimeError: it failed.
    """
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(options.store), "OMP_NUM_THREADS": "1"}
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([str(program), *command[1:]], env=environment, capture_output=True, text=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def dataset_id(observation: str, expert: str, split: str) -> str:
    """Minari id of one of the protocol's datasets."""
    from dsf.train.maze_sets import MazeSet

    return MazeSet(observation, expert, split).dataset_id  # type: ignore[arg-type]  # it checks the names


def pairs_of(only: list[str]) -> list[tuple[str, str]]:
    """Observations and experts of which some cell was asked for; without seeds, look-up tables alone are made."""
    every = cells([0], [0])
    chosen = [cell for cell in every if not only or any(part in cell.name for part in only)]
    return list(dict.fromkeys((cell.observation, cell.expert) for cell in chosen))


def collect(options: argparse.Namespace, pairs: list[tuple[str, str]], console: Console) -> None:
    """Make the datasets where they are missing: training mazes, and as many of each other split as are held out."""
    for observation, expert in pairs:
        for split, count in (("train", options.mazes), ("validation", options.held_out), ("test", options.held_out)):
            name = dataset_id(observation, expert, split)
            if not (options.store / name).exists():
                console.print(f"collecting {name}")
                asked = ["--mazes", str(count), "--observation", observation, "--expert", expert, "--split", split]
                run(["dsf-data", "collect", "maze", *asked], options, options.out / "collect.log")


def arguments_of(cell: Cell, options: argparse.Namespace) -> list[str]:
    """What ``dsf-train`` is told; sizes are chosen so that all models have DSFormer's number of parameters."""
    window = 1 + (options.context - 1) // options.blocks  # the receptive field then fits into the context: stream mode
    settings = {"model.width": options.width, "model.blocks": options.blocks, "model.context": options.context}
    settings |= {"model.window": window, "steps": options.steps, "batch-size": options.batch, "seed": cell.seed}
    settings |= {"learning-rate": options.learning_rate, "threads": options.threads, "device": options.device}
    settings |= {"eval-episodes": 0, "checkpoint-every": 100}
    if cell.model != "strl-spike":
        settings |= {"policy": cell.model, "rival.heads": options.heads}
    if cell.model == "strl":
        settings |= {"rival.strl.attention": cell.attention}
        settings |= {f"rival.strl.{name}": value for name, value in cell.changed.items()}
    return [item for name, value in settings.items() for item in (f"--{name}", str(value))]


def measure(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one cell; returns its line of results."""
    from strl_scores import scores_of, scores_of_integers

    settings = json.dumps([budget(options), arguments_of(cell, options)], sort_keys=True)
    out = options.out / hashlib.sha256(settings.encode()).hexdigest()[:12] / cell.name
    resume = ["--resume"] if (out / "checkpoint.safetensors").exists() else []
    command = ["dsf-train", dataset_id(cell.observation, cell.expert, "train"), "--out", str(out)]
    started = time.monotonic()
    run([*command, *arguments_of(cell, options), *resume], options, out.with_suffix(".log"))
    seconds = time.monotonic() - started
    torch.set_num_threads(options.threads)
    test, seeds = dataset_id(cell.observation, cell.expert, "test"), range(EVAL_SEED, EVAL_SEED + options.episodes)
    line = {"kind": "cell", **asdict(cell), "budget": budget(options), "train_seconds": round(seconds)}
    line |= scores_of(out, test, cell.expert, seeds)
    if cell.model == "strl-spike" and options.integers:
        network = out / "network.dsf.h5"
        export = ["dsf-export", str(out), "--target", "loihi", "-o", str(network), "--episodes", "1"]
        network.unlink(missing_ok=True)  # of an interrupted run
        run([*export, "--max-score-drop", "1000"], options, out.with_suffix(".export.log"))
        line["integers"] = scores_of_integers(network, test, cell.expert, seeds, options.context)
    return line


def bounds(observation: str, expert: str, options: argparse.Namespace) -> dict[str, Any]:
    """The look-up tables of one pair of observation and expert, as a line of results."""
    from strl_scores import lookup

    names = [dataset_id(observation, expert, split) for split in ("train", "validation", "test")]
    found = {"kind": "bound", "observation": observation, "expert": expert, "budget": budget(options)}
    return {**found, **lookup(names, options.context, observation)}


def key(line: dict[str, Any]) -> str:
    """What makes two lines the same measurement. A look-up table does not depend on how networks are trained."""
    own = {name: line.get(name) for name in ("kind", "observation", "expert", "model", "attention", "seed", "changed")}
    taken = line["budget"]
    if line["kind"] == "bound":
        taken = {name: taken[name] for name in ("mazes", "held_out", "context")}
    return json.dumps([own, taken], sort_keys=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mazes", type=int, default=50_000, help="training mazes")
    parser.add_argument("--held-out", type=int, default=5_000, help="validation mazes, and as many test mazes")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--heads", type=int, default=8, help="of strl and dt")
    parser.add_argument("--context", type=int, default=100)
    parser.add_argument("--episodes", type=int, default=1_000, help="unseen mazes walked through per cell")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--sweep-seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=[], help="run the cells whose name holds one of these")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-integers", dest="integers", action="store_false", help="no export of strl-spike")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "strl")
    parser.add_argument("--store", type=Path, help="where the datasets are made (default: below --out, by budget)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="only write the tables from the results")
    parser.add_argument("--quick", action="store_true", help="one cell of each model, tiny, nothing written to docs")
    parser.add_argument("--json", type=Path, help="also write all lines of results here")
    options = parser.parse_args()
    if options.quick:
        options.mazes, options.held_out, options.steps, options.episodes = 60, 30, 5, 2
        options.width, options.blocks, options.heads, options.context = 16, 1, 2, 10
        options.seeds, options.sweep_seeds, options.results = [0], [], options.out / "quick.jsonl"
        options.only = ["walls-wall_follower"]
        options.batch = 8
    if options.store is None:
        options.store = options.out / f"minari-{options.mazes}-{options.held_out}"
    return options


def main() -> None:
    """Run what is missing, then render."""
    options, console = parse(), Console(soft_wrap=True)
    every = cells(options.seeds, options.sweep_seeds)
    chosen = [cell for cell in every if not options.only or any(part in cell.name for part in options.only)]
    lines = [json.loads(x) for x in options.results.read_text().splitlines()] if options.results.exists() else []
    done = {key(line) for line in lines}

    def keep(line: dict[str, Any]) -> None:
        lines.append(line)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.results, "".join(json.dumps(x) + "\n" for x in lines))
        console.print(strl_tables.said(line))

    if not options.render:
        os.environ["MINARI_DATASETS_PATH"] = str(options.store)
        options.store.mkdir(parents=True, exist_ok=True)
        pairs = pairs_of(options.only)
        collect(options, pairs, console)
        for pair in pairs:
            asked = {"kind": "bound", "observation": pair[0], "expert": pair[1], "budget": budget(options)}
            if key(asked) not in done:
                keep(bounds(*pair, options))
        todo = [c for c in chosen if key({"kind": "cell", **asdict(c), "budget": budget(options)}) not in done]
        with ThreadPoolExecutor(options.workers) as pool:
            for line in pool.map(lambda cell: measure(cell, options), todo):
                keep(line)
    if options.json:
        write_text(options.json, json.dumps(lines, indent=2) + "\n")
    if not options.quick:
        strl_tables.write_document(lines, cells([0], [0]), budget(options))


if __name__ == "__main__":
    main()

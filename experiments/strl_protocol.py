"""STRL's protocol and its honest form: every cell of docs/strl.md, resumable, one command.

    python experiments/strl_protocol.py --workers 2            # the declared budgets: under two hours of two cores
    python experiments/strl_protocol.py --steps 20000 --mazes 50000 --width 256 --blocks 6 --context 100 --device cuda

Each cell trains one policy with ``dsf-train`` on mazes of the training split and answers four questions about mazes it
has never seen: how often its best choice is the recorded one with the recorded past given (token accuracy, test split),
how often it reaches the goal by itself, how long its ways are, and how much it fires and computes. Beside them stand
look-up tables, what counting finds the observation to tell (chosen on the validation split). STRL-spike, the DSFormer
family with a head of choices, is exported too and its integers answer the same questions (not with ``--no-integers``).

Budgets are declared per pair of observation and expert in ``strl_cells.py``; options change them for all pairs. Without
training seeds (``--seeds`` and ``--sweep-seeds`` with nothing behind) only the look-up tables are made.

``--results`` keeps one line per cell with its budget; a line that is there is not made again, an interrupted training
goes on from its checkpoint, and the tables are made from the lines alone (``--render``): cells without one say so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import strl_tables
import torch
from rich.console import Console
from strl_cells import PUBLISHED_ON, SWEPT_ON, Budget, Cell, add_budget_options, budget_of, cells, training_arguments
from strl_lines import Line, bound_of, is_done, key, line_of

from dsf.shell.child_processes import die_with_parent
from dsf.shell.files import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "strl.jsonl"
EVAL_SEED = 20_000
"""Reset seed of the first maze that a policy walks through by itself."""


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
    from dsf.train.data.maze_sets import MazeSet

    return MazeSet(observation, expert, split).dataset_id  # type: ignore[arg-type]  # it checks the names


def collect(options: argparse.Namespace, pair: tuple[str, str], budget: Budget) -> Path:
    """Make a pair's datasets where they are missing; returns the Minari store that holds them.

    Stores are apart by number of mazes, since an id does not say it.
    """
    options.store = options.out / f"minari-{budget.mazes}-{budget.held_out}"
    options.store.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", budget.mazes), ("validation", budget.held_out), ("test", budget.held_out)):
        name = dataset_id(*pair, split)
        if not (options.store / name).exists():
            asked = ["--mazes", str(count), "--observation", pair[0], "--expert", pair[1], "--split", split]
            run(["dsf-data", "collect", "maze", *asked], options, options.out / "collect.log")
    return Path(options.store)


def place_of(cell: Cell, options: argparse.Namespace) -> Path:
    """A cell's run directory: one per cell, training mazes, and all that ``dsf-train`` is told but its speed."""
    budget = budget_of(cell.pair, options)
    settings = json.dumps([budget.mazes, training_arguments(cell, budget)])
    return Path(options.out / hashlib.sha256(settings.encode()).hexdigest()[:12] / cell.name)


def measure(cell: Cell, options: argparse.Namespace) -> Line:
    """Train and score one cell; returns its line of results."""
    from strl_scores import scores_of, scores_of_integers

    budget, out = budget_of(cell.pair, options), place_of(cell, options)
    os.environ["MINARI_DATASETS_PATH"] = str(collect(options, cell.pair, budget))  # there already
    resume = ["--resume"] if (out / "checkpoint.safetensors").exists() else []
    command = ["dsf-train", dataset_id(*cell.pair, "train"), "--out", str(out), *training_arguments(cell, budget)]
    command += ["--threads", str(options.threads), "--device", options.device, *resume]
    run(command, options, out.with_suffix(".log"))
    torch.set_num_threads(options.threads)
    test, seeds = dataset_id(*cell.pair, "test"), range(EVAL_SEED, EVAL_SEED + budget.episodes)
    line = {**line_of(cell, budget), **scores_of(out, test, cell.expert, seeds, budget.whole_walks)}
    if cell.model == "strl-spike" and options.integers:
        line["integers"] = scores_of_integers(export(out, test, options), test, cell.expert, seeds, budget)
    return line


def export(out: Path, test: str, options: argparse.Namespace) -> Path:
    """The integers of a run, with the whole ladder; those of its present checkpoint are not made again."""
    network = out / "network.dsf.h5"
    if network.exists() and network.stat().st_mtime < (out / "checkpoint.safetensors").stat().st_mtime:
        network.unlink()
    if not network.exists():
        command = ["dsf-export", str(out), "--target", "loihi", "-o", str(network)]
        command += ["--episodes", "0", "--dataset", test]
        run(command, options, out.with_suffix(".export.log"))
    return network


def times(cell: Cell, options: argparse.Namespace) -> Line:
    """How long a decision of a cell takes, with nothing of the protocol beside it, as a line of results."""
    from strl_scores import milliseconds

    budget, out = budget_of(cell.pair, options), place_of(cell, options)
    os.environ["MINARI_DATASETS_PATH"] = str(collect(options, cell.pair, budget))
    torch.set_num_threads(1)
    network = out / "network.dsf.h5" if cell.model == "strl-spike" else None
    found = milliseconds(out, dataset_id(*cell.pair, "test"), network)
    return {**line_of(cell, budget), "kind": "time", "ms_per_decision": found}


def ends(cell: Cell, options: argparse.Namespace) -> Line:
    """What a window's last token does to the bidirectional form, as a line of results."""
    from strl_scores import shorter_windows

    os.environ["MINARI_DATASETS_PATH"] = str(collect(options, cell.pair, budget_of(cell.pair, options)))
    found = shorter_windows(place_of(cell, options), dataset_id(*cell.pair, "test"))
    return {**line_of(cell, budget_of(cell.pair, options)), "kind": "ends", **found}


def bounds(pair: tuple[str, str], options: argparse.Namespace) -> Line:
    """The look-up tables of one pair of observation and expert, as a line of results."""
    from strl_scores import lookup

    budget = budget_of(pair, options)
    os.environ["MINARI_DATASETS_PATH"] = str(collect(options, pair, replace(budget, mazes=budget.table_mazes)))
    names = [dataset_id(*pair, split) for split in ("train", "validation", "test")]
    return {**bound_of(pair, options), **lookup(names, budget.scored, pair[0])}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_budget_options(parser)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--sweep-seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="*", default=[], help="run the cells whose name holds one of these")
    parser.add_argument("--workers", type=int, default=1, help="cells at a time, each in a process of its own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-integers", dest="integers", action="store_false", help="no export of strl-spike")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "strl", help="datasets, runs and network files")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="only write the tables from the results")
    parser.add_argument("--quick", action="store_true", help="one cell of each model, tiny, nothing written to docs")
    parser.add_argument("--json", type=Path, help="also write all lines of results here")
    options = parser.parse_args()
    options.out = options.out.absolute()
    if options.quick:
        options.seeds, options.sweep_seeds, options.results = [0], [], options.out / "quick.jsonl"
        options.only = ["walls-wall_follower"]
    return options


def lines_to_come(options: argparse.Namespace, done: set[str]) -> Iterator[Line]:
    """Measure what has no line yet, and give each line as soon as it is there; times come last, alone."""
    asked = [cell for cell in cells([0], [0]) if is_asked(cell, options.only)]
    pairs = [pair for pair in dict.fromkeys(cell.pair for cell in asked) if key(bound_of(pair, options)) not in done]
    every = [cell for cell in cells(options.seeds, options.sweep_seeds) if is_asked(cell, options.only)]
    missing = [cell for cell in every if key(line_of(cell, budget_of(cell.pair, options))) not in done]
    for pair in dict.fromkeys(cell.pair for cell in missing):
        collect(options, pair, budget_of(pair, options))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, spawn, die_with_parent, (os.getpid(),)) as pool:
        running = [pool.submit(bounds, pair, options) for pair in pairs]
        running += [pool.submit(measure, cell, options) for cell in missing]
        try:
            for finished in as_completed(running):
                yield finished.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # not the whole protocol behind a cell that failed
            raise
    for cell in every:
        line = {**line_of(cell, budget_of(cell.pair, options)), "kind": "time"}
        if cell.model == "strl-spike" and not options.integers:
            continue
        if cell.pair in SWEPT_ON and cell.seed == every[0].seed and key(line) not in done:
            yield times(cell, options)
        if (cell.pair, cell.attention) == (PUBLISHED_ON, "bidirectional") and key({**line, "kind": "ends"}) not in done:
            yield ends(cell, options)


def is_asked(cell: Cell, only: list[str]) -> bool:
    """Whether ``--only`` names it."""
    return not only or any(part in cell.name for part in only)


def main() -> None:
    """Run what is missing, then render."""
    options, console = parse(), Console(soft_wrap=True)
    lines = [json.loads(x) for x in options.results.read_text().splitlines()] if options.results.exists() else []
    done = {key(line) for line in lines if is_done(line, options)}
    for line in [] if options.render else lines_to_come(options, done):
        lines = [*(other for other in lines if key(other) != key(line)), line]
        options.results.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.results, "".join(json.dumps(x) + "\n" for x in lines))
        console.print(strl_tables.said(line), markup=False)
    if options.json:
        write_text(options.json, json.dumps(lines, indent=2) + "\n")
    if not options.quick:
        strl_tables.write_document(lines, lambda pair: budget_of(pair, options).as_json())


if __name__ == "__main__":
    main()

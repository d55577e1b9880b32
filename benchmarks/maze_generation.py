"""Mazes per second on one core: carved, walked through by each expert, observed, written, flattened for training.

Times are those of the processor (this process alone), so that a busy machine changes them little. Every row is one
``dsf-data collect maze``: "made" is carving, choosing those of the split, the expert's walk, and the observations;
"written" the Minari dataset; "minari" the same episodes by Minari's own writer, of the first {sample}; "both" made and
written; "flattened" the files that training maps into memory.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from dsf.tasks.maze_experts import EXPERTS
from dsf.tasks.maze_views import OBSERVATIONS
from dsf.train.data.collect import write_dataset
from dsf.train.data.dataset import load_dataset
from dsf.train.data.maze_sets import DEFAULT_MAZES, MazeSet
from dsf.train.data.maze_walks import collect_mazes

QUICK_MAZES, MINARI_SAMPLE = 2000, 500


def megabytes(directory: Path) -> float:
    """Size of all files below a directory (MB of 10**6 bytes)."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6


def measure(maze_set: MazeSet, count: int, seed: int) -> dict[str, Any]:
    """Mazes per processor second of every stage, and what the files take."""
    marks = [time.process_time()]

    def rate(mazes: int) -> float:
        marks.append(time.process_time())
        return mazes / (marks[-1] - marks[-2])

    row: dict[str, Any] = {"observation": maze_set.observation, "expert": maze_set.expert, "mazes": count}
    episodes = collect_mazes(maze_set, count, seed, lambda done: None)
    row["made_per_s"] = rate(count)
    place = write_dataset(maze_set, episodes, "benchmark", True, maze_set.metadata, lambda done: None)
    row["written_per_s"] = rate(count)
    row["made_and_written_per_s"] = count / (marks[-1] - marks[0])
    data = load_dataset(maze_set.dataset_id, written=episodes)
    row["flattened_per_s"] = rate(count)
    row |= {"steps": data.steps, "minari_mb": megabytes(place / "data"), "flat_mb": megabytes(place / ".dsf-cache")}
    rate(1)
    sample = episodes[:MINARI_SAMPLE]
    place = write_dataset(maze_set, sample, "benchmark", True)
    row["minari_per_s"] = rate(len(sample))
    row["minari_own_kb_per_maze"] = 1e3 * megabytes(place / "data") / len(sample)
    row["kb_per_maze"] = 1e3 * row["minari_mb"] / count
    return row


def main() -> None:
    """Print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").format(sample=MINARI_SAMPLE), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_MAZES} mazes per row")
    parser.add_argument("--mazes", type=int, default=DEFAULT_MAZES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count = QUICK_MAZES if options.quick else options.mazes
    rows = []
    print(
        "| observation | expert | made / s | written / s | (Minari) | both / s | flattened / s | kB a maze | (Minari) |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch, threadpool_limits(1):
        os.environ["MINARI_DATASETS_PATH"] = scratch
        for observation in OBSERVATIONS:
            for expert in EXPERTS:
                row = measure(MazeSet(observation, expert), count, options.seed)
                rows.append(row)
                print(
                    f"| {observation} | {expert} | {row['made_per_s']:.0f} | {row['written_per_s']:.0f} "
                    f"| {row['minari_per_s']:.0f} | {row['made_and_written_per_s']:.0f} "
                    f"| {row['flattened_per_s']:.0f} | {row['kb_per_maze']:.1f} "
                    f"| {row['minari_own_kb_per_maze']:.1f} |"
                )
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

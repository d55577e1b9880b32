"""Kill a training run with SIGKILL at random moments, resume it each time, and compare it with an unbroken one.

Every run writes a checkpoint after every step and scores itself now and then. Kills take turns: in the middle of a
checkpoint's writing, at any moment, while the process still starts. The last and best weights, the optimizer's state,
the scores and metrics.jsonl must be the unbroken run's, bit for bit. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dsf.train.checkpoint import CHECKPOINT_NAME, load_checkpoint
from dsf.train.data.collect import collect_episodes, get_recipe, write_dataset
from dsf.train.run_directory import BEST_NAME, METRICS_NAME, PARTIAL_FILES

KILLS, QUICK_KILLS = 20, 3
MOMENTS = ("writing", "any", "starting", "writing", "any")
"""What kills aim at, in turns."""
STEPS, EVAL_EVERY = 90, 30
LARGEST_GAP = 30
"""Steps between two kills, at most."""
START_UP_S = 3.0
"""Kills that come while the process starts fall into this time."""
POLL_S = 0.001
RECIPE, DATA_STEPS = "hopper-medium", 400
MODEL = ("--model.width", "16", "--model.blocks", "1", "--model.context", "6", "--model.window", "3")
SCHEDULE = ("--steps", str(STEPS), "--checkpoint-every", "1", "--log-every", "1", "--eval-every", str(EVAL_EVERY))
SIZE = ("--batch-size", "8", "--threads", "1", "--device", "cpu", "--eval-episodes", "1", "--eval-targets", "3600")
COMPARED = ("step", "scores", "best", "model", "dataset", "codec")
"""Entries of a checkpoint's header that must agree."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: its aim, the last step that metrics showed, and what the process was in the middle of writing."""

    aim: str
    step: int
    partial_files: list[str]
    half_line: bool


def start(out: Path) -> subprocess.Popen[bytes]:
    """Start dsf-train, or continue the run in ``out``."""
    program = str(Path(sys.executable).parent / "dsf-train")
    resume = ["--resume"] if (out / CHECKPOINT_NAME).exists() else []
    dataset = get_recipe(RECIPE).dataset_id
    command = [program, dataset, "--out", str(out), *MODEL, *SCHEDULE, *SIZE, *resume]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run's good end."""
    _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"kill_and_resume: dsf-train ended with {process.returncode}: {errors.decode().strip()}")


def partial_files(out: Path) -> list[Path]:
    """What a killed run was writing."""
    return [out / name for name in PARTIAL_FILES if (out / name).exists()]


def last_step(out: Path) -> int:
    """The last step of which metrics show a whole row; 0 if there is none."""
    path = out / METRICS_NAME
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def await_moment(process: subprocess.Popen[bytes], out: Path, chance: random.Random, aim: str) -> None:
    """Return at the moment to kill, or when the run has ended."""
    if aim == "starting":
        time.sleep(chance.uniform(0.0, START_UP_S))
        return
    target = last_step(out) + chance.randint(2, LARGEST_GAP)
    while process.poll() is None and last_step(out) < target:
        time.sleep(POLL_S)
    if aim == "any":
        time.sleep(chance.uniform(0.0, 10 * POLL_S))  # not always the moment after a row of metrics
        return
    while process.poll() is None and not partial_files(out):
        pass  # the file lives for a millisecond: waiting would miss it


def kill_somewhere(process: subprocess.Popen[bytes], out: Path, chance: random.Random, aim: str) -> Kill | None:
    """Kill the run; None if it ended before."""
    await_moment(process, out, chance, aim)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"kill_and_resume: dsf-train ended with {process.returncode}: {errors.decode().strip()}")
    path = out / METRICS_NAME
    half_line = path.exists() and not path.read_text().endswith("\n")
    return Kill(aim, last_step(out), [left.name for left in partial_files(out)], half_line)


def differences(whole: Path, broken: Path) -> list[str]:
    """What is not the same in two finished runs."""
    found = []
    for name in (CHECKPOINT_NAME, BEST_NAME):
        left, right = load_checkpoint(whole / name), load_checkpoint(broken / name)
        if left.tensors.keys() != right.tensors.keys():
            found.append(f"{name}: names of tensors")
        found += [f"{name}: {key}" for key in left.tensors if not same(left.tensors[key], right.tensors.get(key))]
        found += [f"{name}: header's {key}" for key in COMPARED if left.header[key] != right.header[key]]
    if (whole / METRICS_NAME).read_text() != (broken / METRICS_NAME).read_text():
        found.append(METRICS_NAME)
    return found + [str(left) for left in partial_files(broken)]


def same(left: torch.Tensor, right: torch.Tensor | None) -> bool:
    """Whether two tensors agree bit for bit."""
    return right is not None and left.dtype == right.dtype and torch.equal(left, right)


def torture(work: Path, wanted: int, chance: random.Random) -> dict[str, Any]:
    """Break runs until there were ``wanted`` kills; each of them is continued to its end and compared."""
    began = time.monotonic()
    whole = work / "whole"
    finish(start(whole))
    print(f"unbroken run: {STEPS} steps in {time.monotonic() - began:.1f} s", flush=True)
    kills: list[Kill] = []
    found: list[str] = []
    runs = 0
    while len(kills) < wanted:
        broken, ended = work / f"broken{runs}", False
        runs += 1
        while len(kills) < wanted and not ended:
            kill = kill_somewhere(start(broken), broken, chance, MOMENTS[len(kills) % len(MOMENTS)])
            ended = kill is None
            if kill is not None:
                kills.append(kill)
                writing = [*kill.partial_files, *(["half a line of metrics"] if kill.half_line else [])]
                inside = f", while writing {', '.join(writing)}" if writing else ""
                print(f"kill {len(kills)} of {wanted} ({kill.aim}): after step {kill.step}{inside}", flush=True)
        if not ended:
            finish(start(broken))
        found += [f"{broken.name}: {difference}" for difference in differences(whole, broken)]
    return {
        "kills": len(kills),
        "kills_while_writing": sum(bool(kill.partial_files) or kill.half_line for kill in kills),
        "runs": runs,
        "mismatches": found,
        "moments": [asdict(kill) for kill in kills],
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    """Break, resume, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills, under 45 seconds")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; none means other ones each time")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dsf-kill-") as place:
        os.environ["MINARI_DATASETS_PATH"] = str(Path(place) / "minari")
        Path(os.environ["MINARI_DATASETS_PATH"]).mkdir()
        recipe = get_recipe(RECIPE)
        write_dataset(recipe, collect_episodes(recipe, DATA_STEPS, 0, lambda: None), "kill_and_resume", False)
        wanted = QUICK_KILLS if arguments.quick else KILLS
        result = torture(Path(place), wanted, random.Random(arguments.seed))
    print(
        f"{result['kills']} kills ({result['kills_while_writing']} while a file was written), {result['runs']} broken "
        f"run(s), {len(result['mismatches'])} mismatches in weights, optimizer, scores and metrics, "
        f"{result['seconds']:.0f} s"
    )
    for mismatch in result["mismatches"]:
        print(f"mismatch: {mismatch}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(1 if result["mismatches"] else 0)


if __name__ == "__main__":
    main()

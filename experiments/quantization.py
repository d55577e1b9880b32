"""Score against weight bits: plain rounding, better scales, quantization-aware training; writes docs tables.

    python experiments/quantization.py --run runs/hopper --dataset dsf/hopper/medium-expert-v1

Every cell is an integer network in closed loop (the fast engine, ``--episodes`` reset seeds), with its firing rate and
energy per decision, beside the float policy on the same seeds. ``docs/quantization.jsonl`` keeps one line per cell; a
cell that is there is not run again. Quantization-aware training takes ``--qat-steps`` from the run's own weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dsf.export.network.network import Mode, Network
from dsf.shell.files import write_text
from dsf.shell.generated_section import replace_section
from dsf.tasks import get_task, mean_confidence_interval, rollout

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCUMENT = ROOT / "docs" / "quantization.jsonl", ROOT / "docs" / "quantization.md"
BITS = (8, 6, 4, 3, 2)
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mse": {"clipping": "mse"},
    "fine": {"embed_synapses": 2, "residual_scales": "channel"},
    "qat": {},
}
"""How each method quantizes; all that differs from the default is chosen on the training set."""
METHODS = tuple(RULES)
SCALES = ("per-channel", "per-layer")
EVAL_SEED = 9_000
PRESET = "loihi1_davies2018"
CALIBRATION_WINDOWS = 64


@dataclass(frozen=True)
class Cell:
    """One integer network."""

    bits: int
    method: str
    scales: str

    @property
    def per_channel(self) -> bool:
        """Whether neurons have scales of their own."""
        return self.scales == "per-channel"


def cells() -> list[Cell]:
    """Every cell; quantization-aware training last, since it takes longest."""
    return [Cell(bits, method, scales) for method in METHODS for scales in SCALES for bits in BITS]


def network_of(cell: Cell, options: argparse.Namespace) -> Network:
    """Quantize, after a fine-tuning run where the cell asks for one."""
    from dsf.export.conversion.calibrate import calibrate
    from dsf.export.conversion.fold import fold
    from dsf.export.conversion.quantize import quantize
    from dsf.export.proof.episodes import dataset_episodes
    from dsf.export.proof.verify import spread_windows
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.quantization.rounding import QuantizationConfig

    checkpoint = load_checkpoint(fine_tuned(cell, options) if cell.method == "qat" else options.run)
    folded = fold(checkpoint.build_trained())
    rules, calibration = QuantizationConfig(cell.bits, cell.per_channel, **RULES[cell.method]), None
    if RULES[cell.method]:
        episodes = dataset_episodes(options.dataset, folded.codec.encode, len(folded.codec.unit))
        windows = spread_windows(episodes, folded.context, CALIBRATION_WINDOWS)
        calibration = calibrate(folded, windows.swapaxes(0, 1))
    units = checkpoint.header["quantization"]["threshold_units"] if cell.method == "qat" else None
    return quantize(folded, checkpoint.header["task"], threshold_units=units, config=rules, calibration=calibration)


def fine_tuned(cell: Cell, options: argparse.Namespace) -> Path:
    """The run directory of this cell's quantization-aware training."""
    out: Path = options.out / options.run.name / f"qat_{cell.bits}_{cell.scales}"
    arguments = ["--out", out, "--init", options.run, "--qat-steps", options.qat_steps, "--bits", cell.bits]
    arguments += ["--batch-size", 32, "--learning-rate", 2e-3, "--threads", options.threads, "--eval-episodes", 0]
    flags = ["--per-channel" if cell.per_channel else "--no-per-channel"]
    flags += ["--resume"] if (out / "checkpoint.safetensors").exists() else []
    program = Path(sys.executable).parent / "dsf-train"
    command = [str(program), options.dataset, *map(str, arguments), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(f"quantization: {done.stderr.strip()}")
    return out


def score(network: Network, options: argparse.Namespace) -> dict[str, Any]:
    """Closed loop of an integer network: returns, and firing rate and energy over all these decisions."""
    from dsf.export.network.reference import IntegerPolicy
    from dsf.hardware_models import estimate_energy, load_preset, measure_activity
    from dsf.runtime.engines.fast_engine import FastEngine

    task = get_task(network.task)
    mode: Mode = "stream" if network.stream_is_exact else "window"
    engine = FastEngine(network, mode=mode)
    episodes = rollout(task, IntegerPolicy(engine), seeds(options), task.target_returns[0])
    activity = measure_activity(engine.counter)
    return summary([episode.episode_return for episode in episodes], task.name) | {
        "mode": mode,
        "firing_rate": activity.firing_rate,
        "events": activity.per_decision("synaptic_events"),
        "joules": estimate_energy(activity, load_preset(PRESET)).nominal,
    }


def score_float(options: argparse.Namespace) -> dict[str, Any]:
    """Closed loop of the run itself."""
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.evaluation.torch_policy import TorchPolicy

    checkpoint = load_checkpoint(options.run)
    task = get_task(checkpoint.header["task"])
    policy = TorchPolicy(checkpoint.build_model(), options.episodes)
    episodes = rollout(task, policy, seeds(options), task.target_returns[0])
    return summary([episode.episode_return for episode in episodes], task.name)


def seeds(options: argparse.Namespace) -> range:
    """Reset seeds."""
    return range(options.eval_seed, options.eval_seed + options.episodes)


def summary(returns: list[float], task: str) -> dict[str, Any]:
    """Mean, interval and score of some returns."""
    interval = mean_confidence_interval(returns)
    return {"returns": returns, **asdict(interval), "score": get_task(task).score(interval.mean)}


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Markdown of one run."""
    from dsf.hardware_models import load_preset

    mine = {(line["bits"], line["method"], line["scales"]): line for line in lines}
    base, (first, last) = mine[FLOAT], lines[0]["seeds"]
    trained = f"{base['train_steps']:,} steps on `{base['dataset']}` ({base['run']})"
    text = [f"### {base['attention'].upper()}, {trained}", ""]
    text += [f"float: {shown(base)} on reset seeds {first} to {last}", ""]
    text += [f"| method | scales | {' | '.join(f'{bits} bits' for bits in BITS)} |", "|" + "---|" * (len(BITS) + 2)]
    for method in METHODS:
        for scales in SCALES:
            row = [mine.get((bits, method, scales)) for bits in BITS]
            if any(row):
                text.append(f"| {method} | {scales} | {' | '.join('-' if x is None else shown(x) for x in row)} |")
    grade = load_preset(PRESET).grade
    head = (
        f"| network | mode | firing rate | synaptic events per decision | uJ per decision ({PRESET}, grade {grade}) |"
    )
    text += ["", head, "|---|---|---|---|---|"]
    for line in mine.values():
        if "joules" in line:
            name = f"{line['bits']} bits, {line['method']}, {line['scales']}"
            figures = f"{line['firing_rate']:.1%} | {line['events']:,.0f} | {line['joules'] * 1e6:.1f}"
            text.append(f"| {name} | {line['mode']} | {figures} |")
    return [*text, "", *verdicts(mine), ""]


def verdicts(mine: dict[tuple[int, str, str], dict[str, Any]]) -> list[str]:
    """What the issue asks of a network, computed: 8 bits inside the float's interval, 4 bits with training near it."""
    base, text = mine[FLOAT], []
    for method, words in (("plain", "plain rounding"), ("fine", "fine")):
        if (found := mine.get((8, method, SCALES[0]))) is not None:
            inside = "below" if found["mean"] < base["low"] else "inside" if found["mean"] <= base["high"] else "above"
            text.append(
                f"8 bits, {words}: mean return {found['mean']:.1f}, {inside} the float policy's 95 % interval "
                f"[{base['low']:.1f}, {base['high']:.1f}]."
            )
    for method, words in (("fine", "fine, without training"), ("qat", "with {qat_steps:,} steps of training")):
        if (found := mine.get((4, method, SCALES[0]))) is not None:
            text.append(f"4 bits, {words.format(**found)}: {found['score'] - base['score']:+.1f} points.")
    return text


def shown(line: dict[str, Any]) -> str:
    """Score [95 % bootstrap over episodes]."""
    task = get_task(line["task"])
    return f"{line['score']:.1f} [{task.score(line['low']):.1f}, {task.score(line['high']):.1f}]"


FLOAT = (32, "float", "-")


def describe(cell: tuple[int, str, str], options: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """A line of results."""
    from dsf.train.checkpoint import load_checkpoint

    header = load_checkpoint(options.run).header
    bits, method, scales = cell
    return {
        "run": options.run.name,
        "attention": header["model"].get("attention", "pssa"),
        "task": header["task"],
        "dataset": header["dataset"]["id"],
        "train_steps": header["step"],
        "bits": bits,
        "method": method,
        "scales": scales,
        "qat_steps": options.qat_steps if method == "qat" else 0,
        "seeds": [options.eval_seed, options.eval_seed + options.episodes - 1],
        **found,
    }


IDENTITY = ("run", "attention", "dataset", "train_steps", "bits", "method", "scales", "qat_steps", "seeds")
"""What makes two lines the same cell."""


def identity(line: dict[str, Any]) -> str:
    """A cell's key."""
    return json.dumps([line[name] for name in IDENTITY])


def write_document(lines: list[dict[str, Any]]) -> None:
    """Replace the generated part of docs/quantization.md."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        runs.setdefault(json.dumps([line[name] for name in ("run", "train_steps", "seeds")]), []).append(line)
    text = ["The task's first target return; D4RL-normalised score [95 % bootstrap over episodes].", ""]
    text += [row for run in runs.values() for row in table(run)]
    replace_section(DOCUMENT, "quantization", "\n".join(text))


def main() -> None:
    """Run what is missing, then render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run directory of dsf-train")
    parser.add_argument("--dataset", help="what it was trained on")
    parser.add_argument("--bits", type=int, nargs="*", default=list(BITS), choices=BITS)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--scales", nargs="*", default=list(SCALES), choices=SCALES)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--eval-seed", type=int, default=EVAL_SEED, help="reset seed of the first episode")
    parser.add_argument("--qat-steps", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "quantization")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="the shipped network, 8 bits, one episode")
    parser.add_argument("--json", type=Path, help="also write all lines of results here")
    options = parser.parse_args()
    console, chosen = Console(), cells()
    if options.quick:
        from dsf.runtime.artifacts import checkpoint_path

        options.run, options.episodes, options.results = checkpoint_path(), 1, options.out / "quick.jsonl"
        options.results.unlink(missing_ok=True)
        chosen = [Cell(bits, "plain", SCALES[0]) for bits in BITS[:1]]
    elif options.run is None or options.dataset is None:
        parser.error("--run and --dataset are needed")
    chosen = [cell for cell in chosen if cell.bits in options.bits and cell.method in options.methods]
    chosen = [cell for cell in chosen if cell.scales in options.scales]
    lines = [json.loads(x) for x in options.results.read_text().splitlines()] if options.results.exists() else []
    done = {identity(line) for line in lines}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for key in [FLOAT, *((cell.bits, cell.method, cell.scales) for cell in chosen)]:
        if identity(describe(key, options, {})) in done:
            continue
        found = score_float(options) if key == FLOAT else score(network_of(Cell(*key), options), options)
        lines.append(describe(key, options, found))
        write_text(options.results, "".join(json.dumps(line) + "\n" for line in lines))
        console.print(f"{key}: {shown(lines[-1])}")
    if options.json:
        options.json.write_text(json.dumps(lines, indent=2) + "\n")
    if not options.quick:
        write_document(lines)


if __name__ == "__main__":
    main()

"""Seconds and memory of a whole `dsf-export`, ladder included, for the default network and one eight times as large.

    python benchmarks/export_cost.py

The networks have random weights; levels L0 to L2, torch and ONNX Runtime are compared on a locally collected dataset,
without closed-loop episodes, whose time is MuJoCo's. The command runs as its users run it, imports and all. Level L3,
the fast engine, is compared with the written file afterwards (it belongs to dsf-sim-run), and its seconds count, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

SIZES = {"D=128, 3 blocks": (128, 3, 7), "D=256, 6 blocks": (256, 6, 4)}
"""Width, blocks and window; the receptive field is 19 for both."""
CONTEXT, MLP_RATIO = 20, 4
DECISIONS = 320
"""Compared on L3: four times as many as the ladder compares on other engines."""
DATASET, DATASET_STEPS = "dsf/hopper/medium-v0", 3_000
PROGRAMS = Path(sys.executable).parent


def export(folder: Path, name: str) -> dict[str, float]:
    """Export one random network; returns its seconds and the largest resident set of any child so far (MB)."""
    from dsf.testing.random_networks import write_checkpoint

    width, blocks, window = SIZES[name]
    sizes = {"width": width, "blocks": blocks, "window": window, "context": CONTEXT, "mlp_ratio": MLP_RATIO}
    checkpoint = write_checkpoint(folder / f"{width}.safetensors", **sizes)
    command: list[str | Path] = [
        PROGRAMS / "dsf-export",
        checkpoint,
        "--episodes",
        "0",
        "--dataset",
        DATASET,
        "-o",
        folder / "x.dsf.h5",
    ]
    started = time.perf_counter()
    run([*command, "-o", folder / "x.dsf.h5"], folder)
    megabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    exported = time.perf_counter() - started
    compared = prove_fast_engine(folder / "x.dsf.h5")
    return {
        "seconds": time.perf_counter() - started,
        "export_seconds": exported,
        "peak_mb": megabytes,
        "level_3_spikes": compared,
    }


def prove_fast_engine(path: Path) -> int:
    """Compare L3 with L2, and end where they differ; returns how many spike slots were compared."""
    from dsf.export.network.file import read_network
    from dsf.export.network.reference import ReferenceEngine
    from dsf.export.proof.rungs import compare_engines, random_proof_tokens
    from dsf.testing.recorded_engine import RecordedEngine

    network = read_network(path)
    tokens = random_proof_tokens(network, DECISIONS, seed=0)
    lanes = tokens.shape[1]
    fast = RecordedEngine(network, "stream", lanes)
    rung = compare_engines("L3", network, ReferenceEngine(network, lanes), fast, tokens)
    if not rung.passed:
        raise SystemExit(f"export_cost: the fast engine differs: {rung.summary}")
    return int(rung.details["compared_spikes"])


def run(command: list[str | Path], store: Path) -> None:
    """Run one of dsf's commands, and end with its message where it fails."""
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(store)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"export_cost: {done.stderr.strip()}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the default network only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        collect = ["collect", "hopper-medium", "--steps", str(DATASET_STEPS), "--seed", "0"]
        run([PROGRAMS / "dsf-data", *collect], Path(folder))
        for name in list(SIZES)[: 1 if options.quick else None]:  # the smaller first: peaks are of all so far
            figures[name] = export(Path(folder), name)
            line = "{seconds:.1f} s ({export_seconds:.1f} without L3), {peak_mb:.0f} MB".format(**figures[name])
            Console().print(f"{name}: {line}")
    if len(figures) > 1:
        small, large = (figures[name]["seconds"] for name in SIZES)
        Console().print(f"ratio {large / small:.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

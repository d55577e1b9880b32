"""Random networks of every kind, proven through all engines: fold, integers, torch target, ONNX Runtime, fast engine.

    python endurance/engine_parity.py --networks 50000 --workers 2

Each network is drawn from one seed: any attention, norm and head that can become spikes, width 1 to 64, T 1 to 8,
windows 1 to K, 2 to 8 bits; of a third that can, each neuron has a decay of its own; of a quarter most weights are set
to 0, and they go through a network file. Its fold must agree with torch in float64 (actions to 1e-5, every
spike), and reference, torch target, ONNX Runtime and the fast engine in every spike and accumulator. A failure names
its seed: ``--first SEED --networks 1``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console
from rich.progress import track

from dsf.export.conversion.calibrate import calibrate
from dsf.export.conversion.folded import FoldedModel
from dsf.export.network.network import Network
from dsf.shell.child_processes import die_with_parent
from dsf.shell.scratch_directory import temporary_directory
from dsf.train.quantization.integers import Affine
from dsf.train.quantization.rounding import QuantizationConfig

QUICK_NETWORKS = 100
LANES = 2
SPARSE_SHARES = (0.7, 0.8, 0.9, 0.97)
"""Of the weights that are 0, in a sparse network."""
SPARSE_SEEDS = (2, 5)
"""One in stream mode, one in window mode."""
FORMS: tuple[Literal["quicker", "chunks"], ...] = ("quicker", "chunks")
"""How the fast engine computes with sparse weights."""
SHARE = 50
"""Networks that a worker takes at a time."""


@dataclass(frozen=True)
class Outcome:
    """What one network gave: spike slots compared on each rung, and the rungs that failed."""

    seed: int
    spikes: dict[str, int]
    failed: tuple[str, ...]


def draw(generator: np.random.Generator) -> dict[str, Any]:
    """Arguments of ``random_model``."""
    from dsf.testing.random_networks import EXPORTABLE_NORMS
    from dsf.train.config.training import AttentionKind, BiasKind

    heads, context = int(generator.integers(1, 4)), int(generator.integers(1, 9))
    on_host = bool(generator.integers(4) == 0)
    return {
        "attention": str(generator.choice(get_args(AttentionKind))),
        "positional_bias": str(generator.choice(get_args(BiasKind))),
        "norm": str(generator.choice(EXPORTABLE_NORMS)),
        "discrete": bool(generator.integers(2)),
        "heads": heads,
        "width": heads * int(generator.integers(1, 64 // heads + 1)),
        "blocks": int(generator.integers(1, 3)),
        "ticks": int(generator.integers(1, 9)),
        "context": context,
        "window": int(generator.integers(1, context + 1)),
        "embed_norm": "layernorm" if on_host else "ptbn",
        "input_bits": 0 if on_host and generator.integers(2) else int(generator.integers(4, 13)),
        "decay": float(generator.choice([0.25, 0.5, 0.875, 0.0])),
    }


def draw_quantization(generator: np.random.Generator, folded: FoldedModel) -> dict[str, Any]:
    """Arguments of quantize: any width, an embedding of one or two synapses, one residual unit or one per channel."""
    from dsf.testing.random_networks import random_coded

    rules = QuantizationConfig(
        bits=int(generator.integers(2, 9)),
        embed_synapses=int(generator.integers(1, 3)) if isinstance(folded.embed, Affine) else 1,
        residual_scales=("shared", "channel")[generator.integers(2)],
    )
    seen = random_coded(folded, LANES, int(generator.integers(1 << 31)))
    return {"config": rules, "calibration": calibrate(folded, seen) if rules.residual_scales == "channel" else None}


def sparse_member(seed: int, network: Network) -> Network:
    """For two of eight seeds the network with most weights set to 0, as its file gives it back; else itself."""
    from dsf.export.network.file import read_network, write_network
    from dsf.testing.random_networks import sparser

    if seed % 8 not in SPARSE_SEEDS:
        return network
    with temporary_directory("dsf-parity-") as folder:
        path = folder / "network.dsf.h5"
        write_network(sparser(network, SPARSE_SHARES[seed // 8 % len(SPARSE_SHARES)]), path)
        return read_network(path)


def prove(seed: int) -> Outcome:
    """One network through all engines; an exception is a failure like any other."""
    try:
        return compare(seed)
    except Exception as error:  # whatever it is, the other networks go on and this one's seed is named
        return Outcome(seed, {}, (f"{type(error).__name__}: {error}",))


def compare(seed: int) -> Outcome:
    """One network through all engines; those with two modes in stream mode for even seeds, in window mode for odd."""
    from dsf.export.conversion.fold import fold
    from dsf.export.conversion.quantize import quantize
    from dsf.export.network.reference import ReferenceEngine, WindowReference
    from dsf.export.proof.levels import run_folded, run_torch
    from dsf.export.proof.rungs import compare_engines, compare_stream, compare_torch, random_entering
    from dsf.export.targets.onnx_engine import OnnxEngine, OnnxWindowEngine
    from dsf.testing.fold import compare_fold
    from dsf.testing.random_networks import random_coded, random_model
    from dsf.testing.recorded_engine import RecordedEngine

    generator = np.random.default_rng(seed)
    drawn = draw(generator)
    own_decays = seed % 3 == 0 and drawn["decay"] > 0.0 and drawn["ticks"] > 1
    model = random_model(seed, **drawn, learn_decays=own_decays)
    folded = fold(model)
    network = sparse_member(seed, quantize(folded, "hopper", **draw_quantization(generator, folded)))
    tokens = random_entering(network, (network.context + 1, LANES), generator)
    window = random_coded(folded, LANES, seed).swapaxes(0, 1)
    reference, onnx = (ReferenceEngine, OnnxEngine) if seed % 2 == 0 else (WindowReference, OnnxWindowEngine)
    form = FORMS[seed // 32 % len(FORMS)]
    fast = RecordedEngine(network, "stream" if seed % 2 == 0 else "window", LANES, form)
    rungs = [
        compare_fold(run_torch(model.double(), window), run_folded(folded, window)),
        compare_stream(network, tokens),
        replace(compare_torch(network, tokens), name="torch target"),
        compare_engines("ONNX Runtime", network, reference(network, LANES), onnx(network, LANES), tokens),
        compare_engines("fast engine", network, reference(network, LANES), fast, tokens),
    ]
    spikes = {rung.name: rung.details["compared_spikes"] for rung in rungs if "compared_spikes" in rung.details}
    return Outcome(seed, spikes, tuple(rung.name for rung in rungs if rung.passed is False))


def start_worker(parent: int) -> None:
    """One thread per worker, which ends with the parent."""
    import torch

    die_with_parent(parent)
    torch.set_num_threads(1)


def main() -> None:
    """Prove, count, and fail if one network differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=50_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first network")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_NETWORKS} networks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = range(options.first, options.first + (QUICK_NETWORKS if options.quick else options.networks))
    started, console = time.perf_counter(), Console()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, spawn, start_worker, (os.getpid(),)) as pool:
        outcomes = list(track(pool.map(prove, seeds, chunksize=SHARE), "networks", len(seeds), console=console))
    seconds = time.perf_counter() - started
    failed = [outcome for outcome in outcomes if outcome.failed]
    rungs: Counter[str] = Counter()
    for outcome in outcomes:
        rungs.update(outcome.spikes)
    spikes = rungs.total()
    console.print(f"{len(seeds):,} networks, {spikes:,} spike slots, {len(failed)} networks differ, {seconds:.0f} s")
    for outcome in failed[:20]:
        console.print(f"seed {outcome.seed}: {', '.join(outcome.failed)}")
    if options.json:
        figures: dict[str, Any] = {
            "networks": len(seeds),
            "compared_spikes": spikes,
            "failed": len(failed),
            "seconds": seconds,
        }
        figures["compared_by_rung"] = dict(rungs)
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(int(bool(failed)))


if __name__ == "__main__":
    main()

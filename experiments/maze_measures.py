"""What experiments/maze_on_cores.py asks of the integers of STRL-spike and of the dense rival."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from strl_protocol import run

from dsf.export.network.file import file_digest, read_network
from dsf.export.network.reference import IntegerPolicy
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.tasks import get_task
from dsf.train.checkpoint import Checkpoint
from dsf.train.data.dataset import OfflineDataset, load_dataset
from dsf.train.evaluation.token_accuracy import TokenAccuracy, policy_accuracy
from dsf.train.evaluation.torch_policy import TorchPolicy
from dsf.train.models.decision_model import DecisionModel

LANES = 32
CLOSEST = 0.01
"""Share by which the rival's number of parameters may differ."""
FAST_CHECKED = 10
"""First decisions of every maze that the reference repeats after the fast engine; after Lava it repeats all."""
Line = dict[str, Any]


def measure(
    home: Path, spiking: Checkpoint, dense: Checkpoint, network: Path, test: str, options: argparse.Namespace
) -> Line:
    """Everything about one training seed.

    Args:
        home: gets the commands' reports and logs, and Lava's recording and spikes.
        spiking: its run.
        dense: the rival's.
        network: file of the spiking run's integers.
        test: dataset of mazes that training has not seen.
        options: ``unseen``, ``rival_mazes`` and ``lava_mazes`` from reset seed ``first_maze``; ``threads``; ``store``.

    Raises:
        RuntimeError: a command failed (dsf-sim-run does where one spike differs), or the rival has another size.
    """
    torch.set_num_threads(options.threads)
    models = {"spike": spiking.build_model(), "dense": dense.build_model()}
    parameters = {name: model.parameter_count() for name, model in models.items()}
    if abs(parameters["dense"] / parameters["spike"] - 1) > CLOSEST:
        raise RuntimeError(f"parameters differ by more than {CLOSEST:.0%}: {parameters}")
    data = load_dataset(test)
    fast = simulate(network, home / "fast.json", options.unseen, FAST_CHECKED, options, "--backend", "fast")
    found = {
        "parameters": parameters,
        "trained_on": spiking.header["dataset"],
        "train_revision": spiking.header["revision"],
        "network_sha256": file_digest(network),
        "float": tokens_of(acting_accuracy(models["spike"], data, options.rival_mazes)),
        "integers": {**tokens_of(integer_accuracy(network, test)), **walks(fast)},
        "dense": {
            **tokens_of(acting_accuracy(models["dense"], data, options.rival_mazes)),
            **rival_walks(home, dense, options),
        },
        "energy": energies(fast),
    }
    whole = get_task("maze").max_steps
    kept = ("--record", str(home / "lava.record"), "--probe-file", str(home / "lava.npz"))
    lava = simulate(network, home / "lava.json", options.lava_mazes, whole, options, "--backend", "lava", *kept)
    return {**found, "lava": walks(lava)}


def tokens_of(accuracy: TokenAccuracy) -> Line:
    """As it is stored."""
    return {"accuracy": accuracy.share, "tokens": accuracy.tokens}


def acting_accuracy(model: DecisionModel, data: OfflineDataset, walks: int) -> TokenAccuracy:
    """Teacher-forced over the first whole walks, each token with the window before it, as a float policy acts."""
    return policy_accuracy(TorchPolicy(model, LANES), replace(data, kept=data.kept[:walks]), None)


def integer_accuracy(network: Path, test: str) -> TokenAccuracy:
    """Teacher-forced over whole walks, in stream mode on the fast engine."""
    integers = read_network(network)
    if not integers.stream_is_exact:
        raise RuntimeError(f"{network}: stream mode is not exact, its receptive field exceeds the context")
    return policy_accuracy(IntegerPolicy(FastEngine(integers, LANES, "stream")), load_dataset(test), None)


def simulate(network: Path, report: Path, mazes: int, compared: int, options: argparse.Namespace, *more: str) -> Line:
    """``dsf-sim-run`` over unseen mazes, the first ``compared`` decisions of each compared with the reference, spike by
    spike; returns its report.
    """
    asked = ["--episodes", str(mazes), "--seed", str(options.first_maze), "--parity-decisions", str(mazes * compared)]
    asked.append("--no-compare")
    command = ["dsf-sim-run", str(network), *asked, "--json", str(report), *more]
    run(command, options, report.with_suffix(".log"))
    found: Line = json.loads(report.read_text())
    return found


def walks(report: Line) -> Line:
    """Mazes walked through, those whose goal was reached, and mean of moves / shortest over these."""
    episodes = report["episodes"]
    ratios = [episode["decisions"] / episode["shortest"] for episode in episodes if episode["success"]]
    return {
        "mazes": len(episodes),
        "solved": len(ratios),
        "moves_over_shortest": sum(ratios) / len(ratios) if ratios else None,
        "decisions": report["decisions"],
        "decisions_per_second": report["decisions_per_second"],
        "spikes_per_decision": report["spikes_per_decision"],
        **checked(report),
    }


def checked(report: Line) -> Line:
    """What was compared with the reference; ``checked_decisions`` of ``decisions`` are all where every one was."""
    parity, choices = report["parity"], get_task("maze").action_size
    return {
        "checked_decisions": parity["compared_accumulators"] // choices,
        "compared_spikes": parity["compared_spikes"],
        "mismatches": parity["mismatches"],
        "accumulator_mismatches": parity["accumulator_mismatches"],
    }


def rival_walks(home: Path, dense: Checkpoint, options: argparse.Namespace) -> Line:
    """``dsf-train evaluate`` of the rival over the first of the same mazes, asked for the wall follower's return."""
    report, target = home / "dense.json", get_task("maze").target_returns[0]
    asked = ["--episodes", str(options.rival_mazes), "--seed", str(options.first_maze), "--targets", str(target)]
    command = ["dsf-train", "evaluate", str(dense.path), *asked, "--threads", str(options.threads)]
    run([*command, "--json", str(report)], options, report.with_suffix(".log"))
    (score,) = json.loads(report.read_text())
    mazes = len(score["seeds"])
    return {
        "mazes": mazes,
        "solved": round(score["success_rate"] * mazes),
        "moves_over_shortest": score["steps_over_shortest"],
    }


def energies(report: Line) -> Line:
    """Energies by preset: J per decision, and per maze, which is that times the mean number of decisions."""
    per_maze = report["decisions"] / len(report["episodes"])
    found = {}
    for name, priced in report["energy"].items():
        joules = {"low": priced["low"], "nominal": priced["joules_per_decision"], "high": priced["high"]}
        maze = {bound: value * per_maze for bound, value in joules.items()}
        found[name] = {"grade": priced["grade"], "per_decision": joules, "per_maze": maze}
    return found

"""Microseconds per decision on one core: torch, ONNX Runtime and the fast engine, beside MuJoCo's own step.

    python benchmarks/decision.py [--network FILE --checkpoint RUN] [--quick] [--json FILE]

From a token's vector to the action, all of it. The tokens are those of a closed-loop Hopper episode; the contenders
take turns in short rounds, so that a noisy machine disturbs all of them, and the median round counts:

    torch_window   the float policy as a user would write it: the last K tokens through the model
    onnx           the exported integer graph in ONNX Runtime, stream mode
    stream, window the fast engine, one environment
    batch64        the fast engine in stream mode, 64 environments, per decision
    mujoco_step    Hopper-v5's step: what all of it is held against

The floor is what it takes to read the weights of the neurons that fired, once each, at the speed at which this core
copies an array of the network's size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import Encoder, Synapses
from dsf.export.network.reference import IntegerPolicy, decode
from dsf.runtime.artifacts import checkpoint_path, network_path
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.shell.generated_section import replace_section
from dsf.tasks import Token, get_task
from dsf.testing.measurement import ROOT, when_and_what

LANES = 64
ROUNDS, QUICK_ROUNDS = 15, 5
TOKENS = 200
"""An episode's tokens, replayed in every round."""
CALLS = {"torch_window": 20, "onnx": 100, "stream": 400, "window": 40, "batch64": 10, "mujoco_step": 400}
"""Per round: about as long for each contender."""
TARGET, SEED = 3600.0, 0

DOCUMENT = ROOT / "docs" / "performance.md"
TITLES = {
    "torch_window": "float torch, window mode, as a user would write it",
    "onnx": "ONNX Runtime, integer graph, stream mode",
    "stream": "fast engine, stream mode",
    "window": "fast engine, window mode (all tokens of the context)",
    "batch64": "fast engine, 64 environments, per decision",
    "mujoco_step": "MuJoCo's Hopper-v5 step",
    "floor": "floor: the weights of neurons that fired, once each, at the speed of a copy",
}


def record(network: Network) -> list[Token]:
    """Tokens of one closed-loop episode under the network itself."""
    task = get_task(network.task)
    env, policy = task.make_env(), IntegerPolicy(FastEngine(network))
    observation, _ = env.reset(seed=SEED)
    previous, wanted = np.zeros(task.action_size), TARGET
    tokens: list[Token] = []
    for _ in range(TOKENS):
        tokens.append(Token(observation[None], previous[None], np.array([wanted / task.return_scale])))
        action = policy.act(tokens[-1])[0]
        observation, reward, ended, _, _ = env.step(action)
        previous, wanted = np.clip(action, -1.0, 1.0), wanted - float(reward)
        if ended:
            observation, _ = env.reset(seed=SEED)
    env.close()
    return tokens


def contenders(network: Network, checkpoint: Path, tokens: list[Token]) -> dict[str, Callable[[int], Any]]:
    """One decision each, on token number ``i``."""
    import torch

    from dsf.export.targets.onnx_engine import OnnxEngine
    from dsf.train.checkpoint import load_checkpoint
    from dsf.train.evaluation.torch_policy import TorchPolicy

    torch.set_num_threads(1)
    torch_policy, onnx = TorchPolicy(load_checkpoint(checkpoint).build_model()), OnnxEngine(network)
    stream, window = IntegerPolicy(FastEngine(network)), IntegerPolicy(FastEngine(network, mode="window"))
    batch = FastEngine(network, LANES)
    vectors = [token.vector() for token in tokens]
    many = [np.stack([vectors[(i + lane) % TOKENS][0] for lane in range(LANES)]) for i in range(TOKENS)]
    env = get_task(network.task).make_env()
    env.reset(seed=SEED)
    actions = [decode(network.readout, FastEngine(network).step(vector))[0] for vector in vectors]

    def step(i: int) -> None:
        if env.step(actions[i])[2]:
            env.reset(seed=SEED)

    return {
        "torch_window": lambda i: torch_policy.act(tokens[i]),
        "onnx": lambda i: decode(network.readout, onnx.step(vectors[i])),
        "stream": lambda i: stream.act(tokens[i]),
        "window": lambda i: window.act(tokens[i]),
        "batch64": lambda i: decode(network.readout, batch.step(many[i])),
        "mujoco_step": step,
    }


def measure(ways: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, float]:
    """Median microseconds per decision over rounds in which the contenders take turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, rounds):  # the first round warms up
        for name, way in ways.items():
            started = time.perf_counter()
            for call in range(CALLS[name]):
                way((call + number * CALLS[name]) % TOKENS)
            seconds = (time.perf_counter() - started) / CALLS[name] / (LANES if name == "batch64" else 1)
            if number >= 0:
                found[name].append(seconds * 1e6)
    return {f"{name}_us": statistics.median(values) for name, values in found.items()}


def weight_bytes(network: Network, tokens: list[Token]) -> tuple[float, float]:
    """Per decision: synaptic events, and bytes of weights behind neurons that fired in any tick."""
    engine, events, read = FastEngine(network, record=True), 0, 0
    for token in tokens:
        engine.step(token.vector())
        for node in network.of_kind(Synapses):
            if isinstance(network[node.source], Encoder):
                continue
            fired = engine.spikes[node.source][0]
            events += int(fired.sum()) * node.size
            read += int(fired.any(axis=0).sum()) * node.size
    return events / len(tokens), read / len(tokens)


def copy_speed(network: Network) -> float:
    """Bytes per second at which this core reads and writes an array of the weights' size."""
    size = sum(node.weights.size for node in network.of_kind(Synapses))
    source, target, times = np.zeros(size, np.int8), np.zeros(size, np.int8), []
    for _ in range(200):
        started = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - started)
    return size / statistics.median(times)


def report(figures: dict[str, float]) -> str:
    """The table of docs/performance.md."""
    lines = ["| engine | us per decision | of MuJoCo's step |", "|---|---|---|"]
    for name, title in TITLES.items():
        value = figures[f"{name}_us"]
        lines.append(f"| {title} | {value:.1f} | {value / figures['mujoco_step_us']:.2f} |")
    load = os.getloadavg()[0]
    return "\n".join(
        [
            f"{when_and_what()}, load average {load:.1f}:",
            "",
            *lines,
            "",
            f"A decision has {figures['events']:,.0f} synaptic events and reads {figures['weight_bytes']:,.0f} bytes "
            "of weights for them.",
        ]
    )


def main() -> None:
    """Measure and print; whole runs also write docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, default=network_path(), help="of a Hopper run in exact stream mode")
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_path(), help="the run behind it")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    network = read_network(options.network)
    tokens = record(network)
    figures = measure(contenders(network, options.checkpoint, tokens), QUICK_ROUNDS if options.quick else ROUNDS)
    events, read = weight_bytes(network, tokens)
    figures |= {"events": events, "weight_bytes": read, "floor_us": read / copy_speed(network) * 1e6}
    text = report(figures)
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
    if not options.quick:
        replace_section(DOCUMENT, "decision", text)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

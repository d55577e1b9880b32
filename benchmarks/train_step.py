"""Seconds per training step: a plain per-tick implementation, ours, and the bare matrix products, in one run.

B = 64 windows of K = 20 tokens, T = 4 ticks, 3 blocks, D = 128 and 256, Hopper's shapes. The three take turns, so that
a busy machine slows all of them; medians are shown. What they are:

* eager: DSFormer-PSSA as one writes it first: every Linear and every snnTorch neuron called tick by tick, norms on
  permuted stacks of ticks, fp32, AdamW.
* ours: ``Trainer.train_step`` behind PTBN's blend, at the given --precision and --neuron.
* floor: only the matrix products of such a step, forward and both backward ones, fp32.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsf.tasks import get_task
from dsf.train.config.training import ModelConfig, TrainConfig
from dsf.train.data.batches import Batch
from dsf.train.data.dataset import OfflineDataset
from dsf.train.models.neurons import LIF
from dsf.train.precision import resolve_device, resolve_precision
from dsf.train.quantization.codec import TokenStatistics
from dsf.train.trainer import Trainer

WIDTHS = (128, 256)
ROUNDS, QUICK_ROUNDS = 20, 4
STEPS = 100
"""Length of the run that is timed a piece of; steps from the eleventh on have left PTBN's blend behind."""
EPISODES, EPISODE_STEPS = 40, 250


class TickNorm(nn.Module):
    """Batch norm over ticks, batch and tokens, the way PyTorch's layout asks for it: channels second."""

    def __init__(self, channels: int, gain: float) -> None:
        super().__init__()
        self.batch = nn.BatchNorm1d(channels)
        nn.init.constant_(self.batch.weight, gain)

    def forward(self, ticks: list[Tensor]) -> list[Tensor]:
        """Normalise T tensors (batch, context, channels)."""
        stacked = torch.stack(ticks)
        flat = stacked.flatten(0, 1).permute(0, 2, 1).contiguous()
        return list(self.batch(flat).permute(0, 2, 1).reshape(stacked.shape))


def fire(neuron: LIF, currents: list[Tensor]) -> list[Tensor]:
    """Call snnTorch's neuron once per tick."""
    membrane, spikes = torch.zeros_like(currents[0]), []
    for current in currents:
        spike, membrane = neuron.leaky(current, membrane)
        spikes.append(spike)
    return spikes


class EagerBlock(nn.Module):
    """One block, tick by tick."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, gain = config.width, config.threshold
        self.window = config.window
        self.lifs = nn.ModuleList(LIF(config.decay, config.threshold) for _ in range(7))
        self.q, self.k, self.v, self.project = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.expand, self.contract = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.norms = nn.ModuleList(TickNorm(width, gain) for _ in range(4))
        self.expand_norm, self.contract_norm = TickNorm(4 * width, gain), TickNorm(width, gain)
        self.bias = nn.Parameter(torch.ones(config.window))

    def forward(self, residual: list[Tensor]) -> list[Tensor]:
        """T residuals (batch, context, width) -> the same."""
        spikes = fire(self.lifs[0], residual)
        q, k, v = (
            fire(lif, norm([linear(s) for s in spikes]))
            for lif, norm, linear in zip(self.lifs[1:4], self.norms, (self.q, self.k, self.v))
        )
        attended = fire(self.lifs[4], [qt * self.summed(kt * vt) for qt, kt, vt in zip(q, k, v)])
        branch = self.norms[3]([self.project(s) for s in attended])
        residual = [x + y for x, y in zip(residual, branch)]
        hidden = fire(self.lifs[6], self.expand_norm([self.expand(s) for s in fire(self.lifs[5], residual)]))
        branch = self.contract_norm([self.contract(s) for s in hidden])
        return [x + y for x, y in zip(residual, branch)]

    def summed(self, coincidences: Tensor) -> Tensor:
        """PSSA's sum over the last w tokens of (batch, context, width)."""
        total = self.bias[0] * coincidences
        for lag in range(1, self.window):
            total = total + self.bias[lag] * nn.functional.pad(coincidences[:, :-lag], (0, 0, lag, 0))
        return total


class EagerDSFormer(nn.Module):
    """The same network as :class:`dsf.train.models.dsformer.DSFormer`, on full windows, written plainly."""

    def __init__(self, config: ModelConfig, features: int, actions: int) -> None:
        super().__init__()
        self.ticks = config.ticks
        self.embed = nn.Linear(features, config.width, bias=False)
        self.embed_norm, self.final_norm = (TickNorm(config.width, config.threshold) for _ in range(2))
        self.blocks = nn.ModuleList(EagerBlock(config) for _ in range(config.blocks))
        self.head = nn.Linear(config.width, actions)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, context, features) -> (batch, context, actions)."""
        residual = self.embed_norm([self.embed(tokens)]) * self.ticks
        for block in self.blocks:
            residual = block(residual)
        return torch.tanh(self.head(torch.stack(self.final_norm(residual)).mean(dim=0)))


def random_dataset() -> OfflineDataset:
    """Random tokens with Hopper's shapes; the values do not matter for the time."""
    task, steps = get_task("hopper"), EPISODES * EPISODE_STEPS
    generator = np.random.default_rng(0)
    tokens = generator.normal(size=(steps, task.observation_size + task.action_size + 1)).astype(np.float32)
    return OfflineDataset(
        dataset_id="random",
        task=task,
        content_hash="",
        tokens=tokens,
        actions=generator.uniform(-1, 1, (steps, task.action_size)).astype(np.float32),
        starts=np.arange(EPISODES + 1) * EPISODE_STEPS,
        returns=np.zeros(EPISODES),
        kept=np.arange(EPISODES),
        delayed_reward=False,
        statistics=TokenStatistics.of(tokens),
        out_of_range_actions=0,
    )


def eager_step(trainer: Trainer) -> Callable[[Batch], None]:
    """A training step of the plain implementation on the same kind of batch."""
    config = trainer.config.model
    model = EagerDSFormer(config, len(trainer.codec.unit), trainer.data.task.action_size).to(trainer.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    unit = trainer.model.input_unit

    def step(batch: Batch) -> None:
        predicted = model(batch.integers.to(trainer.device) * unit)
        mask = batch.mask.to(trainer.device)
        loss = nn.functional.mse_loss(predicted[mask], batch.actions.to(trainer.device)[mask])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), trainer.config.gradient_clip)
        optimizer.step()

    return step


def bare_products(trainer: Trainer) -> Callable[[], None]:
    """The step's matrix products alone: y = x W^T, dx = dy W, dW = dy^T x for every Linear."""
    config = trainer.config.model
    tokens = trainer.config.batch_size * config.context
    rows, width, hidden = config.ticks * tokens, config.width, config.width * config.mlp_ratio
    shapes = [(rows, width, 3 * width), (rows, width, width), (rows, width, hidden), (rows, hidden, width)]
    shapes = shapes * config.blocks + [(tokens, len(trainer.codec.unit), width), (tokens, width, 3)]
    operands = [
        tuple(torch.randn(size, device=trainer.device) for size in ((n, i), (o, i), (n, o))) for n, i, o in shapes
    ]

    def run() -> None:
        for x, weight, gradient in operands:
            _ = x @ weight.T, gradient @ weight, gradient.T @ x

    return run


def measure(width: int, rounds: int, options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of the three."""
    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig(
            "random",
            out=Path(scratch),
            model=ModelConfig(width=width),
            steps=STEPS,
            threads=options.threads,
            precision=options.precision,
            neuron=options.neuron,
            device=options.device,
            compile=options.compile,
        )
        trainer = Trainer(config, random_dataset())
    trainer.model.train()
    trainer.step = STEPS // 2
    batches = trainer.batches.from_step(trainer.step, trainer.step + rounds + 1)
    eager, floor = eager_step(trainer), bare_products(trainer)
    seconds: dict[str, list[float]] = {"eager_s": [], "ours_s": [], "floor_s": []}
    ahead = next(batches)
    for _ in range(rounds):
        seconds["eager_s"].append(timed(functools.partial(eager, ahead), trainer.device))
        seconds["floor_s"].append(timed(floor, trainer.device))
        started = clock(trainer.device)
        trainer.train_step(ahead)
        ahead = next(batches)  # drawn in the meantime, as in training
        seconds["ours_s"].append(clock(trainer.device) - started)
    warm = slice(1, None) if rounds > 1 else slice(None)
    return {name: statistics.median(values[warm]) for name, values in seconds.items()} | {
        "precision": trainer.precision
    }


def clock(device: torch.device) -> float:
    """Seconds, after the device has finished what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call."""
    started = clock(device)
    work()
    return clock(device) - started


def main() -> None:
    """Print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="channels D")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--neuron", choices=["fused", "snntorch"], default="fused")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {
        str(width): measure(width, QUICK_ROUNDS if options.quick else ROUNDS, options) for width in options.widths
    }
    precision = resolve_precision(options.precision, resolve_device(options.device))
    print("| D | eager | ours | floor | eager / ours | ours / floor |\n|---|---|---|---|---|---|")
    for width, row in results.items():
        eager, ours, floor = (row[key] for key in ("eager_s", "ours_s", "floor_s"))
        print(
            f"| {width} | {eager:.3f} s | {ours:.3f} s ({precision}) | {floor:.3f} s (fp32) "
            f"| {eager / ours:.2f} | {ours / floor:.2f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""NeuroBench's metrics of replayed layers: ``neurobench_process.py FILE.npz``, JSON on standard output.

The file holds, for every layer, integer weights ``w<i>`` (neurons, inputs) and the spikes ``s<i>`` (rows, inputs) that
it read. NeuroBench pins versions that dsf does not, so it lives in a directory of its own; nothing of dsf is imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys

import numpy as np
import torch
from neurobench.benchmarks import Benchmark
from neurobench.metrics.static import ConnectionSparsity, Footprint
from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
from neurobench.models import TorchModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class IntegerLinear(nn.Linear):
    """A Linear whose weights are stored as int8. NeuroBench hooks it because it is one."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__(weights.shape[1], weights.shape[0], bias=False)
        self.weight = nn.Parameter(torch.from_numpy(weights.astype(np.int8)), requires_grad=False)

    def forward(self, spikes: Tensor) -> Tensor:
        """Sums in float64: counts stay exact."""
        return functional.linear(spikes.double(), self.weight.double())


class Replayed(nn.Module):
    """Spikes that were recorded: a layer only so that they count as activations."""

    def forward(self, spikes: Tensor) -> Tensor:
        """The same."""
        return spikes


class Replay(nn.Module):
    """Every layer beside the others, each on its own part of the input row."""

    def __init__(self, weights: list[np.ndarray]) -> None:
        super().__init__()
        self.populations = nn.ModuleList(Replayed() for _ in weights)
        self.layers = nn.ModuleList(map(IntegerLinear, weights))

    def forward(self, row: Tensor) -> Tensor:
        """(batch, sum of inputs) -> (batch, sum of neurons)."""
        parts = row.split([layer.in_features for layer in self.layers], dim=-1)
        firing = [population(part) for population, part in zip(self.populations, parts)]
        return torch.cat([layer(part) for layer, part in zip(self.layers, firing)], dim=-1)


def main(path: str) -> None:
    """Run the benchmark over all rows."""
    arrays = np.load(path)
    count = len(arrays.files) // 2
    rows = torch.from_numpy(np.concatenate([arrays[f"s{index}"] for index in range(count)], axis=1)).double()
    model = TorchModel(Replay([arrays[f"w{index}"] for index in range(count)]))
    model.add_activation_module(Replayed)
    loader = DataLoader(TensorDataset(rows, torch.zeros(len(rows))), batch_size=len(rows))
    metrics = [[Footprint, ConnectionSparsity], [ActivationSparsity, SynapticOperations]]
    results = Benchmark(model, loader, [], [], metrics).run(quiet=True)
    values = json.loads(json.dumps(results, default=float))
    sys.stdout.write(
        "\n" + json.dumps({"version": importlib.metadata.version("neurobench"), "rows": len(rows), **values})
    )


if __name__ == "__main__":
    main(sys.argv[1])

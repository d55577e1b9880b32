"""Levels L0, L1 and L2 on the same tokens, recorded spike by spike and compared.

Comparisons add up over batches of lanes, so that their memory does not grow with the number of sequences.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dsf.export.conversion.folded import FoldedEngine, FoldedModel
from dsf.export.network.network import Network
from dsf.export.network.nodes import SPIKING_KINDS, HostEmbedding
from dsf.export.network.reference import decode, replay_window
from dsf.export.proof.rungs import Rung
from dsf.shell.arrays import FloatArray, IntArray
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.neurons import LIF
from dsf.train.quantization.codec import CodedArray

FLOAT_TOLERANCE = 1e-5
"""Largest accepted difference between L0 and L1 actions, and the membrane distance that excuses a spike."""

HALF_UNIT = 0.5 + 1e-6
"""Largest error of a rounded value, in units, but for float64's own rounding of both sides."""

Recording = dict[str, npt.NDArray[np.bool_]]
"""Spikes per population, (tokens, ticks, lanes, neurons)."""


def in_float64(model: DSFormer) -> DSFormer:
    """A copy in float64 and evaluation mode, as :func:`run_torch` runs it."""
    return copy.deepcopy(model).double().eval()


def run_torch(model: DSFormer, tokens: CodedArray) -> tuple[FloatArray, Recording]:
    """L0, a model of :func:`in_float64`, on what the codec makes of tokens, (lanes, context, features).

    Returns:
        actions (context, lanes, actions), and spikes.
    """
    recording: Recording = {}
    lanes, context, _ = tokens.shape

    def hook(name: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def store(_module: Any, _inputs: Any, spikes: torch.Tensor) -> None:
            ticks, _, neurons = spikes.shape  # rows are lane-major: (ticks, lanes * context, neurons)
            by_token = spikes.reshape(ticks, lanes, context, neurons).permute(2, 0, 1, 3)
            recording[name] = by_token.numpy().astype(bool)

        return store

    neurons = [(name, module) for name, module in model.named_modules() if isinstance(module, LIF)]
    with contextlib.ExitStack() as hooks, torch.inference_mode():
        for name, module in neurons:
            hooks.callback(module.register_forward_hook(hook(name)).remove)
        mask = torch.ones(lanes, context, dtype=torch.bool)
        actions = model(torch.from_numpy(tokens.astype(np.float64)), mask)
    return actions.numpy().swapaxes(0, 1), recording


def run_folded(model: FoldedModel, tokens: CodedArray) -> tuple[FloatArray, Recording, Recording]:
    """L1: as :func:`run_torch`, and where a membrane is too near the threshold to say what should fire."""
    spikes: Recording = {}
    near: Recording = {}

    def observe(name: str, membranes: FloatArray, fired: FloatArray) -> None:
        spikes[name] = fired.swapaxes(0, 1).astype(bool)
        near[name] = (np.abs(membranes - model.threshold) < FLOAT_TOLERANCE).swapaxes(0, 1)

    return FoldedEngine(model, observe).decide(tokens.swapaxes(0, 1)), spikes, near


def run_reference(network: Network, tokens: IntArray) -> tuple[FloatArray, Recording]:
    """L2: as :func:`run_torch`, from the integers that enter the network."""
    spikes: Recording = {}
    spiking = {node.name for node in network.nodes if isinstance(node, SPIKING_KINDS)}

    def observe(name: str, values: npt.NDArray[np.int64]) -> None:
        if name in spiking:
            spikes[name] = values.swapaxes(0, 1).astype(bool)

    return decode(network.readout, replay_window(network, tokens.swapaxes(0, 1), observe=observe)), spikes


class FoldComparison:
    """L0 -> L1, added up: no spike may differ but those near the threshold, and actions agree."""

    def __init__(self) -> None:
        self.compared = self.wrong = self.near = 0
        self.error = 0.0

    def add(
        self,
        l0_actions: FloatArray,
        l0_spikes: Recording,
        l1_actions: FloatArray,
        l1_spikes: Recording,
        near: Recording,
    ) -> FoldComparison:
        """One more batch, as :func:`run_torch` and :func:`run_folded` give it."""
        for name, spikes in l0_spikes.items():
            differing = spikes != l1_spikes[name]
            excused = int((differing & near[name]).sum())
            self.compared += spikes.size
            self.near += excused
            self.wrong += int(differing.sum()) - excused
        self.error = float(np.maximum(self.error, np.abs(l0_actions - l1_actions).max()))  # max() would drop NaN
        return self

    def rung(self) -> Rung:
        """What the batches have shown."""
        summary = (
            f"{self.compared:,} spikes, {self.wrong} differ ({self.near} more within 1e-5 of threshold), "
            f"action error {self.error:.1e}"
        )
        details = {
            "compared_spikes": self.compared,
            "mismatches": self.wrong,
            "near_threshold": self.near,
            "action_error_max": self.error,
        }
        passed = self.compared > 0 and self.wrong == 0 and self.error < FLOAT_TOLERANCE  # NaN is not below
        return Rung("L0 torch -> L1 folded float", passed, summary, details)


class HostComparison:
    """The host embedding, level L1 -> its integers, added up: no value is off by more than half a unit of the residual.

    Real values, from the folded network, against what the network file's own node makes of the same tokens.
    """

    def __init__(self, node: HostEmbedding) -> None:
        self.node, self.values, self.clipped, self.error = node, 0, 0, 0.0

    def add(self, real: FloatArray, integers: IntArray) -> None:
        """One more batch, (..., channels) each."""
        error = np.abs(real / self.node.unit - integers)
        self.values += integers.size
        self.clipped += int((error > 1.0).sum())
        self.error = float(np.maximum(self.error, error.max()))

    def rung(self) -> Rung:
        """What the batches have shown."""
        summary = (
            f"{self.values:,} values, largest error {self.error:.3f} units of the residual, {self.clipped} clipped"
        )
        details = {"values": self.values, "error_max_units": self.error, "clipped": self.clipped}
        passed = self.values > 0 and self.error <= HALF_UNIT
        return Rung("L1 folded float -> host embedding", passed, summary, details)


class IntegerComparison:
    """L1 -> L2, added up. Figures without a claim, so it neither passes nor fails: the closed loop decides."""

    def __init__(self) -> None:
        self.equal: Counter[str] = Counter()
        self.slots: Counter[str] = Counter()
        self.squares, self.actions = 0.0, 0

    def add(
        self, l1_actions: FloatArray, l1_spikes: Recording, l2_actions: FloatArray, l2_spikes: Recording
    ) -> IntegerComparison:
        """One more batch, as :func:`run_folded` and :func:`run_reference` give it."""
        for name, spikes in l1_spikes.items():
            self.equal[name] += int((spikes == l2_spikes[name]).sum())
            self.slots[name] += spikes.size
        self.squares += float(np.square(l1_actions - l2_actions).sum())
        self.actions += l1_actions.size
        return self

    def rung(self) -> Rung:
        """What the batches have shown."""
        agreement = {name: self.equal[name] / slots for name, slots in self.slots.items()}
        overall = self.equal.total() / self.slots.total()
        worst, rmse = min(agreement, key=lambda name: agreement[name]), (self.squares / self.actions) ** 0.5
        summary = f"spikes agree {overall:.2%} (worst {worst} {agreement[worst]:.2%}), action RMSE {rmse:.4f}"
        details = {"spike_agreement": agreement, "spike_agreement_overall": overall, "action_rmse": rmse}
        return Rung("L1 folded float -> L2 integers", None, summary, details)

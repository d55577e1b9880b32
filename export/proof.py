"""Proofs that need the network file alone: no overflow, stream equals window, and every target equals the reference.

The tokens are a dataset's, or random over the encoder's whole range. Unlike rung L1 -> L2, nothing here may differ by a
single spike or accumulator.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dsf.export.bounds import require_no_overflow
from dsf.export.network import Network
from dsf.export.nodes import SPIKING_KINDS, IntArray
from dsf.export.reference import Int64Array, Observer, ReferenceEngine, WindowReference, replay

if TYPE_CHECKING:
    from dsf.export.torch_module import IntegerNetwork

LANES = 8
"""Independent token sequences that are compared at once."""


@dataclass(frozen=True)
class Rung:
    """One comparison of the ladder.

    Attributes:
        name: what was compared.
        passed: whether it holds; None where the network does not claim it, or it could not be tried here.
        summary: one line of figures.
        details: JSON values.
    """

    name: str
    passed: bool | None
    summary: str
    details: dict[str, Any]


class Stepper(Protocol):
    """An engine that decides token by token."""

    def step_graded(self, graded: IntArray, observe: Observer | None = None) -> Int64Array:
        """Accumulators (lanes, actions) from the encoder's integers (lanes, features)."""
        ...


def prove_network(network: Network, tokens: IntArray) -> list[Rung]:
    """All proofs that this installation can run.

    Args:
        network: to prove.
        tokens: (steps, lanes, features) encoder integers, one unbroken sequence per lane.
    """
    lanes = tokens.shape[1]
    rungs = [prove_bounds(network), compare_stream(network, tokens)]
    if importlib.util.find_spec("torch") is None:
        rungs.append(_untried("L2 reference = torch target", "train"))
    else:
        rungs.append(compare_torch(network, tokens))
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        return [*rungs, _untried("L2 reference = L4 ONNX Runtime", "onnx")]
    from dsf.export.onnx_engine import OnnxEngine, OnnxWindowEngine

    streams = ReferenceEngine(network, lanes), OnnxEngine(network, lanes)
    windows = WindowReference(network, lanes), OnnxWindowEngine(network, lanes)
    rungs.append(compare_engines("L2 reference = L4 ONNX Runtime, stream", network, *streams, tokens))
    rungs.append(compare_engines("L2 reference = L4 ONNX Runtime, window", network, *windows, tokens))
    return rungs


def _untried(name: str, extra: str) -> Rung:
    return Rung(name, None, f"not tried: pip install 'dsf[{extra}]' brings what it needs", {})


def random_tokens(network: Network, decisions: int, seed: int) -> IntArray:
    """Uniform encoder integers (steps, LANES, features), at least ``decisions`` tokens and two contexts per lane."""
    limit, steps = network.encoder.limit, steps_for(network, decisions)
    return np.random.default_rng(seed).integers(-limit, limit + 1, (steps, LANES, network.encoder.size))


def steps_for(network: Network, decisions: int) -> int:
    """Tokens per lane: ``decisions`` in all, but two contexts at least, so that half of all windows lose tokens."""
    return max(-(-decisions // LANES), 2 * network.context)


def prove_bounds(network: Network) -> Rung:
    """Overflow is impossible.

    Raises:
        NetworkError: it is not; the message names the node.
    """
    bound = require_no_overflow(network)
    summary = f"impossible; tightest: {bound.quantity} of {bound.node}, {bound.margin:.2f}x below its limit"
    details = {"node": bound.node, "quantity": bound.quantity, "largest": bound.largest, "limit": bound.limit}
    return Rung("L2 overflow", True, summary, details)


def compare_stream(network: Network, tokens: IntArray) -> Rung:
    """Stream mode against window mode, from an empty history on."""
    lanes = tokens.shape[1]
    stream, window = ReferenceEngine(network, lanes), WindowReference(network, lanes)
    different = 0
    for token in tokens:
        wrong = stream.step_graded(token) != window.step_graded(token)
        different += int(wrong.any(axis=1).sum())
    decisions, exact = tokens.shape[0] * lanes, network.stream_is_exact
    field, context = network.receptive_field, network.context
    summary = f"{different} of {decisions} decisions differ; receptive field {field}, K {context}"
    if not exact:
        summary += " (not claimed: stream mode is another policy here)"
    short = len(tokens) <= context  # until then, window mode drops no token
    if short:
        summary += "; the sequences are too short to tell them apart"
    details = {"decisions": decisions, "different": different, "receptive_field": field}
    passed = False if exact and different else None if short or not exact else True
    return Rung("L2 stream = window", passed, summary, details)


def compare_engines(name: str, network: Network, truth: Stepper, other: Stepper, tokens: IntArray) -> Rung:
    """Two engines on the same tokens: every spike and every accumulator."""
    spiking = {node.name for node in network.nodes if isinstance(node, SPIKING_KINDS)}
    compared = mismatches = accumulators = 0
    for token in tokens:
        expected: dict[str, Int64Array] = {}
        found: dict[str, Int64Array] = {}
        answers = truth.step_graded(token, expected.__setitem__), other.step_graded(token, found.__setitem__)
        accumulators += int(np.count_nonzero(answers[0] != answers[1]))
        for population in spiking:
            compared += expected[population].size
            mismatches += int(np.count_nonzero(expected[population] != found[population]))
    return _spike_rung(name, tokens.shape[0] * tokens.shape[1], compared, mismatches, accumulators)


def compare_torch(network: Network, tokens: IntArray, module: IntegerNetwork | None = None) -> Rung:
    """A torch module (None: the network's own) against the reference, over windows of K tokens side by side."""
    import torch

    from dsf.export.torch_module import IntegerNetwork

    context = min(network.context, len(tokens))
    usable = tokens[: len(tokens) // context * context]
    windows = usable.reshape(-1, context, *usable.shape[1:]).transpose(1, 0, 2, 3).reshape(context, -1, tokens.shape[2])
    expected: dict[str, Int64Array] = {}
    found: dict[str, Int64Array] = {}
    truth = replay(network, windows, observe=expected.__setitem__)
    with torch.inference_mode():
        answers = (module or IntegerNetwork(network)).decide(
            torch.from_numpy(windows.swapaxes(0, 1)),
            observe=lambda name, values: found.__setitem__(name, values.numpy()),
        )
    spiking = [node.name for node in network.nodes if isinstance(node, SPIKING_KINDS)]
    mismatches = sum(int(np.count_nonzero(expected[name] != found[name])) for name in spiking)
    accumulators = int(np.count_nonzero(truth.swapaxes(0, 1) != answers.numpy()))
    compared = sum(expected[name].size for name in spiking)
    decisions = windows.shape[0] * windows.shape[1]
    return _spike_rung("L2 reference = torch target, window", decisions, compared, mismatches, accumulators)


def _spike_rung(name: str, decisions: int, compared: int, mismatches: int, accumulators: int) -> Rung:
    details = {
        "decisions": decisions,
        "compared_spikes": compared,
        "mismatches": mismatches,
        "accumulator_mismatches": accumulators,
    }
    summary = f"{compared:,} spike slots over {decisions:,} decisions, {mismatches} differ; {accumulators} accumulators"
    return Rung(name, mismatches == 0 and accumulators == 0, f"{summary} differ", details)


def versions() -> dict[str, str]:
    """Of this package, and of what took part in the proofs."""
    found = {"python": platform.python_version()}
    for package in ("dsf", "numpy", "h5py", "gymnasium", "mujoco", "torch", "onnx", "onnxruntime", "nir"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found

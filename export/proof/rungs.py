"""Proofs that need the network file alone: no overflow, stream equals window, and every target equals the reference.

The tokens are a dataset's, or random. Unlike rung L1 -> L2, nothing here may differ by a
single spike or accumulator.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dsf.export.network.bounds import require_no_overflow
from dsf.export.network.memory import require_memory
from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import SPIKING_KINDS, HostEmbedding
from dsf.export.network.reference import Observer, ReferenceEngine, WindowReference, encode, replay_window
from dsf.shell.arrays import FloatArray, Int64Array, IntArray
from dsf.shell.installed import are_installed

if TYPE_CHECKING:
    from dsf.export.targets.torch_module import IntegerNetwork

MODES: tuple[Mode, ...] = ("stream", "window")
LANES = 8
"""Independent token sequences that are compared at once."""
UNPROVEN = "unproven"
"""The verdict in the details of a rung that was tried, and that its measurements decide neither way."""


@dataclass(frozen=True)
class Rung:
    """One comparison of the ladder.

    Attributes:
        name: what was compared.
        passed: whether it holds; None where the network does not claim it, where it could not be tried here, or where
            it was tried and is :data:`UNPROVEN`.
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


class ProofStopped(Exception):
    """A proof was told to stop before its end."""


def prove_network(network: Network, tokens: IntArray, stop: Event | None = None) -> list[Rung]:
    """All proofs that this installation can run.

    Args:
        network: to prove.
        tokens: (steps, lanes, features) encoder integers, one unbroken sequence per lane.
        stop: once it is set, from another thread, the proof ends before the next decision.

    Raises:
        NetworkError: it could overflow; the message names the node.
        UserError: this machine cannot hold it.
        ProofStopped: ``stop`` was set.
    """
    for mode in MODES:
        require_memory(network, mode, tokens.shape[1], "prove it on a larger machine")
    bounds, torch_target = prove_bounds(network), _torch_rung(network, tokens)
    stream, *engines = _engine_rungs(network, tokens, Event() if stop is None else stop)
    return [bounds, stream, torch_target, *engines]


def _torch_rung(network: Network, tokens: IntArray) -> Rung:
    if not are_installed("torch"):
        return _untried("L2 reference = torch target", "train")
    return compare_torch(network, tokens)


def _engine_rungs(network: Network, tokens: IntArray, stop: Event) -> list[Rung]:
    """Stream mode against window mode, and ONNX Runtime against both: each mode of the reference runs once for all."""
    lanes = tokens.shape[1]
    others: dict[Mode, Stepper] = {}
    truths: dict[Mode, Stepper] = {"stream": ReferenceEngine(network, lanes), "window": WindowReference(network, lanes)}
    installed = are_installed("onnxruntime", "onnx")
    if installed:
        from dsf.export.targets.onnx_engine import OnnxEngine, OnnxWindowEngine

        others = {"stream": OnnxEngine(network, lanes), "window": OnnxWindowEngine(network, lanes)}
    modes = StreamComparison(network)
    engines = {mode: EngineComparison(f"L2 reference = L4 ONNX Runtime, {mode}", network) for mode in others}
    for token in tokens:
        if stop.is_set():
            raise ProofStopped
        decided = {mode: decide(truth, token) for mode, truth in truths.items()}
        modes.add(decided["stream"], decided["window"])
        for mode, other in others.items():
            engines[mode].add(decided[mode], decide(other, token))
        del decided  # whole windows hang on it: they need not outlast the next token's
    rungs = [comparison.rung() for comparison in engines.values()]
    return [modes.rung(), *(rungs if installed else [_untried("L2 reference = L4 ONNX Runtime", "onnx")])]


def _untried(name: str, extra: str) -> Rung:
    return Rung(name, None, f"not tried: pip install 'dsf[{extra}]' brings what it needs", {})


def random_proof_tokens(network: Network, decisions: int, seed: int) -> IntArray:
    """Random integers (steps, LANES, size) that may enter, at least ``decisions`` tokens and two contexts per lane."""
    return random_entering(network, (steps_for(network, decisions), LANES), np.random.default_rng(seed))


def random_entering(network: Network, shape: tuple[int, ...], generator: np.random.Generator) -> IntArray:
    """Random integers (*shape, size) that may enter a network.

    They are uniform over the encoder's whole range. Of a host embedding's, half are what it makes of random token
    vectors: uniform ones, which no LayerNorm gives, drown what the blocks add.
    """
    encoder = network.encoder
    uniform = generator.integers(-encoder.limit, encoder.limit + 1, (*shape, encoder.size))
    if not isinstance(encoder, HostEmbedding):
        return uniform
    normed = encode(encoder, random_vectors(encoder, shape, generator))
    return np.where(generator.random((*shape, 1)) < 0.5, normed, uniform)


def random_vectors(node: HostEmbedding, shape: tuple[int, ...], generator: np.random.Generator) -> FloatArray:
    """Token vectors (*shape, features), normal around the offsets, of magnitudes from a tenth of the step to ten."""
    magnitude = 10.0 ** generator.uniform(-1.0, 1.0, (*shape, 1))
    scale = node.step * (max(node.input_limit / 5.0, 1.0) if node.input_bits else 1.0)
    vectors: FloatArray = node.offset + magnitude * scale * generator.normal(size=(*shape, node.features))
    return vectors


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


@dataclass(frozen=True)
class Decided:
    """One decision of every lane.

    Attributes:
        accumulators: (lanes, actions).
        values: every node's, (ticks, lanes, neurons), by its name.
    """

    accumulators: Int64Array
    values: dict[str, Int64Array]


def decide(engine: Stepper, token: IntArray) -> Decided:
    """One step of an engine on encoder integers (lanes, features)."""
    values: dict[str, Int64Array] = {}
    return Decided(engine.step_graded(token, values.__setitem__), values)


class StreamComparison:
    """Stream mode against window mode, from an empty history on, decision by decision."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.steps = self.decisions = self.different = 0

    def add(self, stream: Decided, window: Decided) -> None:
        """One more decision of every lane."""
        wrong = stream.accumulators != window.accumulators
        self.steps += 1
        self.decisions += len(wrong)
        self.different += int(wrong.any(axis=1).sum())

    def rung(self) -> Rung:
        """What the decisions have shown."""
        exact = self.network.stream_is_exact
        field, context = self.network.receptive_field, self.network.context
        summary = f"{self.different} of {self.decisions} decisions differ; receptive field {field}, K {context}"
        if not exact:
            summary += " (not claimed: stream mode is another policy here)"
        short = self.steps <= context  # until then, window mode drops no token
        if short:
            summary += "; the sequences are too short to tell them apart"
        details = {"decisions": self.decisions, "different": self.different, "receptive_field": field}
        passed = False if exact and self.different else None if short or not exact else True
        return Rung("L2 stream = window", passed, summary, details)


def compare_stream(network: Network, tokens: IntArray) -> Rung:
    """Stream mode against window mode, on tokens (steps, lanes, features)."""
    lanes, comparison = tokens.shape[1], StreamComparison(network)
    stream, window = ReferenceEngine(network, lanes), WindowReference(network, lanes)
    for token in tokens:
        comparison.add(decide(stream, token), decide(window, token))
    return comparison.rung()


class EngineComparison:
    """Two engines on the same tokens, decision by decision: every spike and every accumulator."""

    def __init__(self, name: str, network: Network) -> None:
        self.name = name
        self.spiking = [node.name for node in network.nodes if isinstance(node, SPIKING_KINDS)]
        self.decisions = self.compared = self.mismatches = self.accumulators = 0

    def add(self, truth: Decided, other: Decided) -> None:
        """One more decision of every lane."""
        self.decisions += len(truth.accumulators)
        self.accumulators += int(np.count_nonzero(truth.accumulators != other.accumulators))
        for population in self.spiking:
            self.compared += truth.values[population].size
            self.mismatches += int(np.count_nonzero(truth.values[population] != other.values[population]))

    def rung(self) -> Rung:
        """What the decisions have shown."""
        return _spike_rung(self.name, self.decisions, self.compared, self.mismatches, self.accumulators)


def compare_engines(name: str, network: Network, truth: Stepper, other: Stepper, tokens: IntArray) -> Rung:
    """Two engines on tokens (steps, lanes, features)."""
    comparison = EngineComparison(name, network)
    for token in tokens:
        comparison.add(decide(truth, token), decide(other, token))
    return comparison.rung()


def compare_torch(network: Network, tokens: IntArray, module: IntegerNetwork | None = None) -> Rung:
    """A torch module (None: the network's own) against the reference, over windows of K tokens side by side."""
    import torch

    from dsf.export.targets.torch_module import IntegerNetwork

    context = min(network.context, len(tokens))
    usable = tokens[: len(tokens) // context * context]
    windows = usable.reshape(-1, context, *usable.shape[1:]).transpose(1, 0, 2, 3).reshape(context, -1, tokens.shape[2])
    expected: dict[str, Int64Array] = {}
    found: dict[str, Int64Array] = {}
    truth = replay_window(network, windows, observe=expected.__setitem__)
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


def proof_versions() -> dict[str, str]:
    """Versions of this package and of what took part in the proofs."""
    found = {"python": platform.python_version()}
    for package in ("dsf", "numpy", "h5py", "gymnasium", "mujoco", "torch", "onnx", "onnxruntime", "nir"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found

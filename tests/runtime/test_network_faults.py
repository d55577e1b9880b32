"""Faulty networks: the same on every engine, really faulty, nested by their seed, and the identity without a fault."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from dsf.export.conversion.fold import fold
from dsf.export.conversion.quantize import quantize
from dsf.export.network.bounds import MEMBRANE, OverflowPossible, require_no_overflow, saturating_populations
from dsf.export.network.file import file_digest, read_network, write_network
from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import LIF, NEVER_FIRES, NetworkError, Residual, Synapses, Window
from dsf.export.network.reference import ReferenceEngine, WindowReference
from dsf.export.placement.chips import get_chip
from dsf.export.placement.placement import Slice, place
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.runtime.engines.interface import LavaModel
from dsf.runtime.engines.parity import Parity
from dsf.runtime.open_engine import open_engine
from dsf.runtime.robustness.network_faults import dead_cores, flipped_weight_bits, silenced_nodes, stuck_neurons
from dsf.shell.arrays import Int64Array
from dsf.shell.errors import UserError
from dsf.testing.lava import lava_runs_here
from dsf.testing.narrowed import node_of
from dsf.testing.random_networks import random_model, random_network, random_tokens

CHIP = get_chip("loihi2")
ATTENTIONS = ("pssa", "tssa", "sssa", "sdsa1", "sdsa3", "none")
MODES: tuple[Mode, ...] = ("stream", "window")
FAULTS: dict[str, Callable[[Network, float, int], Network]] = {
    "stuck-at-0": lambda network, level, seed: stuck_neurons(network, 0, level, seed),
    "stuck-at-1": lambda network, level, seed: stuck_neurons(network, 1, level, seed),
    "weight-bit-flips": lambda network, level, seed: flipped_weight_bits(network, level / 10, seed),
    "dead-cores": lambda network, level, seed: dead_cores(network, round(10 * level), seed, CHIP),
}
LEVEL = 0.2
TOKENS = 7


def roomy_network(seed: int, **sizes: Any) -> Network:
    """A random network whose sums stay far from their limits, so that flipped weights do, too."""
    return quantize(fold(random_model(seed, **sizes)), "hopper", threshold_units=64)


def compare(network: Network, mode: Mode, backend: Any, lava: LavaModel = "fused", tokens: int = TOKENS) -> Parity:
    """A backend against the reference, with a new episode in the middle."""
    result, truth = Parity(), ReferenceLoopEngine(network, mode)
    with open_engine(network, backend, lava, mode) as engine:
        for index, token in enumerate(random_tokens(network, tokens, 1, seed=8)):
            if index in (0, tokens // 2 + 1):
                engine.reset(0)
                truth.reset(0)
            expected, spikes = truth.step_graded(token)
            accumulators, found = engine.step_graded(token)
            result.accumulator_mismatches += int(np.count_nonzero(accumulators != expected))
            result.compare(index, spikes, found)
    return result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_fast_engine_runs_faulty_networks_as_the_reference(fault: str, attention: Any, mode: Mode) -> None:
    network = roomy_network(5, attention=attention, width=24, context=4, heads=2)
    faulty = FAULTS[fault](network, LEVEL, 5)
    assert faulty.provenance != network.provenance
    result = compare(faulty, mode, "fast", tokens=20)
    assert result.exact and result.compared_spikes > 1_000, result


@pytest.mark.slow
@pytest.mark.skipif(not lava_runs_here(), reason="Lava is frozen on Python 3.10")
@pytest.mark.parametrize(
    ("fault", "attention", "mode", "lava"),
    [
        ("stuck-at-0", "sssa", "stream", "fused"),
        ("stuck-at-1", "pssa", "stream", "fused"),
        ("stuck-at-1", "tssa", "window", "fused"),
        ("stuck-at-1", "pssa", "window", "expanded"),
        ("weight-bit-flips", "sdsa1", "window", "fused"),
        ("dead-cores", "pssa", "stream", "fused"),
    ],
)
def test_lava_runs_faulty_networks_as_the_reference(fault: str, attention: Any, mode: Mode, lava: LavaModel) -> None:
    network = roomy_network(2, attention=attention, width=10, context=3, heads=2, window=2, ticks=2)
    result = compare(FAULTS[fault](network, LEVEL, 1), mode, "lava", lava)
    assert result.exact and result.compared_spikes > 500, result


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_is_the_network_itself_and_every_fault_is_recorded(fault: str, tmp_path: Path) -> None:
    network = roomy_network(0)
    digests = []
    for number, level in enumerate((None, 0.0, 0.1)):
        written = network if level is None else FAULTS[fault](network, level, 5)
        if level:
            assert written.provenance["faults"][0]["kind"] == fault and not written.verification
        if saturating_populations(written):
            continue  # no file may hold such a network
        write_network(written, tmp_path / f"{number}.h5")
        digests.append(file_digest(tmp_path / f"{number}.h5"))
        assert read_network(tmp_path / f"{number}.h5").provenance == written.provenance
    assert digests[0] == digests[1] and digests[0] not in digests[2:]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_those_of_their_seed(fault: str) -> None:
    network = roomy_network(0)
    one, same, other = (FAULTS[fault](network, LEVEL, seed) for seed in (1, 1, 2))
    assert marks(network, one) == marks(network, same) != marks(network, other)


@pytest.mark.parametrize("fault", FAULTS)
def test_of_one_seed_small_faults_are_parts_of_large_ones(fault: str) -> None:
    network = roomy_network(3)
    found = [marks(network, FAULTS[fault](network, level, 9)) for level in (0.0, 0.1, 0.2, 0.5)]
    assert found[0] == set()
    for smaller, larger in itertools.pairwise(found):
        assert smaller < larger


def marks(network: Network, faulty: Network) -> set[tuple[Any, ...]]:
    """Everything that differs: of thresholds and biases which, of weights which bits (so that two may cancel)."""
    differences: set[tuple[Any, ...]] = set()
    for old, new in zip(network.nodes, faulty.nodes):
        for field in ("threshold", "bias"):
            if isinstance(old, LIF if field == "threshold" else Residual):
                different = getattr(old, field) != getattr(new, field)
                differences |= {(old.name, field, int(at)) for at in np.flatnonzero(different)}
        if isinstance(old, (Synapses, Window)) and isinstance(new, (Synapses, Window)):
            bits = (old.weights.astype(np.int64) ^ new.weights.astype(np.int64)) & 0x7F
            for bit in range(7):  # -128 reads as -127, so of all bits only bit 0 may differ without a flip
                places = np.flatnonzero(bits >> bit & 1 & (new.weights != -127))
                differences |= {(old.name, "weights", bit, int(at)) for at in places}
    return differences


@pytest.mark.parametrize("spike", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_stuck_neurons_are_stuck_and_the_others_are_not(spike: Literal[0, 1], mode: Mode) -> None:
    network = random_network(1, width=24)
    faulty = stuck_neurons(network, spike, LEVEL, seed=4)
    engine = FastEngine(faulty, lanes=4, mode=mode, record=True)
    total = {node.name: np.zeros(node.size) for node in faulty.of_kind(LIF)}
    tokens = 30
    for token in random_tokens(network, tokens, 4, seed=0):
        engine.step_graded(token)
        for name, spikes in total.items():
            spikes += engine.spikes[name].sum(axis=(0, 1))
    masks = {node.name: node.threshold != healthy.threshold for node, healthy in zip(lifs(faulty), lifs(network))}
    stuck, free = (np.concatenate([total[name][mask == wanted] for name, mask in masks.items()]) for wanted in (1, 0))
    most = tokens * 4 * network.ticks
    assert len(stuck) == round(LEVEL * (len(stuck) + len(free)))
    assert (stuck == spike * most).all() and 0.05 < free.mean() / most < 0.95


def lifs(network: Network) -> list[LIF]:
    return list(network.of_kind(LIF))


@pytest.mark.parametrize("bits", [8, 5])
def test_as_many_stored_bits_are_inverted_as_asked_for(bits: int) -> None:
    network = random_network(0, bits=bits, width=24)
    faulty = flipped_weight_bits(network, 0.01, seed=0)
    total = flipped = 0
    for old, new in zip(network.of_kind(Synapses), faulty.of_kind(Synapses)):
        assert np.abs(new.weights.astype(np.int64)).max() < 1 << (bits - 1)  # legal, and no bit beyond the stored ones
        pattern = (old.weights.astype(np.int64) ^ new.weights.astype(np.int64)) & ((1 << bits) - 1)
        flipped += int(sum((pattern >> bit & 1).sum() for bit in range(bits)))
        total += old.weights.size * bits
    assert flipped == pytest.approx(0.01 * total, rel=0.05)  # the window's few bits lie outside; -2**(bits-1) reads so


def test_the_most_negative_pattern_reads_as_the_smallest_weight() -> None:
    """All bits of 127 inverted: -128 in two's complement of 8 bits."""
    network = roomy_network(0)
    old, new = (node.of_kind(Synapses) for node in (network, flipped_weight_bits(network, 1.0, seed=0)))
    before, after = (np.concatenate([node.weights.ravel() for node in nodes]) for nodes in (old, new))
    assert np.array_equal(after, np.maximum(~before, -127))
    assert (after[before == 127] == -127).any()


def truth_with_silent(network: Network, slices: list[Slice], mode: Mode) -> list[Int64Array]:
    """What a network decides while the reference holds some neurons' values at 0."""
    engine = (ReferenceEngine if mode == "stream" else WindowReference)(network, 3)

    def silence(name: str, values: Int64Array) -> None:
        for part in slices:
            if part.node == name:
                values[..., part.first : part.first + part.count] = 0

    tokens = random_tokens(network, 12, 3, seed=6)
    if isinstance(engine, WindowReference):
        return [engine.step_graded(token, silence, whole=True) for token in tokens]
    return [engine.step_graded(token, silence) for token in tokens]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_dead_population_decides_as_if_it_sent_nothing(attention: Any) -> None:
    """Halves of all populations, and whole residuals: that of the first block's end, say, leaves the second block."""
    network = random_network(7, attention=attention, width=12, heads=2, context=4)
    healthy = {mode: truth_with_silent(network, [], mode) for mode in MODES}
    harmed = 0
    for core in place(network, CHIP).cores:
        (whole,) = core.slices
        part = whole if isinstance(network[whole.node], Residual) else Slice(whole.node, 1, whole.count // 2)
        changed = silenced_nodes(network, [part])
        faulty = dataclasses.replace(network, nodes=tuple(changed.get(node.name, node) for node in network.nodes))
        for mode in MODES:
            found, expected = truth_with_silent(faulty, [], mode), truth_with_silent(network, [part], mode)
            assert np.array_equal(found, expected), (whole.node, mode)
            harmed += not np.array_equal(found, healthy[mode])
    assert harmed >= 10


def test_dead_cores_are_cores_of_the_placement() -> None:
    network = random_network(0)
    cores = place(network, CHIP).cores
    everything = dead_cores(network, len(cores), 3, CHIP)
    assert all((node.threshold == NEVER_FIRES).any() for node in everything.of_kind(LIF))
    assert all(not node.bias.any() for node in everything.of_kind(Residual))
    for seed in range(5):
        first, second = (dead_cores(network, count, seed, CHIP) for count in (1, 2))
        assert 0 < len(marks(network, first)) < len(marks(network, second))
    with pytest.raises(UserError, match=rf"takes {len(cores)} of .*0 to {len(cores)} can die"):
        dead_cores(network, len(cores) + 1, 0, CHIP)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_impossible_fractions_are_refused(fraction: float) -> None:
    for fault in (lambda n: stuck_neurons(n, 0, fraction, 0), lambda n: flipped_weight_bits(n, fraction, 0)):
        with pytest.raises(UserError, match="must be between 0 and 1"):
            fault(random_network(0))


def test_flips_that_drive_membranes_to_their_limit_still_run() -> None:
    """The shipped network leaves them 4 % of room: no file may hold such a network, but every engine can run it."""
    shipped = read_network(network_path())
    flipped = next(
        faulty for seed in range(20) if saturating_populations(faulty := flipped_weight_bits(shipped, 0.003, seed))
    )
    with pytest.raises(OverflowPossible, match=MEMBRANE):
        require_no_overflow(flipped)
    assert compare(flipped, "stream", "fast", tokens=4).exact


@pytest.mark.parametrize("backend", ["fast", *(["lava"] if lava_runs_here() else [])])
def test_membranes_are_clipped_at_their_limit(backend: str) -> None:
    """Four ticks down, beyond the limit, then four up: a membrane that went on sinking would not come back in time."""
    network = saturating_network()
    assert compare(network, "stream", backend, tokens=3).exact
    engine = FastEngine(network, record=True)
    engine.step_graded(np.zeros((1, network.encoder.size), np.int64))
    assert (engine.spikes["blocks.1.mlp.input_lif"][0, :, 1::2].sum(axis=0) == 1).all()  # the others go up first


def saturating_network(exponent: int = 5) -> Network:
    """Spikes in the second half of a token's ticks only, and behind them neurons without a leak that add up all.

    No input is read: the neurons that start it charge up from a constant, and each fires once.
    """
    network = random_network(0, width=12, ticks=8, blocks=2, attention="none")
    first_spike = 4 + np.arange(12) % 4
    sign = np.where(np.arange(12) % 2, 1, -1)
    swing = 127 * 24 << exponent
    fields: dict[str, dict[str, Any]] = {
        "embed": {"weights": np.zeros_like(node_of(network, "embed", Synapses).weights)},
        "residual.0": {"bias": np.rint(10_000 / (first_spike + 0.5)).astype(np.int32)},
        "blocks.0.mlp.input_lif": {"decay": 0, "threshold": np.full(12, 10_000, np.int32)},
        "blocks.0.mlp.expand": {"weights": np.full((24, 12), 127, np.int8), "exponent": 0},
        "blocks.0.mlp.hidden_lif": {"decay": 4096, "threshold": np.full(24, 100, np.int32), **no_bias(24)},
        "blocks.0.mlp.contract": {"weights": np.tile(127 * sign[:, None], (1, 24)), "exponent": exponent},
        "residual.1": {"bias": (-sign * swing // 2).astype(np.int32)},
        "blocks.1.mlp.input_lif": {"decay": 0, "threshold": np.full(12, 40_000, np.int32), **no_bias(12)},
        "readout": {"shift": 12},
    }
    nodes = (dataclasses.replace(node, **fields.get(node.name, {})) for node in network.nodes)
    return dataclasses.replace(network, nodes=tuple(nodes))


def no_bias(size: int) -> dict[str, Any]:
    return {"bias_mantissa": np.zeros(size, np.int16), "bias_exponent": 0}


def test_what_cannot_be_guaranteed_is_refused() -> None:
    network = saturating_network()
    with pytest.raises(NetworkError, match=r"'blocks.\d.mlp.input_lif' cannot be stuck: its membrane can reach"):
        stuck_neurons(network, 1, 0.9, 0)
    with pytest.raises(OverflowPossible, match="its current can reach"):
        FastEngine(saturating_network(exponent=8))
    with pytest.raises(OverflowPossible, match="can reach"):
        flipped_weight_bits(random_network(0), 0.5, 0)

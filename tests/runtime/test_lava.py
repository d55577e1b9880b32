"""Lava against the reference: every population, every tick, zero mismatches, for both models of every block."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.network.file import read_network
from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import LIF, SPIKING_KINDS, NetworkError, Readout, Residual, Synapses
from dsf.export.network.reference import WindowReference, encode
from dsf.export.network.sparse import is_sparse
from dsf.hardware_models import measure_activity
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.runtime.engines.interface import STOCK_LAVA, LavaModel, LavaOptions
from dsf.runtime.engines.parity import Parity, ParityCheck
from dsf.runtime.engines.probes import choose_populations
from dsf.runtime.lava_backend.stages.blocks import split_network
from dsf.runtime.lava_backend.stages.layout import CONTINUES
from dsf.runtime.loop.closed_loop import run_closed_loop
from dsf.runtime.open_engine import open_engine
from dsf.tasks import get_task
from dsf.testing.lava import lava_runs_here
from dsf.testing.leftovers import children
from dsf.testing.narrowed import node_of
from dsf.testing.random_networks import (
    KINDS,
    exportable,
    finely_scaled_network,
    random_network,
    random_tokens,
    sparser,
)
from dsf.testing.spike_tally import TALLY

pytestmark = pytest.mark.skipif(not lava_runs_here(), reason="Lava is frozen on Python 3.10")

TOKENS = 6
RESET = 4
"""The second episode of a sweep starts at this token."""
TRAINED_DECISIONS = 200
MODELS: tuple[LavaModel, ...] = ("fused", "expanded")
MODES: tuple[Mode, ...] = ("stream", "window")
NETWORKS_PER_CASE = {"fused": 2, "expanded": 1}
"""Networks of random sizes for each kind of attention and mode."""
CASES = [
    pytest.param(model, mode, kind, number, marks=[pytest.mark.slow] if model == "expanded" else [])
    for model in MODELS
    for mode in MODES
    for kind in KINDS
    for number in range(NETWORKS_PER_CASE[model])
]


def compare(
    network: Network,
    model: LavaModel,
    tokens: np.ndarray,
    resets: set[int],
    mode: Mode = "stream",
    options: LavaOptions = STOCK_LAVA,
) -> Parity:
    """Feed (count, 1, features) tokens to Lava and the reference, with episode starts at ``resets``."""
    reported = choose_populations(network, options.probes)
    check, truth = ParityCheck(network, mode, reported), ReferenceLoopEngine(network, mode)
    with open_engine(network, "lava", model, mode, options) as engine:
        assert engine.reported == reported
        for index, token in enumerate(tokens):
            if index in resets:
                engine.reset(0)
                truth.reset(0)
                check.reset()
            check.check(token, *engine.step_graded(token))
            truth.step_graded(token)
        counted = truth.counter
        if model == "expanded":  # stock LIFReset shows no membranes: every update counts as one with work to do
            for active in counted.active.values():
                active[:] = counted.tokens * network.ticks
        assert measure_activity(engine.counter) == measure_activity(counted)
    assert children() == []
    TALLY.add(f"Lava {model}", check.result.compared_spikes, check.result.mismatches)
    return check.result


def network_of(kind: str, number: int) -> Network:
    """A small random network; number 0 can show every mistake: an earlier token's place, say, needs a second block."""
    generator = np.random.default_rng([number, *kind.encode()])
    heads, context = int(generator.integers(1, 4)), int(generator.integers(2, 6))
    sizes: dict[str, Any] = {
        "heads": heads,
        "width": heads * int(generator.integers(2, 7)),
        "blocks": int(generator.integers(1, 4)),
        "ticks": int(generator.integers(1, 5)),
        "context": context,
        "window": int(generator.integers(1, context + 1)),
    }
    if number == 0:
        sizes = {"heads": 2, "width": 10, "blocks": 2, "ticks": 2, "context": 3, "window": 2}
    return random_network(
        int(generator.integers(2**31)),
        bits=int(generator.integers(4, 9)),
        discrete=bool(generator.integers(2)),
        **{"input_bits": int(generator.integers(4, 11)), **sizes, **KINDS[kind]},
    )


def neurons_of(network: Network) -> int:
    return sum(node.size for node in network.nodes if isinstance(node, SPIKING_KINDS))


@pytest.mark.parametrize(("model", "mode", "kind", "number"), CASES)
def test_random_networks_match_spike_by_spike(model: LavaModel, mode: Mode, kind: str, number: int) -> None:
    network = network_of(kind, number)
    result = compare(network, model, random_tokens(network, TOKENS, 1, seed=number), {RESET}, mode)
    assert result.compared_spikes == TOKENS * network.ticks * neurons_of(network)
    assert result.exact, result


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["stream", "window"])
@pytest.mark.parametrize("model", MODELS)
def test_a_second_synapse_per_input_and_a_unit_per_channel(model: LavaModel, mode: Mode) -> None:
    network = finely_scaled_network(4, width=10, blocks=2, ticks=2, context=3, window=2)
    assert node_of(network, "residual.0", Residual).sources == ("embed", "embed.fine")
    assert len(set(node_of(network, "blocks.0.mlp.input_lif", LIF).threshold.tolist())) > 1
    assert compare(network, model, random_tokens(network, TOKENS, 1, seed=5), {RESET}, mode).exact


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pssa", "host embedding, tssa"])
@pytest.mark.parametrize("model", MODELS)
def test_sparse_matrices_match_spike_by_spike(model: LavaModel, kind: str) -> None:
    """In the expanded model each is Lava's own Sparse: of spikes, of graded values, and one without any weight left."""
    network = sparser(network_of(kind, 0), 0.75)
    silent = node_of(network, "blocks.0.mlp.contract", Synapses)
    nodes = [dataclasses.replace(node, weights=0 * node.weights) if node is silent else node for node in network.nodes]
    network = dataclasses.replace(network, nodes=tuple(nodes))
    assert all(is_sparse(node.weights) for node in network.of_kind(Synapses))
    if model == "expanded":
        assert dense_processes(network) == 0 < dense_processes(network_of(kind, 0))
    result = compare(network, model, random_tokens(network, TOKENS, 1, seed=3), {RESET})
    assert result.exact and result.compared_spikes == TOKENS * network.ticks * neurons_of(network)


def dense_processes(network: Network) -> int:
    """Lava's Dense processes in the expanded model."""
    from lava.proc.dense.process import Dense

    from dsf.runtime.lava_backend.engine import LavaEngine

    engine = LavaEngine(network, "expanded")
    compiled = engine.blocks[0].compile(engine.supervisor.run_config)
    return sum(isinstance(process, Dense) for process in compiled.process_list)


@pytest.mark.slow
def test_the_second_synapses_have_a_place_in_lavas_graph() -> None:
    from dsf.runtime.lava_backend.graph import lava_edges, network_edges

    network = finely_scaled_network(4, width=10, blocks=2, ticks=2, context=3, window=2)
    with open_engine(network, "lava", "expanded") as engine:
        lava: Any = engine
        assert lava_edges(lava) == network_edges(lava)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_attention_remembers_in_the_networks_of_the_sweep(kind: str) -> None:
    """Else the sweep would prove nothing."""
    network = network_of(kind, 0)
    remembering, forgetting = (ReferenceLoopEngine(network) for _ in range(2))
    remembered = False
    for token in random_tokens(network, TOKENS, 1, seed=0):
        forgetting.reset(0)
        _, spikes = remembering.step_graded(token)
        _, others = forgetting.step_graded(token)
        attended = [name for name in spikes if name.endswith("attention_lif")]
        remembered |= any((spikes[name] != others[name]).any() for name in attended)
    assert remembered


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(exportable(), st.sampled_from(MODES))
def test_fused_blocks_are_the_reference(arguments: dict[str, Any], mode: Mode) -> None:
    """The processes' arithmetic alone, over more networks than Lava could be started for."""
    from dsf.runtime.lava_backend.stages.fused import FusedBlock

    network = random_network(bits=6, **arguments)
    parts, reference = split_network(network), ParityCheck(network, mode).reference
    blocks = [FusedBlock(nodes, network.ticks) for nodes in parts.blocks]
    tokens = random_tokens(network, 5, 1, seed=0)
    for index, token in enumerate(tokens):
        values: dict[str, np.ndarray] = {}
        reference.step_graded(token, lambda name, array, values=values: values.update({name: array}))  # type: ignore[misc]
        replayed = tokens[max(index + 1 - network.context, 0) : index + 1] if mode == "window" else token[None]
        start = 1 + network.context - len(replayed) if mode == "window" or index == 0 else CONTINUES
        for place, earlier in enumerate(replayed):
            residual = embedded(network, earlier)
            for block in blocks:
                block.start_token(start if place == 0 else CONTINUES)
                arriving = [*residual, *np.zeros((block.delay, residual.shape[1]))]
                residual = np.stack([block(tick, row) for tick, row in enumerate(arriving)][block.delay :])
        for nodes, block in zip(parts.blocks, blocks):
            truth = np.concatenate([values[population.node.name][:, 0] for population in nodes.populations], axis=1)
            assert np.array_equal(block.raster, truth)
        assert np.array_equal(residual, values[parts.blocks[-1].mlp.output.name][:, 0])


def embedded(network: Network, token: np.ndarray) -> np.ndarray:
    """The first residual of one token, (ticks, channels)."""
    values: dict[str, np.ndarray] = {}
    WindowReference(network).step_graded(token, lambda name, array: values.update({name: array}))
    return values["residual.0"][:, 0].astype(np.float64)


@pytest.mark.parametrize(
    ("kind", "fused", "expanded"),
    [
        ("pssa", 4, 18),
        ("pssa, full bias", 4, 18),
        ("tssa", 16, 30),
        ("sssa", 4, 18),
        ("sdsa1", 4, 18),
        ("none", 4, 12),
        ("host embedding, full bias", 4, 18),
        ("host embedding, tssa", 16, 30),
    ],
)
def test_ticks_per_token(kind: str, fused: int, expanded: int) -> None:
    """T, one per Dense in the expanded model, and T per block whose scores need the whole token."""
    from dsf.runtime.lava_backend.engine import LavaEngine

    network = random_network(0, blocks=3, ticks=4, context=5, **KINDS[kind])
    for model, period in zip(MODELS, (fused, expanded)):
        assert LavaEngine(network, model).ticks_per_token == period
    assert [ReferenceLoopEngine(network, mode).ticks_per_token for mode in MODES] == [4, 4]


@pytest.mark.slow
def test_window_mode_runs_one_period_for_each_token_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsf.runtime.lava_backend.supervisor import LavaSupervisor

    network, original, ran = random_network(0, blocks=1, context=3, attention="tssa"), LavaSupervisor.run, []

    def counting(self: LavaSupervisor, ticks: int) -> None:
        ran.append(ticks)
        original(self, ticks)

    monkeypatch.setattr(LavaSupervisor, "run", counting)
    totals = []
    with open_engine(network, "lava", "fused", "window") as engine:
        for index, token in enumerate(random_tokens(network, 6, 1, seed=0)):
            if index == 5:
                engine.reset(0)
            ran.clear()
            engine.step_graded(token)
            totals.append(sum(ran))
        whole = 3 * engine.ticks_per_token
        assert (engine.counter.decisions, engine.counter.tokens) == (6, 1 + 2 + 3 + 3 + 3 + 1)
    assert whole == 3 * 2 * network.ticks
    assert totals == [whole // 3, 2 * whole // 3, whole, whole, whole, whole // 3]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_trained_network_matches_over_200_closed_loop_decisions(model: LavaModel) -> None:
    network, task = read_network(network_path()), get_task("hopper")
    tokens: list[np.ndarray] = []

    class Recording(ReferenceLoopEngine):
        def step_graded(self, graded: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            tokens.append(graded)
            return super().step_graded(graded)

    run_closed_loop(task, Recording(network), range(1), task.target_returns[0], parity_decisions=0)
    assert len(tokens) >= TRAINED_DECISIONS
    fast = LavaOptions(fast_channels=model == "expanded")  # else this one test takes half a minute
    result = compare(network, model, np.stack(tokens[:TRAINED_DECISIONS]), resets=set(), options=fast)
    assert result.compared_spikes == TRAINED_DECISIONS * network.ticks * neurons_of(network)
    assert result.exact, result


@pytest.mark.slow
@pytest.mark.parametrize(("model", "beyond"), [("fused", 2), ("expanded", -17)])
def test_trained_network_matches_in_window_mode(model: LavaModel, beyond: int) -> None:
    """Fused beyond a full window; the expanded network takes minutes for that, and its random ones go there."""
    network = read_network(network_path())
    tokens = random_tokens(network, network.context + beyond, 1, seed=0)
    result = compare(network, model, tokens, set(), "window")
    assert result.exact, result


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("probes", [("blocks.0.attention.*_lif", "blocks.1.mlp.hidden_lif"), ("none",)])
def test_only_probed_populations_are_reported_and_all_are_counted(model: LavaModel, probes: tuple[str, ...]) -> None:
    """The counts of all are what ``compare`` holds against the reference's."""
    from dsf.runtime.lava_backend.engine import LavaEngine

    network, options = random_network(0, blocks=2, ticks=3), LavaOptions(probes=probes)
    chosen = choose_populations(network, probes)
    tokens = random_tokens(network, TOKENS, 1, seed=0)
    result = compare(network, model, tokens, {RESET}, options=options)
    probed = sum(network[name].size for name in chosen)
    assert result.exact and result.compared_spikes == TOKENS * network.ticks * probed < TOKENS * 3 * neurons_of(network)
    assert result.compared_accumulators == TOKENS * network.readout.size
    words = [LavaEngine(network, model, options=wanted).stages[0].message_words for wanted in (options, STOCK_LAVA)]
    assert words[1] - words[0] >= 3 * (neurons_of(network) - probed) // 32 - 2  # a bit per slot, padded per block


def test_a_probed_population_that_is_missing_counts_as_wrong() -> None:
    network = random_network(0)
    name, token = "blocks.0.mlp.hidden_lif", random_tokens(network, 1, 1, seed=0)[0]
    check = ParityCheck(network, "stream", (name,))
    accumulators, _ = ReferenceLoopEngine(network).step_graded(token)
    check.check(token, accumulators, {})
    assert check.result.mismatches == check.result.compared_spikes == network.ticks * network[name].size


def test_parity_check_sees_a_single_flipped_spike() -> None:
    network = random_network(0)
    check, engine = ParityCheck(network), ReferenceLoopEngine(network)
    token = random_tokens(network, 1, 1, seed=0)[0]
    accumulators, spikes = engine.step_graded(token)
    name = next(network.of_kind(LIF)).name
    spikes[name] = spikes[name].copy()
    spikes[name][0, 0] ^= 1
    check.check(token, accumulators + np.array([[0, 1, 0]]), spikes)
    assert (check.result.mismatches, check.result.accumulator_mismatches) == (1, 1)
    assert name in check.result.first_mismatch and not check.result.exact
    del spikes[name]
    check = ParityCheck(network)
    check.check(token, accumulators, spikes)  # a raster that is missing differs everywhere, without an error
    assert check.result.mismatches == network.ticks * network[name].size


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_networks_wired_in_another_way_are_refused(kind: str) -> None:
    network = random_network(0, blocks=1, **KINDS[kind])
    cut = "residual.0.attention"  # without its shortcut
    shortened = node_of(network, cut, Residual)
    shortened = dataclasses.replace(shortened, sources=shortened.sources[1:])
    nodes = [shortened if node.name == cut else node for node in network.nodes]
    split_network(network)
    with pytest.raises(NetworkError, match="form another one"):
        split_network(dataclasses.replace(network, nodes=tuple(nodes)))


def test_networks_of_other_nodes_are_refused() -> None:
    network = random_network(0, blocks=1)
    *body, readout = network.nodes
    final = body[-1]
    assert isinstance(final, Residual) and isinstance(readout, Readout)
    last = dataclasses.replace(final, name="one more", sources=(final.name,))
    extended = (*body, last, dataclasses.replace(readout, source=last.name))
    with pytest.raises(NetworkError, match="form another one"):
        split_network(dataclasses.replace(network, nodes=extended))


def test_values_that_are_not_finite_are_refused() -> None:
    network = random_network(0)
    with pytest.raises(NetworkError, match="not finite"):
        encode(network.encoder, np.full((1, network.encoder.size), np.nan))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 70))
def test_raster_packing_round_trip(seed: int, ticks: int, neurons: int) -> None:
    from dsf.runtime.lava_backend.stages.message import pack_raster, raster_words, unpack_raster

    spikes = np.random.default_rng(seed).random((ticks, neurons)) < 0.5
    words = pack_raster(spikes)
    assert len(words) == raster_words(ticks, neurons)
    assert np.array_equal(unpack_raster(words, ticks, neurons), spikes)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 4096))
def test_fused_neurons_are_the_reference_neurons_even_at_the_rails(seed: int, decay: int) -> None:
    from dsf.export.network.reference import fire
    from dsf.runtime.lava_backend.stages.arithmetic import Neurons

    generator = np.random.default_rng(seed)
    size = 30
    node = LIF("x", "y", generator.integers(1, 2**17, size), generator.integers(-4095, 4096, size), 7, decay)
    currents = generator.integers(-(2**17), 2**17, (6, 1, size)) // generator.integers(1, 2000, size)
    neurons = Neurons(node)
    assert np.array_equal(np.stack([neurons.step(current[0]) for current in currents]), fire(node, currents)[:, 0])

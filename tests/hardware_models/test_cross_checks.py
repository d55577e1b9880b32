"""Our counts against two other tools, each in a process of its own: SANA-FE (energy of a Loihi) and NeuroBench.

Neither is a dependency. A tool runs where it can be imported, or where its directory is named:

    uv pip install --target DIR sanafe                                             DSF_SANAFE_SITE=DIR
    uv pip install --target DIR neurobench torch==2.3.1 torchaudio==2.3.1 'numpy<2'   DSF_NEUROBENCH_SITE=DIR

Everywhere else the same figures are compared with numbers worked out by hand. docs/energy_table.md has the results.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Synapses
from dsf.export.network.reference import ReferenceEngine, active_updates, fire
from dsf.hardware_models import Activity, NodeActivity, SpikeCounter, estimate_energy, load_preset, measure_activity
from dsf.hardware_models.activity import QUANTITIES
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.shell.arrays import Int64Array
from dsf.shell.units import NANOSECOND, PICOJOULE
from dsf.testing.narrowed import node_of, present
from dsf.testing.random_networks import random_network
from dsf.testing.sanafe_description import Chain, Core, Population, Projection

PROGRAMS = resources.files("dsf.testing")
BLOCK, TOKENS = "blocks.1", 2
QKV, HIDDEN = f"{BLOCK}.attention.qkv_lif", f"{BLOCK}.mlp.hidden_lif"
FIRING = {
    "x": f"{BLOCK}.attention.input_lif",
    "a": f"{BLOCK}.attention.attention_lif",
    "z": f"{BLOCK}.mlp.input_lif",
    "qkv": QKV,
    "h": HIDDEN,
}
"""Populations of the chain that fire, and the node that each is."""
NEVER = (1 << 17) - 1
"""A threshold out of reach."""


def run_tool(module: str, variable: str, script: str, *arguments: str) -> Any:
    """What a tool's process prints as its last line, or None where the tool is not installed."""
    site = os.environ.get(variable)
    if site is None and importlib.util.find_spec(module) is None:
        return None
    environment = {**os.environ, "PYTHONPATH": site or "", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(PROGRAMS / script), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def run_sanafe(tmp_path: Path, chains: list[Chain], ticks: int) -> list[dict[str, Any]] | None:
    """SANA-FE's figures of some chains."""
    paths = [tmp_path / f"{index}.yaml" for index in range(len(chains))]
    for path, chain in zip(paths, chains):
        path.write_text(chain.description())
    answer = run_tool("sanafe", "DSF_SANAFE_SITE", "sanafe_process.py", str(ticks), *map(str, paths))
    return None if answer is None else answer["runs"]


def lif(name: str, threshold: list[int], bias: list[int], decay: int) -> LIF:
    """A LIF node with biases in 1/64 units."""
    return LIF(name, "synapses", np.array(threshold), np.array(bias), 0, decay)


def sink(name: str, size: int) -> LIF:
    """Neurons that take in synaptic events, keep nothing and never fire."""
    return lif(name, [NEVER] * size, [0] * size, 1 << 12)


def hand_chain() -> Chain:
    """Three inputs, two neurons on two tiles, and one that hears +7 and -7 when both fire."""
    replayed = np.array([[1, 0, 1], [0, 1, 0]])
    populations = (
        Population("x", (Core(0, 0),), replayed=replayed),
        Population("h", (Core(5, 1), Core(6, 2)), lif=lif("h", [3, 5], [0, 64], 3072)),
        Population("y", (Core(31, 3),), lif=sink("y", 1)),
    )
    to_hidden, to_sink = np.array([[2, 1, 2], [3, 4, 2]]), np.array([[7, -7]])
    return Chain(populations, (Projection("x", "h", to_hidden), Projection("h", "y", to_sink)))


def test_a_description_for_sanafe_costs_what_was_worked_out_by_hand(tmp_path: Path) -> None:
    """Tick 1: x0 and x2 fire. Tick 2: h0 gets 4 > 3, h1 gets 5 and its bias 1, 6 > 5: both fire; x1 fires. Tick 3: h0
    gets 1, h1 gets 4 and 1, 5 is not above 5; y gets 7 - 7.
    """
    chain = hand_chain()
    written = yaml.safe_load(chain.description())
    groups = {group["name"]: group["neurons"] for group in written["network"]["groups"]}
    assert [len(groups[name]) for name in "xhy"] == [3, 2, 1]
    assert groups["x"][2] == {2: [{"spikes": [1, 0]}]}
    # A bias starts at its opposite: tick 1 has no input yet, and after it the membrane has to be 0.
    neuron = groups["h"][1][1][0]["soma"]
    assert (neuron["threshold"], neuron["bias"], neuron["potential"], neuron["leak_decay"]) == (5, 1.0, -1.0, 0.25)
    edges = {name: edge[1]["weight"] for entry in written["network"]["edges"] for name, edge in entry.items()}
    assert edges == {"x -> h": [2, 3, 1, 4, 2, 2], "h -> y": [7, -7]}  # source by source
    where = {name: entry[0]["core"] for mapping in written["mappings"] for name, entry in mapping.items()}
    assert where == {"x.0": 0.0, "x.1": 0.0, "x.2": 0.0, "h.0..0": 5.1, "h.1..1": 6.2, "y.0..0": 31.3}
    # Tile 0 is column 0, row 0; 5: 1, 1; 6: 1, 2; 31: 7, 3.
    assert chain.routed("x", np.array([1, 1, 1])) == (3 * 2, 3 * (1 + 1), 3 * (1 + 2))
    assert chain.routed("h", np.array([1, 1])) == (2, 6 + 6, 2 + 1)
    # 8 synaptic events, 3 neurons in 3 ticks of which 6 updated (y by an input of 0), 2 spikes, 8 messages.
    joules = (8 * 35.5 + 9 * 51.2 + 6 * 21.6 + 2 * 69.3 + 8 * 111 + 18 * 3.0 + 12 * 4.2) * 1e-12
    counts = {"synaptic_events": 8, "active_updates": 6, "inactive_updates": 3, "spikes": 2, "messages": 8}
    ours = NodeActivity("chain", "LIF", 3, **counts, hops_east_west=18, hops_north_south=12)
    estimate = estimate_energy(Activity(1, 1, 3, (ours,)), load_preset("loihi1_fitted"))
    assert estimate.nominal == pytest.approx(joules)
    theirs = run_sanafe(tmp_path, [chain], ticks=3)
    for run in theirs or []:
        assert run["spikes"] == [[["x", 0], ["x", 2]], [["h", 0], ["h", 1], ["x", 1]], []]
        assert (run["synaptic_operations"], run["messages"]) == (8, 8)
        assert (run["hops_east_west"], run["hops_north_south"]) == (18, 12)
        assert run["joules"] == pytest.approx(joules)


def observed(network: Network) -> tuple[list[dict[str, Int64Array]], Activity]:
    """Every node's values (ticks, neurons) for some random tokens, and what the engine counted for the same tokens."""
    limit = network.encoder.limit
    tokens = np.random.default_rng(0).integers(-limit, limit + 1, (TOKENS, 1, network.encoder.size))
    reference, engine = ReferenceEngine(network), ReferenceLoopEngine(network)
    values: list[dict[str, Int64Array]] = []
    for token in tokens:
        seen: dict[str, Int64Array] = {}

        def observe(name: str, found: Int64Array, seen: dict[str, Int64Array] = seen) -> None:
            seen[name] = found.reshape(len(found), -1)

        reference.step_graded(token, observe)
        values.append(seen)
        engine.step_graded(token)
    return values, measure_activity(engine.counter)


def block_chain(network: Network, values: dict[str, Int64Array]) -> Chain:
    """All weights of one block, for one token: its branches' inputs are replayed, LIFs behind weights are computed."""
    attention, mlp = f"{BLOCK}.attention", f"{BLOCK}.mlp"
    stages = {"qkv": f"{attention}.qkv", "p": f"{attention}.project", "h": f"{mlp}.expand", "y": f"{mlp}.contract"}
    size = network[stages["p"]].size
    populations = (
        Population("x", (Core(0, 0),), replayed=values[f"{attention}.input_lif"]),
        Population("qkv", (Core(0, 1), Core(9, 0), Core(18, 3)), lif=node_of(network, QKV, LIF)),
        Population("a", (Core(2, 0),), replayed=values[f"{attention}.attention_lif"]),
        Population("p", (Core(3, 0),), lif=sink("p", size)),
        Population("z", (Core(3, 1),), replayed=values[f"{mlp}.input_lif"]),
        Population("h", (Core(4, 0), Core(31, 0)), lif=node_of(network, HIDDEN, LIF)),
        Population("y", (Core(4, 1),), lif=sink("y", size)),
    )
    sources = {"qkv": "x", "p": "a", "h": "z", "y": "h"}
    synapses = {target: node_of(network, name, Synapses) for target, name in stages.items()}
    weights = {target: node.weights.astype(int) << node.exponent for target, node in synapses.items()}
    return Chain(populations, tuple(Projection(sources[target], target, weights[target]) for target in stages))


def pipelined(chain: Chain, activity: Activity, values: list[dict[str, Int64Array]], network: Network) -> Activity:
    """Our counts of the block, as its pipeline on a chip makes them: every token takes one tick more, in which the
    first LIFs have no input yet (only a bias makes them active) and the last sink has not seen the last spikes.
    """
    measured = {node.node: node for node in activity.nodes}
    nodes = [node for name, node in measured.items() if name.startswith(BLOCK) and node.kind == "Synapses"]
    for name, source in FIRING.items():
        population, messages = chain[name], chain.routed(name, sum(value[source].sum(axis=0) for value in values))
        routed = dict(zip(("messages", "hops_east_west", "hops_north_south"), messages))
        updates = {}
        if population.lif is not None:
            biased = TOKENS * int(np.count_nonzero(population.lif.bias))
            idle = TOKENS * population.size - biased
            updates = {"spikes": measured[source].spikes, "active_updates": measured[source].active_updates + biased}
            updates["inactive_updates"] = measured[source].inactive_updates + idle
        nodes.append(NodeActivity(name, "LIF", population.size, **routed, **updates))
    for name, (currents, node) in sinks(chain, values).items():
        active = sum(int(active_updates(node, current[:, None]).sum()) for current in currents)
        slots = sum(current.size for current in currents)
        nodes.append(NodeActivity(name, "LIF", node.size, active_updates=active, inactive_updates=slots - active))
    return Activity(TOKENS, TOKENS, network.ticks + 1, tuple(nodes))


def sinks(chain: Chain, values: list[dict[str, Int64Array]]) -> dict[str, tuple[list[Int64Array], LIF]]:
    """What arrives at the sinks (ticks, neurons), tick by tick of the pipeline and token by token."""
    late = {"p": (1, f"{BLOCK}.attention.project"), "y": (2, f"{BLOCK}.mlp.contract")}
    arrived = {
        name: [np.pad(value[synapses], ((delay, 0), (0, 0)))[: len(value[synapses]) + 1] for value in values]
        for name, (delay, synapses) in late.items()
    }
    return {name: (currents, present(chain[name].lif)) for name, currents in arrived.items()}


def inputs_of_zero(chain: Chain, values: list[dict[str, Int64Array]]) -> int:
    """Updates that we call inactive and SANA-FE active: spikes arrived, and their weights add up to nothing, at a
    neuron without bias and with an empty membrane.
    """
    arriving = sinks(chain, values)
    for name, synapses in (("qkv", f"{BLOCK}.attention.qkv"), ("h", f"{BLOCK}.mlp.expand")):
        arriving[name] = [value[synapses] for value in values], present(chain[name].lif)
    found = 0
    for currents, population in arriving.values():
        for current in currents:
            before = np.zeros_like(current)
            fire(population, current, before)
            heard = current.any(axis=1, keepdims=True)  # all-to-all: one neuron heard something, so all did
            found += int((heard & (current == 0) & (before == 0) & (population.bias == 0)).sum())
    return found


def busiest_core_seconds(chain: Chain, values: list[dict[str, Int64Array]]) -> float:
    """Our latency of all tokens: per tick, the work of the busiest core at the preset's times, and the barrier."""
    preset = load_preset("loihi1_fitted")
    price = {quantity: time.nominal for quantity, time in preset.time_ns.items()}
    tiles = {core.tile for population in chain.populations for core in population.cores}
    barrier = np.interp(len(tiles), list(preset.barrier_ns), [time.nominal for time in preset.barrier_ns.values()])
    total = 0.0
    for value in values:
        ticks = len(value[QKV]) + 1
        load: dict[Core, npt.NDArray[np.float64]] = defaultdict(partial(np.zeros, ticks))
        for population in chain.populations:
            for core, neurons in population.slices:
                if population.lif is not None:
                    load[core] += len(neurons) * price["active_updates"]
                if population.name not in FIRING:
                    continue
                front = int(population.lif is not None)  # a computed spike comes one tick after its input
                fired = np.pad(value[FIRING[population.name]][:, neurons], ((front, 1 - front), (0, 0))).sum(axis=1)
                load[core] += front * fired * price["spikes"]
                for edge in chain.projections:
                    for target, reached in chain[edge.target].slices if edge.source == population.name else ():
                        load[core] += fired * price["messages"]
                        load[target] += fired * len(reached) * price["synaptic_events"]
        total += np.max(list(load.values()), axis=0).sum() + ticks * barrier
    return total * NANOSECOND


def test_a_trained_block_costs_in_sanafe_what_we_count(tmp_path: Path) -> None:
    """Where SANA-FE is not installed, our counts are compared with sums over the spikes themselves."""
    network = read_network(network_path())
    values, activity = observed(network)
    chains = [block_chain(network, value) for value in values]
    ours = pipelined(chains[0], activity, values, network)
    estimate = estimate_energy(ours, load_preset("loihi1_fitted"))
    counts = {quantity: ours.total(quantity) for quantity in QUANTITIES}
    theirs = run_sanafe(tmp_path, chains, network.ticks + 1)
    if theirs is None:
        fan_out = {"x": 384, "a": 128, "z": 512, "h": 128}
        spikes = {name: int(sum(value[source].sum() for value in values)) for name, source in FIRING.items()}
        assert counts["synaptic_events"] == sum(spikes[name] * targets for name, targets in fan_out.items())
        assert counts["messages"] == 3 * spikes["x"] + spikes["a"] + 2 * spikes["z"] + spikes["h"]
        assert counts["spikes"] == spikes["qkv"] + spikes["h"]
        # z sends from tile 3 (column 0, row 3) to tile 4 (1, 0) and tile 31 (7, 3).
        assert chains[0].routed("z", sum(value[FIRING["z"]].sum(axis=0) for value in values))[1:] == (
            (1 + 7) * spikes["z"],
            (3 + 0) * spikes["z"],
        )
        return
    summed = {quantity: sum(run[quantity] for run in theirs) for quantity in theirs[0] if quantity != "spikes"}
    assert summed["synaptic_operations"] == counts["synaptic_events"]
    assert all(summed[quantity] == counts[quantity] for quantity in ("messages", "hops_east_west", "hops_north_south"))
    for run, value in zip(theirs, values):
        fired = Counter(name for tick in run["spikes"] for name, _ in tick)
        assert all(fired[name] == value[source].sum() for name, source in FIRING.items())
    ours_joules = TOKENS * estimate.nominal
    assert ours_joules == pytest.approx(summed["joules"], rel=1e-3)
    update = load_preset("loihi1_fitted").energy_pj
    extra = (update["active_updates"].nominal - update["inactive_updates"].nominal) * PICOJOULE
    assert ours_joules + extra * inputs_of_zero(chains[0], values) == pytest.approx(summed["joules"], rel=1e-9)
    latency = busiest_core_seconds(chains[0], values)
    print(f"SANA-FE: {summed['joules']:.6e} J, {summed['seconds']:.3e} s; ours: {ours_joules:.6e} J, {latency:.3e} s")
    assert latency == pytest.approx(summed["seconds"], rel=0.25), "SANA-FE's own claim about silicon is 25 %"


def linear_part(network: Network) -> list[Synapses]:
    """The weights that read spikes: where NeuroBench's hooks see accumulates. Attention's products are not among them,
    neither here nor there: NeuroBench counts nothing outside of layers.
    """
    return [node for node in network.of_kind(Synapses) if isinstance(network[node.source], LIF)]


def neurobench_figures(layers: list[Synapses], counter: SpikeCounter) -> dict[str, float]:
    """NeuroBench's definitions on our counts; operations are per row, a row being one tick of one token."""
    rows, network = counter.tokens * counter.network.ticks, counter.network
    weights = sum(layer.weights.size for layer in layers)
    fired = [counter.fired[layer.source] for layer in layers]
    events = sum(int(spikes @ np.count_nonzero(layer.weights, axis=0)) for layer, spikes in zip(layers, fired))
    slots = rows * sum(network[layer.source].size for layer in layers)
    return {
        "Footprint": weights,
        "ConnectionSparsity": round(1 - sum(np.count_nonzero(layer.weights) for layer in layers) / weights, 4),
        "ActivationSparsity": (slots - sum(int(spikes.sum()) for spikes in fired)) / slots,
        "Effective_ACs": events / rows,
        "Effective_MACs": 0.0,
        "Dense": float(weights),
    }


def test_neurobenchs_definitions_on_our_counts_by_hand() -> None:
    """One block; two spikes in the first of two tokens of 4 ticks, at a neuron with one weight of 0."""
    network = random_network(0, blocks=1, width=4, mlp_ratio=1, attention="none")
    expand, contract = linear_part(network)
    for weights in (expand.weights, contract.weights):
        weights[:] = 1
    expand.weights[3, 0] = 0
    counter = SpikeCounter(network)
    spikes = {name: np.zeros((4, 4), np.int64) for name in counter.fired}
    spikes[expand.source][:2, 0] = 1
    counter.add(spikes)
    counter.add({name: np.zeros((4, 4), np.int64) for name in counter.fired})
    assert neurobench_figures([expand, contract], counter) == {
        "Footprint": 32,
        "ConnectionSparsity": 0.0312,
        "ActivationSparsity": 1 - 2 / 64,
        "Effective_ACs": 2 * 3 / 8,
        "Effective_MACs": 0.0,
        "Dense": 32.0,
    }
    assert measure_activity(counter).total("synaptic_events") == 2 * 4, "ours counts weights of 0, a chip meets them"


def test_neurobench_counts_what_we_count_on_the_linear_part(tmp_path: Path) -> None:
    """Where NeuroBench is not installed, its effective accumulates come from dense products of spikes and weights."""
    network = read_network(network_path())
    layers, engine, seen = linear_part(network), ReferenceLoopEngine(network), []
    limit = network.encoder.limit
    for token in np.random.default_rng(0).integers(-limit, limit + 1, (20, 1, network.encoder.size)):
        seen.append(engine.step_graded(token)[1])
    spikes = [np.concatenate([values[layer.source] for values in seen]) for layer in layers]
    ours = neurobench_figures(layers, engine.counter)
    events = sum(node.synaptic_events for node in measure_activity(engine.counter).nodes)
    missed = sum(int((fired @ (layer.weights == 0).T).sum()) for layer, fired in zip(layers, spikes))
    assert ours["Effective_ACs"] * len(spikes[0]) == events - missed
    path = tmp_path / "layers.npz"
    arrays = {f"w{index}": layer.weights for index, layer in enumerate(layers)}
    np.savez(path, **arrays, **{f"s{index}": fired for index, fired in enumerate(spikes)})
    theirs = run_tool("neurobench", "DSF_NEUROBENCH_SITE", "neurobench_process.py", str(path))
    if theirs is None:
        accumulates = sum((fired @ (layer.weights != 0).T).sum() for layer, fired in zip(layers, spikes))
        assert ours["Effective_ACs"] == accumulates / len(spikes[0])
        return
    operations = theirs["SynapticOperations"]
    print(f"NeuroBench {theirs['version']}: {theirs}")
    assert ours == {name: theirs.get(name, operations.get(name)) for name in ours}

"""The table of layers: by hand on the network of tests/testing/chain_network.py, and sums that are the run's."""

from __future__ import annotations

import pytest

from dsf.hardware_models import (
    SpikeCounter,
    estimate_energy,
    load_preset,
    map_in_order,
    measure_activity,
    preset_names,
)
from dsf.hardware_models.activity import QUANTITIES
from dsf.hardware_models.layers import MACS, NEURON, ROUTING, SPENT_ON, SYNAPSE, by_part, layer_rows, together
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.testing.chain_network import CHIP, chain_network
from dsf.testing.random_networks import random_network, random_tokens


def test_layers_by_hand() -> None:
    """Five decisions of two ticks; A fires 3, 1 and 2 times, every spike to three synapses and two cores."""
    mapping, counter = map_in_order(chain_network(), CHIP), SpikeCounter(chain_network())
    counter.decisions = counter.tokens = 5
    counter.fired["A"][:], counter.active["A"][:] = (3, 1, 2), (4, 5, 6)
    activity = mapping.activity(counter)
    rows = layer_rows(mapping.network, activity, estimate_energy(activity, load_preset("loihi1_fitted")), mapping)
    found = {row.layer: row for row in rows}
    assert [row.layer for row in rows] == ["encoder", "embed", "r0", "A", "S", "r1", "readout"]
    lif, synapses = found["A"], found["S"]
    assert (lif.neurons, lif.synapses, lif.cores, lif.updates) == (3, 0, 2, 6)
    assert lif.rate == pytest.approx(6 / 30) and lif.spikes_per_synapse is None
    assert (lif.messages, lif.hops) == (12 / 5, (18 + 6) / 5)
    assert (synapses.neurons, synapses.synapses, synapses.cores, synapses.events) == (0, 9, 0, 18 / 5)
    assert synapses.spikes_per_synapse == pytest.approx(18 / 5 / 9) and synapses.rate is None
    assert synapses.joules[SYNAPSE] == pytest.approx(18 / 5 * 35.5e-12)
    assert lif.joules[NEURON] == pytest.approx((15 * 72.8 + 15 * 51.2 + 6 * 69.3) / 5 * 1e-12)
    assert lif.joules[ROUTING] == pytest.approx((12 * 111 + 18 * 3.0 + 6 * 4.2) / 5 * 1e-12)
    assert (found["embed"].synapses, found["embed"].macs, found["readout"].macs) == (6, 6 * 2, 6)
    assert (found["encoder"].neurons, found["readout"].neurons) == (0, 0)


def test_weights_belong_to_what_they_are_fetched_for() -> None:
    """int8_45nm prices bytes: 3.5 pJ for every event (0.03) and for every product (0.3)."""
    network = chain_network()
    counter = SpikeCounter(network)
    counter.decisions = counter.tokens = 1
    counter.fired["A"][:] = 1
    activity = measure_activity(counter)
    rows = {
        row.layer: row for row in layer_rows(network, activity, estimate_energy(activity, load_preset("int8_45nm")))
    }
    assert rows["S"].joules[SYNAPSE] == pytest.approx(9 * 3.53e-12) and rows["S"].joules[MACS] == 0
    assert rows["embed"].joules[MACS] == pytest.approx(12 * 3.8e-12) and rows["embed"].joules[SYNAPSE] == 0


def test_everything_that_is_priced_is_spent_on_something() -> None:
    assert set(SPENT_ON) | {"weight_bytes"} == set(QUANTITIES)


@pytest.mark.parametrize("name", preset_names())
def test_rows_and_parts_add_up_to_the_run(name: str) -> None:
    network = random_network(0, blocks=2)
    engine = ReferenceLoopEngine(network)
    for token in random_tokens(network, 5, 1, seed=0):
        engine.step_graded(token)
    activity = measure_activity(engine.counter)
    energy = estimate_energy(activity, load_preset(name))
    rows = layer_rows(network, activity, energy)
    parts = by_part(rows)
    blocks = [f"blocks.{block}.{part}" for block in (0, 1) for part in ("attention", "mlp")]
    assert [row.layer for row in parts] == ["embedding", *blocks, "readout"]
    for table in (rows, parts):
        whole = together("all", table)
        assert sum(whole.joules.values()) == pytest.approx(energy.nominal)
        assert whole.events == pytest.approx(activity.per_decision("synaptic_events"))
        assert whole.updates == pytest.approx(
            activity.per_decision("active_updates") + activity.per_decision("inactive_updates")
        )
        assert whole.rate == pytest.approx(activity.firing_rate)

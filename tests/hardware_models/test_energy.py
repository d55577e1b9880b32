"""Counts and prices against hand-computed values; conservation and monotonicity."""

from __future__ import annotations

import numpy as np
import pytest
from random_networks import random_network, random_tokens

from dsf.hardware_models import SpikeCounter, estimate_energy, load_preset, measure_activity, preset_names
from dsf.hardware_models.preset import GRADES, parse_preset
from dsf.runtime.engine import ReferenceBackend
from dsf.tasks import UserError

WIDTH, HIDDEN, FEATURES, ACTIONS, TICKS, WINDOW = 12, 24, 6, 3, 4, 3


def counted(tokens: int = 5) -> SpikeCounter:
    """Spikes of a random one-block network over a few tokens."""
    network = random_network(0, blocks=1)
    engine, counter = ReferenceBackend(network), SpikeCounter(network)
    for token in random_tokens(network, tokens, 1, seed=0):
        counter.add(engine.step_graded(token)[1])
    return counter


def test_counts_by_hand() -> None:
    """A network with hand-set spike counts; the expected values are worked out from the equations."""
    network = random_network(0, blocks=1)
    counter = SpikeCounter(network)
    counter.decisions = counter.tokens = 2
    counter.spikes = {
        "blocks.0.attention.input_lif": 10,
        "blocks.0.attention.qkv_lif": 7,
        "blocks.0.attention.coincidence": 3,
        "blocks.0.attention.attention_lif": 2,
        "blocks.0.mlp.input_lif": 11,
        "blocks.0.mlp.hidden_lif": 5,
    }
    counter.query_spikes = {"blocks.0.attention.window": 4}
    activity = measure_activity(counter)
    assert activity.total("synaptic_events") == 10 * 3 * WIDTH + 2 * WIDTH + 11 * HIDDEN + 5 * WIDTH
    neurons = 6 * WIDTH + HIDDEN  # input, qkv (3), attention, MLP input, hidden
    residuals = 3 * WIDTH
    assert activity.total("neuron_updates") == (neurons + residuals) * TICKS * 2
    assert activity.total("messages") == 10 + 7 + 2 + 11 + 5
    assert activity.total("graded_messages") == (FEATURES + residuals) * TICKS * 2 + WIDTH * 2
    assert activity.total("dynamic_operations") == WIDTH * TICKS * 2 + 4 * WINDOW
    assert activity.total("macs") == WIDTH * FEATURES * TICKS * 2 + ACTIONS * WIDTH * 2
    assert activity.firing_rate == pytest.approx(35 / (neurons * TICKS * 2))
    paper = estimate_energy(activity, load_preset("paper_45nm"))
    events = activity.total("synaptic_events") + activity.total("dynamic_operations")
    assert paper.nominal == pytest.approx((0.9 * events + 4.6 * activity.total("macs")) * 1e-12 / 2)
    loihi = estimate_energy(activity, load_preset("loihi1_davies2018"))
    expected = 23.6 * activity.total("synaptic_events") + 81 * activity.total("neuron_updates") + 1.7 * 35
    assert loihi.nominal == pytest.approx(expected * 1e-12 / 2)
    assert set(loihi.unpriced) == {"graded_messages", "dynamic_operations", "macs"}


def test_in_window_mode_every_token_of_every_window_counts() -> None:
    """Two decisions on windows of 3 tokens: neurons, encoder and residual work 6 times, the readout twice."""
    network = random_network(0, blocks=1)
    counters = SpikeCounter(network), SpikeCounter(network)
    for counter, tokens in zip(counters, (2, 6)):
        counter.decisions, counter.tokens = 2, tokens
    stream, window = map(measure_activity, counters)
    assert window.total("neuron_updates") == 3 * stream.total("neuron_updates")
    readouts = [next(node for node in activity.nodes if node.kind == "Readout") for activity in (stream, window)]
    assert readouts[0] == readouts[1]
    graded = window.total("graded_messages") - readouts[1].graded_messages
    assert graded == 3 * (stream.total("graded_messages") - readouts[0].graded_messages)
    assert window.per_decision("neuron_updates") == 3 * stream.per_decision("neuron_updates")


def test_counter_counts_what_the_engine_fired() -> None:
    network = random_network(0, blocks=1)
    engine, counter, total = ReferenceBackend(network), SpikeCounter(network), 0
    for token in random_tokens(network, 5, 1, seed=0):
        spikes = engine.step_graded(token)[1]
        counter.add(spikes)
        total += int(sum(values.sum() for values in spikes.values()))
    assert sum(counter.spikes.values()) == total > 0
    assert counter.decisions == 5


@pytest.mark.parametrize("name", preset_names())
def test_layers_add_up_and_one_more_spike_never_costs_less(name: str) -> None:
    preset, counter = load_preset(name), counted()
    before = estimate_energy(measure_activity(counter), preset)
    assert before.low <= before.nominal <= before.high and before.grade in GRADES
    assert np.isclose(sum(layer.nominal for layer in before.layers), before.nominal)
    for population in counter.spikes:
        counter.spikes[population] += 1
        after = estimate_energy(measure_activity(counter), preset)
        assert after.nominal >= before.nominal
        before = after


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown hardware preset 'tpu': choose one of loihi1_davies2018, paper_45nm"):
        load_preset("tpu")


GOOD = {"title": "t", "grade": "P", "source": "s", "notes": "n", "prices_pj": {}}
PRICE = {"low": 1, "nominal": 2, "high": 3, "source": "s"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**GOOD, "grade": "Z"}, "grade 'Z'"),
        ({key: value for key, value in GOOD.items() if key != "source"}, "fields must be"),
        ({**GOOD, "prices_pj": {"joy": PRICE}}, "'joy' is no counted quantity"),
        ({**GOOD, "prices_pj": {"macs": {**PRICE, "low": 5}}}, "macs: 0 <= low <= nominal"),
        ({**GOOD, "prices_pj": {"macs": {"low": 1}}}, "macs needs low"),
    ],
)
def test_wrong_presets_name_the_field(values: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_preset("mine", values)

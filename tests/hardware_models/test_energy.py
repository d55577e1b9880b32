"""Counts and prices against hand-computed values; conservation and monotonicity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from dsf.hardware_models import SpikeCounter, estimate_energy, load_preset, measure_activity, preset_names
from dsf.hardware_models.preset import GRADES, load_presets, parse_preset
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.shell.errors import UserError
from dsf.testing.random_networks import random_network, random_tokens

WIDTH, HIDDEN = 12, 24
FEATURES, ACTIONS = 6, 3
TICKS, WINDOW = 4, 3


def set_spikes(counter: SpikeCounter, spikes: dict[str, int]) -> None:
    """Let the first neuron of every population fire so often."""
    for name, count in spikes.items():
        counter.fired[name][0] = count


def counted(tokens: int = 5) -> SpikeCounter:
    """Spikes of a random one-block network over a few tokens."""
    network = random_network(0, blocks=1)
    engine, counter = ReferenceLoopEngine(network), SpikeCounter(network)
    for token in random_tokens(network, tokens, 1, seed=0):
        counter.add(engine.step_graded(token)[1])
    return counter


def test_counts_by_hand() -> None:
    """A network with hand-set spike counts; the expected values are worked out from the equations."""
    network = random_network(0, blocks=1)
    counter = SpikeCounter(network)
    counter.decisions = counter.tokens = 2
    set_spikes(
        counter,
        {
            "blocks.0.attention.input_lif": 10,
            "blocks.0.attention.qkv_lif": 7,
            "blocks.0.attention.coincidence": 3,
            "blocks.0.attention.attention_lif": 2,
            "blocks.0.mlp.input_lif": 11,
            "blocks.0.mlp.hidden_lif": 5,
        },
    )
    counter.fired["blocks.0.attention.qkv_lif"][:] = 0
    counter.fired["blocks.0.attention.qkv_lif"][[2, WIDTH, 2 * WIDTH]] = 4, 2, 1  # query, key, value
    neurons = 6 * WIDTH + HIDDEN  # input, qkv (3), attention, MLP input, hidden
    for active in counter.active.values():
        active[:] = 3
    activity = measure_activity(counter)
    assert activity.total("synaptic_events") == 10 * 3 * WIDTH + 2 * WIDTH + 11 * HIDDEN + 5 * WIDTH
    residuals = 3 * WIDTH
    assert activity.total("neuron_updates") == (neurons + residuals) * TICKS * 2
    assert activity.total("active_updates") == neurons * 3 + residuals * TICKS * 2
    # Query, key and value go to the gate and to the window; the gate's spikes to the window.
    assert activity.total("messages") == 10 + 2 * 7 + 3 + 2 + 11 + 5
    # The first two residuals go to the LIF of the next branch and to the next residual, the last one to the readout.
    # The window sends its currents to attention's neuron.
    assert activity.total("graded_messages") == (FEATURES + 5 * WIDTH) * TICKS * 2 + WIDTH * 2
    assert activity.total("host_transfers") == (FEATURES + ACTIONS) * 2
    products = activity.total("macs") + activity.total("repeated_macs")
    assert activity.total("weight_bytes") == activity.total("synaptic_events") + products
    assert activity.total("dynamic_operations") == WIDTH * TICKS * 2 + 4 * WINDOW
    assert activity.total("macs") == WIDTH * FEATURES * 2 + ACTIONS * WIDTH * 2
    assert activity.total("repeated_macs") == WIDTH * FEATURES * (TICKS - 1) * 2
    assert activity.firing_rate == pytest.approx(35 / (neurons * TICKS * 2))
    paper = estimate_energy(activity, load_preset("paper_45nm"))
    events = activity.total("synaptic_events") + activity.total("dynamic_operations")
    assert paper.nominal == pytest.approx((0.9 * events + 4.6 * activity.total("macs")) * 1e-12 / 2)
    loihi = estimate_energy(activity, load_preset("loihi1_davies2018"))
    expected = 23.6 * activity.total("synaptic_events") + 1.7 * activity.total("messages")
    expected += 81 * activity.total("active_updates") + 52 * activity.total("inactive_updates")
    assert loihi.nominal == pytest.approx(expected * 1e-12 / 2)
    assert set(loihi.unpriced) == {"graded_messages", "dynamic_operations", "macs", "repeated_macs", "host_transfers"}
    assert set(loihi.included) == {"weight_bytes", "spikes"}


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
    engine, counter, total = ReferenceLoopEngine(network), SpikeCounter(network), 0
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
    for fired in counter.fired.values():
        fired[-1] += 1
        after = estimate_energy(measure_activity(counter), preset)
        assert after.nominal >= before.nominal
        before = after


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown hardware preset 'tpu': choose one of arm, .*, or name a .yaml file"):
        load_preset("tpu")


PRICE = {"low": 1, "nominal": 2, "high": 3, "grade": "P", "source": "s"}
GOOD = {"title": "t", "notes": "n", "energy_pj": {"macs": PRICE}}
TIMED = {**GOOD, "chip": "loihi1", "time_ns": {"macs": PRICE}}


def test_a_users_file_is_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    preset = load_preset(str(path))
    assert (preset.name, preset.grade, preset.energy_pj["macs"].nominal) == ("mine", "P", 2.0)


@pytest.mark.slow
def test_what_is_no_preset_file_is_refused_in_one_line(tmp_path: Path) -> None:
    for content, words in (
        (b"a: [", "no YAML"),
        (b"\xff\xfe\x00", "no YAML"),
        (None, "No such file"),
        (b"title: 2020-99-99", "month must be"),
        (b"title: !!int abc", "invalid literal"),
        (b"[" * 3000, "nested too deeply"),
        (b"title: t\ntitle: u", "'title' is there twice: keep one"),
        (b"title: 3", "lacks notes: add"),
    ):
        path = tmp_path / "bad.yaml"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=words) as caught:
            load_preset(str(path))
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_presets_of_one_name_would_hide_each_other(tmp_path: Path) -> None:
    path = tmp_path / "loihi1_fitted.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert [preset.name for preset in load_presets([str(path), "odin"])] == ["loihi1_fitted", "odin"]
    for names in ([str(path), "loihi1_fitted"], ["odin", "odin"]):
        with pytest.raises(UserError, match=f"{names[0]} and {names[1]} are both called .*: rename one"):
            load_presets(names)


def test_a_total_is_as_good_as_its_worst_price() -> None:
    events = {**PRICE, "grade": "D"}
    assert parse_preset("mine", {**GOOD, "energy_pj": {"macs": PRICE, "synaptic_events": events}}).grade == "D"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1], "the file must be a mapping"),
        ({**GOOD, "colour": "red"}, "unknown field 'colour'"),
        ({key: value for key, value in GOOD.items() if key != "notes"}, "the file lacks notes"),
        ({**GOOD, "title": 3}, "title must be text"),
        ({**GOOD, "chip": "tpu"}, "chip 'tpu' is none of loihi1"),
        ({**GOOD, "energy_pj": {}}, "energy_pj prices nothing"),
        ({**GOOD, "energy_pj": {"joy": PRICE}}, "unknown field 'joy'"),
        ({**GOOD, "energy_pj": {"macs": {**PRICE, "low": 5}}}, "energy_pj macs: 0 <= low <= nominal"),
        ({**GOOD, "energy_pj": {"macs": {**PRICE, "low": -1}}}, "energy_pj macs: 0 <= low <= nominal"),
        ({**GOOD, "energy_pj": {"macs": {**PRICE, "high": float("nan")}}}, "macs holds nan"),
        ({**GOOD, "energy_pj": {"macs": {**PRICE, "high": "much"}}}, "macs holds 'much'"),
        ({**GOOD, "energy_pj": {"macs": {**PRICE, "grade": "Z"}}}, "grade 'Z' is none of P, Q, A, D"),
        ({**GOOD, "energy_pj": {"macs": {"low": 1}}}, "energy_pj macs lacks nominal, high, grade, source"),
        ({**GOOD, "included": {"macs": "somewhere"}}, "'macs' has a price and is included elsewhere"),
        ({**TIMED, "barrier_ns": {0: PRICE}}, "'0' is no number of tiles"),
        ({**GOOD, "static_w": 3}, "static_w must be a mapping"),
        ({**GOOD, "chip": ["loihi1"]}, r"chip \['loihi1'\] is none of loihi1"),
        ({**GOOD, "energy_pj": {"macs": {**PRICE, "grade": ["P"]}}}, r"grade \['P'\] is none of P"),
        ({**GOOD, "energy_pj": {"macs": {**PRICE, "high": 10**400}}}, "macs holds 1000.*: write one"),
        ({**GOOD, "energy_pj": {"macs": {**PRICE, "low": "1e-3"}}}, "'1e-3', which is no finite number: .*1.0e-3"),
        ({**TIMED, "barrier_ns": {True: PRICE}}, "'True' is no number of tiles"),
        ({**GOOD, "time_ns": {"macs": PRICE}}, "time_ns requires chip"),
        ({**GOOD, "barrier_ns": {1: PRICE}}, "barrier_ns requires time_ns"),
        ({**GOOD, "a\nb": 3}, "unknown field 'a b'"),
    ],
)
def test_wrong_presets_name_the_field(values: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_preset("mine", values)

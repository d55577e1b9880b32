"""Fetches token by token in a run: what the reference replays, what a report says, and the shipped network's bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dsf.export.network.file import read_network, write_network
from dsf.export.network.network import Mode
from dsf.hardware_models import SpikeCounter, estimate_energy, load_preset, measure_activity
from dsf.hardware_models.weight_memory import WeightMemory
from dsf.runtime.artifacts import network_path
from dsf.runtime.cli import main
from dsf.runtime.energy_table.figures import count_decisions
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.runtime.options import SimRunConfig
from dsf.runtime.report.woken import count_woken
from dsf.runtime.simulate import simulate
from dsf.shell.errors import CommandFailed
from dsf.testing.random_networks import random_network, random_tokens
from dsf.testing.training_runs import run_here

TOKEN = WeightMemory(fetch="token")


@pytest.mark.parametrize(("attention", "mode"), [("pssa", "stream"), ("pssa", "window"), ("tssa", "window")])
def test_a_replay_finds_the_tokens_in_which_neurons_fired(attention: str, mode: Mode) -> None:
    """Three episodes of other lengths, longer and shorter than the context; in window mode token by token of each."""
    network = random_network(0, blocks=1, context=4, attention=attention)
    engine, expected = ReferenceLoopEngine(network, mode), SpikeCounter(network)
    episodes = [random_tokens(network, count, 1, seed=count)[:, 0] for count in (6, 1, 3)]
    for episode in episodes:
        engine.reset(0)
        for last, graded in enumerate(episode):
            spikes = engine.step_graded(graded[None])[1]
            if mode == "stream":
                expected.wake(spikes)
                continue
            again = ReferenceLoopEngine(network)  # a window is a short episode
            for earlier in episode[max(last - network.context + 1, 0) : last + 1]:
                expected.wake(again.step_graded(earlier[None])[1])
    count_woken(network, mode, episodes, engine.counter)
    assert engine.counter.woken is not None and expected.woken is not None
    assert all(np.array_equal(engine.counter.woken[name], woken) for name, woken in expected.woken.items())
    assert measure_activity(engine.counter, TOKEN).total("weight_bytes") > 0
    engine.counter.fired["blocks.0.mlp.hidden_lif"][0] += 1
    with pytest.raises(CommandFailed, match=r"hidden_lif' fired otherwise than the reference does"):
        count_woken(network, mode, episodes, engine.counter)


@pytest.mark.slow
def test_a_run_says_how_weights_were_kept_and_fetched(tmp_path: Path) -> None:
    path, out = tmp_path / "net.dsf.h5", tmp_path / "out.json"
    write_network(random_network(0, features=15, bits=4), path)
    options = ("--backend", "fast", "--no-compare", "--episodes", "2", "--fetch", "token", "--weights", "packed")
    presets = ("--hardware", "int8_45nm_1mb", "--hardware", "loihi2_derived", "--hardware", "odin")
    result = run_here(main, "dsf-sim-run", str(path), *options, *presets, "--json", str(out))
    assert result.returncode == 0, result.stderr
    energy = json.loads(out.read_text())["energy"]
    assert energy["int8_45nm_1mb"]["memory"] == {"weights": "packed", "fetch": "token"}
    for name in ("loihi2_derived", "odin"):  # their price of an event holds its fetch
        assert energy[name]["memory"] == {"weights": "packed", "fetch": "event"}
        assert energy[name]["weight_bytes_per_decision"] > energy["int8_45nm_1mb"]["weight_bytes_per_decision"]
    fetched = energy["int8_45nm_1mb"]["weight_bytes_per_decision"]
    assert energy["int8_45nm_1mb"]["terms"]["weight_bytes"] == pytest.approx(fetched * 12.5e-12)
    words = " ".join(result.stdout.split())
    assert "int8_45nm_1mb: weights fetched token by token, every matrix in the cheapest of three formats" in words
    assert "loihi2_derived, odin: weights fetched event by event" in words
    assert "token by token: accelerators that compute all ticks of a layer together" in words
    assert "(grade A: Yin et al., MICRO 2024" in words and "(grade Q: Davies et al. 2018" in words


@pytest.mark.slow
def test_the_usual_run_fetches_event_by_event_and_says_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "net.dsf.h5"
    write_network(random_network(0, features=15), path)
    report = simulate(SimRunConfig(path, backend="fast", compare=False, parity_decisions=0)).report
    figures = report.figures("int8_45nm")
    assert figures.energy == estimate_energy(report.result.activity, load_preset("int8_45nm"))
    assert figures.weight_bytes == report.result.activity.per_decision("weight_bytes")
    assert report.result.counter.woken is None


@pytest.mark.slow
def test_the_shipped_network_fetches_a_third_token_by_token() -> None:
    """README's 666,305 bytes per decision and docs/performance.md's 222,613 behind spikes, from counts; another
    processor's MuJoCo may walk a little differently.
    """
    network = read_network(network_path())
    usual = simulate(SimRunConfig(backend="fast", compare=False, parity_decisions=0)).report
    assert usual.figures("int8_45nm").weight_bytes == pytest.approx(666_305, rel=0.02)
    counter = count_decisions(network, 200, "stream", "fast")
    found = {}
    for memory in (WeightMemory(), TOKEN):
        nodes = measure_activity(counter, memory).nodes
        found[memory.fetch] = sum(node.weight_bytes for node in nodes if node.synaptic_events) / counter.decisions
    assert found["event"] == pytest.approx(656_890, rel=0.02) and found["token"] == pytest.approx(222_613, rel=0.02)

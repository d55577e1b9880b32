"""Which populations a run reports, and the file of their spikes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dsf.export.network.file import write_network
from dsf.export.network.nodes import SPIKING_KINDS
from dsf.runtime.cli import main
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.runtime.engines.probes import ALL_POPULATIONS, choose_populations
from dsf.runtime.engines.spike_file import SpikeRecorder
from dsf.shell.errors import UserError
from dsf.testing.command_line import assert_refused
from dsf.testing.random_networks import random_network, random_tokens
from dsf.testing.training_runs import run_here

DECISIONS, RESET = 5, 3


def test_patterns_choose_populations_in_evaluation_order() -> None:
    network = random_network(0, blocks=2)
    spiking = tuple(node.name for node in network.nodes if isinstance(node, SPIKING_KINDS))
    assert choose_populations(network, ALL_POPULATIONS) == spiking
    assert choose_populations(network, ("none",)) == choose_populations(network, ()) == ()
    names = ("blocks.0.attention.qkv_lif", "blocks.0.mlp.hidden_lif", "blocks.1.mlp.hidden_lif")
    assert choose_populations(network, ("*.hidden_lif", "blocks.0.attention.qkv_lif")) == names


@pytest.mark.parametrize("pattern", ["blocks.7.*", "embed", "readout", ""])
def test_a_pattern_without_population_is_refused(pattern: str) -> None:
    """Nodes that do not fire have no spikes to probe."""
    with pytest.raises(UserError, match=r"no population matches; .*blocks\.0\.attention\.input_lif, "):
        choose_populations(random_network(0), ("*.hidden_lif", pattern))


def test_recorded_spikes_are_those_of_the_engine(tmp_path: Path) -> None:
    network = random_network(0)
    names, truth = choose_populations(network, ("*.hidden_lif", "*.coincidence")), ReferenceLoopEngine(network)
    recorder, expected = SpikeRecorder(ReferenceLoopEngine(network), names), []
    for index, token in enumerate(random_tokens(network, DECISIONS, 1, seed=0)):
        if index in (0, RESET):
            recorder.reset(0)
            truth.reset(0)
        recorder.step_graded(token)
        expected.append(truth.step_graded(token)[1])
    recorder.save(tmp_path / "spikes.npz")
    with np.load(tmp_path / "spikes.npz") as file:
        assert set(file) == {"episode_starts", *names}
        assert file["episode_starts"].tolist() == [0, RESET]
        for name in names:
            assert file[name].dtype == bool and np.array_equal(file[name], [spikes[name] for spikes in expected])
            assert file[name].any()
    assert recorder.counter.spikes == truth.counter.spikes and recorder.counter.decisions == DECISIONS


def test_probe_file_of_a_closed_loop(tmp_path: Path) -> None:
    write_network(random_network(0, features=15), tmp_path / "net.dsf.h5")
    outputs = ("--probe-file", str(tmp_path / "spikes.npz"), "--json", str(tmp_path / "out.json"))
    probes = ("--probe", "blocks.0.*", "--probe", "blocks.1.mlp.hidden_lif")
    arguments = (str(tmp_path / "net.dsf.h5"), "--backend", "fast", "--no-compare", "--episodes", "2")
    result = run_here(main, "dsf-sim-run", *arguments, *probes, *outputs)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out.json").read_text())
    with np.load(tmp_path / "spikes.npz") as file:
        decisions = [episode["decisions"] for episode in summary["episodes"]]
        assert len(file["episode_starts"]) == 2 and file["episode_starts"][1] == decisions[0]
        assert len(file["blocks.1.mlp.hidden_lif"]) == sum(decisions)
        assert sum(name.startswith("blocks.0.") for name in file) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--probe", "blocks.9.*"), "--probe blocks.9.*: no population matches"),
        (("--probe-file", "/nowhere/x.npz"), "/nowhere does not exist"),
        (("--probe-file", "out.json", "--json", "out.json"), "--json and --probe-file both write"),
        (("--lava-fast-channels",), "--lava-fast-channels requires --backend lava, and this is fast"),
    ],
)
def test_refusals(arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_network(random_network(0, features=15), tmp_path / "net.dsf.h5")
    assert_refused(run_here(main, "dsf-sim-run", "net.dsf.h5", "--backend", "fast", "--no-compare", *arguments), words)
    assert [path.name for path in tmp_path.iterdir()] == ["net.dsf.h5"]


def test_the_archive_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = SpikeRecorder(ReferenceLoopEngine(random_network(0)), ("blocks.0.mlp.hidden_lif",))
    recorder.step_graded(random_tokens(recorder.network, 1, 1, seed=0)[0])

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", fail)
    with pytest.raises(OSError, match="No space left"):
        recorder.save(tmp_path / "spikes.npz")
    assert list(tmp_path.iterdir()) == []

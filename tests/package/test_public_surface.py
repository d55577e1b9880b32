"""``from dsf import ...``: what there is, that it is what it says, and what it needs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dsf
from dsf import (
    RunReport,
    SimRunConfig,
    UserError,
    estimate_energy,
    load_preset,
    measure_activity,
    open_engine,
    simulate,
)
from dsf.export.network.file import read_network, write_network
from dsf.export.network.reference import decode
from dsf.runtime.artifacts import network_path
from dsf.tasks import Lane, get_task
from dsf.testing.random_networks import random_network


@pytest.mark.parametrize("name", dsf.__all__)
def test_every_name_is_there_and_the_type_checker_sees_the_same(name: str) -> None:
    tree = ast.parse(Path(dsf.__file__).read_text())
    typed = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    module, _, attribute = typed[name].rpartition(".")
    assert getattr(dsf, name) is getattr(importlib.import_module(module), attribute)
    assert name in dir(dsf) and set(typed) == set(dsf.__all__)


def test_an_unknown_name_is_an_attribute_error(name: str = "simulte") -> None:
    with pytest.raises(AttributeError, match="'dsf' has no attribute 'simulte'"):
        getattr(dsf, name)


@pytest.mark.slow
def test_names_are_imported_without_torch_and_a_closed_loop_runs_and_is_priced() -> None:
    script = """
import sys
for name in ("torch", "snntorch", "minari", "safetensors", "onnx", "lava"):
    sys.modules[name] = None
import dsf
assert {name for name in sys.modules if name.startswith("dsf.")} == {"dsf.shell", "dsf.shell.public_names"}
for name in dsf.__all__:
    getattr(dsf, name)
run = dsf.simulate(dsf.SimRunConfig(backend="reference", parity_decisions=0, compare=False))
print(run.report.returns, run.report.figures("int8_45nm").energy.nominal)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    here = simulate(SimRunConfig(backend="fast", parity_decisions=0, compare=False)).report
    assert result.stdout == f"{here.returns} {here.figures('int8_45nm').energy.nominal}\n", "one engine and the other"


def test_simulate_is_silent_and_writes_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network, page = tmp_path / "net.dsf.h5", tmp_path / "page.html"
    write_network(random_network(0, features=15), network)
    config = SimRunConfig(network, backend="fast", episodes=2, html=page, json=tmp_path / "out.json", compare=False)
    report: RunReport = simulate(config).report
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["net.dsf.h5"]
    assert len(report.returns) == 2 and report.result.parity.exact and len(report.result.tapes) == 2
    assert report.to_json()["return_mean"] == report.interval.mean


def test_bad_values_are_refused_when_the_config_is_made() -> None:
    with pytest.raises(UserError, match="--episodes is 0: it must be at least 1"):
        SimRunConfig(episodes=0)


@pytest.mark.slow
def test_a_loop_of_ones_own_decides_as_simulate_does() -> None:
    """Open a network, decide, price: the pieces behind :func:`dsf.simulate`."""
    network, task = read_network(network_path()), get_task("hopper")
    lane, episode = Lane(task), None
    lane.start(0, 3600.0)
    with open_engine(network, "fast") as engine:
        engine.reset(0)
        while episode is None:
            decision = engine.step(lane.token().vector())
            episode = lane.step(decode(network.readout, decision.accumulators)[0])
        energy = estimate_energy(measure_activity(engine.counter), load_preset("int8_45nm"))
    lane.close()
    report = simulate(SimRunConfig(backend="fast", compare=False, parity_decisions=0)).report
    assert report.returns == [episode.episode_return]
    assert report.figures("int8_45nm").energy.nominal == energy.nominal

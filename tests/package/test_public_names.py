"""The short imports of the rooms: what they offer, and that they load no torch."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from dsf.export.network.file import write_network
from dsf.testing.random_networks import random_network

ROOMS = ("dsf.train", "dsf.export")


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_there_and_others_are_not(room: str) -> None:
    package = importlib.import_module(room)
    for name in package.__all__:
        found = getattr(package, name)
        assert found.__name__ == name and found.__module__.startswith(room) and found.__doc__
        assert f"`{name}`" in str(package.__doc__), f"the docstring of {room} does not say what {name} is"
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


def run_without(blocked: tuple[str, ...], script: str, *arguments: str) -> str:
    """What a script prints where some packages cannot be imported."""
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in blocked), script]
    command = [sys.executable, "-c", "\n".join(lines), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_they_load_nothing_before_a_name_is_used() -> None:
    script = """
import dsf.export, dsf.train
print(*sorted(name for name in sys.modules if name.startswith("dsf.") or name in ("numpy", "torch", "rich", "tyro")))
"""
    assert run_without((), script).split() == ["dsf.export", "dsf.shell", "dsf.shell.public_names", "dsf.train"]


@pytest.mark.slow
def test_networks_and_configs_need_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "net.dsf.h5"
    write_network(random_network(0), path)
    script = """
from pathlib import Path
from dsf.export import ExportConfig, ExportedNetwork, Network, export, read_network, write_network
from dsf.train import TrainConfig, TrainedRun, load_dataset, train
from dsf.shell.errors import UserError
network = read_network(Path(sys.argv[1]))
assert isinstance(network, Network)
exported = export(ExportConfig(Path(sys.argv[1]), out=Path(sys.argv[2])))
assert isinstance(exported, ExportedNetwork) and exported.written.sha256
assert [rung.passed for rung in exported.rungs if "torch" in rung.name] == [None]
try:
    train(TrainConfig("dsf/hopper/medium-v0"))
except UserError as error:
    print(error)
"""
    blocked = ("torch", "snntorch", "minari", "safetensors", "tensorboard")
    said = run_without(blocked, script, str(path), str(tmp_path / "again.dsf.h5"))
    assert said.startswith("this command needs torch, ") and said.count("\n") == 1, said

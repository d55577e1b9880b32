"""The layout: import names, and what runs without torch. The arrows are in test_import_graph.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
with (ROOT / "pyproject.toml").open("rb") as project:
    SETUPTOOLS = tomllib.load(project)["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
"""Folders by import name: the rooms, and the parts of the tests."""
ROOMS = [name for name in FOLDERS if name != "dsf.testing"]


def test_every_package_is_installed() -> None:
    found = {
        ".".join([name, *path.parent.relative_to(ROOT / folder).parts])
        for name, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == found


def test_no_module_has_a_name_that_says_nothing() -> None:
    folders = (*FOLDERS.values(), "tests", "benchmarks", "experiments", "endurance")
    names = {path.stem for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert not names & {"utils", "helpers", "common"}


@pytest.mark.slow
def test_robot_side_runs_without_torch() -> None:
    """Reader, reference engine, hardware models, and a closed-loop run, with torch and friends blocked."""
    script = """
import sys
for name in ("torch", "snntorch", "minari", "safetensors", "onnx"):
    sys.modules[name] = None
import dsf.export.network.network, dsf.export.network.file, dsf.export.network.bounds
import dsf.hardware_models, dsf.runtime.cli
import pytest
from dsf.runtime.cli import SimRunConfig, run
run(SimRunConfig(backend="reference", parity_decisions=0, compare=False))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "D4RL-normalised score" in result.stdout


def test_no_pickle_anywhere() -> None:
    for room in ROOMS:
        for path in (ROOT / FOLDERS[room]).rglob("*.py"):
            text = path.read_text()
            assert "import pickle" not in text and "torch.load(" not in text and "allow_pickle=True" not in text, path

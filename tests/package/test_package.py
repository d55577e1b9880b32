"""The layout: import names, the arrows between the rooms, and what runs without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
ARROWS = {
    "tasks": set(),
    "train": {"tasks"},
    "export": {"tasks", "train"},
    "hardware_models": {"tasks", "export"},
    "runtime": {"tasks", "train", "export", "hardware_models"},
}
"""Which rooms a room may import from, itself apart."""


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a module imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("dsf.")}
    return rooms


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_point_one_way(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        assert imported_rooms(path) <= ARROWS[room] | {room}, path


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        "dsf." + ".".join(p.parent.relative_to(ROOT).parts)
        for room in ARROWS
        for p in (ROOT / room).rglob("__init__.py")
    }
    assert set(listed) == found


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = {
        path.stem
        for room in (*ARROWS, "tests", "benchmarks", "experiments", "endurance")
        for path in (ROOT / room).rglob("*.py")
    }
    assert not names & {"utils", "helpers", "common"}


def test_robot_side_runs_without_torch() -> None:
    """Reader, reference engine, hardware models, and a closed-loop run, with torch and friends blocked."""
    script = """
import sys
for name in ("torch", "snntorch", "minari", "safetensors", "onnx"):
    sys.modules[name] = None
import dsf.export.network.network, dsf.export.network.file, dsf.export.network.bounds
import dsf.hardware_models, dsf.runtime.cli
from dsf.runtime.cli import SimRunConfig, run
run(SimRunConfig(backend="reference", parity_decisions=0, compare=False))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "D4RL-normalised score" in result.stdout


def test_no_pickle_anywhere() -> None:
    for room in ARROWS:
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            assert "import pickle" not in text and "torch.load(" not in text and "allow_pickle=True" not in text, path

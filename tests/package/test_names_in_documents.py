"""What documents and docstrings name is there: modules, classes and functions, files and folders, tests."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"testing": "tests/testing"}
"""Rooms whose folder is not called as they are."""
ROOMS = ("shell", "tasks", "train", "export", "hardware_models", "runtime", "testing")
DOCUMENTS = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("tasks/behaviour/*.md")])
DOTTED = re.compile(r"(?<![\w./*-])dsf(?:\.[A-Za-z_]\w*)+")
ROLE = re.compile(r":(?:mod|class|func|meth|data|attr|exc):`~?([^`]+)`")
QUOTED = re.compile(r"`([\w./-]+)`")
TEST = re.compile(r"`(test_\w+)`")


@cache
def tracked() -> frozenset[str]:
    """Files that Git knows or would take, and their folders with a slash behind."""
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    files = [Path(name) for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()]
    there = [path for path in files if (ROOT / path).exists()]
    return frozenset([*map(str, there), *(f"{folder}/" for path in there for folder in path.parents)])


@cache
def module_file(name: str) -> Path | None:
    """The file of a module or package of dsf."""
    _, *parts = name.split(".")
    place = ROOT / FOLDERS.get(parts[0], parts[0]) if parts else ROOT / "dsf"
    place = place.joinpath(*parts[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@cache
def members(path: Path) -> dict[str, ast.AST | None]:
    """What a module defines or imports, by name; a class stands for itself."""
    return names_in(ast.parse(path.read_text()))


def names_in(node: ast.AST) -> dict[str, ast.AST | None]:
    """Names that a module or a class defines, and what its methods set on ``self``."""
    found: dict[str, ast.AST | None] = {}
    for child in ast.walk(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            found.update(dict.fromkeys(alias.asname or alias.name.partition(".")[0] for alias in child.names))
        elif isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name) and child.value.id == "self":
            found.setdefault(child.attr, None)
    for child in getattr(node, "body", []):
        targets = child.targets if isinstance(child, ast.Assign) else [getattr(child, "target", None)]
        for target in targets:
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            found.update({part.id: None for part in parts if isinstance(part, ast.Name)})
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            found[child.name] = child
    return found


def exists(name: str) -> bool:
    """Whether a dotted name of dsf is a module, or something in one, or something in a class there."""
    if module_file(name) is not None:
        return True
    module, _, rest = name.rpartition(".")
    path = module_file(module)
    if path is not None:
        return rest in members(path) or (module == "dsf" and hasattr(importlib.import_module(module), rest))
    module, _, owner = module.rpartition(".")
    path = module_file(module) if module else None
    return path is not None and owner in members(path) and is_member(members(path)[owner], rest)


def is_member(owner: ast.AST | None, name: str) -> bool:
    """Whether a class has a member; what is imported or no class is not looked into."""
    if not isinstance(owner, ast.ClassDef):
        return owner is None
    inherits = any(ast.unparse(base) not in ("Protocol", "Enum") for base in owner.bases)
    return name in names_in(owner) or inherits


def is_known_in(path: Path, name: str) -> bool:
    """Whether a name without dsf in front is known in a module: its own, one of a class of its own, Python's."""
    first, _, rest = name.rstrip("()").partition(".")
    known = members(path)
    if first in known:
        return not rest or is_member(known[first], rest.partition(".")[0])
    classes = [one for one in known.values() if isinstance(one, ast.ClassDef)]
    return any(is_member(one, first) for one in classes) or hasattr(builtins, first)


def test_modules_and_what_is_in_them_are_told_from_what_is_not() -> None:
    there = ["dsf.train", "dsf.train.trainer", "dsf.train.trainer.Trainer", "dsf.testing.spike_tally.TALLY"]
    there += ["dsf.export.network.nodes.LIF.size", "dsf.simulate"]
    assert [name for name in there if not exists(name)] == []
    gone = ("dsf.trian", "dsf.train.trianer", "dsf.train.trainer.Trianer", "dsf.export.network.nodes.LIF.sizes")
    assert [name for name in gone if exists(name)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_names_in_a_document_exist(document: Path) -> None:
    assert sorted({name for name in DOTTED.findall(document.read_text()) if not exists(name)}) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_in_a_document_exist(document: Path) -> None:
    """Paths from the repository's top, quoted or in a command, and quoted names of source files wherever they are."""
    text, files = document.read_text(), tracked()
    tops = {name.partition("/")[0] for name in files if "/" in name.rstrip("/")}
    path = re.compile(
        rf"(?<![\w./<-])(?:{'|'.join(sorted(tops))})/[\w./-]*\w\.(?:py|c|h|sh|md|ya?ml|jsonl?|html|png)\b"
    )
    wanted = set(path.findall(text))
    sources = {Path(name).name for name in files}
    for name in QUOTED.findall(text):
        if "/" not in name and re.search(r"\.(py|c|h|sh)$", name):
            assert name in sources, name
        elif name.partition("/")[0] in tops - {"dsf"} and "/" in name:
            wanted.add(name)
    assert sorted(name for name in wanted if not {name, f"{name.rstrip('/')}/"} & files) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_in_a_document_exist(document: Path) -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in TEST.findall(document.read_text()) if f"def {name}(" not in text] == []


@pytest.mark.parametrize("room", ROOMS)
def test_roles_in_docstrings_name_what_exists(room: str) -> None:
    wrong = []
    for path in (ROOT / FOLDERS.get(room, room)).rglob("*.py"):
        for name in ROLE.findall(path.read_text()):
            known = exists(name) if name.startswith("dsf.") else is_known_in(path, name)
            if not known:
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


PLAIN = re.compile(r"^(?:import|from) (dsf[\w.]*)(?: import ([\w, ]+))?", re.MULTILINE)


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "experiments", "endurance"])
def test_programs_in_strings_import_what_exists(folder: str) -> None:
    """Nobody sees that a program in a string has become stale until it runs, and a type checker never does."""
    wrong = []
    for path in (ROOT / folder).rglob("*.py"):
        if path.name == "test_import_graph.py":  # whose modules are made up
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for module, taken in PLAIN.findall(node.value):
                    names = [f"{module}.{name.split(' as ')[0].strip()}" for name in taken.split(",") if name]
                    wrong += [f"{path.relative_to(ROOT)}: {name}" for name in names or [module] if not exists(name)]
    assert wrong == []


def test_every_folder_of_the_rooms_has_a_line_in_the_architecture() -> None:
    table = re.findall(r"^\| `([\w/]+)/` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    folders = [ROOT / FOLDERS.get(room, room) for room in ROOMS]
    packages = {path.parent.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("__init__.py")}
    assert sorted(table) == sorted({*packages, "dsf"})


@pytest.mark.slow
def test_the_readme_s_python_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        result = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr

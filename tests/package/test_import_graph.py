"""The import graph, drawn from the code: no circle among modules or folders, no arrow up, no crowded folder.

Every import counts: those at the top of a module, those inside functions, and those under TYPE_CHECKING, because a name
in an annotation ties two modules together as much as a call does. What Python adds by itself does not count: that
importing a module runs its packages' ``__init__`` first.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "shell": "shell",
    "tasks": "tasks",
    "train": "train",
    "export": "export",
    "hardware_models": "hardware_models",
    "runtime": "runtime",
    "testing": "tests/testing",
}
"""Folders of the rooms, from the ground up: a room imports itself and rooms above it in this list."""
APART = {("hardware_models", "train")}
"""Arrows that the order would allow and that must not be: whoever prices a run needs no training."""
CROWDED = 22
"""Most modules of a folder."""

Graph = dict[str, set[str]]


def read_modules() -> dict[str, str]:
    """Source text of every module, by its import name; a package stands for its ``__init__``."""
    found = {}
    for room, folder in ROOMS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(["dsf", room, *parts]).removesuffix(".__init__")] = path.read_text()
    return found


def imported_names(source: str) -> Iterator[tuple[str, str | None]]:
    """Each module that a source names after ``import`` or ``from``, with the name that is taken from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute here"
            yield from ((str(node.module), alias.name) for alias in node.names)


def module_graph(modules: Mapping[str, str]) -> Graph:
    """Which modules each module imports; ``from package import module`` means the module."""
    graph: Graph = {}
    for name, source in modules.items():
        targets = graph[name] = set()
        for module, member in imported_names(source):
            if module.partition(".")[0] == "dsf":
                inner = f"{module}.{member}"
                targets.add(inner if member is not None and inner in modules else module)
        targets -= {name}
        assert targets <= modules.keys(), f"{name} imports what is not there: {targets - modules.keys()}"
    return graph


def folder_graph(graph: Graph) -> Graph:
    """Which folders import which; a module that lies in a room itself is a node of its own, as is a room's package."""
    folders: Graph = {}
    for name, targets in graph.items():
        folders.setdefault(folder_of(name, graph), set()).update(folder_of(target, graph) for target in targets)
    return {name: targets - {name} for name, targets in folders.items()}


def folder_of(module: str, graph: Graph) -> str:
    """A package's ``__init__`` belongs to its folder."""
    is_package = any(name.startswith(f"{module}.") for name in graph)
    return module if is_package or module.count(".") == 2 else module.rpartition(".")[0]


def circle_in(graph: Graph) -> list[str]:
    """The nodes of a circle, the first once more at its end; none where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def arrows_up(graph: Graph) -> list[str]:
    """Imports of a room from one that stands above it, and those that are kept apart."""
    heights = {room: height for height, room in enumerate(ROOMS)}
    pairs = [(name, target) for name in graph for target in graph[name]]
    return [
        f"{name} -> {target}"
        for name, target in pairs
        if heights[room_of(name)] < heights[room_of(target)] or (room_of(name), room_of(target)) in APART
    ]


def room_of(module: str) -> str:
    """The room of a module."""
    return module.split(".")[1]


def crowded_folders(modules: Mapping[str, str]) -> dict[str, int]:
    """Folders that hold too many modules, their packages' own not counted."""
    packages = {name.rpartition(".")[0] for name in modules}
    counts = Counter(name.rpartition(".")[0] for name in modules if name not in packages)
    return {folder: count for folder, count in counts.items() if count > CROWDED}


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    found = read_modules()
    assert {room_of(name) for name in found} == set(ROOMS)
    return found


def test_modules_import_each_other_in_no_circle(modules: dict[str, str]) -> None:
    assert circle_in(module_graph(modules)) == []


@pytest.mark.slow
def test_folders_import_each_other_in_no_circle(modules: dict[str, str]) -> None:
    assert circle_in(folder_graph(module_graph(modules))) == []


def test_arrows_point_one_way(modules: dict[str, str]) -> None:
    assert arrows_up(module_graph(modules)) == []


def test_no_folder_is_crowded(modules: dict[str, str]) -> None:
    assert crowded_folders(modules) == {}


HIDDEN = {
    "at the top": "import dsf.train.b",
    "in a function": "def f():\n    from dsf.train import b",
    "for types": "if TYPE_CHECKING:\n    from dsf.train.b import B",
    "renamed": "from dsf.train import b as other",
}


@pytest.mark.parametrize("back", HIDDEN.values(), ids=HIDDEN)
def test_a_circle_is_found_wherever_it_is_closed(back: str) -> None:
    made = {"dsf.train": "", "dsf.train.a": back, "dsf.train.b": "from dsf.train.a import A"}
    assert sorted(set(circle_in(module_graph(made)))) == ["dsf.train.a", "dsf.train.b"]
    assert circle_in(module_graph(made | {"dsf.train.a": ""})) == []


def test_a_circle_of_folders_without_one_of_modules_is_found() -> None:
    made = {"dsf.train.data": "", "dsf.train.models": "", "dsf.train.data.low": "", "dsf.train.models.low": ""}
    made |= {"dsf.train.data.high": "import dsf.train.models.low", "dsf.train.models.high": "import dsf.train.data.low"}
    graph = module_graph(made)
    assert circle_in(graph) == []
    assert sorted(set(circle_in(folder_graph(graph)))) == ["dsf.train.data", "dsf.train.models"]
    made["dsf.train.top"] = "import dsf.train.data.low"  # a node of its own: dsf.train is no folder in this graph
    made |= {"dsf.train.models.high": "", "dsf.train.models.low": "import dsf.train.bottom", "dsf.train.bottom": ""}
    assert circle_in(folder_graph(module_graph(made))) == []


@pytest.mark.parametrize(
    ("low", "high", "refused"),
    [("shell", "tasks", True), ("tasks", "shell", False), ("hardware_models", "train", True)],
)
def test_an_arrow_that_runs_up_is_found(low: str, high: str, refused: bool) -> None:
    made = {f"dsf.{low}.a": f"def f():\n    import dsf.{high}.b", f"dsf.{high}.b": ""}
    assert arrows_up(module_graph(made)) == ([f"dsf.{low}.a -> dsf.{high}.b"] if refused else [])


def test_a_crowded_folder_is_found() -> None:
    made = {"dsf.train": "", "dsf.train.data": ""} | {f"dsf.train.data.m{number}": "" for number in range(CROWDED)}
    assert crowded_folders(made) == {}
    assert crowded_folders(made | {"dsf.train.data.more": ""}) == {"dsf.train.data": CROWDED + 1}

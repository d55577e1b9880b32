"""Export as a function: what it returns, what an observer hears, also of a failure, and that it prints nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dsf.export import ExportConfig, Network, export, read_network, write_network
from dsf.export.conversion.layer_report import LayerFigures
from dsf.export.exported import ExportObserver, PlacementSummary
from dsf.export.network.file import file_digest
from dsf.export.options import require_possible
from dsf.export.proof.rungs import Rung
from dsf.shell.errors import CommandFailed, UserError
from dsf.testing.random_networks import random_network, write_checkpoint

DATASET = "dsf/hopper/medium-v0"


class Listening(ExportObserver):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.lanes = 0
        self.summary: PlacementSummary | None = None
        self.rungs: tuple[Rung, ...] = ()

    def placed(self, summary: PlacementSummary) -> None:
        self.heard.append("placed")
        self.summary = summary

    @contextlib.contextmanager
    def verifying(self, steps: int | None) -> Iterator[Callable[[int], None]]:
        self.heard.append(f"verifying {steps}")

        def count(running: int) -> None:
            self.lanes += running

        yield count

    def undecided(self, rung: Rung, more: int) -> None:
        self.heard.append(f"undecided {more}")

    def measured(self, layers: Sequence[LayerFigures]) -> None:
        self.heard.append("measured")

    def climbed(self, rungs: Sequence[Rung]) -> None:
        self.heard.append("climbed")
        self.rungs = tuple(rungs)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("run") / "run.safetensors")


def test_an_export_returns_what_it_has_written_and_prints_nothing(
    run: Path, tiny_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, observer = tmp_path / "net.dsf.h5", Listening()
    exported = export(ExportConfig(run, out=out, episodes=0, dataset=DATASET), observer)
    assert capfd.readouterr() == ("", "")
    written, network = exported.written, read_network(out)
    assert written.path == out and written.sentence.startswith("network file; ")
    assert (written.size, written.sha256) == (out.stat().st_size, file_digest(out))
    assert network.verification == exported.network.verification and exported.folded is not None
    assert [rung.name for rung in exported.rungs] == [rung["name"] for rung in network.verification["rungs"]]
    assert [figures.name for figures in exported.layers] == [f["name"] for f in network.verification["layers"]]
    assert exported.placement.to_json() == network.verification["placement"]
    assert exported.placement.placement.chip == "loihi2" and not exported.placement.asked
    assert observer.heard == ["placed", "verifying None", "measured", "climbed"]
    assert observer.summary is exported.placement and observer.rungs == exported.rungs

    observer = Listening()
    torch_file = tmp_path / "net.safetensors"
    again = export(ExportConfig(out, out=torch_file, target="torch"), observer)
    assert again.written.path == torch_file and again.written.sha256 is None
    assert (again.folded, again.layers) == (None, ()) and observer.heard == ["placed", "climbed"]
    assert capfd.readouterr() == ("", "")


def test_a_ladder_that_fails_is_heard_and_writes_nothing(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    observer, out = Listening(), tmp_path / "net.dsf.h5"
    with pytest.raises(CommandFailed, match="the ladder fails at L0 -> L2 closed loop"):
        export(ExportConfig(run, out=out, episodes=1, max_score_drop=-1e6), observer)
    assert [rung.name for rung in observer.rungs if rung.passed is False] == ["L0 -> L2 closed loop"]
    look = "verifying 2000"  # of one pair there is no interval, of two the one that decides
    assert observer.heard == ["placed", look, "undecided 1", look, "verifying None", "measured", "climbed"]
    assert observer.lanes > 0
    assert not out.exists() and capfd.readouterr() == ("", "")


def test_limits_that_are_broken_are_heard_and_nothing_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, observer = tmp_path / "net.dsf.h5", Listening()
    write_network(random_network(0, features=15), path)
    with pytest.raises(CommandFailed, match="limits of loihi1 are broken"):
        export(ExportConfig(path, out=tmp_path / "out.dsf.h5", chip="loihi1"), observer)
    assert observer.heard == ["placed"] and observer.summary is not None
    assert observer.summary.asked and observer.summary.binding == sum(v.binds for v in observer.summary.violations) > 0
    assert list(tmp_path.iterdir()) == [path] and capfd.readouterr() == ("", "")


def test_values_that_cannot_work_make_no_config(tmp_path: Path) -> None:
    for values, said in (
        ({"seed": -1}, "--seed is -1"),
        ({"max_score_drop": float("nan")}, "--max-score-drop is nan"),
        ({"chip": "tpu"}, "unknown chip 'tpu'"),
        ({"target": "nir"}, "--partial"),
        ({"partial": True}, "--partial requires --target nir"),
    ):
        with pytest.raises(UserError, match=said):
            ExportConfig(tmp_path / "none", **values)


def test_what_files_decide_is_asked_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "net.dsf.h5"
    config = ExportConfig(path, out=tmp_path / "out.dsf.h5", bits=4)  # bits are for a run, and that could be one
    write_network(random_network(0), path)
    with pytest.raises(UserError, match="is a network file, its integers are fixed: --bits"):
        require_possible(config)
    assert isinstance(read_network(path), Network)

"""Searches: what is refused, what is asked next, which points are chosen, and the whole way with tiny trainings."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsf.hardware_models import estimate_energy, load_preset
from dsf.hardware_models.dense import (
    CACHED,
    DenseWeights,
    Perceptron,
    TransformerSizes,
    decision_transformer,
    perceptron,
)
from dsf.hardware_models.energy import priced
from dsf.runtime.search.command import require_resolvable
from dsf.runtime.search.file import read_search, search_path, shipped_searches
from dsf.runtime.search.front import Fronts, markdown
from dsf.runtime.search.picture import front_figure
from dsf.runtime.search.points import chosen, front, shares
from dsf.runtime.search.spec import SIDES, SearchSpec
from dsf.runtime.search.study import Study, Trial, alone
from dsf.runtime.sweeps.identity import resolve_cell
from dsf.testing.command_line import assert_refused
from dsf.testing.training_runs import CARTPOLE, TINY_CELL, bench, results

SEARCH: dict[str, Any] = {
    "name": "mine",
    "dataset": CARTPOLE,
    "settings": {**TINY_CELL, "steps": 6},
    "seeds": [10],
    "evaluation": {"episodes": 2, "seed": 7000},
    "report": {"seeds": [0, 1], "evaluation": {"episodes": 2, "seed": 8000}, "most": 2},
    "batch": 2,
    "bases": {"trained": {}, "float": {"settings": {"policy": "dt"}, "takes": ["prune-weights"]}},
    "sides": {
        "spiking": {
            "eco": {
                "start": "trained",
                "trials": 1,
                "space": {
                    "model.ticks": [1, 2],
                    "rate-penalty": {"low": 0.01, "high": 1.0, "log": True},
                    "export.bits": [8, 4],
                },
            }
        },
        "dense": {
            "dt": {
                "start": "float",
                "trials": 1,
                "settings": {"qat-steps": 2},
                "space": {"bits": [4, 8], "prune-weights": [None, 0.5], "rival.heads": [1, 2]},
            }
        },
    },
}


def write(path: Path, *places: tuple[str, Any]) -> Path:
    """The search, with other values at some places such as "sides.dense"."""
    values = json.loads(json.dumps(SEARCH))
    for place, value in places:
        *parents, last = place.split("/")
        inner = values
        for name in parents:
            inner = inner[name]
        inner[last] = value
        if value is None:
            del inner[last]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture
def spec(tmp_path: Path) -> SearchSpec:
    return read_search(write(tmp_path / "s.yaml"))


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("sides/dense", None, ("sides.dense has no family",)),
        ("sides/spiking", {}, ("sides.spiking has no family",)),
        ("sides/third", {}, ("sides.third is no side", "spiking and dense")),
        ("seeds", [1], ("seeds and report.seeds both have 1",)),
        ("evaluation/seed", 7999, ("both have the reset seed 8000",)),
        ("price", {"preset": "loihi1_fitted"}, ("price.preset is loihi1_fitted", "int8_45nm")),
        ("price", {"preset": "odin"}, ("price.preset is odin", "no price for macs")),
        ("price", {"dense": "free"}, ("price.dense is 'free'", "cached, window, cached-skipping")),
        ("price", {"weights": "bytes", "dense": "cached-skipping"}, ("requires price.weights packed",)),
        ("sides/dense/dt/start", "trained", ("sides.dense.dt has policy dsformer", "dt, twin, bc")),
        ("sides/spiking/eco/start", "float", ("policy dt, which cannot become spikes", "sides.dense")),
        ("sides/spiking/eco/start", "eco", ("models.eco.start goes round in a circle",)),
        ("bases/trained/start", "nobody", ("models.trained.start is 'nobody'", "use one of")),
        ("sides/dense/dt/space/bitts", [1], ("sides.dense.dt: setting bitts", "did you mean bits?")),
        ("sides/spiking/eco/space/export.out", ["x"], ("cannot set out of dsf-export",)),
        ("sides/dense/dt/space/export.bits", [8], ("sides.dense.dt cannot be exported",)),
        ("sides/dense/dt/space/bits", {"low": 8, "high": 4}, ("space.bits goes from 8 to 4", "low must be below")),
        ("sides/dense/dt/space/bits", 4, ("space.bits is 4", "a list of values, or low and high")),
        ("sides/dense/dt/space/bits", [[4]], ("space.bits has [4]", "null, which leaves the option out")),
        ("sides/dense/dt/trials", 0, ("trials is 0",)),
        ("sides/spiking/trained", {"space": {"bits": [8]}}, ("trained names two of bases and families",)),
        ("sides/dense/dt/space/bits", [1], ("with the first value of every option", "--bits is 1")),
        ("batch", 0, ("batch is 0",)),
        ("seeds", [1, 1], ("seeds is [1, 1]", "once")),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, place: str, value: Any, words: tuple[str, ...]) -> None:
    path = write(tmp_path / "s.yaml", (place, value))
    assert_refused(bench("search", path, "--dry-run", "--out", tmp_path), str(path), *words)


def test_without_optuna_one_line_says_what_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else found(name))
    assert_refused(bench("search", write(tmp_path / "s.yaml")), "needs optuna", "pip install 'dsf[search]'")


@pytest.mark.parametrize("name", shipped_searches())
def test_shipped_searches_are_read_by_the_parsers(name: str) -> None:
    path = search_path(name)
    spec = read_search(path)
    require_resolvable(spec, path)
    assert spec.name == name and set(spec.price.memory.__dict__.values()) == {"packed", "token"}
    trials = [sum(family.trials for family in families.values()) for families in spec.sides.values()]
    assert trials[0] == trials[1], "both sides are searched with the same effort"


def test_a_trial_is_a_cell_that_starts_from_its_base(spec: SearchSpec) -> None:
    params = {"model.ticks": 1, "rate-penalty": 0.1, "export.bits": 4}
    cell = resolve_cell(spec.cell("eco", params, 10, spec.evaluation))
    assert cell.export == ("--bits", "4") and cell.cell.energy == "spiking" and cell.cell.counts == spec.price.memory
    assert cell.start is not None and cell.start.config.rate_penalty == 0.0  # type: ignore[union-attr]
    assert cell.start.config.model.ticks == 4 and cell.config.model.ticks == 1  # type: ignore[union-attr]
    dense = {"bits": 4, "prune-weights": 0.5, "rival.heads": 2}
    cell = resolve_cell(spec.cell("dt", dense, 10, spec.evaluation))
    assert cell.precision == "int4" and cell.start is not None
    assert [one.config.rival.heads for one in (cell, cell.start)] == [2, 2]  # type: ignore[union-attr]
    assert [one.config.prune_weights for one in (cell, cell.start)] == [0.5, 0.5]  # type: ignore[union-attr]
    assert [one.config.bits for one in (cell, cell.start)] == [4, 8]  # type: ignore[union-attr]
    whole = resolve_cell(spec.cell("dt", {**dense, "prune-weights": None}, 10, spec.evaluation))
    assert whole.config.prune_weights is None and whole.place != cell.place  # type: ignore[union-attr]


def told(study: Study, trial: Trial, score: float, microjoules: float) -> None:
    study.tell(replace(trial, state="done", score=score, microjoules=microjoules))


def asked_of(path: Path, spec: SearchSpec, stop_after: int | None = None) -> list[dict[str, Any]]:
    """All trials of a search whose scores are a function of their places; from the file on after each batch."""
    while True:
        study = Study.read(spec, path)  # as if every batch were another process
        batch = study.pending() or study.ask()
        if not batch or (stop_after is not None and len(study.trials) > stop_after):
            return [study.trials[key].params for key in sorted(study.trials)]
        for trial in batch:
            told(study, trial, float(len(trial.place)), 1.0 + trial.number)


def test_a_search_that_was_stopped_asks_the_same_trials(tmp_path: Path) -> None:
    spec = read_search(
        write(tmp_path / "s.yaml", ("sides/spiking/eco/trials", 12), ("sides/dense/dt/trials", 5), ("batch", 3))
    )
    whole = asked_of(tmp_path / "whole.jsonl", spec)
    asked_of(tmp_path / "part.jsonl", spec, stop_after=4)
    pending = Study.read(spec, tmp_path / "part.jsonl").pending()
    with (tmp_path / "part.jsonl").open("a") as file:
        file.write('{"half a li')  # a power cut
    assert len(pending) == 3 and Study.read(spec, tmp_path / "part.jsonl").pending() == pending
    assert asked_of(tmp_path / "part.jsonl", spec) == whole
    assert len(whole) == 17 and len({json.dumps(params) for params in whole}) == 17
    assert all(0.01 <= params["rate-penalty"] <= 1.0 for params in whole if "rate-penalty" in params)


def test_lines_of_an_earlier_file_are_another_question(tmp_path: Path, spec: SearchSpec) -> None:
    path = tmp_path / "t.jsonl"
    told(Study(spec, path), Study(spec, path).ask()[0], 1.0, 1.0)
    for place, value, left in (("batch", 9, 1), ("sides/dense/dt/trials", 7, 0), ("title", "x", 0)):
        found = Study.read(read_search(write(tmp_path / "s.yaml", (place, value))), path)
        assert bool(found.others) == bool(left)


def test_failed_trials_are_asked_again_on_request(tmp_path: Path, spec: SearchSpec) -> None:
    study = Study(spec, tmp_path / "t.jsonl")
    trials = study.ask()
    assert Counter(trial.family for trial in trials) == {"eco": 1, "dt": 1} and study.left() == 0
    study.tell(replace(trials[0], state="failed", reason="the disk was full"))
    told(study, trials[1], 1.0, 1.0)
    assert study.ask() == [] and study.pending() == []
    again = Study.read(spec, study.path)
    again.again()
    assert [trial.params for trial in again.pending()] == [trials[0].params]


def test_two_searches_do_not_share_a_file(tmp_path: Path) -> None:
    with alone(tmp_path / "mine.trials.jsonl"):
        refused = bench("search", write(tmp_path / "s.yaml"), "--out", tmp_path)
    assert_refused(refused, "another dsf-bench search is at work")


def at(score: float, microjoules: float, family: str = "a") -> Trial:
    return Trial("q", family, 0, {}, "done", score, microjoules)


def test_a_front_and_what_each_of_its_points_covers_alone() -> None:
    points = [at(10, 1), at(30, 10), at(20, 100), at(60, 1000), at(60, 2000), at(10, 2)]
    found = front(points)
    assert [(point.score, point.microjoules) for point in found] == [(10, 1), (30, 10), (60, 1000)]
    assert shares(found, 0.0, 10_000.0) == [math.inf, 20 * 2.0, math.inf]  # 10 to 30, over two decades


def test_crowded_families_lose_what_covers_least() -> None:
    """The middle ones cover (20-10) x 1, (21-20) x 1 and (50-21) x 1 of score and decades; family b is not crowded."""
    points = [at(10, 1), at(20, 10), at(21, 100), at(50, 1e3), at(51, 1e4, "b"), at(80, 1e5)]
    family = lambda point: point.family  # noqa: E731
    assert [point.score for point in chosen(points, 5, family)] == [10, 20, 21, 50, 51, 80]
    assert [point.score for point in chosen(points, 4, family)] == [10, 20, 50, 51, 80]
    assert [point.score for point in chosen(points, 3, family)] == [10, 50, 51, 80]
    assert [point.score for point in chosen(points, 2, family)] == [10, 51, 80]


def test_a_price_of_counts_is_that_of_the_activity() -> None:
    rival = decision_transformer(TransformerSizes(2, 1, 8, 2, 4, 16), "int8", CACHED, DenseWeights(4, 0.5, 0.25))
    preset = load_preset("int8_45nm")
    counts = {name: rival.activity.per_decision(name) for name in ("macs", "weight_bytes")}
    terms = priced(counts, preset)
    assert sum(band.nominal for band in terms.values()) == pytest.approx(
        estimate_energy(rival.activity, preset).nominal
    )


def test_a_packed_perceptron_by_hand() -> None:
    """4 x 6, 6 x 6 and 6 x 2 of 4 bits: rows of 3, 3 and 1 bytes. Half of the hidden values: of the last two matrices
    half is multiplied and fetched."""
    sizes = Perceptron(4, 2, width=6)
    whole = perceptron(sizes, "int8", DenseWeights(4)).activity
    assert (whole.total("macs"), whole.total("weight_bytes")) == (24 + 36 + 12, 4 * 3 + 6 * 3 + 6 * 1)
    half = perceptron(sizes, "int8", DenseWeights(4, 1.0, 0.5)).activity
    assert (half.total("macs"), half.total("weight_bytes")) == (24 + 18 + 6, 12 + 9 + 3)
    assert perceptron(sizes, "int8").activity.total("weight_bytes") == 24 + 36 + 12


def line(spec: SearchSpec, family: str, params: dict[str, Any], seed: int, score: float, macs: float) -> dict[str, Any]:
    """A result of the report: microjoules are 0.3e-6 times the multiply-accumulates."""
    cell = resolve_cell(spec.cell(family, params, seed, spec.report.evaluation))
    spiking = family == "eco"
    counts = {
        "memory": {"weights": "packed", "fetch": "token"},
        "per_decision": {"stream": {"macs": macs}} if spiking else {"cached": {"macs": macs}, "window": {"macs": 9e9}},
        "bits": 4,
        "parameters": 1000,
        "weights": 500,
        "weight_bytes": 250,
        **({"firing_rate": 0.03, "spikes_per_synapse": 0.4, "tokens": 1.0} if spiking else {"active": 0.5}),
    }
    named = {"dataset": CARTPOLE, "model": family, "seed": seed, "axes": params, "score": score, "counts": counts}
    return {**named, "place": cell.place, "code": "c", "key": f"{family}{params}{seed}", "returns": [], "energy": {}}


def reported(spec: SearchSpec) -> list[dict[str, Any]]:
    eco: list[dict[str, Any]] = [{"model.ticks": ticks, "rate-penalty": 0.1, "export.bits": 4} for ticks in (1, 2)]
    dt: list[dict[str, Any]] = [{"bits": bits, "prune-weights": None, "rival.heads": 1} for bits in (4, 8)]
    figures = [
        ("eco", eco[0], (10.0, 20.0), 1e5),
        ("eco", eco[1], (89.0, 93.0), 2e5),
        ("dt", dt[0], (92.0, 90.0), 8e5),
        ("dt", dt[1], (90.0, 100.0), 2e6),
    ]
    return [
        line(spec, family, params, seed, scores[seed], macs)
        for family, params, scores, macs in figures
        for seed in spec.report.seeds
    ]


@pytest.mark.slow
def test_the_cheapest_within_the_interval_of_the_best_dense_one_are_compared(spec: SearchSpec) -> None:
    """The best dense one scores 95 [90, 100]: two spiking ones score 15 and 91, and the cheaper dense one 91."""
    lines = reported(spec)
    found = Fronts.of(spec, [*lines, {**lines[0], "place": "elsewhere", "seed": 3}])
    spiking, dense, best = found.chosen("spiking"), found.chosen("dense"), found.best_dense
    assert spiking is not None and dense is not None and best is not None
    assert (best.score, best.interval.low, best.interval.high) == (95.0, 90.0, 100.0)
    assert (spiking.score, dense.score) == (91.0, 91.0)
    assert (spiking.microjoules, dense.microjoules) == pytest.approx((0.06, 0.24))
    assert (spiking.band.low, spiking.band.high) == pytest.approx((0.046, 0.06))  # 0.23 to 0.3 pJ
    assert [len(found.front(side)) for side in SIDES] == [2, 2]
    text = markdown(found)
    assert "takes 4.00 times less than the dense one: 0.06 uJ against 0.24" in text
    verdicts = [bound.verdict.rpartition(": ")[0].split("): ")[-1] for bound in found.bounds]
    assert len(verdicts) == 3 and "below" in found.bounds[0].verdict and "within" in found.bounds[1].verdict
    assert "0.03 spikes per neuron and tick, bound 0.057" in text and "spikes can win" in found.bounds[2].verdict
    axes = front_figure(found).axes[0]
    assert axes.get_xscale() == "log" and "int8_45nm" in axes.get_xlabel()


@pytest.mark.slow
def test_a_miss_and_missing_seeds_are_said(spec: SearchSpec) -> None:
    lines = reported(spec)
    found = Fronts.of(spec, [*lines[:2], *lines[4:]])
    assert found.chosen("spiking") is None and found.bounds == []
    assert "No spiking point reaches 90.0, the low end of 95.0 [90.0, 100.0]" in markdown(found)
    half = Fronts.of(spec, lines[1:])
    assert "(1 of 2 training seeds)" in markdown(half) and len(half.reported["spiking"]) == 1
    assert "nothing can be said" in markdown(Fronts.of(spec, lines[:4]))


@pytest.mark.slow
def test_the_whole_way(tiny_store: Path, tmp_path: Path) -> None:
    """A trial on either side, once; the report with one other seed; the picture and the section from the store."""
    path, out = write(tmp_path / "s.yaml", ("report/seeds", [0])), tmp_path / "out"
    search = ("search", path, "--out", out, "--workers", "2")
    early = bench(*search, "--report")
    assert early.returncode == 1 and "mine has trials left: 2" in early.stderr
    done = bench(*search)
    assert done.returncode == 0 and done.stdout.count("chosen: ") == 2, (done.stdout, done.stderr)
    lines = results(out)
    assert {line["model"]: line["seed"] for line in lines} == {"eco": 10, "dt": 10}
    assert all(line["eval_seeds"] == [7000, 2] for line in lines)
    again = bench(*search)
    assert again.returncode == 0 and "trial " not in again.stdout and results(out) == lines
    report = bench(*search, "--report")
    assert report.returncode == 0 and "2 of 2 cells done" in report.stdout, (report.stdout, report.stderr)
    places = [Path(said.rpartition(": ")[2]) for said in report.stdout.splitlines() if f": {out}" in said]
    assert len(list(places[1].glob("network-*.dsf.h5"))) == 1, places
    assert {(line["model"], line["seed"]) for line in results(out)} == {(m, s) for m in ("eco", "dt") for s in (0, 10)}
    outputs = ("--plot", tmp_path / "f.png", "--markdown", tmp_path / "f.md")
    drawn = bench("front", path, "--results", out / "results.jsonl", *outputs)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "f.md").read_text() == f"<!-- front:mine:begin -->\n{drawn.stdout}<!-- front:mine:end -->\n"
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert_refused(bench("front", path, "--results", tmp_path / "none"), "there are no results", "--report makes them")

"""The gate on the score: paired episodes, an interval that may be looked at several times, and a file that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsf.export import ExportConfig, read_network, write_network
from dsf.export.cli import main
from dsf.export.exporting import remedies, require_passed
from dsf.export.network.nodes import NetworkError
from dsf.export.proof.rungs import Rung
from dsf.export.proof.score_gate import Drop, default_most, paired_drop, planned_looks, student_quantile
from dsf.export.proof.tables import holds, unproven_lines
from dsf.export.proof.verify import ClosedLoop, compare_returns
from dsf.runtime.artifacts import network_path
from dsf.runtime.cli import main as sim_run
from dsf.shell.errors import CommandFailed, UserError
from dsf.tasks import Episode, get_task
from dsf.testing.random_networks import random_network, write_checkpoint
from dsf.testing.training_runs import run_here

RUNG = "L0 -> L2 closed loop"


@pytest.mark.parametrize(
    ("level", "freedom", "value"),
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.99, 4, 4.604),
        (0.95, 9, 2.262),
        (0.95, 10, 2.228),
        (0.99, 30, 2.750),
        (0.95, 120, 1.980),
        (0.95, 100_000, 1.960),
    ],
)
def test_students_quantiles_are_those_of_the_printed_tables(level: float, freedom: int, value: float) -> None:
    assert student_quantile(level, freedom) == pytest.approx(value, abs=5e-4)


def test_the_interval_is_of_the_differences_seed_by_seed() -> None:
    """Differences 2, 1 and 3, whatever the seeds themselves are worth: mean 2, standard error 1 / sqrt(3)."""
    drop = paired_drop([10.0, 520.0, -30.0], [8.0, 519.0, -33.0], looks=1)
    assert drop.mean == pytest.approx(2.0) and drop.level == pytest.approx(0.95) and drop.pairs == 3
    assert drop.high - drop.mean == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert drop.mean - drop.low == pytest.approx(drop.high - drop.mean)
    assert paired_drop([1.0, 2.0, 4.0], [0.0, 0.0, 1.0], looks=4).level == pytest.approx(0.9875)


@pytest.mark.parametrize(
    ("floats", "integers", "verdict"),
    [
        ([90.0, 95.0, 100.0], [88.0, 93.5, 98.0], "proven"),
        ([90.0, 95.0, 100.0], [60.0, 66.0, 69.0], "refused"),
        ([90.0, 95.0, 100.0], [60.0, 99.0, 90.0], "unproven"),
        ([90.0, 90.0], [80.0, 80.0], "proven"),  # exactly the limit, as ever
        ([90.0], [90.0], "unproven"),  # one pair has no interval
        ([90.0, float("nan")], [90.0, 80.0], "refused"),
        ([90.0, float("inf")], [90.0, float("inf")], "refused"),
        ([float("nan")], [90.0], "refused"),
    ],
)
def test_only_an_interval_on_one_side_of_the_limit_decides(
    floats: list[float], integers: list[float], verdict: str
) -> None:
    assert paired_drop(floats, integers, looks=1).verdict(10.0) == verdict


def test_episodes_double_up_to_the_stated_number() -> None:
    assert planned_looks(10, 80) == (10, 20, 40, 80) and planned_looks(10, 25) == (10, 20, 25)
    assert planned_looks(7, 7) == (7,) and default_most(10) == 40
    path = Path("run")
    assert ExportConfig(path).looks == (10, 20, 40)
    assert ExportConfig(path, episodes=3, most_episodes=4).looks == (3, 4)
    assert ExportConfig(path, target="onnx", precision="float").looks == (10,)  # which no score can stop
    with pytest.raises(UserError, match="--most-episodes is 5, --episodes 10: it must be that number or more"):
        ExportConfig(path, most_episodes=5)


def test_whoever_looks_four_times_still_errs_no_more_often_than_promised() -> None:
    """Integers whose true drop is at the limit: any decision is an error. Plain 95 % intervals err far more often."""
    generator, runs, looks = np.random.default_rng(0), 1500, (10, 20, 40, 80)
    wrong = dict.fromkeys((1, len(looks)), 0)
    for losses in generator.normal(10.0, 25.0, (runs, looks[-1])):
        for planned in wrong:
            seen = [paired_drop(losses[:pairs].tolist(), [0.0] * pairs, planned) for pairs in looks]
            wrong[planned] += any(drop.verdict(10.0) != "unproven" for drop in seen)
    assert wrong[len(looks)] / runs < 0.05 < 0.09 < wrong[1] / runs


def loop(**changed: Any) -> ClosedLoop:
    values = {"task": get_task("hopper"), "first_seed": 0, "looks": (4, 8), "target_return": 3600.0}
    limits = {"max_score_drop": 10.0, "remedies": "--embed-synapses 2", "undecided": lambda _rung, _more: None}
    return ClosedLoop(**{**values, **limits, **changed})


def rung_of(scores: list[float], lost: list[float], **changed: Any) -> Rung:
    """The rung of episodes with these D4RL scores, and of integers that lose so many points."""
    task = get_task("hopper")
    reward = (task.expert_return - task.random_return) / 100
    returns = [task.random_return + reward * score for score in scores]
    floats = [Episode(seed, value, 1000) for seed, value in enumerate(returns)]
    integers = [Episode(seed, value - reward * less, 1000) for seed, (value, less) in enumerate(zip(returns, lost))]
    return compare_returns(loop(**changed), floats, integers)


def test_a_rung_says_what_was_found_and_what_would_settle_it() -> None:
    proven = rung_of([60.0, 70.0, 80.0, 90.0], [1.0, 2.0, 3.0, 2.0])
    assert proven.passed is True and holds(proven.__dict__) == "yes"
    assert "over 4 episodes, score drop 2.0, 95% [" in proven.summary and proven.summary.endswith("] (limit 10)")
    assert proven.details["score_drop"] == pytest.approx(2.0) and proven.details["verdict"] == "proven"
    assert proven.details["confidence_of_this_look"] == pytest.approx(0.975)
    assert proven.details["seeds"] == [0, 1, 2, 3] and len(proven.details["float"]["returns"]) == 4

    refused = rung_of([60.0, 70.0, 80.0, 90.0], [31.0, 32.0, 33.0, 32.0])
    assert refused.passed is False and holds(refused.__dict__) == "NO"
    with pytest.raises(CommandFailed, match=f"the ladder fails at {RUNG}; what may help: --embed-synapses 2"):
        require_passed([refused], floats=False)

    undecided = rung_of([60.0, 70.0, 80.0, 90.0], [-20.0, 30.0, -10.0, 20.0])
    assert undecided.passed is None and holds(undecided.__dict__) == "unproven"
    assert undecided.summary.endswith("; unproven")
    require_passed([undecided], floats=False)
    low, high = undecided.details["score_drop_interval"]
    needed = Drop(5.0, low, high, 0.975, 4).to_settle(10.0)
    assert needed is not None and f"--most-episodes {needed}" in undecided.details["settled_by"]
    assert "--embed-synapses 2" in undecided.details["settled_by"]
    # The advice is right: with as many episodes of the same mean and spread, the interval ends at the limit.
    assert (high - 5.0) * (4 / needed) ** 0.5 <= 10.0 - 5.0 < (high - 5.0) * (4 / (needed - 1)) ** 0.5
    json.dumps(undecided.details, allow_nan=False)

    hopeless = rung_of([60.0] * 4, [10.01, -30.0, 50.0, 10.01])
    assert "no number of episodes below 10,000" in hopeless.details["settled_by"]
    single = rung_of([60.0], [0.0])
    assert single.passed is None and "no interval of one pair" in single.summary
    json.dumps(single.details, allow_nan=False)


def test_remedies_are_those_that_were_not_taken() -> None:
    rules = {"embed_synapses": 1, "residual_scales": "shared", "per_channel": True, "bits": 8}
    said = remedies({"quantization": rules, "train": {"qat_steps": 0}})
    for words in ("--embed-synapses 2", "--residual-scales channel --calibration DATASET", "--qat-steps"):
        assert words in said
    assert "--bits" not in said and "--max-score-drop" in said
    said = remedies({"quantization": rules, "train": {}, "model": {"embed_norm": "layernorm"}})
    assert "--embed-synapses" not in said and "--qat-steps" not in said and "--residual-scales channel" in said
    taken = {"embed_synapses": 2, "residual_scales": "channel", "per_channel": False, "bits": 4}
    said = remedies({"quantization": taken, "train": {}})
    assert "--embed-synapses" not in said and "--bits 8" in said and "no --no-per-channel" in said
    said = remedies({"quantization": taken, "train": {"qat_steps": 500}})
    assert "--bits" not in said and "longer quantization-aware training" in said


def said_by(main: Callable[[], Any], program: str, *arguments: str) -> str:
    """What a command prints that ends well, on one line."""
    result = run_here(main, program, *arguments)
    assert result.returncode == 0, result.stderr
    return " ".join(result.stdout.replace("│", " ").split())


@pytest.mark.slow
def test_an_undecided_export_runs_more_episodes_and_then_marks_the_file(tmp_path: Path) -> None:
    """The limit is the mean drop of the very episodes that are run, so that no interval can leave it on one side."""
    run, out = write_checkpoint(tmp_path / "run.safetensors"), tmp_path / "net.dsf.h5"
    first = ("--episodes", "2", "--most-episodes", "2", "--max-score-drop", "1e6")
    said_by(main, "dsf-export", str(run), "-o", str(out), *first)
    (decided,) = (rung for rung in read_network(out).verification["rungs"] if rung["name"] == RUNG)
    assert decided["passed"] is True and holds(decided) == "yes"

    middle = repr(decided["details"]["score_drop"])
    options = ("--episodes", "2", "--most-episodes", "3", "--max-score-drop", middle)
    printed = said_by(main, "dsf-export", str(run), "-o", str(out), *options)
    network = read_network(out)
    (rung,) = (rung for rung in network.verification["rungs"] if rung["name"] == RUNG)
    assert rung["passed"] is None and rung["details"]["verdict"] == "unproven"
    assert rung["details"]["looks"] == [2, 3] and rung["details"]["seeds"] == [2000, 2001, 2002]
    assert rung["details"]["float"]["returns"][:2] == decided["details"]["float"]["returns"]
    assert "unproven so far: 1 more episodes" in printed
    assert (
        f"{RUNG} is unproven: " in printed and "what would settle it: " in printed and "--embed-synapses 2" in printed
    )

    assert " unproven " in said_by(main, "dsf-export", "inspect", str(out))
    quick = ("--backend", "fast", "--no-compare", "--hardware", "paper_45nm")
    assert f"note: {RUNG} is unproven: " in said_by(sim_run, "dsf-sim-run", str(out), *quick)
    torch_file = str(tmp_path / "net.safetensors")
    assert f"{RUNG} is unproven: " in said_by(main, "dsf-export", str(out), "--target", "torch", "-o", torch_file)


def test_files_of_before_go_on_saying_what_they_said() -> None:
    rungs = read_network(network_path()).verification["rungs"]
    (closed,) = (rung for rung in rungs if rung["name"] == RUNG)
    assert holds(closed) == "yes" and "verdict" not in closed["details"]
    assert unproven_lines({"rungs": rungs}) == []
    assert [holds({"passed": value}) for value in (True, False, None, "maybe", 1)] == ["yes", "NO", "-", "NO", "NO"]


def test_a_strangers_rungs_break_nothing(tmp_path: Path) -> None:
    strange: list[Any] = [None, 3, {"details": None}, {"details": {"verdict": ["unproven"]}}, {"details": "unproven"}]
    for rungs in (strange, None, 7, "unproven", {"a": 1}):
        assert unproven_lines({"rungs": rungs}) == []
    nothing: Any = []
    assert unproven_lines(nothing) == []
    marked = {"name": 5, "passed": None, "details": {"verdict": "unproven"}}
    (line,) = unproven_lines({"rungs": [marked]})
    assert line.startswith("5 is unproven: ") and line.endswith("more episodes")
    path = tmp_path / "net.dsf.h5"
    write_network(random_network(0).with_verification({"rungs": [marked]}), path)
    with pytest.raises(NetworkError, match="name is 5, expected text"):  # a file's rungs are looked at as it is read
        read_network(path)

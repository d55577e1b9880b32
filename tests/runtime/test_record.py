"""Recordings: the same on every engine, replayed bit for bit, and refused when damaged or another network's."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsf.export.network.file import write_network
from dsf.export.network.sealed import USER_BLOCK_BYTES
from dsf.runtime import cli
from dsf.runtime.loop.record import SEAL, read_recording, write_recording
from dsf.testing.command_line import assert_refused
from dsf.testing.gym_worlds import ACTION, OBSERVATION
from dsf.testing.random_networks import random_network
from dsf.testing.training_runs import run_here

FEATURES = OBSERVATION + ACTION + 1
WORLD = "dsf.testing.gym_worlds:Point-v0"
TABLE = ("accumulators", "spikes", "executed actions", "observations", "rewards", "returns", "encoder's integers")


def sim_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here(cli.main, "dsf-sim-run", *map(str, arguments))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network file."""
    file = tmp_path_factory.mktemp("networks") / "net.dsf.h5"
    write_network(random_network(4, features=FEATURES, context=5), file)
    return file


def recorded(path: Path, out: Path, *options: object) -> Path:
    """Run three episodes and record them."""
    quick = ("--no-compare", "--parity-decisions", "0", "--episodes", "3", "--seed", "5")
    result = sim_run(path, *quick, "--record", out, *options)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def recording(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of a user's environment in the fast engine, stream mode."""
    return recorded(path, tmp_path_factory.mktemp("recordings") / "run.h5", "--backend", "fast", "--env", WORLD)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["stream", "window"])
def test_engines_record_the_same_and_replay_each_other(path: Path, mode: str, tmp_path: Path) -> None:
    """Everything but the backend's name is equal, in a registered task."""
    options = ("--mode", mode, "--task", "hopper")
    fast = recorded(path, tmp_path / "fast.h5", "--backend", "fast", *options)
    reference = recorded(path, tmp_path / "reference.h5", "--backend", "reference", *options)
    one, other = read_recording(fast), read_recording(reference)
    assert dataclasses.replace(one.facts, backend="reference") == other.facts
    for left, right in zip(one.episodes, other.episodes):
        assert left.episode == right.episode
        for item in dataclasses.fields(left):
            assert np.array_equal(getattr(left, item.name), getattr(right, item.name)), item.name
    for file, backend in ((fast, "reference"), (reference, "fast")):
        replayed = sim_run("replay", file, "--network", path, "--backend", backend, "--json", tmp_path / "out.json")
        assert replayed.returncode == 0, replayed.stderr
        assert all(words in replayed.stdout for words in TABLE)
        summary = json.loads((tmp_path / "out.json").read_text())
        assert summary["exact"] and summary["environment_skipped"] == ""
        decisions = sum(len(taped.graded) for taped in one.episodes)
        compared = {row["what"]: row["compared"] for row in summary["comparisons"]}
        assert compared["all spikes of a decision"] == decisions > 10
        assert (compared["observations"], compared["returns"]) == (decisions + 3, 3)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 11), reason="Lava is frozen on Python 3.10")
def test_lava_records_and_replays(path: Path, recording: Path, tmp_path: Path) -> None:
    lava = recorded(path, tmp_path / "lava.h5", "--backend", "lava", "--env", WORLD)
    assert read_recording(lava).facts.backend == "lava-fused"
    for taped, truth in zip(read_recording(lava).episodes, read_recording(recording).episodes):
        assert np.array_equal(taped.spikes, truth.spikes) and np.array_equal(taped.accumulators, truth.accumulators)
    for file, backend in ((lava, "fast"), (recording, "lava")):
        replayed = sim_run("replay", file, "--network", path, "--backend", backend, "--env", WORLD)
        assert replayed.returncode == 0, replayed.stderr


def test_the_same_run_gives_the_same_bytes(path: Path, recording: Path, tmp_path: Path) -> None:
    again = recorded(path, tmp_path / "again.h5", "--backend", "fast", "--env", WORLD)
    assert again.read_bytes() == recording.read_bytes()


@pytest.mark.slow
def test_a_run_in_real_time_replays(path: Path, tmp_path: Path) -> None:
    """Too fast for the reference: some of its actions are held."""
    options = ("--backend", "reference", "--env", WORLD, "--real-time", "--control-period", "0.0001")
    out = recorded(path, tmp_path / "timed.h5", *options)
    timed = read_recording(out)
    assert timed.facts.control_period_s == 0.0001 and timed.facts.on_deadline_miss == "hold"
    assert sum(len(taped.graded) for taped in timed.episodes) < sum(len(taped.actions) for taped in timed.episodes)
    replayed = sim_run("replay", out, "--network", path, "--env", WORLD)
    assert replayed.returncode == 0, replayed.stderr


CHANGES = {
    "accumulators": "accumulators of a decision: 1 of",
    "spikes": "all spikes of a decision: 1 of",
    "actions": "executed actions, from the accumulators: 1 of",
    "rewards": "rewards: 1 of",
    "observations": "observations: 1 of",
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_altered_number_is_found(path: Path, recording: Path, tmp_path: Path, name: str) -> None:
    """The number belongs to the last episode's second decision; the file is sealed anew."""
    truth = read_recording(recording)
    values: np.ndarray = getattr(truth.episodes[-1], name).copy()
    values[1] = np.nextafter(values[1], 9) if name in ("observations", "rewards") else values[1] + values.dtype.type(1)
    change: dict[str, Any] = {name: values}
    altered = dataclasses.replace(truth.episodes[-1], **change)
    out = tmp_path / "altered.h5"
    write_recording(dataclasses.replace(truth, episodes=(*truth.episodes[:-1], altered)), out)
    replayed = sim_run("replay", out, "--network", path, "--env", WORLD, "--json", tmp_path / "out.json")
    assert replayed.returncode == 1 and len(replayed.stderr.strip().splitlines()) == 1
    assert CHANGES[name] in replayed.stderr and "seed 7" in replayed.stderr, replayed.stderr
    assert not json.loads((tmp_path / "out.json").read_text())["exact"]


def test_an_altered_return_is_found(path: Path, recording: Path, tmp_path: Path) -> None:
    truth = read_recording(recording)
    episode = dataclasses.replace(truth.episodes[0].episode, episode_return=1.0)
    altered = dataclasses.replace(truth.episodes[0], episode=episode)
    write_recording(dataclasses.replace(truth, episodes=(altered,)), tmp_path / "altered.h5")
    replayed = sim_run("replay", tmp_path / "altered.h5", "--network", path, "--env", WORLD)
    assert replayed.returncode == 1 and "returns: 1 of 1 differ" in replayed.stderr


def test_damage_is_refused(path: Path, recording: Path, tmp_path: Path) -> None:
    content, bad = recording.read_bytes(), tmp_path / "bad.h5"
    for position in (0, 30, len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[position] ^= 1
        bad.write_bytes(flipped)
        assert_refused(sim_run("replay", bad, "--network", path), "bad.h5")
    bad.write_bytes(content[: len(content) // 2])
    assert_refused(sim_run("replay", bad, "--network", path), "cut short", "record the run again")
    assert_refused(sim_run("replay", path, "--network", path), "no dsf recording")
    assert_refused(sim_run("replay", tmp_path / "none.h5"), "No such file")


WRONG: dict[str, dict[str, Any]] = {
    "header": {"mode": "sideways"},
    "target": {"target_return": "much"},
    "network": {"network_sha256": None},
}


@pytest.mark.parametrize("which", WRONG)
def test_a_sealed_header_that_describes_no_run_is_refused(recording: Path, tmp_path: Path, which: str) -> None:
    facts = dataclasses.asdict(read_recording(recording).facts)
    SEAL.write(tmp_path / "odd.h5", facts | WRONG[which], lambda file: None)
    assert_refused(sim_run("replay", tmp_path / "odd.h5"), "describes no run")


def test_arrays_that_do_not_fit_the_table_are_refused(path: Path, recording: Path, tmp_path: Path) -> None:
    import h5py

    out = tmp_path / "odd.h5"
    out.write_bytes(recording.read_bytes())
    with h5py.File(out, "r+") as file:
        file["episodes/steps"][0] += 1
    content = out.read_bytes()
    out.write_bytes(SEAL.user_block(content[USER_BLOCK_BYTES:]) + content[USER_BLOCK_BYTES:])
    assert_refused(sim_run("replay", out, "--network", path), "does not fit the table of episodes")


def test_another_network_is_refused(path: Path, recording: Path, tmp_path: Path) -> None:
    assert_refused(sim_run("replay", recording), "name the right one with --network")
    other = tmp_path / "other.dsf.h5"
    write_network(random_network(5, features=FEATURES), other)
    assert_refused(sim_run("replay", recording, "--network", other), "sha256", "--network")


def test_without_its_environment_the_decisions_are_replayed(path: Path, recording: Path, tmp_path: Path) -> None:
    truth = read_recording(recording)
    facts = dataclasses.replace(truth.facts, env_id="no_such_module:Point-v0")
    write_recording(dataclasses.replace(truth, facts=facts), tmp_path / "elsewhere.h5")
    elsewhere = ("replay", tmp_path / "elsewhere.h5", "--network", path, "--env", "no_such_module:Point-v0")
    replayed = sim_run(*elsewhere)
    assert replayed.returncode == 0 and "observations" not in replayed.stdout
    assert "note: not replayed in no_such_module:Point-v0" in replayed.stdout
    switched = sim_run("replay", recording, "--network", path, "--no-environment")
    assert switched.returncode == 0 and "--no-environment" in switched.stdout


def test_a_recording_makes_nobody_import_what_it_names(
    path: Path, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the command line chooses code: the module that a stranger's file names writes a file when it is imported."""
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'was_here')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    truth = read_recording(recording)
    facts = dataclasses.replace(truth.facts, env_id="stranger:Point-v0")
    write_recording(dataclasses.replace(truth, facts=facts), tmp_path / "theirs.h5")
    replayed = sim_run("replay", tmp_path / "theirs.h5", "--network", path)
    assert replayed.returncode == 0, replayed.stderr
    told = " ".join(replayed.stdout.split())
    assert "note: not replayed in stranger:Point-v0: that would import a module which the file chooses" in told
    assert not (tmp_path / "was_here").exists()
    asked = sim_run("replay", recording, "--network", path, "--env", truth.facts.env_id)
    assert asked.returncode == 0 and "observations" in asked.stdout
    other = sim_run("replay", recording, "--network", path, "--env", "Hopper-v4")
    assert_refused(other, "--env is Hopper-v4", truth.facts.env_id)


def test_outputs_replace_no_input(path: Path, recording: Path, tmp_path: Path) -> None:
    before = path.read_bytes(), recording.read_bytes()
    assert_refused(sim_run(path, "--backend", "fast", "--record", path), "cannot write", "it is the input")
    assert_refused(sim_run("replay", recording, "--network", path, "--json", recording), "it is the input")
    assert (path.read_bytes(), recording.read_bytes()) == before
    both = tmp_path / "both"
    assert_refused(sim_run(path, "--backend", "fast", "--record", both, "--json", both), "name two files")

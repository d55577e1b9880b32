"""From a dataset of one's own robot to spikes in Lava, and what a machine gets for actions on every engine."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from dsf.export import cli as export_cli
from dsf.export.network.file import FORMAT_VERSION, SEAL, read_network, write_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import NetworkError, Readout
from dsf.export.network.reference import IntegerPolicy, ReferenceEngine, commands, decode
from dsf.export.proof.rungs import random_proof_tokens
from dsf.export.proof.written import compare_written
from dsf.export.targets.nir_graph import build_nir
from dsf.export.targets.onnx_engine import open_session
from dsf.export.targets.onnx_graph import build_stream, write_onnx
from dsf.export.targets.onnx_rules import GraphWriter, write_commands
from dsf.export.targets.torch_module import IntegerNetwork, read_torch, write_torch
from dsf.runtime import cli as sim_cli
from dsf.runtime import sweeps
from dsf.runtime.open_engine import open_engine
from dsf.runtime.sweeps.file import read_sweep
from dsf.runtime.sweeps.identity import resolve_cell
from dsf.runtime.sweeps.jobs import plan, resolve_all
from dsf.runtime.sweeps.spec import Cell, Evaluation
from dsf.shell.errors import UserError
from dsf.tasks import TASKS, Token, rollout
from dsf.tasks.definition import TaskDefinition
from dsf.tasks.registry import TASK_FACT, described_task, own_task
from dsf.testing.command_line import assert_refused
from dsf.testing.gym_worlds import approach, driven, rock, swing, write_set
from dsf.testing.random_networks import random_network
from dsf.testing.training_runs import TINY, run_here, trained

ROBOTS: dict[str, tuple[str, Any, int]] = {
    "pendulum": ("Pendulum-v1", swing, 6),
    "reach": ("Reach-v0", approach, 40),
    "hill": ("Hill-v0", rock, 6),
}
"""Continuous actions between -2 and 2; a goal in a Dict, and bounds that differ; choices that begin at 1."""
PLACE = "d9895c7bed37e063285e"
"""Of the first cell of a sweep that ships."""
STEPS = 20
"""Of an episode, in the data as in the closed loop."""
PARITY = ("--no-compare", "--episodes", "1", "--parity-decisions", "40")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A network file of each robot, each by dsf-train and dsf-export."""
    home, files = tmp_path_factory.mktemp("robots"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(home / "minari"))
        (home / "minari").mkdir()
        for name, (env_id, act, count) in ROBOTS.items():
            env = gymnasium.make(env_id, max_episode_steps=STEPS)
            write_set(f"robot/{name}-v0", driven(env, act, count), env=env)
            env.close()
            run, files[name] = home / name, home / f"{name}.dsf.h5"
            scored = ("--steps", "8", "--eval-episodes", "1", "--eval-targets", "-1")
            assert "return " in trained(f"robot/{name}-v0", "--out", str(run), *scored, *TINY)
            asked = ("--out", str(files[name]), "--episodes", "1", "--most-episodes", "1", "--max-score-drop", "10000")
            result = run_here(export_cli.main, "dsf-export", str(run), *asked)
            assert result.returncode == 0, result.stderr
        yield files


def sim_run(*arguments: str) -> Any:
    return run_here(sim_cli.main, "dsf-sim-run", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROBOTS)
def test_a_robot_of_ones_own_goes_from_its_dataset_to_lava(
    name: str, networks: dict[str, Path], tmp_path: Path
) -> None:
    """The file alone is enough, integers equal the reference, and the world checks that actions are in bounds."""
    out = tmp_path / "out.json"
    result = sim_run(str(networks[name]), *PARITY, "--json", str(out))
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    assert report["backend"] == "lava-fused" and report["parity"]["mismatches"] == 0
    assert report["parity"]["compared_spikes"] > 0 and report["environment"] == ROBOTS[name][0]
    assert report["score_mean"] is None and report["score_label"] is None and "normalised" not in result.stdout
    assert "has no reference returns: its returns are reported as they are" in result.stdout
    (returned,) = [episode["return"] for episode in report["episodes"]]
    network = read_network(networks[name])
    task = described_task(network.task, network.provenance)
    policy = IntegerPolicy(ReferenceEngine(network))
    assert rollout(task, policy, [0], report["target_return"])[0].episode_return == returned
    if name == "reach":
        assert "reached the goal" in result.stdout


@pytest.mark.slow
def test_the_file_carries_the_task_and_ends_at_its_actions(networks: dict[str, Path]) -> None:
    network = {name: read_network(path) for name, path in networks.items()}
    ends = {name: (one.readout.low, one.readout.high, one.readout.first_choice) for name, one in network.items()}
    assert ends == {
        "pendulum": ((-2.0,), (2.0,), 0),
        "reach": ((-0.25, 0.0), (0.5, 1.0), 0),
        "hill": ((), (), 1),
    }
    definition = network["reach"].provenance[TASK_FACT]
    assert definition["observation_names"][2] == "observation/place[0]" and definition["horizon"] == STEPS
    assert definition["environment"] == "Reach-v0" and definition["control_period"] == "0.1 s"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reach", "hill"])
def test_env_runs_a_network_of_any_task(name: str, networks: dict[str, Path]) -> None:
    world = f"dsf.testing.gym_worlds:{ROBOTS[name][0]}"
    result = sim_run(str(networks[name]), *PARITY, "--backend", "fast", "--env", world)
    assert result.returncode == 0, result.stderr
    assert "is run as it is" in result.stdout


@pytest.mark.slow
def test_env_refuses_bounds_that_the_network_leaves_and_parts_that_it_lacks(networks: dict[str, Path]) -> None:
    refused = sim_run(str(networks["pendulum"]), *PARITY, "--env", "dsf.testing.gym_worlds:Reach-v0")
    assert_refused(refused, "--env", "its observations are a Dict")
    refused = sim_run(str(networks["reach"]), *PARITY, "--env", "dsf.testing.gym_worlds:Parts-v0")
    assert_refused(refused, "its observations lack achieved_goal, desired_goal")
    tight = sim_run(str(networks["pendulum"]), *PARITY, "--env", "dsf.testing.gym_worlds:Tight-v0")
    assert_refused(tight, "numbers between -2 and 2, which lie beyond them")


@pytest.mark.slow
def test_a_network_whose_environment_is_not_installed_is_one_line(
    networks: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = read_network(networks["reach"])
    definition = {**network.provenance[TASK_FACT], "environment": "Nowhere-v3"}
    path = tmp_path / "nowhere.dsf.h5"
    write_network(dataclasses.replace(network, provenance={**network.provenance, TASK_FACT: definition}), path)
    assert_refused(sim_run(str(path), *PARITY), "environment 'Nowhere-v3' is not installed here", "DSF_ENVIRONMENTS")
    definition["environment"] = "none"
    write_network(dataclasses.replace(network, provenance={**network.provenance, TASK_FACT: definition}), path)
    assert_refused(sim_run(str(path), *PARITY), "names no environment to run: give one with --env")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"action_high": [0.5, 2.0]}, "its readout ends at other actions than task Reach-v0"),
        ({"observation_size": 6, "observation_names": None}, "network reads 8 features"),
        ({"horizon": "20"}, "horizon is '20', expected a whole number"),
        ({"name": "hopper"}, "dsf has a task of that name"),
        ({"environment_arguments": {"xml_file": "/etc/passwd"}}, "its xml_file is no number"),
    ],
)
def test_a_forged_task_is_refused_where_the_file_is_read(
    changes: dict[str, Any], words: str, networks: dict[str, Path], tmp_path: Path
) -> None:
    network, path = read_network(networks["reach"]), tmp_path / "forged.dsf.h5"
    stated = {**network.provenance[TASK_FACT], **changes}
    definition = {name: value for name, value in stated.items() if value is not None}
    write_network(dataclasses.replace(network, provenance={**network.provenance, TASK_FACT: definition}), path)
    with pytest.raises(NetworkError, match=words):
        read_network(path)


def bounded(network: Network, **ends: Any) -> Network:
    return dataclasses.replace(network, nodes=(*network.nodes[:-1], dataclasses.replace(network.readout, **ends)))


def test_a_file_without_bounds_keeps_its_version_and_its_bytes(tmp_path: Path) -> None:
    network = random_network(0)
    plain, ends = tmp_path / "plain.dsf.h5", tmp_path / "ends.dsf.h5"
    write_network(network, plain)
    write_network(bounded(network, low=(-1.0, 0.0, 0.1), high=(1.0, 0.5, 3.3)), ends)
    assert b"\nformat 2\n" in plain.read_bytes()[:512] and b"low" not in plain.read_bytes()
    assert f"\nformat {FORMAT_VERSION}\n".encode() in ends.read_bytes()[:512] and SEAL.version == FORMAT_VERSION
    assert read_network(ends).readout.high == (1.0, 0.5, 3.3) and read_network(plain).readout.low == ()
    write_torch(network, tmp_path / "plain.safetensors")
    assert b"first_choice" not in (tmp_path / "plain.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ({"low": (-1.0,), "high": (1.0,)}, "not one for each action"),
        ({"low": (0.0, 0.0, 0.0), "high": (1.0, 0.0, 1.0)}, "low is not below high"),
        ({"low": (0.0, 0.0, float("nan")), "high": (1.0, 1.0, 1.0)}, "low is not below high"),
        ({"first_choice": 2}, "first_choice belongs to choices"),
        ({"high": (1.0, 1.0, 1.0)}, "low and high differ in length"),
    ],
)
def test_a_readout_with_bounds_that_are_none_is_refused(ends: dict[str, Any], words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        bounded(random_network(0), **ends)


END = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 100),
    ends=st.lists(st.tuples(END, END).filter(lambda pair: pair[0] + 1e-2 < pair[1]), min_size=3, max_size=3),
    first_choice=st.integers(-3, 7),
    discrete=st.booleans(),
)
def test_no_engine_and_no_target_leaves_the_bounds(
    seed: int, ends: list[tuple[float, float]], first_choice: int, discrete: bool
) -> None:
    """Random networks, bounds and tokens, some of them far out of range: reference, fast engine, torch and ONNX."""
    low, high = (tuple(map(float, values)) for values in zip(*ends))
    stated = {"first_choice": first_choice} if discrete else {"low": low, "high": high}
    network = bounded(random_network(seed, discrete=discrete, width=4, blocks=1, context=4, window=2), **stated)
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(6, 1, network.encoder.features)) * 10.0 ** generator.integers(-2, 30, (6, 1, 1))
    session, module = open_session(build_stream(network)), IntegerNetwork(network)
    names = [value.name for value in session.get_outputs()]
    states = {
        value.name: np.zeros([1 if axis == "lanes" else axis for axis in value.shape], np.uint8)
        for value in session.get_inputs()
        if value.name.startswith("state.")
    }
    assert ("commands" in names) == network.readout.has_commands
    reference, sent = ReferenceEngine(network), []
    with open_engine(network, "fast", mode="stream") as engine:
        engine.reset(0)
        for vector in vectors:
            accumulators = reference.step(vector)
            assert np.array_equal(engine.step(vector).accumulators, accumulators)
            actions = decode(network.readout, accumulators)
            wanted = expected(network.readout, actions[0])
            sent.append(commands(network.readout, actions)[0])
            outputs = dict(zip(names, session.run(names, {"token": vector, **states})))
            states = {name: outputs[name.replace("state.", "next.", 1)] for name in states}
            by_torch = module.commands(torch.from_numpy(actions)).numpy()[0]
            for found in (sent[-1], outputs.get("commands", [sent[-1]])[0], by_torch):
                require_inside(found, network.readout)
                assert np.allclose(found, wanted, rtol=0.0, atol=1e-9 * max(1.0, *map(abs, low), *map(abs, high)))


def ends_by_onnx(readout: Readout) -> Any:
    """What the ONNX rule gives for actions of 1 and of -1."""
    writer = GraphWriter(number=TensorProto.INT32, spike=TensorProto.UINT8)
    actions = writer.constant(np.array([[1.0] * readout.size, [-1.0] * readout.size]), "actions")
    write_commands(writer, readout, actions, np.float64, "")
    return open_session(writer.model("ends", "")).run(["commands"], {})[0]


def expected(readout: Readout, actions: Any) -> Any:
    """What a machine gets, by another way of writing it down: the share of the way from the one end to the other."""
    if readout.head == "choice":
        return max(range(len(actions)), key=lambda place: (actions[place], -place)) + readout.first_choice
    return [a + (b - a) * (1.0 + value) / 2.0 for a, b, value in zip(readout.low, readout.high, actions)]


def require_inside(found: Any, readout: Readout) -> None:
    if readout.head == "choice":
        assert readout.first_choice <= found < readout.first_choice + readout.size
    else:
        assert (found >= np.array(readout.low)).all() and (found <= np.array(readout.high)).all()


def test_the_ends_of_the_readout_are_the_bounds_themselves() -> None:
    readout = bounded(random_network(0), low=(-0.1, 0.0, -0.7), high=(0.3, 1.1, 3.3)).readout
    assert np.allclose(commands(readout, np.full((1, 3), -1.0)), [readout.low])
    assert np.array_equal(commands(readout, np.array([[-9.0, np.inf, -np.inf]])), [[-0.1, 1.1, -0.7]])
    assert np.allclose(commands(readout, np.zeros((1, 3))), [[0.1, 0.55, 1.3]])
    network = bounded(random_network(0), low=(-524288.0, -1e9, -3.0), high=(1e-5, 1e-7, 7.0))
    assert np.array_equal(commands(network.readout, np.ones((1, 3))), [network.readout.high])
    by_torch = IntegerNetwork(network).commands(torch.ones(1, 3, dtype=torch.float64))
    assert np.array_equal(by_torch, [network.readout.high])
    assert np.array_equal(ends_by_onnx(network.readout), [network.readout.high, network.readout.low])
    plain = random_network(0).readout
    actions = np.array([[0.123456789, -1.0, 1.0]])
    assert np.array_equal(commands(plain, actions), actions)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reach", "hill"])
def test_targets_keep_the_bounds_and_are_compared_with_them(
    name: str, networks: dict[str, Path], tmp_path: Path
) -> None:
    network = read_network(networks[name])
    onnx, module, tokens = tmp_path / "n.onnx", tmp_path / "n.safetensors", random_proof_tokens(network, 8, seed=0)
    write_onnx(network, onnx)
    write_torch(network, module)
    read = read_torch(module).network.readout
    assert (read.low, read.high, read.first_choice) == (
        network.readout.low,
        network.readout.high,
        network.readout.first_choice,
    )
    other = {"first_choice": 2} if name == "hill" else {"low": (-0.25, 0.0), "high": (0.5, 2.0)}
    wrong = bounded(network, **other)
    for target, path in (("onnx", onnx), ("torch", module)):
        (right,) = compare_written(target, path, network, None, tokens)  # type: ignore[arg-type]
        assert right.passed, right.summary
        (found,) = compare_written(target, path, wrong, None, tokens)  # type: ignore[arg-type]
        assert found.passed is False, found.summary
    graph, omitted = build_nir(network, partial=True)
    (said,) = [line for line in omitted if line.startswith("bounds of actions")]
    assert ("+ 1" if name == "hill" else "[-0.25, 0] to [0.5, 1]") in said and said in json.loads(
        graph.metadata["omitted"]
    )


@pytest.mark.slow
def test_actions_in_tokens_stay_between_minus_one_and_one(networks: dict[str, Path]) -> None:
    """What the next token holds is the network's own action, never the machine's units."""
    network = read_network(networks["reach"])
    task, seen = described_task(network.task, network.provenance), []

    class Watching(IntegerPolicy):
        def act(self, token: Token) -> Any:
            answer = super().act(token)
            seen.append((token.previous_action[0], answer[0]))
            return answer

    rollout(task, Watching(ReferenceEngine(network)), [3], 0.0)
    for (_, answer), (following, _) in itertools.pairwise(seen):
        assert np.array_equal(following, answer)
    assert np.abs([answer for _, answer in seen]).max() <= 1.0


def test_a_definition_without_bounds_is_not_asked_for_any() -> None:
    """Tasks whose bounds are -1 and 1 leave the readout as it was, so that files keep their bytes."""
    values = {"name": "arm", "observation_size": 3, "action_low": [-1.0] * 3, "action_high": [1.0] * 3}
    definition = TaskDefinition.from_json({**values, "return_scale": 1.0, "target_returns": [1.0], "horizon": 5})
    assert own_task(definition, "here").command_bounds == ((), ())
    assert os.environ.get("DSF_ENVIRONMENTS") is None


@pytest.mark.slow
def test_sweeps_refuse_data_without_a_score_before_anything_is_trained(
    networks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(networks["reach"].parent / "minari"))
    cell = Cell("robot/reach-v0", "small", 0, (), (("steps", 2),), None, "fp32", "none", Evaluation())
    (planned,) = plan([resolve_cell(cell)])
    assert planned.content_hash == "" and "task Reach-v0 has none: there are no random and expert" in planned.missing
    with pytest.raises(UserError, match="a cell cannot set task: use a dataset that carries its task"):
        resolve_cell(dataclasses.replace(cell, settings=(("task", "robot.yaml"),)))


def test_what_is_registered_stays_as_it_was() -> None:
    """The place of a cell that shipped before there were other tasks, and the tasks themselves."""
    assert resolve_all(read_sweep(Path(sweeps.__file__).parent / "specs/hopper_delayed.yaml"))[0].place == PLACE
    for task in TASKS.values():
        assert (task.definition, task.command_bounds, task.first_choice) == (None, ((), ()), 0)
        assert task.paths == tuple((key,) for key in task.observation_keys)
        answer = np.random.default_rng(0).normal(size=task.action_size)
        if not task.discrete:
            assert task.env_action(answer).tobytes() == np.clip(answer, -1.0, 1.0).tobytes()
            assert task.policy_actions(answer) is answer

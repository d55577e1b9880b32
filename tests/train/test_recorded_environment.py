"""Datasets of an environment that is not quite the task's: built again as they say, or refused, and never scored."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium.wrappers import ClipReward, RescaleAction
from minari.data_collector import EpisodeBuffer

from dsf.export import cli as export_cli
from dsf.export.network.file import read_network, write_network
from dsf.runtime import cli as sim_cli
from dsf.shell.errors import UserError
from dsf.tasks import Task, get_task
from dsf.tasks.recorded import RecordedEnvironment, Wrapping
from dsf.tasks.registry import ENVIRONMENT_FACT, described_task
from dsf.testing.command_line import assert_refused
from dsf.testing.random_networks import random_network
from dsf.testing.training_runs import run_here
from dsf.train import cli as train_cli
from dsf.train import data_cli
from dsf.train.checkpoint import load_checkpoint, save_checkpoint
from dsf.train.data.dataset import load_dataset
from dsf.train.data.env_spec import recorded_task

SLOW: dict[str, Any] = {"frame_skip": 8, "healthy_reward": 10.0, "terminate_when_unhealthy": False}
STEPS = 60
WORLD = f"Hopper-v5 with frame_skip=8, healthy_reward=10.0, terminate_when_unhealthy=false, cut after {STEPS} steps"
SMALL = ("--model.width", "16", "--model.blocks", "1", "--model.context", "5", "--model.window", "3", "--threads", "1")
EVIL = "dsf_test_evil_module"


def episodes(env: gymnasium.Env, scale: float = 1.0, count: int = 3, steps: int = 30) -> list[EpisodeBuffer]:
    """Random actions from reset seeds 0 upwards; what is not over by then is cut."""
    generator, made = np.random.default_rng(0), []
    for seed in range(count):
        observations = [env.reset(seed=seed)[0]]
        actions: list[np.ndarray] = []
        rewards: list[float] = []
        ends = [(False, False)]
        while not any(ends[-1]) and len(rewards) < steps:
            actions.append((scale * generator.uniform(-1.0, 1.0, 3)).astype(np.float32))
            observation, reward, *end, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
            ends.append((end[0], end[1] or (len(rewards) == steps and not end[0])))
        terminations, truncations = map(list, zip(*ends[1:]))
        made.append(
            EpisodeBuffer(
                id=seed,
                observations=np.array(observations),
                actions=np.array(actions),
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
            )
        )
    return made


@pytest.fixture(scope="module")
def recorded_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four datasets of Hopper-v5: plain, slow, with actions in [-0.1, 0.1], and with clipped rewards."""
    store = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of precision, of missing evaluation environments
        patch.setenv("MINARI_DATASETS_PATH", str(store))
        worlds: dict[str, tuple[gymnasium.Env, float]] = {
            "plain": (gymnasium.make("Hopper-v5"), 1.0),
            "slow": (gymnasium.make("Hopper-v5", max_episode_steps=STEPS, **SLOW), 1.0),
            "tenth": (RescaleAction(gymnasium.make("Hopper-v5"), -0.1, 0.1), 0.1),  # type: ignore[arg-type]
            "clipped": (ClipReward(gymnasium.make("Hopper-v5"), 0.0, 0.5), 1.0),
        }
        for name, (env, scale) in worlds.items():
            buffers = episodes(env, scale)
            minari.create_dataset_from_buffers(
                f"odd/{name}-v0",
                buffers,
                env=env,
                algorithm_name="random",
                author="nobody",
                author_email="nobody@example.org",
                code_permalink="https://example.org",
            )
            env.close()
    return store


@pytest.fixture
def store(recorded_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(recorded_store))
    return recorded_store


@contextlib.contextmanager
def changed_spec(store: Path, **changes: Any) -> Iterator[None]:
    """The plain dataset with other words in its account of the environment."""
    path = store / "odd/plain-v0/data/metadata.json"
    before = path.read_text()
    metadata = json.loads(before)
    metadata["env_spec"] = json.dumps({**json.loads(metadata["env_spec"]), **changes})
    path.write_text(json.dumps(metadata))
    try:
        yield
    finally:
        path.write_text(before)


def require_repeats(task: Task, dataset_id: str) -> None:
    """Check that the task's environment gives back what was recorded, for the actions that training sees."""
    data = load_dataset(dataset_id)
    with contextlib.closing(task.make_env()) as env:
        for seed, episode in enumerate(minari.load_dataset(dataset_id).iterate_episodes()):
            first = data.starts[seed]
            assert np.array_equal(env.reset(seed=seed)[0], episode.observations[0])
            for step, truth in enumerate(episode.rewards):
                observation, reward, *_ = env.step(task.env_action(data.actions[first + step].astype(np.float64)))
                assert np.allclose(observation, episode.observations[step + 1], rtol=0.0, atol=1e-4)
                assert reward == pytest.approx(float(truth), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "world", "period"),
    [
        ("slow", WORLD, 0.016),
        ("tenth", "Hopper-v5 behind RescaleAction(max_action=0.1", 0.008),
        ("clipped", "Hopper-v5 behind ClipReward(max_reward=0.5, min_reward=0.0)", 0.008),
    ],
)
def test_the_environment_is_built_again_as_it_was_recorded(name: str, world: str, period: float, store: Path) -> None:
    task = load_dataset(f"odd/{name}-v0").task
    assert task.world.startswith(world)
    assert task.control_period_s == pytest.approx(period)
    assert task.shown_score(1000.0) is None and task.name == "hopper"
    require_repeats(task, f"odd/{name}-v0")
    kept = json.loads(json.dumps({ENVIRONMENT_FACT: task.recorded and task.recorded.to_json()}))
    assert described_task("hopper", kept).world == task.world


def test_recorded_actions_fill_the_range_of_a_policy(store: Path) -> None:
    """The bounds that the dataset's own actions have, 0.1, become 1."""
    actions = load_dataset("odd/tenth-v0").actions
    assert 0.9 < np.abs(actions).max() <= 1.0 + 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kwargs": {"render_mode": "rgb_array", "width": 64, "camera_name": "track"}},
        {"kwargs": {"frame_skip": 4, "healthy_z_range": [0.7, float("inf")], "xml_file": "hopper.xml"}},
        {"max_episode_steps": 1000},
        {"max_episode_steps": None},
        {"max_episode_steps": -1},
        {"id": "Hopper-v4", "entry_point": "gymnasium.envs.mujoco.hopper_v4:HopperEnv"},
        {
            "additional_wrappers": [
                {"name": "R", "entry_point": "gymnasium.wrappers.common:RecordEpisodeStatistics", "kwargs": {}},
                {
                    "name": "V",
                    "entry_point": "gymnasium.wrappers.rendering:RecordVideo",
                    "kwargs": {"video_folder": "/"},
                },
            ]
        },
    ],
)
def test_what_changes_nothing_keeps_the_task_and_its_score(changes: dict[str, Any], store: Path) -> None:
    with changed_spec(store, **changes):
        task = load_dataset("odd/plain-v0").task
    assert task.recorded is None and task.reference == "D4RL" and task.max_steps == 1000


def wrapper(entry_point: str, kwargs: Any = None) -> dict[str, Any]:
    return {"additional_wrappers": [{"name": "Worn", "entry_point": entry_point, "kwargs": kwargs}]}


@pytest.mark.parametrize(
    ("changes", "world"),
    [
        ({"max_episode_steps": 300}, "Hopper-v5, cut after 300 steps"),
        ({"kwargs": {"ctrl_cost_weight": 1.0}}, "Hopper-v5 with ctrl_cost_weight=1.0"),
        (
            wrapper("gymnasium.wrappers.stateful_action:StickyAction", {"repeat_action_probability": 0.5}),
            "Hopper-v5 behind StickyAction(repeat_action_probability=0.5)",
        ),
    ],
)
def test_horizons_and_wrappers_are_kept(changes: dict[str, Any], world: str, store: Path) -> None:
    with changed_spec(store, **changes):
        task = load_dataset("odd/plain-v0").task
    assert task.world == world and not task.reference
    with contextlib.closing(task.make_env()) as env:
        assert env.spec is not None and env.spec.max_episode_steps == changes.get("max_episode_steps", 1000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"entry_point": f"{EVIL}:HopperEnv"}, (f"made by {EVIL}:HopperEnv", "gymnasium.envs.mujoco.hopper_v5")),
        ({"entry_point": "gymnasium.envs.mujoco.ant_v5:AntEnv"}, ("ant_v5:AntEnv",)),
        (wrapper(f"{EVIL}:Wrapper", {}), ("behind Wrapper, which is not one of Gymnasium's",)),
        (wrapper(f"gymnasium.wrappers.{EVIL}:RescaleAction", {"min_action": -2.0, "max_action": 2.0}), None),
        (wrapper("gymnasium.wrappers.transform_reward:TransformReward"), ("TransformReward, which holds code",)),
        (wrapper("gymnasium.wrappers.stateful_observation:NormalizeObservation", {}), ("statistics",)),
        (wrapper("gymnasium.wrappers.vector:RecordVideo\x1b[31m[red]", {}), ("RecordVideo?(31m(red)",)),
        (wrapper("gymnasium.wrappers.transform_action:RescaleAction", {"nonsense": 1}), ("cannot be built here",)),
        ({"kwargs": {"xml_file": "/etc/passwd"}}, ("its xml_file is no number, name or list",)),
        ({"kwargs": {"xml_file": "../ant.xml"}}, ("its xml_file is no number, name or list",)),
        ({"kwargs": {"frame_skip": 10**9}}, ("frame_skip is 1000000000, expected a whole number, 1 to 1000",)),
        ({"kwargs": {"healthy_reward": float("nan")}}, ("healthy_reward",)),
        ({"kwargs": {"wings": 2}}, ("Hopper-v5 with wings=2 cannot be built here", "wings")),
        ({"kwargs": {"a b": 2}}, ("no name that a program could have",)),
        ({"kwargs": [1]}, ("env_spec describes no environment (kwargs is [1])",)),
        ({"kwargs": {"healthy_reward": [[1.0]] * 20_000}}, ("its healthy_reward is no number",)),
    ],
)
def test_what_cannot_be_built_again_is_refused(
    changes: dict[str, Any], words: tuple[str, ...] | None, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line; and no module is imported because a file names it."""
    (tmp_path / f"{EVIL}.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with changed_spec(store, id=f"{EVIL}:Hopper-v5"):  # nobody's: a robot of its own, whose world is not there
        assert f"environment '{EVIL}:Hopper-v5' is not installed here" in load_dataset("odd/plain-v0").unscored
    with changed_spec(store, **changes):
        if words is None:  # the class is looked up by its name, whatever the module is called
            assert load_dataset("odd/plain-v0").task.world.startswith("Hopper-v5 behind RescaleAction")
        else:
            with pytest.raises(UserError) as refusal:
                load_dataset("odd/plain-v0")
            text = str(refusal.value)
            assert all(word in text for word in words), text
            assert "\n" not in text and "\x1b" not in text and len(text) < 700
    assert EVIL not in sys.modules


@pytest.mark.parametrize(
    ("task", "kwargs", "same"),
    [
        ("antmaze-umaze", {"continuing_task": True, "maze_map": "starts"}, True),
        ("antmaze-umaze", {"maze_map": "open"}, False),
        ("pointmaze-umaze", {"continuing_task": True, "reset_target": True, "render_mode": "rgb_array"}, True),
        ("pen", {"reward_type": "dense"}, True),
    ],
)
def test_goal_tasks_evaluate_in_their_own_way_in_the_same_maze(task: str, kwargs: dict[str, Any], same: bool) -> None:
    """Starts, goals and what follows a goal are a collector's; walls are the world's."""
    registered = get_task(task)
    with contextlib.closing(registered.make_env()) as env:
        spec = env.spec
    assert spec is not None
    if "maze_map" in kwargs:
        walls = [[1 if cell == 1 else "c" for cell in row] for row in spec.kwargs["maze_map"]]
        if kwargs["maze_map"] == "open":
            walls[2][2] = "c" if walls[2][2] == 1 else 1
        kwargs = {**kwargs, "maze_map": walls}
    spec.kwargs = {**spec.kwargs, **kwargs}
    spec.max_episode_steps = 1_000_000
    found = recorded_task("odd/set-v0", registered, spec, {})
    assert (found is registered) == same
    if not same:
        assert found.recorded is not None and found.recorded.kwargs["maze_map"] == kwargs["maze_map"]


@pytest.fixture(scope="module")
def slow_run(recorded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on the slow dataset, and what its training printed."""
    out = tmp_path_factory.mktemp("runs") / "slow"
    scored = ("--steps", "4", "--eval-episodes", "1", *SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(recorded_store))
        result = run_here(train_cli.main, "dsf-train", "odd/slow-v0", "--out", str(out), *scored)
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_a_training_says_so_and_keeps_it(slow_run: tuple[Path, str], tmp_path: Path) -> None:
    out, told = slow_run
    assert f"the data were recorded in {WORLD}" in told and "normalised" not in told
    scores = load_checkpoint(out).header["scores"]
    assert len(scores) == 2 and all(score["score_mean"] is None for score in scores)
    top = max(scores, key=lambda score: float(score["return_mean"]))
    assert f"of the targets scored, {top['target_return']:g} did best (return {top['return_mean']:.1f})" in told
    result = run_here(train_cli.main, "dsf-train", "evaluate", str(out), "--episodes", "1", "--targets", "5000")
    assert result.returncode == 0, result.stderr
    assert WORLD in result.stdout and "normalised" not in result.stdout
    assert "target return 5000 lies outside" in result.stdout


@pytest.fixture(scope="module")
def slow_network(slow_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Its network, and what the export printed."""
    path = tmp_path_factory.mktemp("networks") / "slow.dsf.h5"
    asked = ("--out", str(path), "--episodes", "1", "--max-score-drop", "10000")
    result = run_here(export_cli.main, "dsf-export", str(slow_run[0]), *asked)
    assert result.returncode == 0, result.stderr
    return path, result.stdout


@pytest.mark.slow
def test_an_export_and_its_network_go_on_in_that_environment(slow_network: tuple[Path, str], tmp_path: Path) -> None:
    path, told = slow_network
    assert f"note: the data were recorded in {WORLD}" in told
    out, page, recording = tmp_path / "out.json", tmp_path / "out.html", tmp_path / "run.h5"
    files = ("--json", str(out), "--html", str(page), "--record", str(recording))
    quick = ("--backend", "fast", "--no-compare", "--parity-decisions", "10")
    result = run_here(sim_cli.main, "dsf-sim-run", str(path), *quick, *files)
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    assert report["environment"] == WORLD and report["score_mean"] is None and report["score_label"] is None
    assert report["decisions"] == STEPS  # it never falls there
    assert any(WORLD in note for note in report["notes"]) and WORLD in page.read_text()
    assert WORLD in result.stdout and "normalised" not in result.stdout
    again = run_here(sim_cli.main, "dsf-sim-run", "replay", str(recording), "--network", str(path))
    assert again.returncode == 0, again.stdout


def test_the_plain_task_is_another_one_for_it(slow_network: tuple[Path, str]) -> None:
    quick = ("--backend", "fast", "--no-compare", "--parity-decisions", "10", "--task", "hopper")
    result = run_here(sim_cli.main, "dsf-sim-run", str(slow_network[0]), *quick)
    assert result.returncode == 0, result.stderr
    assert "and runs on hopper (Hopper-v5)" in result.stdout and "normalised" not in result.stdout
    assert "target return 3600" in result.stdout  # the task's


@pytest.mark.parametrize(
    "forged",
    [
        "Hopper",
        {"kwargs": {}},
        RecordedEnvironment().to_json() | {"wrappers": [{"name": "TransformReward", "kwargs": {}}]},
        RecordedEnvironment().to_json() | {"wrappers": [{"name": "__doc__", "kwargs": {}}]},
        RecordedEnvironment().to_json() | {"max_steps": 10**12},
        RecordedEnvironment().to_json() | {"observation_size": 10**12},
        RecordedEnvironment().to_json() | {"low": [1.0], "high": [0.0]},
        RecordedEnvironment().to_json() | {"kwargs": {"xml_file": "/etc/passwd"}},
    ],
)
def test_a_forged_environment_in_a_network_is_one_line(
    forged: Any, slow_network: tuple[Path, str], tmp_path: Path
) -> None:
    network = read_network(slow_network[0])
    network.provenance[ENVIRONMENT_FACT] = forged
    path = tmp_path / "forged.dsf.h5"
    write_network(network, path)
    assert_refused(run_here(sim_cli.main, "dsf-sim-run", str(path), "--backend", "fast"), "environment")


def test_a_wrapper_that_is_none_of_gymnasiums_is_not_made() -> None:
    with pytest.raises(UserError, match="no wrapper that can be built again"):
        RecordedEnvironment(wrappers=(Wrapping("AtariPreprocessing", {}),))


@pytest.mark.parametrize(
    ("stated", "task", "told"),
    [
        ("Hopper-v4", None, "D4RL-normalised"),
        ("Hopper-v5", "hopper-delayed", "D4RL-normalised"),
        ("me/OwnHopper-v3", "hopper", "recorded in me/OwnHopper-v3: Hopper-v5 stands for it, unscored"),
        ("Walker2d-v5", "hopper", None),
        ("HalfCheetah-v4", "hopper", None),
    ],
)
def test_a_file_that_contradicts_its_task(
    stated: str, task: str | None, told: str | None, minari_store: Path, tmp_path: Path
) -> None:
    """Another robot's is refused, one that nobody knows is taken at the user's word, and not scored."""
    path, ended = tmp_path / "steps.npz", np.arange(20) % 10 == 9
    arrays = {"observations": np.ones((20, 11)), "actions": np.zeros((20, 3)), "rewards": np.arange(20.0)}
    np.savez(path, **arrays, terminations=ended, truncations=np.zeros(20, bool), env_id=stated)
    named = () if task is None else ("--task", task)
    result = run_here(data_cli.main, "dsf-data", "import", str(path), "--dataset-id", "me/set-v0", *named)
    if told is None:
        known = "Walker2d-v5" if stated.startswith("Walker") else "HalfCheetah-v5"
        assert_refused(result, f"recorded in {known}", "--task says 'hopper'")
        return
    assert result.returncode == 0, result.stderr
    assert told in result.stdout and ("unscored" in told) != ("normalised" in result.stdout)
    assert "target returns, from these episodes: 135, 95" in result.stdout  # 45 and 145: 45 + 0.9 and 0.5 of 100


def test_data_of_another_environment_cannot_go_on_from_a_run(
    slow_run: tuple[Path, str], store: Path, tmp_path: Path
) -> None:
    out, _ = slow_run
    asked = ("--init", str(out), "--qat-steps", "2", "--out", str(tmp_path / "qat"))
    result = run_here(train_cli.main, "dsf-train", "odd/plain-v0", *asked)
    assert_refused(result, WORLD, "odd/plain-v0 is from Hopper-v5")


@pytest.mark.slow
def test_a_run_that_an_older_dsf_began_goes_on(store: Path, tmp_path: Path) -> None:
    """Its codec was fitted for the task's declared targets, and its header says nothing of returns."""
    out = tmp_path / "run"
    settings = ("--out", str(out), "--steps", "4", "--eval-episodes", "0", *SMALL)
    first = run_here(train_cli.main, "dsf-train", "odd/plain-v0", *settings)
    assert first.returncode == 0, first.stderr
    assert run_here(train_cli.main, "dsf-train", "odd/plain-v0", *settings, "--resume").returncode == 0
    path = out / "checkpoint.safetensors"
    checkpoint = load_checkpoint(path)
    old = {name: value for name, value in checkpoint.header.items() if name != "returns"}
    data = load_dataset("odd/plain-v0")
    scale, bits = data.task.return_scale, old["codec"]["bits"]
    from dsf.train.checkpoint import codec_to_json
    from dsf.train.quantization.codec import InputCodec

    targets = np.full((2, data.tokens.shape[1]), np.nan)
    targets[:, -1] = np.array(get_task("hopper").target_returns) / scale
    old["codec"] = codec_to_json(InputCodec.fit(data.statistics, targets, bits))
    assert old["codec"] != checkpoint.header["codec"]
    save_checkpoint(path, checkpoint.tensors, old)
    for _ in range(2):  # what it writes can be resumed, too
        again = run_here(train_cli.main, "dsf-train", "odd/plain-v0", *settings, "--resume")
        assert again.returncode == 0, again.stderr
    assert load_checkpoint(path).task().target_returns == get_task("hopper").target_returns


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "label"), [((), None), (("--foreign-score",), "D4RL-normalised")])
def test_a_network_on_another_robots_task(asked: tuple[str, ...], label: str | None, tmp_path: Path) -> None:
    """Walker2d and HalfCheetah have the same sizes: the run says so, asks for that task's target, has no score."""
    path, out = tmp_path / "walker.dsf.h5", tmp_path / "out.json"
    write_network(random_network(4, task="walker2d", features=17 + 6 + 1, actions=6, context=5), path)
    quick = ("--backend", "fast", "--no-compare", "--parity-decisions", "10", "--json", str(out))
    result = run_here(sim_cli.main, "dsf-sim-run", str(path), "--task", "halfcheetah", *asked, *quick)
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    assert report["target_return"] == 12000.0 and report["env_id"] == "HalfCheetah-v5"
    assert report["score_label"] == label and (report["score_mean"] is None) == (label is None)
    told = "this network was trained for task walker2d (Walker2d-v5), and runs on halfcheetah (HalfCheetah-v5)"
    assert any(note.startswith(told) for note in report["notes"])
    assert ("normalised" in result.stdout) == (label is not None)
    own = run_here(sim_cli.main, "dsf-sim-run", str(path), "--foreign-score", *quick)
    assert_refused(own, "--foreign-score requires --task")

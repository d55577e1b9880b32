"""``dsf-train cql``: Conservative Q-Learning (Kumar et al. 2020, arXiv 2006.04779) through d3rlpy.

The value-based rival. The algorithm is d3rlpy's (Seno and Imai 2022, JMLR 23), with its settings for D4RL: three hidden
layers of 256 in actor and critics, learning rates 1e-4, 3e-4 and 1e-4, ten sampled actions, a fixed conservative
weight. Observations are standardised by d3rlpy. Data, choice of episodes, delayed rewards and closed loop are
this project's; there is no return-to-go, so the target return of its scores has no effect.

It is no --policy: it has no windows and another optimizer, and d3rlpy keeps no state that a run could be resumed from
bit for bit. Its actor is written as safetensors, for the record; no other command reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.files import replacing, write_json
from dsf.shell.held_directory import LOCK_NAME, held
from dsf.shell.installed import require_installed
from dsf.tasks import Task, Token, rollout
from dsf.tasks.registry import described_task
from dsf.train.config.training import DataConfig, DeviceKind
from dsf.train.evaluation.score import Score
from dsf.train.trained_run import TrainedRun

if TYPE_CHECKING:
    from dsf.train.data.dataset import OfflineDataset

EXTRA = "cql"
SCORES_NAME, ACTOR_NAME, CONFIG_NAME = "scores.json", "actor.safetensors", "cql.json"
HIDDEN = (256, 256, 256)
ACTOR_RATE, CRITIC_RATE, TEMPERATURE_RATE = 1e-4, 3e-4, 1e-4
SAMPLED_ACTIONS = 10
STEPS_PER_REPORT = 1_000
LANES = 10
"""Environments that decide in lockstep."""


@dataclass(frozen=True)
class CQLConfig:
    """Train CQL (d3rlpy) on a dataset with continuous actions, and score it in closed loop."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Minari dataset id or D4RL name, as of dsf-train."""
    out: Path = Path("runs/cql")
    """New directory for its files."""
    data: DataConfig = field(default_factory=DataConfig)
    steps: int = 100_000
    """Gradient steps; d3rlpy's own results on D4RL have 500,000."""
    batch_size: int = 256
    """Transitions per step."""
    conservative_weight: float = 5.0
    """Weight of the conservative term; d3rlpy's results have 10 on medium sets and 5 on all others."""
    seed: int = 0
    """Seed of weights and batches."""
    device: DeviceKind = "auto"
    """Where to train; auto takes a GPU if there is one."""
    threads: int = 2
    """CPU threads for torch."""
    eval_episodes: int = 10
    """Closed-loop episodes."""
    eval_seed: int = 1_000
    """Reset seed of the first of them."""

    def __post_init__(self) -> None:
        leasts = {"steps": 1, "batch_size": 1, "seed": 0, "threads": 1, "eval_episodes": 1, "eval_seed": 0}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least {least}")


class ActorPolicy:
    """The trained actor in closed loop: it sees the observation alone."""

    def __init__(self, algorithm: Any, lanes: int) -> None:
        self.algorithm, self.lanes = algorithm, lanes

    def reset(self, lane: int) -> None:
        """Nothing to forget."""

    def act(self, token: Token) -> FloatArray:
        """(lanes, action_size), the actor's best."""
        actions: FloatArray = self.algorithm.predict(token.observation.astype(np.float32)).astype(np.float64)
        return actions


def transitions(data: OfflineDataset) -> dict[str, Any]:
    """The kept episodes end to end: what d3rlpy's MDPDataset asks for, from Minari's own arrays.

    An episode that ends otherwise than by termination is a time-out: its last value is bootstrapped.
    """
    from dsf.train.data.minari_store import open_minari

    parts: dict[str, list[Any]] = {"observations": [], "actions": [], "rewards": [], "terminals": [], "timeouts": []}
    kept = set(data.kept.tolist())
    for index, episode in enumerate(open_minari(data.dataset_id).iterate_episodes()):
        if index not in kept:
            continue
        rewards = np.asarray(episode.rewards, np.float64)
        if data.delayed_reward:
            rewards = np.append(np.zeros(len(rewards) - 1), rewards.sum())
        ends = np.arange(len(rewards)) == len(rewards) - 1
        terminated = ends & bool(episode.terminations[-1])
        parts["observations"].append(data.task.flat_observation(episode.observations)[:-1].astype(np.float32))
        parts["actions"].append(
            np.clip(data.task.policy_actions(np.asarray(episode.actions, np.float32)), -1.0, 1.0).astype(np.float32)
        )
        parts["rewards"].append(rewards.astype(np.float32)[:, None])
        parts["terminals"].append(terminated)
        parts["timeouts"].append(ends & ~terminated)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def quiet_d3rlpy() -> Any:
    """The library, without the notice of the retired gym that it imports, and without its log of every setting."""
    with contextlib.redirect_stderr(io.StringIO()):
        import d3rlpy
        import structlog
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return d3rlpy


def learn(config: CQLConfig, data: OfflineDataset, device: str, on_steps: Callable[[int], None], bar: bool) -> Any:
    """d3rlpy's CQL, trained; see :func:`train_cql`."""
    d3rlpy = quiet_d3rlpy()
    d3rlpy.seed(config.seed)
    encoder = d3rlpy.models.VectorEncoderFactory(list(HIDDEN))
    algorithm = d3rlpy.algos.CQLConfig(
        actor_learning_rate=ACTOR_RATE,
        critic_learning_rate=CRITIC_RATE,
        temp_learning_rate=TEMPERATURE_RATE,
        alpha_learning_rate=0.0,
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        batch_size=config.batch_size,
        n_action_samples=SAMPLED_ACTIONS,
        conservative_weight=config.conservative_weight,
        observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(),
    ).create(device="cuda:0" if device == "cuda" else "cpu:0")
    algorithm.fit(
        d3rlpy.dataset.MDPDataset(**transitions(data)),
        n_steps=config.steps,
        n_steps_per_epoch=min(STEPS_PER_REPORT, config.steps),
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=bar,
        epoch_callback=lambda _algorithm, _epoch, step: on_steps(step),
    )
    return algorithm


def play(algorithm: Any, task: Task, config: CQLConfig) -> Score:
    """Its score."""
    seeds, target = range(config.eval_seed, config.eval_seed + config.eval_episodes), task.target_returns[0]
    episodes = rollout(task, ActorPolicy(algorithm, min(LANES, len(seeds))), seeds, target)
    return Score.of("d3rlpy", "last", config.steps, target, task, episodes)


def header_of(out: Path) -> dict[str, Any] | None:
    """What a finished run's checkpoint would say in its header, as far as its score needs it; None before the end."""
    if not (out / SCORES_NAME).exists():  # the last file that is written
        return None
    return _header(*(json.loads((out / name).read_text()) for name in (CONFIG_NAME, SCORES_NAME)))


def _header(facts: dict[str, Any], scores: list[dict[str, Any]]) -> dict[str, Any]:
    """The header from what the run's two files hold."""
    sizes = {"policy": "cql", "rival": {"width": HIDDEN[0], "hidden_layers": len(HIDDEN)}}
    return {**facts, **sizes, "step": facts["steps"], "scores": scores, "precision": "fp32"}


def require_possible(config: CQLConfig) -> None:
    """Refuse what cannot work on this machine: missing packages, and an output directory that cannot be used.

    Raises:
        UserError: the directory is a file, lies below one, or holds something.
    """
    require_installed("train", "torch", "minari", "safetensors")
    require_installed(EXTRA, "d3rlpy")
    out = config.out
    if any(place.exists() and not place.is_dir() for place in (out, *out.parents)):
        raise UserError(f"--out {out} is, or lies below, a file: name a directory")
    if out.exists() and any(path.name != LOCK_NAME for path in out.iterdir()):
        raise UserError(f"--out {out} exists already: name a new directory")


def train_cql(config: CQLConfig, on_steps: Callable[[int], None] = lambda _step: None, bar: bool = False) -> TrainedRun:
    """Train and score CQL; its files are in ``config.out``. It prints nothing but the bar.

    Args:
        config: what to train, and how.
        on_steps: is called with the number of steps, every :data:`STEPS_PER_REPORT` of them.
        bar: let d3rlpy draw a bar on stderr.

    Returns:
        the run, whose checkpoint is the actor and whose header is that of :func:`header_of`.

    Raises:
        UserError: the config cannot work here.
        CommandFailed: the training diverged.
    """
    begun = time.monotonic()
    require_possible(config)
    with held(config.out):
        require_possible(config)  # once more: who held it until now may have left a run there
        return _train_cql(config, on_steps, bar, begun)


def _train_cql(config: CQLConfig, on_steps: Callable[[int], None], bar: bool, begun: float) -> TrainedRun:
    """The training in a directory that is held; it began at this monotonic time."""
    import torch
    from safetensors.torch import save

    from dsf.train.checkpoint import git_revision
    from dsf.train.data.dataset import load_dataset
    from dsf.train.data.registry import resolve
    from dsf.train.precision import resolve_device
    from dsf.train.run_directory import BEST_NAME

    data, device = load_dataset(resolve(config.dataset), config.data), resolve_device(config.device)
    if data.task.discrete:
        raise UserError(f"task {data.task.name} has a choice of actions: CQL is here for continuous actions only")
    if data.unscored:
        raise UserError(f"task {data.task.name}: CQL is scored at its end, and it cannot be: {data.unscored}")
    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)  # a mistake there costs no training
    algorithm = learn(config, data, device.type, on_steps, bar)
    actor = {name: tensor.cpu().contiguous() for name, tensor in algorithm.impl.policy.state_dict().items()}
    if not all(torch.isfinite(tensor).all() for tensor in actor.values()):
        raise CommandFailed("the training diverged (its actor is not finite): lower --conservative-weight")
    score = play(algorithm, data.task, config)
    with replacing(config.out / ACTOR_NAME) as temporary:
        temporary.write_bytes(save(actor))
    settings = {**dataclasses.asdict(config), "out": str(config.out)}
    dataset = {"id": data.dataset_id, "sha256": data.content_hash, "steps": data.steps}
    facts = {"task": data.task.name, "dataset": dataset, "revision": git_revision(), "torch": torch.__version__}
    facts |= data.facts
    write_json(config.out / CONFIG_NAME, {**settings, **facts})
    write_json(config.out / SCORES_NAME, [score.to_json()])
    return TrainedRun.of_header(
        _header({**settings, **facts}, [score.to_json()]),
        config.out / ACTOR_NAME,
        config.out / BEST_NAME,
        parameters=sum(tensor.numel() for tensor in actor.values()),
        seconds=time.monotonic() - begun,
    )


def run(config: CQLConfig) -> None:
    """Train, score, and print how that goes."""
    console = Console(soft_wrap=True, markup=False, emoji=False)
    done = train_cql(config, lambda step: console.print(f"step {step} of {config.steps}"), bar=console.is_terminal)
    console.print(
        f"CQL (d3rlpy), {done.parameters:,} parameters in the actor, {done.step} steps on {done.dataset.dataset_id}"
    )
    for score in done.scores:
        console.print(score.describe(described_task(done.task, done.header)))
    console.print(f"scores: {config.out / SCORES_NAME}")

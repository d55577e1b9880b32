"""Train the soft actor-critic (SAC, or its variant TQC) whose snapshots become this project's behaviour policies.

This is a recipe, not a part of the ``dsf`` package: current sbx / stable-baselines3 pin other torch and
gymnasium versions than Lava allows, so it runs in an environment of its own (see README.md one folder up)::

    python train_sac.py --env Hopper-v5 --seed 0 --steps 400000 --out runs/hopper-0

Every ``--every`` steps the actor is written to ``OUT/step_XXXXXXX.npz`` (plain float32 arrays, no pickle)
and its stochastic roll-outs are scored; the scores go to ``OUT/log.jsonl``. README.md says which snapshots play
D4RL's roles.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from sbx import SAC, TQC
from stable_baselines3.common.callbacks import BaseCallback

LAYERS = 2
"""Hidden layers of actor and critics; dsf.tasks.behaviour reads as many."""
QUANTILES_TO_DROP = 5
"""TQC (Kuznetsov et al. 2020) drops so many of 25 per critic against over-estimation; its authors' value for Hopper."""
DECAY_SHARE = 0.3
"""Share of the run, at its end, over which the learning rate falls linearly to zero: it steadies a late policy."""


def actor_arrays(model: SAC | TQC) -> dict[str, np.ndarray]:
    """Return the squashed-Gaussian actor as arrays: hidden layers w0, b0, w1, b1, then mean and log_std heads."""
    params = model.policy.actor_state.params["params"]
    names = sorted(params, key=lambda name: int(name.rsplit("_", 1)[1]))
    out: dict[str, np.ndarray] = {}
    for index, name in enumerate(names[:LAYERS]):
        out[f"w{index}"], out[f"b{index}"] = params[name]["kernel"], params[name]["bias"]
    for role, name in zip(("mean", "log_std"), names[LAYERS:], strict=True):
        out[f"w_{role}"], out[f"b_{role}"] = params[name]["kernel"], params[name]["bias"]
    return {key: np.asarray(value, np.float32) for key, value in out.items()}


def stochastic_returns(model: SAC | TQC, env_id: str, episodes: int, seed: int) -> list[float]:
    """Undiscounted returns of ``episodes`` roll-outs with sampled actions."""
    env, returns = gym.make(env_id), []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        total, done = 0.0, False
        while not done:
            action, _ = model.predict(obs, deterministic=False)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


class Snapshots(BaseCallback):
    """Write the actor and its score every ``every`` environment steps."""

    def __init__(self, out: Path, env_id: str, every: int, episodes: int) -> None:
        super().__init__()
        self.out, self.env_id, self.every, self.episodes = out, env_id, every, episodes
        self.started = time.monotonic()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            np.savez(self.out / f"step_{self.num_timesteps:07d}.npz", **actor_arrays(self.model))
            returns = stochastic_returns(self.model, self.env_id, self.episodes, seed=10_000)
            row = {
                "step": self.num_timesteps,
                "return_mean": float(np.mean(returns)),
                "return_std": float(np.std(returns)),
                "seconds": round(time.monotonic() - self.started, 1),
            }
            with (self.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
        return True


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--every", type=int, default=5_000)
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument("--algorithm", choices=["sac", "tqc"], default="sac")
    parser.add_argument("--hidden", type=int, default=128, help="units in each of two hidden layers")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    algorithm = {"sac": SAC, "tqc": TQC}[args.algorithm]
    extra = {"top_quantiles_to_drop_per_net": QUANTILES_TO_DROP} if args.algorithm == "tqc" else {}
    model = algorithm(
        "MlpPolicy",
        args.env,
        seed=args.seed,
        learning_rate=lambda remaining: min(1.0, remaining / DECAY_SHARE) * args.learning_rate,
        batch_size=args.batch,
        learning_starts=5_000,
        train_freq=8,
        gradient_steps=8,
        policy_kwargs={"net_arch": [args.hidden] * LAYERS},
        **extra,
    )
    model.learn(args.steps, callback=Snapshots(args.out, args.env, args.every, args.episodes))


if __name__ == "__main__":
    main()

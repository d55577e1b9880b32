"""A squashed-Gaussian actor in plain numpy (Haarnoja et al. 2018, appendix C)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import Float32Array
from dsf.shell.errors import UserError

HIDDEN_LAYERS = 2
LOG_STD_RANGE = (-20.0, 2.0)
"""Clip of the predicted log standard deviation, as in the training code (stable-baselines3)."""


@dataclass(frozen=True)
class Actor:
    """Two ReLU layers, then a mean and a log-standard-deviation head; actions are tanh of a Gaussian sample.

    ``noise`` scales the Gaussian's standard deviation.
    """

    hidden: tuple[tuple[Float32Array, Float32Array], ...]
    mean: tuple[Float32Array, Float32Array]
    log_std: tuple[Float32Array, Float32Array]
    noise: float = 1.0

    def sample(self, observation: npt.NDArray[np.floating], generator: np.random.Generator) -> Float32Array:
        """Draw one action (action_size,) for one observation (observation_size,)."""
        features = observation.astype(np.float32)
        for weight, bias in self.hidden:
            features = np.maximum(features @ weight + bias, 0.0)
        mean = features @ self.mean[0] + self.mean[1]
        deviation = self.noise * np.exp(np.clip(features @ self.log_std[0] + self.log_std[1], *LOG_STD_RANGE))
        noise = generator.standard_normal(mean.shape, dtype=np.float32)
        return np.tanh(mean + deviation * noise).astype(np.float32)


def load_actor(name: str, noise: float = 1.0) -> Actor:
    """Read a shipped actor, such as ``hopper_expert``; ``noise`` scales its exploration.

    Raises:
        UserError: no such actor is shipped.
    """
    path = resources.files(__package__) / f"{name}.npz"
    if not path.is_file():
        raise UserError(f"behaviour policy '{name}' does not ship with dsf: make it with tasks/behaviour/recipe")
    content = path.read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Actor(
            hidden=tuple((arrays[f"w{index}"], arrays[f"b{index}"]) for index in range(HIDDEN_LAYERS)),
            mean=(arrays["w_mean"], arrays["b_mean"]),
            log_std=(arrays["w_log_std"], arrays["b_log_std"]),
            noise=noise,
        )

"""A side view of a MuJoCo episode as a few lines and circles per step: a film that needs no graphics library.

The environment runs again with the actions that were executed; given its seed it repeats itself, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsf.shell.arrays import FloatArray
from dsf.tasks import Lane, Task

MILLIMETRE = 1e-3
FRAME_S = 1 / 60
"""Time between two drawn frames, or one control period where that is longer."""


@dataclass(frozen=True)
class Sketch:
    """Geometry of one episode in the x-z plane.

    Attributes:
        frame_s: seconds between two frames.
        radii: (parts,) metres.
        frames: (frames, parts, 4) x and z of both ends of every part (capsules; a ball has equal ends), metres.
    """

    frame_s: float
    radii: FloatArray
    frames: FloatArray

    def to_json(self) -> dict[str, Any]:
        """JSON values in whole millimetres."""
        millimetres = np.rint(self.frames / MILLIMETRE).astype(int)
        return {
            "frame_s": self.frame_s,
            "radii": np.rint(self.radii / MILLIMETRE).astype(int).tolist(),
            "frames": millimetres.reshape(len(millimetres), -1).tolist(),
        }


def sketch_episode(task: Task, seed: int, target_return: float, actions: FloatArray) -> Sketch | None:
    """Replay an episode's actions (steps, actions) and draw it; None where there is no MuJoCo model to draw."""
    lane = Lane(task)
    try:
        lane.start(seed, target_return)
        simulation = lane.env.unwrapped
        if not hasattr(simulation, "model") or not hasattr(simulation, "data"):
            return None
        parts = _drawn_parts(simulation.model)
        period_s = task.control_period_s if math.isfinite(task.control_period_s) else FRAME_S  # not every one is known
        every = max(1, round(FRAME_S / period_s))
        frames = [_ends(simulation, parts)]
        for step, action in enumerate(actions, start=1):
            lane.step(action)
            if step % every == 0:
                frames.append(_ends(simulation, parts))
        radii = np.array([simulation.model.geom_rbound[part] for part in parts])
        capsules = _is_capsule(simulation.model, parts)
        radii[capsules] = simulation.model.geom_size[parts][capsules, 0]
        return Sketch(every * period_s, radii, np.array(frames))
    finally:
        lane.close()


def _drawn_parts(model: Any) -> np.ndarray:
    """Geoms that belong to a body; the world's own are the floor and the walls."""
    return np.flatnonzero(model.geom_bodyid > 0)


def _is_capsule(model: Any, parts: np.ndarray) -> np.ndarray:
    import mujoco

    return np.asarray(model.geom_type[parts] == mujoco.mjtGeom.mjGEOM_CAPSULE)


def _ends(simulation: Any, parts: np.ndarray) -> FloatArray:
    """(parts, 4): a capsule's axis, or a point."""
    model, data = simulation.model, simulation.data
    centres = data.geom_xpos[parts]
    axes = data.geom_xmat[parts].reshape(-1, 3, 3)[:, :, 2] * model.geom_size[parts][:, 1:2]
    axes[~_is_capsule(model, parts)] = 0.0
    return np.concatenate([(centres - axes)[:, [0, 2]], (centres + axes)[:, [0, 2]]], axis=1)

"""Pre-trained networks that ship with dsf, each with the checkpoint it was exported from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

DEFAULT_NAME = "hopper-medium-expert"


def network_path(name: str = DEFAULT_NAME) -> Path:
    """Path of a shipped network file."""
    return Path(str(resources.files(__package__) / f"{name}.dsf.h5"))


def checkpoint_path(name: str = DEFAULT_NAME) -> Path:
    """Path of the float checkpoint behind a shipped network."""
    return Path(str(resources.files(__package__) / f"{name}.safetensors"))

"""Whether Lava runs here."""

from __future__ import annotations

from dsf.runtime.engines.errors import BackendUnavailable
from dsf.runtime.open_engine import require_lava


def lava_runs_here() -> bool:
    """Whether this Python is Lava's, or the environment asks for Lava on a newer one."""
    try:
        require_lava()
    except BackendUnavailable:
        return False
    return True

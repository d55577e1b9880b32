"""Matplotlib, for files alone: whatever a user's home and environment say about windows, caches and dates."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

DIRECTORY, BACKEND, DATE = "MPLCONFIGDIR", "MPLBACKEND", "SOURCE_DATE_EPOCH"


def prepare_matplotlib() -> None:
    """Make its environment such that it can be imported without a word; call this before its first import.

    Without a directory of its own (a user without a home, a home that cannot be written) it gets a temporary one, which
    goes when this program ends.
    """
    os.environ[BACKEND] = "agg"
    if not os.environ.get(DATE, "0").isdecimal():
        del os.environ[DATE]
    if not _has_directories():
        place = tempfile.mkdtemp(prefix="dsf-matplotlib-")
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        os.environ[DIRECTORY] = place


def _has_directories() -> bool:
    """Whether matplotlib can write where it keeps its settings and its list of fonts."""
    try:
        if DIRECTORY in os.environ:
            places = [Path(os.environ[DIRECTORY])]
        else:
            kinds = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache"}
            homes = (os.environ.get(name) or Path.home() / folder for name, folder in kinds.items())
            places = [Path(home) / "matplotlib" for home in homes]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return False
    return all(os.access(place, os.W_OK | os.X_OK) for place in places)

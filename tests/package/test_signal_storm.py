"""Signals at random moments: a few of those that ``endurance/signal_storm.py`` sends to every command."""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random

import pytest

from dsf.testing.signal_storm import Storm, possible

LIVES = {"collect": 2.0, "collect-workers": 2.5, "workers": 2.5, "energy-table": 2.0}
"""Seconds of those that need nothing prepared; a command that is done sooner gets its signal at another moment."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LIVES)
def test_a_signal_at_any_moment_ends_a_command_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    storm = Storm(tmp_path, Random())
    storm.lives = LIVES
    (command,) = possible((name,))
    blows = [
        storm.strike(command, signal.SIGINT, to_group=True),
        storm.strike(command, signal.SIGTERM, to_group=False),
        storm.strike(command, signal.SIGHUP, to_group=True),
    ]
    assert [blow for blow in blows if blow.complaints] == []

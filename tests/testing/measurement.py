"""When and with what code a figure in docs/ was measured."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout that measures."""


def when_and_what() -> str:
    """Date and revision of a measurement."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    revision = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown revision"
    return f"{datetime.now(timezone.utc):%Y-%m-%d}, {revision}"

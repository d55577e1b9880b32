"""The parts of docs/ that scripts write: whatever stands between two markers."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from pathlib import Path

from dsf.shell.files import write_text

ROOT = Path(__file__).resolve().parents[1]


def replace_section(document: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = document.read_text().split(begin)
    write_text(document, f"{before}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}")


def when_and_what() -> str:
    """Date and revision of a measurement."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    revision = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown revision"
    return f"{datetime.now(timezone.utc):%Y-%m-%d}, {revision}"

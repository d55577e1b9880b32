"""Break ``dsf-sim-run`` in every known way, time and again, and write the table in docs/reliability.md.

Each fault has to end within 10 seconds with the right exit code and at most one line on stderr, and to leave neither a
process nor shared memory. Exit code 1 if one does not. The script moves into a mount namespace of its own, where
/dev/shm can be filled and where whatever is left in it is the broken run's; faults that need such a namespace are not
tried where there cannot be one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median

from rich.console import Console

from dsf.shell.generated_section import replace_section
from dsf.testing.fault_catalogue import FAULTS, Fault
from dsf.testing.fault_injection import PRIVATE, SHARED_MEMORY, Missed, Outcome, break_run
from dsf.testing.measurement import ROOT, when_and_what

DOCUMENT = ROOT / "docs" / "reliability.md"
TRIES = 20
MISSES = 20
"""Runs for each try that may end before the fault strikes."""
PIPE = "&#124;"
"""In a table of Markdown."""
HEADER = (
    "| fault | injected how | tries | exit code: line (how often) | seconds, median / max | processes, segments left |"
)


@dataclass(frozen=True)
class Row:
    """All tries of one fault."""

    fault: Fault
    outcomes: list[Outcome]

    @property
    def complaints(self) -> list[str]:
        """What was wrong with any of them."""
        return [f"{self.fault.name}: {text}" for outcome in self.outcomes for text in self.fault.complaints(outcome)]

    def markdown(self) -> str:
        """One line of the table."""
        seconds = [outcome.seconds for outcome in self.outcomes]
        ends = Counter(ending(outcome) for outcome in self.outcomes).most_common()
        shown = "<br>".join(f"{text} ({count})" for text, count in ends)
        processes, segments = (max(getattr(o, name) for o in self.outcomes) for name in ("processes", "segments"))
        return (
            f"| {self.fault.name} | {self.fault.how.replace('|', PIPE)} | {len(seconds)} | {shown} "
            f"| {median(seconds):.2f} / {max(seconds):.2f} | {processes}, {segments} |"
        )


def ending(outcome: Outcome) -> str:
    """Exit code and line, without what differs from try to try."""
    line = " / ".join(outcome.lines).removeprefix("dsf-sim-run: ") or "no line"
    line = re.sub(r"/tmp/\S*/", "", re.sub(r"SystemProcess-\d+", "SystemProcess-N", line))
    return f"{outcome.code}: {line.replace('|', '/')}"


def try_fault(fault: Fault, tries: int, work: Path, chance: Random) -> Row:
    """Break as many runs as asked for; those that end too early do not count.

    Raises:
        Missed: hardly any run lives long enough.
    """
    row, misses = Row(fault, []), 0
    while len(row.outcomes) < tries:
        try:
            row.outcomes.append(break_run(fault.trial(work, chance), work / "stderr"))
        except Missed as miss:
            misses += 1
            if misses > MISSES * tries:
                raise Missed(f"{fault.name}: {miss}") from None
    return row


def enter_private_namespace() -> None:
    """Start this script anew with mounts of its own, if the machine allows it."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    enter = ["unshare", *user, "--mount", "--propagation", "private"]
    mount = f'mount -t tmpfs tmpfs {SHARED_MEMORY} && exec "$@"'
    if subprocess.run([*enter, "sh", "-c", mount, "sh", "true"], capture_output=True).returncode == 0:
        os.environ[PRIVATE] = "1"
        os.execvp(enter[0], [*enter, "sh", "-c", mount, "sh", sys.executable, *sys.argv])


def table(rows: list[Row], untried: list[Fault]) -> str:
    """The generated part of the document."""
    tries = sum(len(row.outcomes) for row in rows)
    lines = [
        f"{when_and_what()}: {tries:,} runs broken, {sum(len(row.complaints) for row in rows)} complaints.",
        "",
        HEADER,
        "|" + "---|" * HEADER.count(" |"),
        *(row.markdown() for row in rows),
        *(f"| {fault.name} | {fault.how} | not tried: needs {fault.needs} | | | |" for fault in untried),
    ]
    return "\n".join(lines)


def main() -> None:
    """Break, judge and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=TRIES, help="runs per fault")
    parser.add_argument(
        "--only", default="", help="regular expression of the faults to try; the document stays as it is"
    )
    parser.add_argument("--quick", action="store_true", help="the quick faults once, under 45 seconds; no document")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; none means other ones each time")
    parser.add_argument("--json", type=Path, help="write all outcomes here")
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="outcomes of earlier runs that count, too")
    options = parser.parse_args()
    if PRIVATE not in os.environ:
        enter_private_namespace()
    console, chance, rows = Console(), Random(options.seed), []
    earlier = [json.loads(path.read_text())["faults"] for path in options.add]
    chosen = [f for f in FAULTS if re.search(options.only, f.name) and (f.quick or not options.quick)]
    possible = [fault for fault in chosen if not fault.needs or fault.possible()]
    with tempfile.TemporaryDirectory(prefix="dsf-faults-") as work:
        for fault in possible:
            row = try_fault(fault, 1 if options.quick else options.tries, Path(work), chance)
            before = [Outcome(**values) for found in earlier for values in found.get(fault.name, [])]
            rows.append(Row(fault, before + row.outcomes))
            console.print(rows[-1].markdown(), soft_wrap=True, markup=False, highlight=False)
    complaints = [text for row in rows for text in row.complaints]
    for text in complaints:
        console.print(f"complaint: {text}", soft_wrap=True, markup=False, highlight=False)
    if not options.quick and not options.only:
        replace_section(DOCUMENT, "faults", table(rows, [fault for fault in chosen if fault not in possible]))
    if options.json:
        found = {row.fault.name: [asdict(outcome) for outcome in row.outcomes] for row in rows}
        options.json.write_text(json.dumps({"complaints": complaints, "faults": found}, indent=2) + "\n")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()

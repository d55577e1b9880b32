"""Send every command signals at random moments of its life, from its start to its end.

Each has to be over within 5 seconds, with one line on stderr and the exit code 128 + signal (or with its work done and
exit code 0), and to leave no process, no shared memory, no temporary file and no output that is not whole. Exit code 1
if one does not. Signals in the first hundredths of a second, while Python itself starts, are counted apart: dsf has no
say there. One half of the signals goes to the command alone, as from another program, the other to all of its
processes, as from a terminal.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from random import Random
from statistics import median

from dsf.testing.signal_storm import LIMIT_S, Blow, Storm, possible

MOMENTS = 50
QUICK_MOMENTS = 3
SIGNALS = "SIGINT,SIGTERM,SIGHUP"


def summary(name: str, life_s: float, blows: list[Blow]) -> str:
    """One line about a command."""
    counted = [blow for blow in blows if not blow.early]
    codes = Counter(blow.code for blow in counted)
    shown = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
    seconds = [blow.seconds for blow in counted] or [0.0]
    return (
        f"{name}: life {life_s:.1f} s, {len(counted)} signals ({len(blows) - len(counted)} more while Python started), "
        f"exit codes {shown}, over after {median(seconds):.2f} / {max(seconds):.2f} s (median / max), "
        f"{sum(blow.seconds > LIMIT_S for blow in blows)} hangs, "
        f"{sum(bool(blow.complaints) for blow in blows)} complaints"
    )


def main() -> None:
    """Break everything and print what became of it."""
    known = [command.name for command in possible()]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=MOMENTS, help="of every command, over all signals together")
    parser.add_argument("--signals", default=SIGNALS, help=f"default: {SIGNALS}")
    parser.add_argument("--commands", default=",".join(known), help="default: all")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; none means other ones each time")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_MOMENTS} moments of every command")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    numbers = [int(signal.Signals[name]) for name in arguments.signals.split(",")]
    chosen = tuple(arguments.commands.split(","))
    if unknown := set(chosen) - set(known):
        parser.error(f"no command {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    moments, begun = QUICK_MOMENTS if arguments.quick else arguments.moments, time.monotonic()
    blows: list[Blow] = []
    with tempfile.TemporaryDirectory(prefix="dsf-storm-") as place:
        storm = Storm(Path(place), Random(arguments.seed))
        storm.prepare()
        for command in possible(chosen):
            own = [
                storm.strike(command, numbers[index % len(numbers)], to_group=index // len(numbers) % 2 == 1)
                for index in range(moments)
            ]
            blows += own
            print(summary(command.name, storm.life(command), own), flush=True)
            for blow in own:
                for complaint in blow.complaints:
                    target = "all" if blow.to_group else "one"
                    name = signal.Signals(blow.number).name
                    print(f"  {name} to {target} after {blow.moment_s:.2f} s, exit code {blow.code}: {complaint}")
    found = sum(bool(blow.complaints) for blow in blows)
    print(f"{len(blows)} signals, {found} with complaints, {time.monotonic() - begun:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(blow) for blow in blows], indent=2) + "\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

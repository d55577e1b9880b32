"""Signals at random moments of every command: what it says, when it ends, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import yaml
from safetensors import safe_open

from dsf.export.network.file import read_network
from dsf.runtime.loop.record import read_recording
from dsf.shell.interrupts import describe_signal
from dsf.testing.leftovers import marked, shared_memory_segments

MARK = "DSF_STORM_MARK"
"""Environment variable that every process of one run inherits, orphans too."""
LIMIT_S = 5.0
"""Everything has to be over so long after the signal."""
PATIENCE_S = 30.0
"""So long the storm itself waits for a command that hangs, before it counts one and ends it."""
POLL_S = 0.01
LAVA_RUNS_HERE = sys.version_info < (3, 11)
MODEL = ("--model.width", "16", "--model.blocks", "1", "--model.context", "6", "--model.window", "3")
SHORT = ("--steps", "40", "--threads", "1", "--eval-episodes", "1", "--checkpoint-every", "10", "--log-every", "5")
BARE = ("--no-compare", "--parity-decisions", "50")
SWEEP = {
    "name": "storm",
    "title": "Storm",
    "datasets": ["hopper-medium"],
    "models": {"bc": {"settings": {"policy": "bc"}}},
    "seeds": [0, 1],
    "settings": {"steps": 30, "batch-size": 8, "model.width": 16, "model.blocks": 1},
    "evaluation": {"episodes": 1, "seed": 8000},
    "table": {"columns": "dataset"},
}

Check = Callable[[Path], object]
"""Reads an output; raises where it is not whole."""


def _read_json(path: Path) -> object:
    return json.loads(path.read_text())


def _ends_with(end: bytes) -> Check:
    def check(path: Path) -> None:
        if not path.read_bytes().rstrip().endswith(end):
            raise ValueError(f"cut short: ends with {path.read_bytes()[-20:]!r}")

    return check


def _read_checkpoint(path: Path) -> object:
    with safe_open(path, framework="numpy") as file:
        return [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118


def _read_dataset(path: Path) -> object:
    import h5py

    metadata = json.loads((path / "data" / "metadata.json").read_text())
    with h5py.File(path / "data" / "main_data.hdf5") as file:
        if len(file) != metadata["total_episodes"]:
            raise ValueError("episodes are missing")
    return metadata


CHECKS: Mapping[str, Check] = {
    ".json": _read_json,
    ".html": _ends_with(b"</html>"),
    ".md": _ends_with(b":end -->"),
    ".png": _ends_with(b"IEND\xaeB`\x82"),
    ".npz": lambda path: [*np.load(path).values()],
    ".dsf.h5": read_network,
    ".rec.h5": read_recording,
    ".safetensors": _read_checkpoint,
}
"""By the end of a file's name."""


@dataclass(frozen=True)
class StormCommand:
    """A command that the storm breaks.

    Attributes:
        name: for reports.
        words: program and arguments; PLACE is the directory of the try, INPUTS what was prepared.
        own_store: whether it gets a copy of the data sets (without what is derived from them), or an empty store.
        prepare: puts more into the directory of the try.
    """

    name: str
    words: tuple[str, ...]
    own_store: str = ""
    prepare: Callable[[Path, Path], None] | None = None


def _finished_run(inputs: Path, place: Path) -> None:
    shutil.copytree(inputs / "run", place / "run")


_SIM_OUTPUTS = ("--json", "PLACE/out.json", "--html", "PLACE/out.html", "--record", "PLACE/out.rec.h5")
_PICTURES = ("--markdown", "PLACE/out.md", "--plot", "PLACE/out.png")
_ROBUSTNESS = ("INPUTS/net.dsf.h5", "--kind", "observation-noise", "--episodes", "1")
COMMANDS = (
    StormCommand("collect", ("dsf-data", "collect", "hopper-medium", "--steps", "6000"), "empty"),
    StormCommand(
        "collect-workers",
        ("dsf-data", "collect", "hopper-medium-expert", "--steps", "6000", "--workers", "2"),
        "empty",
    ),
    StormCommand(
        "import",
        ("dsf-data", "import", "INPUTS/data.npz", "--dataset-id", "me/x-v0", "--task", "hopper"),
        "empty",
    ),
    StormCommand("train", ("dsf-train", "hopper-medium", "--out", "PLACE/run", *MODEL, *SHORT), "copy"),
    StormCommand("evaluate", ("dsf-train", "evaluate", "PLACE/run", "--json", "PLACE/out.json"), prepare=_finished_run),
    StormCommand("export", ("dsf-export", "INPUTS/run", "-o", "PLACE/net.dsf.h5", "--episodes", "1")),
    StormCommand("fast", ("dsf-sim-run", "--backend", "fast", *BARE, *_SIM_OUTPUTS, "--probe-file", "PLACE/s.npz")),
    StormCommand("lava", ("dsf-sim-run", "INPUTS/net.dsf.h5", "--backend", "lava", *BARE, "--json", "PLACE/out.json")),
    StormCommand(
        "workers",
        ("dsf-sim-run", "--backend", "fast", "--workers", "2", "--episodes", "4", *BARE, "--json", "PLACE/out.json"),
    ),
    StormCommand(
        "robustness",
        ("dsf-sim-run", "robustness", *_ROBUSTNESS, "--json", "PLACE/out.json", *_PICTURES),
    ),
    StormCommand("replay", ("dsf-sim-run", "replay", "INPUTS/run.rec.h5", "--json", "PLACE/out.json")),
    StormCommand("sweep", ("dsf-bench", "sweep", "INPUTS/storm.yaml", "--out", "PLACE/sweeps", "--workers", "2")),
    StormCommand(
        "table",
        ("dsf-bench", "table", "storm", "--spec", "INPUTS/storm.yaml", "--out", "PLACE/none", *_PICTURES),
    ),
    StormCommand(
        "energy-table",
        ("dsf-bench", "energy-table", "--decisions", "100", "--json", "PLACE/out.json", "--markdown", "PLACE/out.md"),
    ),
)
"""All of them; see :func:`possible`."""


def possible(names: tuple[str, ...] = ()) -> list[StormCommand]:
    """The commands of these names (none: all) that run on this Python."""
    known = [command for command in COMMANDS if command.name != "lava" or LAVA_RUNS_HERE]
    return [command for command in known if not names or command.name in names]


@dataclass(frozen=True)
class Blow:
    """One signal and what became of the command.

    Attributes:
        command: its name.
        number: of the signal.
        to_group: whether it went to all processes of the command, as from a terminal.
        moment_s: after the command's start.
        early: it came while Python itself started, before dsf has a say.
        code: exit code.
        seconds: until all was over.
        complaints: what was wrong.
    """

    command: str
    number: int
    to_group: bool
    moment_s: float
    early: bool
    code: int | None
    seconds: float
    complaints: tuple[str, ...]


class Storm:
    """Prepares inputs, and breaks one command after another.

    Args:
        work: directory for everything.
        chance: source of moments.
    """

    def __init__(self, work: Path, chance: Random) -> None:
        self.inputs, self.tries, self.chance = work / "inputs", work / "tries", chance
        self.store, self.cache = self.inputs / "minari", work / "cache"
        for place in (self.inputs, self.tries, self.store, self.cache):
            place.mkdir(parents=True, exist_ok=True)
        self.lives: dict[str, float] = {}

    def prepare(self) -> None:
        """What the commands read."""
        self._must("dsf-data", "collect", "hopper-medium", "--steps", "2000")
        self._must("dsf-train", "hopper-medium", "--out", "INPUTS/run", *MODEL, *SHORT)
        self._must("dsf-export", "INPUTS/run", "-o", "INPUTS/net.dsf.h5", "--episodes", "1", "--max-score-drop", "1e9")
        self._must("dsf-sim-run", "--backend", "fast", *BARE, "--record", "INPUTS/run.rec.h5")
        (self.inputs / "storm.yaml").write_text(yaml.safe_dump(SWEEP))
        steps = np.arange(4000)
        ends = steps % 500 == 499
        generator = np.random.default_rng(0)
        np.savez(
            self.inputs / "data.npz",
            observations=generator.normal(size=(len(steps), 11)),
            actions=generator.uniform(-1, 1, (len(steps), 3)),
            rewards=generator.normal(size=len(steps)),
            terminations=np.zeros(len(steps), bool),
            truncations=ends,
        )

    def _must(self, *words: str) -> None:
        place = self.tries / "preparing"
        place.mkdir(exist_ok=True)
        done = subprocess.run(self._command(words, place), env=self._environment(place, ""), capture_output=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.decode()}")

    def _command(self, words: tuple[str, ...], place: Path) -> list[str]:
        program = str(Path(sys.executable).parent / words[0])
        return [program, *(w.replace("PLACE", str(place)).replace("INPUTS", str(self.inputs)) for w in words[1:])]

    def _environment(self, place: Path, mark: str) -> dict[str, str]:
        own = place / "minari"
        temporary = place / "tmp"
        temporary.mkdir(exist_ok=True)
        return {
            **os.environ,
            MARK: mark,
            "MINARI_DATASETS_PATH": str(own if own.exists() else self.store),
            "XDG_CACHE_HOME": str(self.cache),
            "MPLCONFIGDIR": str(self.cache),
            "TMPDIR": str(temporary),
        }

    def life(self, command: StormCommand) -> float:
        """Seconds that the command takes when nobody disturbs it; the first try fills the caches."""
        if command.name not in self.lives:
            self._undisturbed(command)
            self.lives[command.name] = self._undisturbed(command)
        return self.lives[command.name]

    def _undisturbed(self, command: StormCommand) -> float:
        started = time.monotonic()
        with self._started(command) as (process, place, _, errors):
            if process.wait():
                raise SystemExit(f"{command.name} ended with {process.returncode}: {errors.read_text()}")
            seconds = time.monotonic() - started
            if complaints := self._left_in(place, command):
                raise SystemExit(f"{command.name}, undisturbed: {'; '.join(complaints)}")
        return seconds

    @contextlib.contextmanager
    def _started(self, command: StormCommand):  # type: ignore[no-untyped-def]
        place, mark = self.tries / uuid.uuid4().hex[:12], uuid.uuid4().hex
        place.mkdir()
        if command.own_store == "copy":
            shutil.copytree(self.store, place / "minari", ignore=shutil.ignore_patterns(".dsf-cache*"))
        elif command.own_store:
            (place / "minari").mkdir()
        if command.prepare is not None:
            command.prepare(self.inputs, place)
        errors = place / "stderr"
        with errors.open("wb") as stderr, (place / "stdout").open("wb") as stdout:
            process = subprocess.Popen(
                self._command(command.words, place),
                stdout=stdout,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                env=self._environment(place, mark),
                cwd=place,
                start_new_session=True,
                preexec_fn=_default_signals,
            )
        try:
            yield process, place, mark, errors
        finally:
            for pid in marked(MARK, mark):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(place, ignore_errors=True)

    def strike(self, command: StormCommand, number: int, to_group: bool) -> Blow:
        """Send one signal at a random moment of the command's life; again where the command was faster."""
        life = self.life(command)
        while True:
            blow = self._strike(command, number, to_group, self.chance.uniform(0.0, life))
            if blow is not None:
                return blow

    def _strike(self, command: StormCommand, number: int, to_group: bool, moment: float) -> Blow | None:
        segments = shared_memory_segments()
        with self._started(command) as (process, place, mark, errors):
            time.sleep(moment)
            if process.poll() is not None:
                return None
            early = not _catches(process.pid, signal.SIGTERM)
            (os.killpg if to_group else os.kill)(process.pid, number)
            struck, left = time.monotonic(), segments
            while (waited := time.monotonic() - struck) < PATIENCE_S:
                if process.poll() is not None and not marked(MARK, mark):
                    break
                time.sleep(POLL_S)
            complaints = []
            if waited > LIMIT_S:
                complaints.append(f"took {waited:.1f} s, left then: {len(marked(MARK, mark))} processes")
            deadline = time.monotonic() + 2.0
            while (left := shared_memory_segments() - segments) and time.monotonic() < deadline:
                time.sleep(0.05)
            complaints += [f"left {name} in /dev/shm" for name in left]
            complaints += self._left_in(place, command)
            if not early:
                complaints += _said(command, number, process.poll(), errors.read_text().splitlines())
            return Blow(command.name, number, to_group, moment, early, process.poll(), waited, tuple(complaints))

    def _left_in(self, place: Path, command: StormCommand) -> list[str]:
        """What lies there and should not, and outputs that are not whole."""
        found = [f"left {path.name} in TMPDIR" for path in (place / "tmp").iterdir()]
        found += [f"left {path.name} in the cache" for path in self.cache.rglob(".build-*")]
        if command.own_store != "copy" and (place / "minari").exists():
            roots = list((place / "minari").rglob("main_data.hdf5"))
            found += [
                f"left {path.name} in the store" for path in (place / "minari").iterdir() if path.name.startswith(".c")
            ]
            for path in roots:
                found += _not_whole(path.parents[1], _read_dataset)
        for path in place.rglob("*"):
            if (place / "minari") in path.parents or (place / "tmp") in path.parents or path.is_dir():
                continue
            if path.name.endswith(".partial") or path.name == ".in-use":
                found.append(f"left {path.relative_to(place)}")
                continue
            for end, check in CHECKS.items():
                if path.name.endswith(end):
                    found += _not_whole(path, check)
                    break
        return found


def _not_whole(path: Path, check: Check) -> list[str]:
    try:
        check(path)
    except Exception as error:
        return [f"{path.name} is not whole: {type(error).__name__}: {error}"]
    return []


def _said(command: StormCommand, number: int, code: int | None, lines: list[str]) -> list[str]:
    """What is wrong with exit code and stderr: one line and 128 + signal; or the command had done all it was to do."""
    if code == 0:
        return [f"exit code 0, and on stderr: {' / '.join(lines)}"] if lines else []
    expected = rf"{command.words[0]}( {command.words[1]})?: {describe_signal(number)}"
    found = [] if code == 128 + number else [f"exit code {code}"]
    if len(lines) == 1 and re.fullmatch(expected, lines[0]):
        return found
    return [*found, f"on stderr: {' / '.join(lines[-12:]) or 'nothing'}"]


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; Python itself has none for SIGTERM."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _default_signals() -> None:
    """A suite that a script started with & inherits an ignored Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)

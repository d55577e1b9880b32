"""Forge files with valid checksums and give each to the command that reads such files, as a user would.

    python endurance/forged_files.py                 # 2,000 files, half an hour on two cores
    python endurance/forged_files.py --quick         # 60 files
    python endurance/forged_files.py --sanitize      # also: networks that load, in C under AddressSanitizer and UBSan

Each file is made of a number alone: ``--first NUMBER --files 1`` makes it again, and ``--keep DIR`` keeps it. A file
has to end its command within ten seconds and a gigabyte, with exit code 0, 1 or 2 and at most one line on stderr;
nothing that it holds may run (it would make a file called "canary"). A network that loads runs like the reference.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process has no pool of threads

import forging
import numpy as np

from dsf.shell.child_processes import die_with_parent
from dsf.shell.errors import UNREADABLE
from dsf.shell.plain_text import plain

FILES, QUICK_FILES, SANITIZED = 2_000, 60, 300
SECONDS, BYTES = 10.0, 1 << 30
"""Of one file."""
MACHINE_BYTES = 1 << 33
"""Address space of a command: what asks for more must not take the machine with it."""
POLL_S = 0.01
DIFFERS = 3
"""Exit code of a network whose engines differ."""
GOOD = Path("good")
"""Sound files, below the working directory."""
LANES, TOKENS = 2, 6
COMPARED_WORK = 50_000_000
"""Neurons times ticks times tokens of a network that is still compared."""
HOPPER: dict[str, Any] = {"features": 15, "actions": 3, "width": 8, "blocks": 1, "context": 6, "window": 3}

Command = tuple[str, ...]
"""A program of dsf and its arguments; FILE stands for the forged one."""
FILE = "FILE"


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        good: sound files of it.
        suffix: that the reader expects.
        forge: makes a changed one.
        commands: that read it; the first more often than the others.
        weight: how many of the files, against the other kinds'.
    """

    good: tuple[str, ...]
    suffix: str
    forge: Callable[[Path, Path, np.random.Generator], None]
    commands: tuple[Command, ...]
    weight: int = 1


NETWORKS = tuple(f"network{number}.dsf.h5" for number in range(8))
SPARSE, SPARSE_SHARE = NETWORKS[-3:], 0.8
"""Those whose matrices are stored without their zeros, and how many of their weights are 0."""
RUN = ("--backend", "fast", "--no-compare", "--parity-decisions", "20")
KINDS: dict[str, Kind] = {
    "network": Kind(
        NETWORKS,
        ".dsf.h5",
        forging.forge_network,
        (
            ("compare", FILE),
            ("dsf-export", "inspect", FILE, "--json", "out.json"),
            ("dsf-sim-run", FILE, *RUN, "--html", "out.html", "--json", "out.json"),
            ("dsf-export", "diff", FILE, "good/network0.dsf.h5"),
            ("dsf-export", FILE, "-o", "out.nir", "--target", "nir", "--partial"),
        ),
        weight=8,
    ),
    "recording": Kind(
        ("run.h5",),
        ".h5",
        forging.forge_recording,
        (("dsf-sim-run", "replay", FILE, "--network", "good/network0.dsf.h5"),),
        weight=2,
    ),
    "checkpoint": Kind(
        ("run.safetensors",),
        ".safetensors",
        forging.forge_checkpoint,
        (("model", FILE), ("dsf-sim-run", "good/network0.dsf.h5", "--backend", "fast", "--checkpoint", FILE)),
        weight=3,
    ),
    "torch": Kind(
        ("net.safetensors",),
        ".safetensors",
        forging.forge_torch,
        (("dsf-export", "verify", FILE, "--network", "good/network0.dsf.h5", "--decisions", "8"),),
    ),
    "nir": Kind(
        ("net.nir",),
        ".nir",
        forging.forge_hdf5,
        (("dsf-export", "verify", FILE, "--network", "good/network0.dsf.h5", "--decisions", "8"),),
    ),
    "onnx": Kind(
        ("net.onnx",),
        ".onnx",
        forging.forge_onnx,
        (("dsf-export", "verify", FILE, "--network", "good/network0.dsf.h5", "--decisions", "8"),),
    ),
    "sweep": Kind(
        ("sweep.yaml",),
        ".yaml",
        forging.forge_yaml,
        (("dsf-bench", "sweep", FILE, "--dry-run", "--out", "sweeps"), ("dsf-bench", "table", "mine", "--spec", FILE)),
        weight=2,
    ),
    "results": Kind(
        ("results.jsonl",),
        ".jsonl",
        forging.forge_lines,
        (("dsf-bench", "table", "mine", "--spec", "good/sweep.yaml", "--results", FILE, "--plot", "out.png"),),
        weight=2,
    ),
    "preset": Kind(
        ("preset.yaml",),
        ".yaml",
        forging.forge_yaml,
        (("dsf-sim-run", "good/network0.dsf.h5", *RUN, "--hardware", FILE),),
    ),
    "npz": Kind(
        ("data.npz",),
        ".npz",
        forging.forge_npz,
        (("dsf-data", "import", FILE, "--dataset-id", "forged/data-v0", "--task", "hopper", "--overwrite"),),
    ),
    "hdf5": Kind(
        ("data.hdf5",),
        ".hdf5",
        forging.forge_hdf5,
        (("dsf-data", "import", FILE, "--dataset-id", "forged/data-v0", "--task", "hopper", "--overwrite"),),
    ),
    "minari": Kind(
        ("store.hdf5",),
        ".hdf5",
        forging.forge_hdf5,
        (("info", FILE),),
    ),
}


# What stands for a command in a forked process


def compare_engines(path: str) -> int:
    """Load a network and run it in stream and window mode: the fast engine has to equal the reference."""
    from dsf.export.network.file import read_network
    from dsf.export.network.reference import ReferenceEngine, WindowReference
    from dsf.export.proof import rungs
    from dsf.testing.recorded_engine import RecordedEngine

    network = read_network(Path(path))
    work = sum(node.size for node in network.nodes) * network.ticks * network.context
    if work > COMPARED_WORK:
        print("too large to compare")
        return 0
    limit = network.encoder.limit
    generator = np.random.default_rng(0)
    tokens = generator.integers(-limit, limit + 1, (TOKENS, LANES, network.encoder.size))
    for mode, reference in (("stream", ReferenceEngine), ("window", WindowReference)):
        fast = RecordedEngine(network, mode, LANES)  # type: ignore[arg-type]
        rung = rungs.compare_engines(mode, network, reference(network, LANES), fast, tokens)
        if not rung.passed:
            print(f"{mode}: {rung.summary}")
            return DIFFERS
    print("equal")
    return 0


def build_model(path: str) -> int:
    """Load a checkpoint and build its model."""
    from dsf.train.checkpoint import load_checkpoint

    load_checkpoint(Path(path)).build_model()
    return 0


def read_store(path: str) -> None:
    """A dataset of Minari's store whose file is the forged one."""
    store = Path("store") / "forged" / "sound-v0" / "data"
    shutil.copyfile(path, store / "main_data.hdf5")
    os.environ["MINARI_DATASETS_PATH"] = str(Path("store").absolute())
    call("dsf-data", ["info", "forged/sound-v0"])


def call(program: str, arguments: list[str]) -> None:
    """A console script's main."""
    from dsf.export import cli as export_cli
    from dsf.runtime import bench_cli
    from dsf.runtime import cli as runtime_cli
    from dsf.train import cli as train_cli
    from dsf.train import data_cli

    mains: dict[str, Callable[[], Any]] = {
        "dsf-export": export_cli.main,
        "dsf-sim-run": runtime_cli.main,
        "dsf-bench": bench_cli.main,
        "dsf-train": train_cli.main,
        "dsf-data": data_cli.main,
    }
    sys.argv = [program, *arguments]
    mains[program]()


def act(command: Command) -> int:
    """Run a command in this process; returns its exit code."""
    from dsf.shell.command import run_command

    program, *arguments = command
    own: dict[str, Callable[[str], int]] = {"compare": compare_engines, "model": build_model}
    try:
        if program == "info":
            read_store(arguments[0])
        elif program in own:
            sys.argv = [program]
            run_command(lambda _config: own[program](arguments[0]), _Nothing, program, "")
        else:
            call(program, arguments)
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0


@dataclass(frozen=True)
class _Nothing:
    """No options."""


@dataclass(frozen=True)
class Outcome:
    """How one file ended.

    Attributes:
        number: of the file.
        kind: see :data:`KINDS`.
        command: that read it.
        code: exit code, negative for a signal.
        seconds: it took.
        megabytes: most resident memory.
        said: stdout's and stderr's last line.
        problems: what must not be.
    """

    number: int
    kind: str
    command: Command
    code: int
    seconds: float
    megabytes: int
    said: str
    problems: tuple[str, ...]


def forged(number: int, folder: Path) -> tuple[str, Path, Command]:
    """The file of a number, and the command that is to read it."""
    names = [name for name, kind in KINDS.items() for _ in range(kind.weight)]
    generator = np.random.default_rng([number, 2026])
    name = names[number % len(names)]
    kind = KINDS[name]
    out = folder / f"{forging.name_of(number)}{kind.suffix}"
    make(kind, out, generator)
    first = generator.random() < 0.5
    command = kind.commands[0 if first else int(generator.integers(len(kind.commands)))]
    return name, out, tuple(str(out) if word == FILE else word for word in command)


def make(kind: Kind, out: Path, generator: np.random.Generator) -> None:
    """Forge a file; where a change cannot be made of this one, it stays sound."""
    good = GOOD / kind.good[generator.integers(len(kind.good))]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind.forge(good, out, generator)
        except UNREADABLE:
            shutil.copyfile(good, out)


def try_file(number: int, keep: Path | None) -> Outcome:
    """One forged file in a forked process."""
    folder = Path(tempfile.mkdtemp(prefix="forged-", dir="."))
    try:
        name, out, command = forged(number, folder)
        if keep is not None:
            shutil.copy(out, keep)
        return watched(number, name, command, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def watched(number: int, name: str, command: Command, folder: Path) -> Outcome:
    """Run a command in a forked process, and look at how it ends."""
    shown, told = folder / "stdout", folder / "stderr"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            die_with_parent()
            resource.setrlimit(resource.RLIMIT_AS, (MACHINE_BYTES, MACHINE_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for place, handle in ((os.devnull, 0), (str(shown), 1), (str(told), 2)):
                opened = os.open(place, os.O_RDWR | os.O_CREAT)
                os.dup2(opened, handle)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            code = act(command)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            with contextlib.suppress(BaseException):
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
        finally:
            os._exit(code & 0xFF)
    problems: list[str] = []
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - started > SECONDS:
            problems.append(f"still there after {SECONDS:g} s")
            os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(POLL_S)
    seconds, code = time.monotonic() - started, os.waitstatus_to_exitcode(status)
    lines = told.read_text(errors="replace").strip().splitlines() if told.exists() else []
    said = (lines or shown.read_text(errors="replace").strip().splitlines() or [""])[-1][:300]
    if code not in (0, 1, 2) and not problems:
        problems.append(f"exit code {code}")
    if len(lines) > 1 or "internal error" in " ".join(lines) or "Traceback" in " ".join(lines):
        problems.append(f"stderr: {' / '.join(lines)[-600:]}")
    if usage.ru_maxrss * 1024 > BYTES:
        problems.append(f"{usage.ru_maxrss / 1024:.0f} MB resident")
    if steering := [character for character in "\x1b\x07\u202e" if character in said and "\x1b[" not in said[:2]]:
        problems.append(f"shows {steering!r}")
    if Path(forging.CANARY).exists():
        problems.append("ran what the file holds")
        Path(forging.CANARY).unlink()
    return Outcome(number, name, command, code, seconds, usage.ru_maxrss // 1024, said, tuple(problems))


# Sound files


def prepare(folder: Path) -> None:
    """Make one sound file of each kind below ``folder``."""
    from dsf.export.network.file import write_network
    from dsf.export.targets.options import TargetOptions
    from dsf.export.write import write_target
    from dsf.runtime.loop.record import write_recording
    from dsf.runtime.options import SimRunConfig
    from dsf.runtime.simulate import simulate
    from dsf.testing.random_networks import KINDS as ATTENTIONS
    from dsf.testing.random_networks import random_network, sparser, write_checkpoint

    folder.mkdir(parents=True)
    sizes = [*ATTENTIONS.values(), {"ticks": 8, "width": 24, "blocks": 2, "context": 11}]
    for index, name in enumerate(NETWORKS):
        network = random_network(index, **{**HOPPER, **sizes[index]})
        write_network(sparser(network, SPARSE_SHARE) if name in SPARSE else network, folder / name)
    network, first = random_network(0, **HOPPER), folder / NETWORKS[0]
    for target, name in (("nir", "net.nir"), ("onnx", "net.onnx"), ("torch", "net.safetensors")):
        write_target(target, network, None, folder / name, TargetOptions(partial=True))  # type: ignore[arg-type]
    found = simulate(
        SimRunConfig(network=first, backend="reference", compare=False, parity_decisions=0, record=folder / "run.h5")
    )
    write_recording(found.recording, folder / "run.h5")
    write_checkpoint(folder / "run.safetensors")
    write_texts(folder)
    write_data(folder)


def write_texts(folder: Path) -> None:
    """A sweep with results, and a preset."""
    from importlib import resources

    from dsf.runtime.sweeps.file import read_sweep
    from dsf.runtime.sweeps.jobs import resolve_all

    axes = "axes: {model.ticks: [2, 4]}"
    (folder / "sweep.yaml").write_text(
        "name: mine\ntitle: A sweep\nnotes: |\n  Two lines\n  of notes.\ndatasets: [hopper-medium-v2]\n"
        f"models: {{pssa: {{settings: {{model.attention: pssa}}}}, none: {{energy: none}}}}\nseeds: [0]\n{axes}\n"
        "evaluation: {episodes: 1, every: 0, seed: 8000}\ntable: {columns: dataset, baseline: pssa}\n"
    )
    energy = {"how": "counted", "microjoules": {"fp32": {"paper_45nm": 1.5}, "int8": {"paper_45nm": None}}}
    lines = [
        {
            **{"key": str(index), "place": cell.place, "code": cell.code, "dataset": cell.cell.dataset, "seed": 0},
            **{"dataset_id": cell.dataset_id, "dataset_sha256": "0", "target_return": 3600.0, "steps": 4},
            **{"score": 1.0 + index, "returns": [1.0], "energy": energy, "export": None, "precision": "fp32"},
            "best": {"step": 2, "target_return": 3600.0, "score": 2.0},
        }
        for index, cell in enumerate(resolve_all(read_sweep(folder / "sweep.yaml")))
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    preset = resources.files("dsf.hardware_models.presets") / "loihi2_derived.yaml"
    (folder / "preset.yaml").write_text(preset.read_text())


def write_data(folder: Path) -> None:
    """Transitions as an archive, as D4RL's HDF5, and as a dataset in Minari's store."""
    import h5py

    generator, steps = np.random.default_rng(0), 60
    ends = np.arange(1, steps + 1) % 20 == 0
    arrays = {
        "observations": generator.normal(size=(steps, 11)),
        "actions": generator.uniform(-1, 1, (steps, 3)),
        "rewards": generator.normal(size=steps),
        "terminals": ends,
        "timeouts": np.zeros(steps, bool),
    }
    names = {"terminals": "terminations", "timeouts": "truncations"}
    renamed: dict[str, Any] = {names.get(name, name): values for name, values in arrays.items()}
    np.savez_compressed(folder / "data.npz", **renamed)
    with h5py.File(folder / "data.hdf5", "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip")
    os.environ["MINARI_DATASETS_PATH"] = str(Path("store").absolute())
    arguments = ["import", str(folder / "data.npz"), "--dataset-id", "forged/sound-v0", "--task", "hopper"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        call("dsf-data", arguments)
    shutil.copyfile(Path("store") / "forged" / "sound-v0" / "data" / "main_data.hdf5", folder / "store.hdf5")


# Under sanitizers


def sanitized(count: int, first: int) -> list[str]:
    """Run forged networks that load in a C engine built with sanitizers; returns what was wrong."""
    libraries = [sanitizer_library(name) for name in ("libasan.so", "libubsan.so")]
    if None in libraries:
        raise SystemExit("--sanitize needs gcc with libasan and libubsan")
    environment = {
        **os.environ,
        # gcc defines a left shift of a negative number; how far it shifts is checked.
        "CC": "gcc -fsanitize=address,undefined -fno-sanitize=shift-base -fno-sanitize-recover=all -g",
        "LD_PRELOAD": " ".join(filter(None, libraries)),
        "ASAN_OPTIONS": "detect_leaks=0",
        "XDG_CACHE_HOME": str(Path("sanitized").absolute()),
    }
    command = [sys.executable, __file__, "--sanitized-child", str(count), "--first", str(first)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or ["nothing was run"])[-1]
    print(f"under AddressSanitizer and UBSan: {last}")
    return [] if done.returncode == 0 else [f"{last}: {done.stderr[-3_000:]}"]


def sanitizer_library(name: str) -> str | None:
    """Where gcc has it; None where it has not."""
    if shutil.which("gcc") is None:
        return None
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return found if Path(found).is_absolute() else None


def run_sanitized(count: int, first: int) -> int:
    """In the process that has the sanitizers: as many forged networks as asked for that load."""
    from dsf.shell.errors import UserError

    ran, number, kind = 0, first, KINDS["network"]
    folder = Path(tempfile.mkdtemp(prefix="forged-", dir="."))
    while ran < count:
        generator = np.random.default_rng([number, 7])
        out = folder / "net.dsf.h5"
        make(kind, out, generator)
        number += 1
        print(f"network {number - 1}", flush=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                code = compare_engines(str(out))
        except UserError:
            continue
        if code:
            print(f"network {number - 1} differs: {said.getvalue()}")
            return 1
        ran += "equal" in said.getvalue()
    print(f"{ran} networks of {number - first} forged ones load and equal the reference")
    return 0


def start(options: argparse.Namespace) -> tuple[list[Outcome], list[str]]:
    """Make sound files, then forged ones, and give each to its command."""
    here = [sys.executable, str(Path(__file__).resolve())]
    subprocess.run([*here, "--prepare"], check=True)
    Path(f"{forging.CANARY_MODULE}.py").write_text(f"open({forging.CANARY!r}, 'w').close()\n")
    sys.path.insert(0, str(Path.cwd()))
    os.environ["MINARI_DATASETS_PATH"] = str(Path("store").absolute())  # nothing is written to the user's own
    wrong = sanitized(options.networks, options.first) if options.sanitize else []
    warm_up()
    numbers = range(options.first, options.first + options.files)
    outcomes = []
    for number in numbers:
        outcomes.append(outcome := try_file(number, options.keep))
        for problem in outcome.problems:
            print(f"file {number}: {' '.join(outcome.command)}: {plain(problem)}", flush=True)
    return outcomes, wrong


def warm_up() -> None:
    """Import what commands import when they run, so that forked processes have it."""
    with contextlib.suppress(ImportError):
        import matplotlib.pyplot
        import minari
        import mujoco
        import nir
        import onnxruntime
        import torch

        torch.set_num_threads(1)
        del matplotlib, minari, mujoco, nir, onnxruntime
    from dsf.export import cli as export_cli
    from dsf.export import exporting
    from dsf.export.conversion import fold
    from dsf.export.proof import verify, written_nir, written_onnx
    from dsf.export.targets import onnx_graph, torch_module
    from dsf.runtime import bench_cli
    from dsf.runtime import cli as runtime_cli
    from dsf.runtime.report import html
    from dsf.runtime.sweeps import plot
    from dsf.train import data_cli, training

    del export_cli, exporting, fold, verify, written_nir, written_onnx, onnx_graph, torch_module, bench_cli
    del runtime_cli, html, plot, data_cli, training


def main() -> None:
    """Forge, run, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_FILES} files")
    parser.add_argument("--sanitize", action="store_true", help="run networks that load under sanitizers first")
    parser.add_argument("--networks", type=int, default=SANITIZED, help="how many of them")
    parser.add_argument("--keep", type=Path, help="directory for the forged files")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sanitized-child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(GOOD)
        return
    if options.sanitized_child is not None:
        sys.exit(run_sanitized(options.sanitized_child, options.first))
    options.files = QUICK_FILES if options.quick else options.files
    for name in ("keep", "json"):
        if (path := getattr(options, name)) is not None:
            setattr(options, name, path.resolve())
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    started, before = time.perf_counter(), Path.cwd()
    with tempfile.TemporaryDirectory(prefix="dsf-forged-") as work:
        os.chdir(work)
        outcomes, wrong = start(options)
        os.chdir(before)
    seconds = time.perf_counter() - started
    bad = [outcome for outcome in outcomes if outcome.problems]
    codes = Counter(outcome.code for outcome in outcomes)
    ended = ", ".join(f"{count} with {code}" for code, count in sorted(codes.items()))
    slowest = max((outcome.seconds for outcome in outcomes), default=0.0)
    largest = max((outcome.megabytes for outcome in outcomes), default=0)
    print(
        f"{len(outcomes):,} forged files, {len(bad)} with problems; exit codes: {ended}; at most {slowest:.1f} s and "
        f"{largest} MB; {seconds:.0f} s"
    )
    for line in wrong:
        print(line)
    if options.json is not None:
        found = {"files": [dataclasses.asdict(outcome) for outcome in outcomes], "sanitizers": wrong}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(int(bool(bad or wrong)))


if __name__ == "__main__":
    main()

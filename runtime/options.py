"""What ``dsf-sim-run`` can be told, and what of it is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dsf.hardware_models.preset import SUFFIXES
from dsf.hardware_models.weight_memory import Fetch, WeightMemory, Weights
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.interface import BackendName, LavaModel
from dsf.runtime.loop.real_time import OnMiss
from dsf.runtime.open_engine import require_lava
from dsf.shell.errors import UserError
from dsf.shell.files import require_writable_parent
from dsf.shell.installed import require_installed

DEFAULT_HARDWARE = ("paper_45nm", "int8_45nm", "loihi2_derived")
"""The paper's model, one with data movement, and a chip that could hold the network."""
LARGEST_SEED = 1 << 62
"""Recordings hold seeds in 64 bits."""


@dataclass(frozen=True)
class SimRunConfig:
    """Run an exported network in closed loop, count every spike, and price them."""

    network: Annotated[Path | None, tyro.conf.Positional] = None
    """Network file of dsf-export; without one, the shipped Hopper network runs."""
    task: str | None = None
    """Task to run; default: the one the network was exported for, in the environment that its data were recorded in. On
    another one the network asks for that task's target, and has no score unless --foreign-score asks for it."""
    foreign_score: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --task, also score a network that was trained for another task or environment."""
    env: str | None = None
    """Instead of a task, any Gymnasium id whose spaces fit the network, or module:id; its returns have no scores."""
    backend: BackendName = "lava"
    """lava: Lava's Loihi simulator (Python 3.10); fast: the same spikes from a compiled engine, faster than the
    physics; reference: the numpy definition of truth."""
    mode: Literal["auto", "stream", "window"] = "auto"
    """stream: one token per decision; window: the last K tokens replayed for each, as in training; auto: stream where
    it equals window, else window."""
    lava: LavaModel = "fused"
    """fused: one process per block; expanded: stock LIFReset and Dense processes, every population apart."""
    lava_fast_channels: bool = False
    """Lava without the helper threads of its channels: the same spikes, several times faster; replaces parts of Lava
    while it starts."""
    probe: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Populations whose spikes are recorded, as patterns such as 'blocks.0.*'; 'none' is none, the default all. Lava
    sends only these, so only these are compared with the reference; all are counted."""
    probe_file: Path | None = None
    """Write the spikes of the probed populations to this .npz file."""
    core_traffic: bool = False
    """Count the messages from core to core, and list the cores of Lava's processes."""
    episodes: int = 1
    """Closed-loop episodes."""
    seed: int = 0
    """Reset seed of the first episode; the others follow."""
    target_return: float | None = None
    """Return to ask for (reward units); default: the one the network was verified at."""
    parity_decisions: int = 1_000
    """Decisions checked against the reference engine, spike by spike, spread evenly: the first N / episodes of every
    episode, rounded up; 0 switches the check off."""
    hardware: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Hardware preset that prices the run, or a .yaml file of your own; repeat it for more. Default: paper_45nm,
    int8_45nm and loihi2_derived."""
    weights: Weights = "bytes"
    """How prices take weights to be kept. bytes: a byte each, zeros too; packed: at their width, every matrix in its
    cheapest format, sparse rows with their index, and a weight of zero is no synapse, on chips neither."""
    fetch: Fetch = "event"
    """Whom a fetched row of weights serves. event: one spike; token: all ticks of its token, layer by layer (not on a
    chip, whose cores take spikes tick by tick); the reference replays the run to count that."""
    compare: bool = True
    """Also run the integer reference, and the float policy where its checkpoint and torch are at hand, on the same
    seeds, and list the returns side by side."""
    checkpoint: Path | None = None
    """Run of dsf-train behind the network, for the float policy; the shipped network brings its own."""
    json: Path | None = None
    """Write the report here as well."""
    html: Path | None = None
    """Write the report as a page that opens without a network, with a film of the first episode, its spikes, energies
    and cores; needs the report extra."""
    record: Path | None = None
    """Write every decision and every step here, for dsf-sim-run replay."""
    real_time: bool = False
    """The environment moves on with the wall clock, whether a decision is ready or not."""
    control_period: float | None = None
    """Seconds between two steps with --real-time; default: the task's own."""
    on_deadline_miss: OnMiss = "hold"
    """With --real-time, where a decision is late: hold the last action until it is there, or stop the episode."""
    workers: int = 1
    """Processes that share the episodes, each with an engine of its own; nothing but wall time depends on it."""
    launcher: Literal["local", "ray"] = "local"
    """Where workers run: on this machine, or as tasks of a Ray cluster."""
    ray_address: str | None = None
    """Cluster of --launcher ray: HOST:PORT, ray://HOST:PORT or auto; default: RAY_ADDRESS, else one for this run."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: naming the option.
        """
        if self.episodes < 1:
            raise UserError(f"--episodes is {self.episodes}: it must be at least 1")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UserError(f"--seed is {self.seed}: it must be 0 or more, and at most {LARGEST_SEED}")
        if self.target_return is not None and not math.isfinite(self.target_return):
            raise UserError(f"--target-return is {self.target_return}: it must be a finite number")
        if self.checkpoint is not None and not self.compare:
            raise UserError("--no-compare does not use --checkpoint: drop one of them")
        if self.parity_decisions < 0:
            raise UserError(f"--parity-decisions is {self.parity_decisions}: it must be 0 or more")
        if self.foreign_score and self.task is None:
            raise UserError("--foreign-score requires --task, another one than the network's: add that, or drop it")
        if self.env is not None and self.task is not None:
            raise UserError("--env is run instead of a task: drop --env or --task")
        self._check_real_time()
        self._check_launcher()
        self._check_probes()

    @property
    def memory(self) -> WeightMemory:
        """How weights are taken to be kept and fetched."""
        return WeightMemory(self.weights, self.fetch)

    def _check_real_time(self) -> None:
        period = self.control_period
        if not self.real_time and period is not None:
            raise UserError("--control-period requires --real-time: add that, or drop it")
        if not self.real_time and self.on_deadline_miss != "hold":
            raise UserError("--on-deadline-miss requires --real-time: add that, or drop it")
        if period is not None and not (math.isfinite(period) and period > 0):
            raise UserError(f"--control-period is {period}: it must be a number of seconds above 0")
        if self.real_time and (self.workers > 1 or self.launcher != "local"):
            raise UserError("--real-time runs one episode at a time on this machine: drop --workers and --launcher")

    def _check_launcher(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers is {self.workers}: it must be at least 1")
        if self.launcher != "ray" and self.ray_address is not None:
            raise UserError("--ray-address requires --launcher ray: add that, or drop it")

    def _check_probes(self) -> None:
        if self.lava_fast_channels and self.backend != "lava":
            raise UserError(f"--lava-fast-channels requires --backend lava, and this is {self.backend}: drop it")
        if self.probe and (self.record is not None or self.html is not None):
            raise UserError("--record and --html keep digests of all populations: drop --probe")
        if self.probe_file is not None and (self.workers > 1 or self.launcher != "local"):
            raise UserError("--probe-file records in one process on this machine: drop --workers and --launcher")


def require_possible(config: SimRunConfig) -> None:
    """Refuse what this machine cannot do, before anything starts.

    Raises:
        UserError: a file cannot be written, or a package is missing.
        BackendUnavailable: Lava cannot run here.
    """
    if config.launcher == "ray":
        require_installed("cluster", "ray")
    _require_outputs(config)
    if config.backend == "lava":
        require_lava()


def _require_outputs(config: SimRunConfig) -> None:
    """Refuse files that cannot be written, would replace an input, or are named twice."""
    inputs = [path for path in (config.network or network_path(), config.checkpoint) if path is not None]
    inputs += [Path(name) for name in config.hardware if name.endswith(SUFFIXES)]
    written: dict[Path, str] = {}
    for name in ("json", "html", "record", "probe_file"):
        path: Path | None = getattr(config, name)
        if path is None:
            continue
        require_writable_parent(path, *inputs)
        other = written.setdefault(path.resolve(), name)
        if other != name:
            flags = " and ".join(f"--{flag.replace('_', '-')}" for flag in (other, name))
            raise UserError(f"{flags} both write {path}: name two files")
    if config.html is not None:
        require_installed("report", "matplotlib")

"""One run: :func:`simulate` drives a robot with an integer network and returns everything that is known of it.

It prints nothing and writes no file; ``dsf-sim-run``, sweeps and library users call it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from dsf.export.network.file import file_digest, read_network
from dsf.export.network.memory import require_memory
from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import NetworkError
from dsf.export.network.reference import IntegerPolicy
from dsf.export.proof.tables import unproven_lines
from dsf.hardware_models import Preset
from dsf.hardware_models.preset import load_presets
from dsf.runtime.artifacts import checkpoint_path, network_path
from dsf.runtime.engines.interface import Engine, LavaOptions
from dsf.runtime.engines.parity import reference_engine
from dsf.runtime.engines.probes import ALL_POPULATIONS, choose_populations, spiking_populations
from dsf.runtime.engines.spike_file import SpikeRecorder
from dsf.runtime.loop.closed_loop import LoopSettings, OnStep, check_fits, checked_per_episode, run_serially
from dsf.runtime.loop.env_task import EnvTask, env_task
from dsf.runtime.loop.ray_cluster import run_on_ray
from dsf.runtime.loop.real_time import WallClock
from dsf.runtime.loop.record import Recording, facts_of
from dsf.runtime.loop.results import ClosedLoopResult
from dsf.runtime.loop.workers import run_in_workers
from dsf.runtime.open_engine import open_engine
from dsf.runtime.options import DEFAULT_HARDWARE, SimRunConfig, require_possible
from dsf.runtime.report.core_traffic import measure_traffic, placed_mapping
from dsf.runtime.report.hardware import SAMPLED_DECISIONS, price_run, require_cores
from dsf.runtime.report.run_report import RunReport, WallTimes
from dsf.runtime.report.woken import count_woken
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.installed import are_installed
from dsf.tasks import Episode, Task, get_task, rollout
from dsf.tasks.registry import described_task, notes_on, same_robot

RANGE_TOLERANCE = 1e-3
"""Targets this close to the end of the input range count as inside it."""

Progress = Callable[[str, int], AbstractContextManager[OnStep]]
"""Shows what runs and how many steps it may take; what it gives is called with steps that were made."""


@contextlib.contextmanager
def silently(_what: str, _steps: int) -> Iterator[OnStep]:
    """Shows nothing."""
    yield lambda _steps: None


@dataclass(frozen=True)
class PlannedRun:
    """A run before it starts: what a configuration means.

    Attributes:
        config: what was asked for.
        path: of the network file.
        network: read from it.
        digest: SHA-256 of the file.
        presets: that price the run.
        task: environment and return scale.
        target_return: asked for at the first step (reward units).
        mode: stream or window.
        clock: of a run in real time; None is as fast as it goes.
        run_directory: of the float policy that is run beside it; None where there is none.
        notes: what a reader of the figures has to know, a line each.
        started: when it was begun to be planned (seconds of ``time.perf_counter``).
    """

    config: SimRunConfig
    path: Path
    network: Network
    digest: str
    presets: list[Preset]
    task: Task
    target_return: float
    mode: Mode
    clock: WallClock | None
    run_directory: Path | None
    notes: tuple[str, ...]
    started: float

    @property
    def backend(self) -> str:
        """The engine, with Lava's model."""
        return f"lava-{self.config.lava}" if self.config.backend == "lava" else self.config.backend

    @property
    def seeds(self) -> range:
        """Reset seeds of the episodes."""
        return range(self.config.seed, self.config.seed + self.config.episodes)

    @property
    def probed(self) -> tuple[str, ...]:
        """Populations whose spikes are recorded, and which Lava reports.

        Raises:
            UserError: a pattern matches none.
        """
        return choose_populations(self.network, self.config.probe or ALL_POPULATIONS)

    @property
    def settings(self) -> LoopSettings:
        """What all episodes share. They are taped where the configuration names a recording or a page."""
        config = self.config
        checked = checked_per_episode(config.parity_decisions, config.episodes)
        taped = config.record is not None or config.html is not None
        sampled = sys.maxsize if config.fetch == "token" else SAMPLED_DECISIONS[self.mode]
        return LoopSettings(self.task, self.target_return, checked, sampled, taped, self.clock)


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        plan: what ran.
        report: what there is to tell.
        spikes: of the probed populations, where the configuration names a file for them.
    """

    plan: PlannedRun
    report: RunReport
    spikes: SpikeRecorder | None

    @property
    def recording(self) -> Recording:
        """Every decision and every step; empty where the run was not taped."""
        plan = self.plan
        facts = facts_of(plan.settings, plan.digest, plan.backend, plan.mode)
        return Recording(facts, self.report.result.tapes)

    def require_exact(self) -> None:
        """Refuse a run in which a single spike differs from the reference.

        Raises:
            CommandFailed: naming the first one.
        """
        parity = self.report.result.parity
        if not parity.exact:
            found = parity.first_mismatch or "accumulators"
            raise CommandFailed(f"{self.plan.backend} differs from the reference: {found}")


def simulate(config: SimRunConfig, progress: Progress = silently) -> Run:
    """Drive a robot closed-loop with an integer network.

    Args:
        config: what to run. Files that it names (``json``, ``html``, ``record``, ``probe_file``) are not written here;
            what they need is kept in the result.
        progress: shows how far the run is.

    Raises:
        UserError: the configuration cannot work, or the network does not fit the task.
        CommandFailed: an engine or a worker failed. A spike that differs raises nothing: see :meth:`Run.require_exact`.
    """
    return execute(prepare(config), progress)


def prepare(config: SimRunConfig) -> PlannedRun:
    """Read the network, choose task, target and mode, and refuse what cannot work.

    Raises:
        UserError: naming the option, or what does not fit.
    """
    started = time.perf_counter()
    require_possible(config)
    presets = load_presets(config.hardware or DEFAULT_HARDWARE)
    path = config.network or network_path()
    network, digest = open_network(path), file_digest(path)
    require_cores(network, presets)
    task = choose_task(config, network)
    target, mode, clock = choose_target(config, network, task), choose_mode(config, network), choose_clock(config, task)
    lanes = config.episodes if config.compare else 1
    require_memory(network, mode, lanes, "--mode stream, or fewer --episodes with --no-compare, need less")
    run_directory, why_not = choose_float_policy(config)
    notes = (*warnings_about(network, task, target, mode), *why_not)
    plan = PlannedRun(config, path, network, digest, presets, task, target, mode, clock, run_directory, notes, started)
    _ = plan.probed  # a pattern without a population ends here
    return plan


def execute(plan: PlannedRun, progress: Progress = silently) -> Run:
    """Run what was planned; arguments and errors are those of :func:`simulate`."""
    config, network, task = plan.config, plan.network, plan.task
    begun = time.perf_counter()
    comparison = compare_levels(plan, progress) if config.compare else {}
    compared_s = time.perf_counter() - begun if config.compare else None
    with progress(f"{task.env_id} on {plan.backend}", config.episodes * task.max_steps) as on_step:
        result, recorder, processes = run_loop(plan, on_step)
    if config.fetch == "token":
        count_woken(network, plan.mode, [episode.tokens for episode in result.results], result.counter)
    hardware = price_run(network, plan.mode, result.counter, result.results[0].tokens, plan.presets, config.memory)
    report = RunReport(
        plan.settings,
        plan.backend,
        plan.mode,
        result,
        hardware,
        comparison,
        compared=plan.probed if config.backend == "lava" else spiking_populations(network),
        spiking_populations=len(spiking_populations(network)),
        times=WallTimes(compared_s, time.perf_counter() - plan.started),
        notes=plan.notes,
        core_traffic=measure_traffic(network, result.counter, processes) if config.core_traffic else None,
    )
    return Run(plan, report, recorder)


def open_network(path: Path) -> Network:
    """Read the network file.

    Raises:
        UserError: it cannot be read; where it is a training run, saying what can be done with that.
    """
    try:
        return read_network(path)
    except NetworkError:
        if (path.is_dir() or path.suffix == ".safetensors") and are_installed("torch"):
            refuse_training_run(path)
        raise


def refuse_training_run(path: Path) -> None:
    """Refuse what was trained and not exported; return if this is no training run either.

    Raises:
        UserError: saying why it cannot run, or how it can.
    """
    from dsf.train.checkpoint import load_checkpoint

    try:
        checkpoint = load_checkpoint(path)
    except UserError:
        return
    checkpoint.require_dsformer()
    command = f"dsf-export {path} --target loihi -o FILE.dsf.h5"
    raise UserError(f"{path} is a training run, no network file: make one with {command}")


def choose_task(config: SimRunConfig, network: Network) -> Task:
    """The environment that was asked for, else the task, else the network's own, as its data were recorded.

    A network that was trained for another robot, or another environment of that robot, has no score unless asked.

    Raises:
        UserError: it does not exist, or does not fit the network.
    """
    if config.env is not None:
        return env_task(config.env, network)
    own = described_task(network.task, network.provenance)
    task = own if config.task is None else get_task(config.task)
    check_fits(network, task)
    require_runnable(task)
    return task if same_robot(task, own) or config.foreign_score else task.without_score()


def require_runnable(task: Task) -> None:
    """Refuse a task that a network file brings whose environment is not there, before anything is compared.

    Raises:
        UserError: it names none, it is not installed, or it does not fit the task.
    """
    if task.definition is not None:
        task.make_env().close()


def choose_clock(config: SimRunConfig, task: Task) -> WallClock | None:
    """The clock of a run in real time.

    Raises:
        UserError: nobody knows the control period.
    """
    if not config.real_time:
        return None
    period = task.control_period_s if config.control_period is None else config.control_period
    if math.isnan(period):
        raise UserError(f"{task.env_id} does not state its control period: give it with --control-period SECONDS")
    return WallClock(period, config.on_deadline_miss)


def choose_target(config: SimRunConfig, network: Network, task: Task) -> float:
    """The target return: asked for, else on its own task the network's own, else the task's first."""
    if config.target_return is not None:
        return config.target_return
    if network.target_return is None or is_foreign(network, task):
        return task.target_returns[0]
    return network.target_return


def is_foreign(network: Network, task: Task) -> bool:
    """Whether a network was trained for another registered task, or in another environment of this one."""
    return not isinstance(task, EnvTask) and not same_robot(task, described_task(network.task, network.provenance))


def choose_mode(config: SimRunConfig, network: Network) -> Mode:
    """Stream or window."""
    if config.mode == "auto":
        return "stream" if network.stream_is_exact else "window"
    return config.mode


def choose_float_policy(config: SimRunConfig) -> tuple[Path | None, list[str]]:
    """The training whose float policy runs on the same seeds, or why none does."""
    if not config.compare:
        return None, []
    shipped = checkpoint_path() if config.network is None else None
    path = config.checkpoint or shipped
    if path is None:
        return None, ["the float policy is not compared: --checkpoint RUN names it"]
    if not are_installed("torch"):
        return None, ["the float policy is not compared: torch is not installed"]
    return path, []


def warnings_about(network: Network, task: Task, target: float, mode: Mode) -> list[str]:
    """What a reader of the figures has to know about this network and target."""
    notes = list(task.notes) if isinstance(task, EnvTask) else task_notes(network, task, target)
    notes += unproven_lines(network.verification)
    encoder = network.encoder
    largest = float(encoder.offset[-1] + encoder.reach[-1]) * task.return_scale
    if target > largest * (1 + RANGE_TOLERANCE):
        notes.append(
            f"the network's return-to-go input ends at {largest:.0f}: "
            f"a target of {target:.0f} looks like {largest:.0f} until {target - largest:.0f} is earned"
        )
    if mode == "stream" and not network.stream_is_exact:
        notes.append(
            f"receptive field {network.receptive_field} exceeds the context {network.context}: "
            "stream mode is not the windowed policy that was trained"
        )
    return notes


def task_notes(network: Network, task: Task, target: float) -> list[str]:
    """What a reader has to know of the task that a network runs on, and of the return that is asked for."""
    if not is_foreign(network, task):
        return notes_on(task, (target,), network.provenance)
    own = described_task(network.task, network.provenance)
    score = "its score there says little" if task.reference else "it has no score there, unless --foreign-score asks"
    return [
        f"this network was trained for task {own.name} ({own.world}), and runs on {task.name} ({task.world}): {score}"
    ]


def compare_levels(plan: PlannedRun, progress: Progress = silently) -> dict[str, list[Episode]]:
    """Episodes of the float policy and of the integer reference on the same seeds.

    Raises:
        UserError: the float policy's run is not the one behind the network.
    """
    network, task, seeds, target = plan.network, plan.task, plan.seeds, plan.target_return
    episodes: dict[str, list[Episode]] = {}
    with progress("float policy and reference", 2 * len(seeds) * task.max_steps) as on_step:
        if plan.run_directory is not None:
            from dsf.train.checkpoint import load_checkpoint
            from dsf.train.evaluation.torch_policy import TorchPolicy

            checkpoint = load_checkpoint(plan.run_directory)
            checkpoint.require_dsformer()
            if checkpoint.header["dataset"] != network.provenance.get("dataset"):
                raise UserError(f"{checkpoint.path} is not the run behind this network: their datasets differ")
            model = checkpoint.build_model()
            episodes["float (torch, window)"] = rollout(task, TorchPolicy(model, len(seeds)), seeds, target, on_step)
        reference = IntegerPolicy(reference_engine(network, plan.mode, len(seeds)))
        episodes["integer reference"] = rollout(task, reference, seeds, target, on_step)
    return episodes


def run_loop(
    plan: PlannedRun, on_step: OnStep
) -> tuple[ClosedLoopResult, SpikeRecorder | None, dict[str, tuple[int, ...]]]:
    """All episodes, where they were asked to run; the recorder of probed spikes and the cores of Lava's processes,
    where those were asked for.

    Raises:
        UserError, CommandFailed: what the engine or a worker raised.
    """
    config, network, settings, seeds = plan.config, plan.network, plan.settings, plan.seeds
    options = LavaOptions(config.lava_fast_channels, config.probe or ALL_POPULATIONS)
    start = functools.partial(open_engine, network, config.backend, config.lava, plan.mode, options)
    if config.launcher == "ray":
        return run_on_ray(start, settings, network, seeds, config.workers, config.ray_address, on_step), None, {}
    if config.workers > 1:
        return run_in_workers(start, settings, network, seeds, config.workers, on_step), None, {}
    with start() as engine:
        recorder = None if config.probe_file is None else SpikeRecorder(engine, plan.probed)
        result = run_serially(recorder or engine, settings, seeds, on_step)
        processes = cores_of_processes(engine) if config.core_traffic and config.backend == "lava" else {}
    return result, recorder, processes


def cores_of_processes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """The cores that hold each Lava process."""
    from dsf.runtime.lava_backend.engine import LavaEngine
    from dsf.runtime.lava_backend.graph import process_cores

    assert isinstance(engine, LavaEngine)
    return process_cores(engine, placed_mapping(engine.network).placement)

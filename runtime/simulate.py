"""A run: the network, the task, the target and the mode that a configuration means, and the loop itself."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from dsf.export.network.file import read_network
from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import NetworkError
from dsf.export.network.reference import IntegerPolicy
from dsf.runtime.artifacts import checkpoint_path
from dsf.runtime.engines.interface import Engine, LavaOptions
from dsf.runtime.engines.parity import reference_engine
from dsf.runtime.engines.probes import ALL_POPULATIONS, choose_populations
from dsf.runtime.engines.spike_file import SpikeRecorder
from dsf.runtime.loop.closed_loop import LoopSettings, check_fits, run_serially
from dsf.runtime.loop.env_task import EnvTask, env_task
from dsf.runtime.loop.ray_cluster import run_on_ray
from dsf.runtime.loop.real_time import Clock
from dsf.runtime.loop.results import ClosedLoopResult
from dsf.runtime.loop.workers import run_in_workers
from dsf.runtime.open_engine import open_engine
from dsf.runtime.options import SimRunConfig
from dsf.runtime.report.core_traffic import placed_mapping
from dsf.shell.errors import UserError
from dsf.tasks import Episode, Task, get_task, rollout

RANGE_TOLERANCE = 1e-3
"""Targets this close to the end of the input range count as inside it."""


def open_network(path: Path) -> Network:
    """Read the network file.

    Raises:
        UserError: it cannot be read; where it is a training run, saying what can be done with that.
    """
    try:
        return read_network(path)
    except NetworkError:
        if (path.is_dir() or path.suffix == ".safetensors") and importlib.util.find_spec("torch") is not None:
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
    """The environment that was asked for, else the task, else the network's own.

    Raises:
        UserError: it does not exist, or does not fit the network.
    """
    if config.env is not None:
        return env_task(config.env, network)
    task = get_task(config.task or network.task)
    check_fits(network, task)
    return task


def choose_clock(config: SimRunConfig, task: Task) -> Clock | None:
    """Of a run in real time.

    Raises:
        UserError: nobody knows the control period.
    """
    if not config.real_time:
        return None
    period = task.control_period_s if config.control_period is None else config.control_period
    if math.isnan(period):
        raise UserError(f"{task.env_id} does not state its control period: give it with --control-period SECONDS")
    return Clock(period, config.on_deadline_miss)


def choose_target(config: SimRunConfig, network: Network, task: Task) -> float:
    """The target return: asked for, else the network's own, else the task's first."""
    if config.target_return is not None:
        return config.target_return
    return task.target_returns[0] if network.target_return is None else network.target_return


def choose_mode(config: SimRunConfig, network: Network) -> Mode:
    """Stream or window."""
    if config.mode == "auto":
        return "stream" if network.stream_is_exact else "window"
    return config.mode


def warnings_about(network: Network, task: Task, target: float, mode: Mode) -> list[str]:
    """What a reader of the figures has to know about this network and target."""
    notes = list(task.notes) if isinstance(task, EnvTask) else []
    encoder = network.encoder
    largest = float(encoder.offset[-1] + encoder.limit * encoder.step[-1]) * task.return_scale
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


def compare_levels(
    config: SimRunConfig, network: Network, task: Task, seeds: range, target: float, console: Console
) -> dict[str, list[Episode]]:
    """Returns of the float policy and the integer reference on the same seeds."""
    episodes: dict[str, list[Episode]] = {}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("float policy and reference", total=2 * len(seeds) * task.max_steps)

        def on_step(running: int) -> None:
            progress.advance(bar, running)

        shipped = checkpoint_path() if config.network is None else None
        path = config.checkpoint or shipped
        if path is None:
            console.print("note: the float policy is not compared: --checkpoint RUN names it", soft_wrap=True)
        elif importlib.util.find_spec("torch") is None:
            console.print("note: the float policy is not compared: torch is not installed", soft_wrap=True)
        else:
            from dsf.train.checkpoint import load_checkpoint
            from dsf.train.evaluation.torch_policy import TorchPolicy

            checkpoint = load_checkpoint(path)
            checkpoint.require_dsformer()
            if checkpoint.header["dataset"] != network.provenance.get("dataset"):
                raise UserError(f"{checkpoint.path} is not the run behind this network: their datasets differ")
            model = checkpoint.build_model()
            episodes["float (torch, window)"] = rollout(task, TorchPolicy(model, len(seeds)), seeds, target, on_step)
        reference = IntegerPolicy(reference_engine(network, choose_mode(config, network), len(seeds)))
        episodes["integer reference"] = rollout(task, reference, seeds, target, on_step)
    return episodes


def run_loop(
    config: SimRunConfig, settings: LoopSettings, network: Network, seeds: range, on_step: Callable[[int], None]
) -> tuple[ClosedLoopResult, dict[str, tuple[int, ...]]]:
    """All episodes, where they were asked to run, and the cores of Lava's processes where those were asked for.

    Raises:
        UserError, CommandFailed: what the engine or a worker raised.
    """
    options = LavaOptions(config.lava_fast_channels, config.probe or ALL_POPULATIONS)
    start = functools.partial(open_engine, network, config.backend, config.lava, choose_mode(config, network), options)
    if config.launcher == "ray":
        return run_on_ray(start, settings, network, seeds, config.workers, config.ray_address, on_step), {}
    if config.workers > 1:
        return run_in_workers(start, settings, network, seeds, config.workers, on_step), {}
    with start() as engine:
        recorder = None if config.probe_file is None else SpikeRecorder(engine, probed_populations(config, network))
        result = run_serially(recorder or engine, settings, seeds, on_step)
        processes = cores_of_processes(engine) if config.core_traffic and config.backend == "lava" else {}
    if recorder is not None and config.probe_file is not None:
        recorder.save(config.probe_file)
    return result, processes


def probed_populations(config: SimRunConfig, network: Network) -> tuple[str, ...]:
    """Those whose spikes are recorded.

    Raises:
        UserError: a pattern matches none.
    """
    return choose_populations(network, config.probe or ALL_POPULATIONS)


def cores_of_processes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Of every Lava process."""
    from dsf.runtime.lava_backend.engine import LavaEngine
    from dsf.runtime.lava_backend.graph import process_cores

    assert isinstance(engine, LavaEngine)
    return process_cores(engine, placed_mapping(engine.network).placement)

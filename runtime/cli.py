"""``dsf-sim-run``: drive a robot closed-loop with an integer network on simulated neuromorphic cores."""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import Progress

from dsf.export.network.file import file_digest, read_network
from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import NetworkError
from dsf.export.network.reference import IntegerPolicy
from dsf.hardware_models.preset import load_presets
from dsf.runtime.artifacts import checkpoint_path, network_path
from dsf.runtime.closed_loop import LoopSettings, check_fits, checked_per_episode, run_serially
from dsf.runtime.core_traffic import placed_mapping, summarise_traffic
from dsf.runtime.engine import Engine, LavaOptions, open_engine
from dsf.runtime.env_task import EnvTask, env_task
from dsf.runtime.hardware import SAMPLED_DECISIONS, price_run, require_cores
from dsf.runtime.options import DEFAULT_HARDWARE, SimRunConfig, check_config
from dsf.runtime.parity import reference_engine
from dsf.runtime.probes import ALL_POPULATIONS, choose_populations, spiking_populations
from dsf.runtime.ray_cluster import run_on_ray
from dsf.runtime.real_time import Clock
from dsf.runtime.record import Recording, facts_of, write_recording
from dsf.runtime.report import print_report, summarise
from dsf.runtime.results import ClosedLoopResult
from dsf.runtime.spike_file import SpikeRecorder
from dsf.runtime.workers import run_in_workers
from dsf.shell.command import run_command
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.files import write_json
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
    from dsf.runtime.lava_engine import LavaEngine
    from dsf.runtime.lava_graph import process_cores

    assert isinstance(engine, LavaEngine)
    return process_cores(engine, placed_mapping(engine.network).placement)


def run(config: SimRunConfig) -> None:
    """Run, report, and fail if a single spike differs from the reference."""
    console = Console()
    check_config(config)
    presets = load_presets(config.hardware or DEFAULT_HARDWARE)
    path = config.network or network_path()
    network, digest = open_network(path), file_digest(path)
    require_cores(network, presets)
    task = choose_task(config, network)
    target, mode, clock = choose_target(config, network, task), choose_mode(config, network), choose_clock(config, task)
    seeds = range(config.seed, config.seed + config.episodes)
    checked = checked_per_episode(config.parity_decisions, config.episodes)
    taped = config.record is not None or config.html is not None
    settings = LoopSettings(task, target, checked, SAMPLED_DECISIONS[mode], taped, clock)
    probed = probed_populations(config, network)
    compared = probed if config.backend == "lava" else spiking_populations(network)
    backend = f"lava-{config.lava}" if config.backend == "lava" else config.backend
    console.print(f"{path.name} (sha256 {digest[:12]}) on {backend}", soft_wrap=True)
    for warning in warnings_about(network, task, target, mode):
        console.print(f"note: {warning}", soft_wrap=True)
    comparison = compare_levels(config, network, task, seeds, target, console) if config.compare else {}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"{task.env_id} on {backend}", total=config.episodes * task.max_steps)
        result, processes = run_loop(config, settings, network, seeds, lambda steps: progress.advance(bar, steps))
    hardware = price_run(network, mode, result.counter, result.results[0].tokens, presets)
    summary = summarise(settings, backend, mode, result, hardware, comparison)
    summary["parity"] |= {"populations": compared, "spiking_populations": len(spiking_populations(network))}
    if config.core_traffic:
        summary["core_traffic"] = summarise_traffic(network, result.counter, processes)
    try:
        if config.record is not None:
            write_recording(Recording(facts_of(settings, digest, backend, mode), result.tapes), config.record)
        if config.json is not None:
            write_json(config.json, summary)
        if config.html is not None:
            from dsf.runtime.html_report import write_html

            write_html(config.html, network, settings, mode, result, hardware, summary)
    finally:  # a full disk costs the files, a closed terminal the table, neither of them both
        print_report(summary, console)
    if not result.parity.exact:
        raise CommandFailed(f"{backend} differs from the reference: {result.parity.first_mismatch or 'accumulators'}")


def main() -> NoReturn:
    """Console script."""
    from dsf.runtime import commands

    if len(sys.argv) > 1 and sys.argv[1] in commands.COMMANDS:
        commands.main(sys.argv.pop(1))
    others = ", ".join(f"dsf-sim-run {name}" for name in commands.COMMANDS)
    description = f"Run an exported network closed-loop on simulated cores. Other commands: {others}."
    run_command(run, SimRunConfig, "dsf-sim-run", description)

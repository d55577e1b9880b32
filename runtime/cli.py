"""``dsf-sim-run``: drive a robot closed-loop with an integer network on simulated neuromorphic cores."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console
from rich.progress import Progress

from dsf.export.network.file import file_digest
from dsf.hardware_models.preset import load_presets
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.probes import spiking_populations
from dsf.runtime.loop.closed_loop import LoopSettings, checked_per_episode
from dsf.runtime.loop.record import Recording, facts_of, write_recording
from dsf.runtime.options import DEFAULT_HARDWARE, SimRunConfig, check_config
from dsf.runtime.report.core_traffic import summarise_traffic
from dsf.runtime.report.hardware import SAMPLED_DECISIONS, price_run, require_cores
from dsf.runtime.report.terminal import print_report, summarise
from dsf.runtime.simulate import (
    choose_clock,
    choose_mode,
    choose_target,
    choose_task,
    compare_levels,
    open_network,
    probed_populations,
    run_loop,
    warnings_about,
)
from dsf.shell.command import Command, run_commands
from dsf.shell.errors import CommandFailed
from dsf.shell.files import write_json


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
            from dsf.runtime.report.html import write_html

            write_html(config.html, network, settings, mode, result, hardware, summary)
    finally:  # a full disk costs the files, a closed terminal the table, neither of them both
        print_report(summary, console)
    if not result.parity.exact:
        raise CommandFailed(f"{backend} differs from the reference: {result.parity.first_mismatch or 'accumulators'}")


def main() -> NoReturn:
    """Console script."""
    from dsf.runtime.commands import COMMANDS

    others = ", ".join(f"dsf-sim-run {name}" for name in COMMANDS)
    description = f"Run an exported network closed-loop on simulated cores. Other commands: {others}."
    run_commands("dsf-sim-run", Command(run, SimRunConfig, description), COMMANDS)

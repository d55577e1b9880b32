"""``dsf-sim-run``: drive a robot closed-loop with an integer network on simulated neuromorphic cores."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro
from rich.console import Console
from rich.progress import Progress

from dsf.export.file import file_digest, read_network
from dsf.export.network import Network
from dsf.export.reference import IntegerPolicy
from dsf.hardware_models import estimate_energy, load_preset
from dsf.runtime.artifacts import checkpoint_path, network_path
from dsf.runtime.closed_loop import check_fits, run_closed_loop
from dsf.runtime.engine import BackendName, LavaModel, open_engine, require_lava
from dsf.runtime.fast_engine import Mode
from dsf.runtime.parity import reference_engine
from dsf.runtime.report import print_report, summarise
from dsf.tasks import Episode, Task, UserError, get_task, rollout, run_command
from dsf.tasks.console import CommandFailed
from dsf.tasks.files import require_writable_parent, write_json

RANGE_TOLERANCE = 1e-3
"""Targets this close to the end of the input range count as inside it."""


@dataclass(frozen=True)
class SimRunConfig:
    """Run an exported network in closed loop, count every spike, and price them."""

    network: Annotated[Path | None, tyro.conf.Positional] = None
    """Network file of dsf-export; without one, the shipped Hopper network runs."""
    task: str | None = None
    """Task to run; default: the one the network was exported for."""
    backend: BackendName = "lava"
    """lava: Lava's Loihi simulator (Python 3.10); fast: the same spikes from a compiled engine, faster than the
    physics; reference: the numpy definition of truth."""
    mode: Literal["auto", "stream", "window"] = "auto"
    """stream: one token per decision; window: the last K tokens replayed for each, as in training; auto: stream where
    it equals window, else window."""
    lava: LavaModel = "fused"
    """fused: one process per block; expanded: stock LIFReset and Dense processes, every population apart."""
    episodes: int = 1
    """Closed-loop episodes."""
    seed: int = 0
    """Reset seed of the first episode; the others follow."""
    target_return: float | None = None
    """Return to ask for (reward units); default: the one the network was verified at."""
    parity_decisions: int = 1_000
    """Decisions checked against the reference engine, spike by spike; 0 switches the check off."""
    hardware: tuple[str, ...] = ("paper_45nm", "loihi1_davies2018")
    """Hardware presets that price the run."""
    compare: bool = True
    """Also run the integer reference, and the float policy where its checkpoint and torch are at hand, on the same
    seeds, and list the returns side by side."""
    checkpoint: Path | None = None
    """Run of dsf-train behind the network, for the float policy; the shipped network brings its own."""
    json: Path | None = None
    """Write the report here as well."""


def check_config(config: SimRunConfig) -> None:
    """Refuse settings that cannot work, before anything starts.

    Raises:
        UserError: naming the option.
    """
    if config.episodes < 1:
        raise UserError(f"--episodes is {config.episodes}: it must be at least 1")
    if config.seed < 0:
        raise UserError(f"--seed is {config.seed}: it must be 0 or more")
    if config.target_return is not None and not math.isfinite(config.target_return):
        raise UserError(f"--target-return is {config.target_return}: it must be a finite number")
    if config.checkpoint is not None and not config.compare:
        raise UserError("--checkpoint is not read with --no-compare: drop one of them")
    if config.parity_decisions < 0:
        raise UserError(f"--parity-decisions is {config.parity_decisions}: it must be 0 or more")
    if config.json is not None:
        inputs = (config.network or network_path(), config.checkpoint)
        require_writable_parent(config.json, *(path for path in inputs if path is not None))
    if config.backend == "lava":
        require_lava()


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
    notes = []
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
            from dsf.train.policy import TorchPolicy

            checkpoint = load_checkpoint(path)
            if checkpoint.header["dataset"] != network.provenance.get("dataset"):
                raise UserError(f"{checkpoint.path} is not the run behind this network: their datasets differ")
            model = checkpoint.build_model()
            episodes["float (torch, window)"] = rollout(task, TorchPolicy(model, len(seeds)), seeds, target, on_step)
        reference = IntegerPolicy(reference_engine(network, choose_mode(config, network), len(seeds)))
        episodes["integer reference"] = rollout(task, reference, seeds, target, on_step)
    return episodes


def run(config: SimRunConfig) -> None:
    """Run, report, and fail if a single spike differs from the reference."""
    console = Console()
    check_config(config)
    presets = [load_preset(name) for name in config.hardware]
    path = config.network or network_path()
    network = read_network(path)
    task = get_task(config.task or network.task)
    check_fits(network, task)
    target = choose_target(config, network, task)
    seeds = range(config.seed, config.seed + config.episodes)
    mode = choose_mode(config, network)
    backend = f"lava-{config.lava}" if config.backend == "lava" else config.backend
    console.print(f"{path.name} (sha256 {file_digest(path)[:12]}) on {backend}", soft_wrap=True)
    for warning in warnings_about(network, task, target, mode):
        console.print(f"note: {warning}", soft_wrap=True)
    comparison = compare_levels(config, network, task, seeds, target, console) if config.compare else {}
    with (
        open_engine(network, config.backend, config.lava, mode) as engine,
        Progress(console=console, transient=True) as progress,
    ):
        bar = progress.add_task(f"{task.env_id} on {backend}", total=config.episodes * task.max_steps)
        result = run_closed_loop(
            task, engine, seeds, target, config.parity_decisions, lambda running: progress.advance(bar, running)
        )
    energies = [estimate_energy(result.activity, preset) for preset in presets]
    summary = summarise(task, backend, mode, target, result, energies, comparison)
    try:
        if config.json is not None:
            write_json(config.json, summary)
    finally:  # a full disk costs the file, a closed terminal the table, neither of them both
        print_report(summary, console)
    if not result.parity.exact:
        raise CommandFailed(f"{backend} differs from the reference: {result.parity.first_mismatch or 'accumulators'}")


def main() -> NoReturn:
    """Console script."""
    run_command(run, SimRunConfig, "dsf-sim-run", "Run an exported network closed-loop on simulated cores.")

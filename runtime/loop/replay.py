"""``dsf-sim-run replay``: a recorded run once more, on any engine and in its environment, compared bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from dsf.export.network.file import file_digest, read_network
from dsf.export.network.network import Network
from dsf.export.network.reference import TANH_TOLERANCE, decode, encode
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.interface import BackendName, Engine, LavaModel
from dsf.runtime.loop.closed_loop import check_fits
from dsf.runtime.loop.env_task import env_task
from dsf.runtime.loop.record import SEAL, Recording, RunFacts, read_recording, recorded_versions
from dsf.runtime.loop.tape import TapedEpisode, spike_digest
from dsf.runtime.open_engine import open_engine
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.files import require_writable_parent, write_each, write_json
from dsf.tasks import Lane, Task, get_task
from dsf.tasks.registry import described_task


@dataclass(frozen=True)
class ReplayConfig:
    """Replay a recorded run: its integers on an engine, its actions in the environment. Exit code 1 where they
    differ.
    """

    recording: Annotated[Path, tyro.conf.Positional]
    """File of dsf-sim-run --record."""
    network: Path | None = None
    """Network file that was recorded; default: the shipped one."""
    backend: BackendName = "fast"
    """Engine that gets the recorded integers."""
    lava: LavaModel = "fused"
    """Process model of --backend lava."""
    environment: bool = True
    """Also execute the recorded actions in the environment."""
    env: str | None = None
    """Environment of a recording that was made with --env MODULE:ID, as it was named there: its module is imported."""
    json: Path | None = None
    """Write the table here as well."""


@dataclass
class Comparison:
    """How often something equalled the recording.

    Attributes:
        what: was compared.
        compared, different: times.
        first_difference: where, or empty.
    """

    what: str
    compared: int = 0
    different: int = 0
    first_difference: str = field(default="")

    def note(self, equal: bool, seed: int, place: str) -> None:
        """One comparison more."""
        self.compared += 1
        self.different += not equal
        if not equal and not self.first_difference:
            self.first_difference = f"seed {seed}, {place}"


def replay_decisions(engine: Engine, recording: Recording, on_step: Callable[[], None]) -> list[Comparison]:
    """Feed the recorded integers to an engine.

    Raises:
        EngineDied: the backend failed.
    """
    accumulators, spikes = Comparison("accumulators of a decision"), Comparison("all spikes of a decision")
    for taped in recording.episodes:
        engine.reset(0)
        for index, graded in enumerate(taped.graded.astype(np.int64)):
            answer, fired = engine.step_graded(graded[None])
            seed, place = taped.episode.seed, f"decision {index}"
            accumulators.note(np.array_equal(answer[0], taped.accumulators[index]), seed, place)
            spikes.note(np.array_equal(spike_digest(engine.network, fired), taped.spikes[index]), seed, place)
            on_step()
    return [accumulators, spikes]


def replay_actions(network: Network, recording: Recording) -> list[Comparison]:
    """Decode the recorded accumulators; in real time an action may be held, so nothing is compared there."""
    actions = Comparison("executed actions, from the accumulators")
    for taped in recording.episodes if recording.facts.control_period_s is None else ():
        decoded = decode(network.readout, taped.accumulators)
        for index, (truth, again) in enumerate(zip(taped.actions, decoded)):
            equal = np.allclose(truth, again, rtol=0.0, atol=TANH_TOLERANCE)
            actions.note(equal, taped.episode.seed, f"step {index}")
    return [actions]


def replay_environment(
    lane: Lane, network: Network, recording: Recording, on_step: Callable[[], None]
) -> list[Comparison]:
    """Execute the recorded actions in the environment, and encode what the policy saw."""
    kinds = ("observations", "rewards", "returns", "encoder's integers, from the observations")
    found = {kind: Comparison(kind) for kind in kinds}
    for taped in recording.episodes:
        lane.start(taped.episode.seed, recording.facts.target_return)
        _replay_episode(lane, network, taped, found, on_step)
    return list(found.values())


def _replay_episode(
    lane: Lane, network: Network, taped: TapedEpisode, found: dict[str, Comparison], on_step: Callable[[], None]
) -> None:
    observations, rewards, returns, integers = found.values()
    seed, decisions = taped.episode.seed, dict(zip(taped.seen.tolist(), taped.graded))
    for step, truth in enumerate(taped.observations):
        observations.note(_same_bits(lane.observation, truth), seed, f"step {step}")
        if step in decisions:
            vector = lane.token().vector()
            equal = np.isfinite(vector).all() and np.array_equal(encode(network.encoder, vector)[0], decisions[step])
            integers.note(bool(equal), seed, f"step {step}")
        if step == len(taped.actions) or not lane.running:
            break
        lane.step(taped.actions[step])
        rewards.note(_same_bits(np.float64(lane.reward), taped.rewards[step]), seed, f"step {step}")
        on_step()
    same = lane.decisions == taped.episode.decisions and lane.total == taped.episode.episode_return
    returns.note(same, seed, f"{lane.total!r} after {lane.decisions} steps")


def _same_bits(one: npt.NDArray[Any] | np.float64, other: npt.NDArray[Any]) -> bool:
    """Equal to the last bit; not a number equals itself."""
    return one.tobytes() == other.tobytes()


def recorded_network(config: ReplayConfig, recording: Recording) -> Network:
    """The network behind a recording.

    Raises:
        UserError: another one was named, or the recording's arrays have other sizes.
    """
    path = config.network or network_path()
    network, digest, recorded = read_network(path), file_digest(path), recording.facts.network_sha256
    if digest != recorded:
        raise UserError(
            f"{config.recording} was made with the network of sha256 {recorded[:12]}, and {path} has {digest[:12]}: "
            "name the right one with --network"
        )
    widths = {taped.graded.shape[1] for taped in recording.episodes}
    outputs = {part.shape[1] for taped in recording.episodes for part in (taped.accumulators, taped.actions)}
    if (widths, outputs) != ({network.encoder.size}, {network.readout.size}):
        raise UserError(f"{config.recording}: its sizes are not those of its network: {SEAL.remake}")
    return network


def recorded_task(facts: RunFacts, network: Network, env: str | None) -> Task:
    """The task that was recorded.

    A recording may come from a stranger: a module that it names is imported only where the command line names it, too.

    Raises:
        UserError: it, or its environment, does not exist here, or the environment is a module's that nobody asked for.
    """
    if facts.task is not None:
        own = described_task(network.task, network.provenance)
        task = own if (own.name, own.world) == (facts.task, facts.env_id) else get_task(facts.task)
        check_fits(network, task)
        return task
    if ":" in facts.env_id and env is None:
        raise UserError(f"that would import a module which the file chooses: add --env {facts.env_id} if you trust it")
    return env_task(facts.env_id, network)


def replay(config: ReplayConfig) -> None:
    """``dsf-sim-run replay``."""
    console = Console(markup=False, emoji=False)  # names of files and environments may look like either
    if config.json is not None:
        require_writable_parent(config.json, config.recording, config.network or network_path())
    recording = read_recording(config.recording)
    network, facts = recorded_network(config, recording), recording.facts
    if config.env is not None and config.env != facts.env_id:
        raise UserError(f"--env is {config.env}, and {config.recording} was made in {facts.env_id}: name that one")
    for name, version in recorded_versions().items():
        if facts.versions.get(name) != version:
            console.print(f"note: recorded with {name} {facts.versions.get(name)}, this is {version}", soft_wrap=True)
    steps = sum(len(taped.graded) + len(taped.rewards) for taped in recording.episodes)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(escape(f"{facts.env_id} on {config.backend}"), total=steps)
        on_step = lambda: progress.advance(bar)  # noqa: E731
        with open_engine(network, config.backend, config.lava, facts.mode) as engine:
            found = replay_decisions(engine, recording, on_step) + replay_actions(network, recording)
        skipped = "" if config.environment else "--no-environment"
        if config.environment:
            try:
                lane = Lane(recorded_task(facts, network, config.env))
            except UserError as error:
                skipped = str(error)
            else:
                with contextlib.closing(lane):
                    found += replay_environment(lane, network, recording, on_step)
    _report(config, facts, found, skipped, console)


def _report(config: ReplayConfig, facts: RunFacts, found: list[Comparison], skipped: str, console: Console) -> None:
    """Print and write the comparison.

    Raises:
        CommandFailed: something differs.
    """
    table = Table("against the recording", title=f"{config.recording.name} on {config.backend}", title_justify="left")
    table.add_column("compared", justify="right")
    table.add_column("different", justify="right")
    table.add_column("first difference")
    for comparison in found:
        counts = (f"{comparison.compared:,}", f"{comparison.different:,}") if comparison.compared else ("-", "-")
        table.add_row(comparison.what, *counts, comparison.first_difference or "-")
    different = [comparison for comparison in found if comparison.different]
    writing: list[Callable[[], None]] = [functools.partial(console.print, table)]
    if skipped:
        note = f"note: not replayed in {facts.env_id}: {skipped}"
        writing.append(functools.partial(console.print, note, soft_wrap=True))
    if config.json is not None:
        summary = {
            "recording": dataclasses.asdict(facts),
            "backend": config.backend,
            "comparisons": [dataclasses.asdict(comparison) for comparison in found],
            "environment_skipped": skipped,
            "exact": not different,
        }
        writing.append(functools.partial(write_json, config.json, summary))
    write_each(*writing)
    if different:
        first = different[0]
        where = f"{first.what}: {first.different} of {first.compared} differ, first at {first.first_difference}"
        raise CommandFailed(f"{config.recording} does not replay: {where}")

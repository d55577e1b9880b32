"""Every row of a sweep that claims a score of exported integers, proven in Lava: one episode, every spike compared.

    python experiments/lava_rows.py table1_mujoco --out runs/sweeps [--results docs/results.jsonl]
    python experiments/lava_rows.py --quick     # a tiny sweep of its own, then its rows

A row is a dataset, a model with ``export``, and values of the sweep's further axes. Of its training seeds the first
that has a result is taken, with the very network file that scored it. The episode is the first of the sweep's (its
reset seed and target return); Lava plays it with stock channels, the reference repeats every decision, and every spike
of every population at every tick is compared. The return must be the one in the row's own result, to the last bit.

docs/lava_rows.jsonl keeps a line per row; a row whose line has the same network file is not played again. Section
"lava-rows" of docs/results.md is made from it. Exit code 1: something differs, or a row has no network any more.

Rows of dense rivals at 8 bits (``precision: int8``) are none of these: they have no spikes to run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro
import yaml
from rich.console import Console

from dsf.export.network.file import file_digest
from dsf.runtime.engines.interface import BackendName
from dsf.runtime.engines.probes import spiking_populations
from dsf.runtime.open_engine import require_lava
from dsf.runtime.options import SimRunConfig
from dsf.runtime.simulate import simulate
from dsf.runtime.sweeps.command import DEFAULT_OUT, RESULTS_NAME, SweepConfig, sweep
from dsf.runtime.sweeps.energy import PRESETS
from dsf.runtime.sweeps.file import read_sweep, sweep_path
from dsf.runtime.sweeps.identity import Resolved, as_arguments
from dsf.runtime.sweeps.jobs import resolve_read
from dsf.runtime.sweeps.scores import exported_files
from dsf.runtime.sweeps.spec import SweepSpec
from dsf.runtime.sweeps.store import read_lines
from dsf.runtime.sweeps.table import lines_by_place, result_of
from dsf.shell.command import run_command
from dsf.shell.errors import CommandFailed, UserError
from dsf.shell.file_values import parse_json, read_text
from dsf.shell.files import require_writable_parent, write_json, write_text
from dsf.shell.generated_section import replace_section, require_section
from dsf.shell.plain_text import markdown_text
from dsf.shell.typed_values import read_record
from dsf.testing.measurement import ROOT, when_and_what
from dsf.testing.training_runs import CARTPOLE, TINY_CELL, only_dataset

SECTION = "lava-rows"
DIGITS = 12
"""Of a network's SHA-256 that the section shows."""
ALL_DECISIONS = 1 << 40
"""More than any episode has."""


@dataclass(frozen=True)
class LavaRowsConfig:
    """Play an episode of every integer row of a sweep in Lava, and compare it spike by spike."""

    sweep: Annotated[str | None, tyro.conf.Positional] = None
    """YAML file, or the name of a shipped sweep."""
    out: Path = DEFAULT_OUT
    """Directory of the sweep's trainings, where their exported networks are."""
    results: Path | None = None
    """Results store of the sweep. Default: results.jsonl in --out."""
    lines: Path = ROOT / "docs" / "lava_rows.jsonl"
    """Where each row's line is kept."""
    markdown: Path = ROOT / "docs" / "results.md"
    """Document whose section lava-rows is written."""
    backend: BackendName = "lava"
    """Engine to compare with the reference; the line names it."""
    fast_channels: bool = False
    """Lava without the helper threads of its channels."""
    render: bool = False
    """Only write the section again from --lines."""
    quick: bool = False
    """A tiny sweep of its own; nothing is written to docs."""
    json: Path | None = None
    """Also write the lines of this sweep here."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: naming the option.
        """
        if sum((self.sweep is not None, self.render, self.quick)) != 1:
            raise UserError("give one of SWEEP (a name or a YAML file), --render and --quick")
        if self.fast_channels and self.backend != "lava":
            raise UserError(f"--fast-channels requires --backend lava, and this is {self.backend}: drop it")


@dataclass(frozen=True)
class PlayedRow:
    """A line: one episode of one row.

    Attributes:
        sweep, dataset, model, axes: the row.
        seed: of the training.
        key: of the result that the row claims.
        network_sha256: of the network file.
        backend, fast_channels: engine.
        mode: stream or window.
        reset_seed, target_return: of the episode.
        decisions: in it.
        compared_spikes, mismatches: spike slots (population x neuron x tick) compared, and those that differ.
        compared_accumulators, accumulator_mismatches: the same of the actions' accumulators.
        first_mismatch: where, or empty.
        returned: by the engine (reward units).
        claimed: by the sweep's result for this episode.
        seconds: of the episode, in the engine.
        measured: date and revision.
    """

    sweep: str
    dataset: str
    model: str
    axes: dict[str, Any]
    seed: int
    key: str
    network_sha256: str
    backend: str
    fast_channels: bool
    mode: str
    reset_seed: int
    target_return: float
    decisions: int
    compared_spikes: int
    mismatches: int
    compared_accumulators: int
    accumulator_mismatches: int
    first_mismatch: str
    returned: float
    claimed: float
    seconds: float
    measured: str

    @property
    def equal(self) -> bool:
        """Whether nothing differs: no spike, no accumulator, no bit of the return."""
        return not self.mismatches and not self.accumulator_mismatches and self.returned == self.claimed

    @property
    def label(self) -> str:
        """For people."""
        return " ".join([self.dataset, self.model, *(f"{name}={value}" for name, value in self.axes.items())])

    @property
    def place(self) -> str:
        """What makes two lines the same row."""
        return json.dumps([self.sweep, self.dataset, self.model, self.axes])


@dataclass(frozen=True)
class Claim:
    """A row of the sweep: the result that is proven, or None where no training seed has one.

    Attributes:
        cell: of the result; of the first training seed where there is none.
        line: of the results store.
    """

    cell: Resolved
    line: dict[str, Any] | None

    @property
    def label(self) -> str:
        """For people."""
        cell = self.cell.cell
        return " ".join([cell.dataset, cell.model, *(f"{name}={value}" for name, value in cell.axes)])


def claims_of(cells: Iterable[Resolved], lines: Iterable[dict[str, Any]]) -> list[Claim]:
    """Rows with ``export``, in the sweep's order."""
    by_place = lines_by_place(lines)
    rows: dict[tuple[Any, ...], Claim] = {}
    for cell in cells:
        if cell.export is None:
            continue
        row = (cell.cell.dataset, cell.cell.model, cell.cell.axes)
        if row not in rows or rows[row].line is None:
            found = Claim(cell, result_of(cell, by_place))
            if row not in rows or found.line is not None:
                rows[row] = found
    return list(rows.values())


def network_of(line: dict[str, Any], out: Path) -> Path:
    """The network file behind a result.

    Raises:
        CommandFailed: it is not there.
    """
    export = {name: tuple(value) if isinstance(value, list) else value for name, value in line["export"].items()}
    for record in sorted(out.glob(f"*/{line['key']}.json")):
        network, _ = exported_files(record.parent, as_arguments(export), line["code"])
        if network.exists():
            return network
    raise CommandFailed(f"no network of result {line['key']} is below {out}: give the --out of the sweep that made it")


def play(claim: Claim, network: Path, spec: SweepSpec, config: LavaRowsConfig) -> PlayedRow:
    """One episode, every decision compared.

    Raises:
        UserError, CommandFailed: the network cannot be read, or the engine failed.
        CommandFailed: some decision was not compared.
    """
    cell, line = claim.cell.cell, claim.line
    assert line is not None
    asked = SimRunConfig(
        network=network,
        backend=config.backend,
        lava_fast_channels=config.fast_channels,
        seed=spec.evaluation.seed,
        target_return=line["target_return"],
        compare=False,
        parity_decisions=ALL_DECISIONS,
        hardware=PRESETS,
    )
    run = simulate(asked)
    result, parity, read = run.report.result, run.report.result.parity, run.plan.network
    slots = result.decisions * read.ticks * sum(read[name].size for name in spiking_populations(read))
    if parity.compared_spikes != slots:
        raise CommandFailed(f"{parity.compared_spikes} of {slots} spike slots were compared: nothing is proven")
    return PlayedRow(
        spec.name,
        cell.dataset,
        cell.model,
        dict(cell.axes),
        cell.seed,
        line["key"],
        run.plan.digest,
        run.plan.backend,
        config.fast_channels,
        run.report.mode,
        spec.evaluation.seed,
        line["target_return"],
        result.decisions,
        parity.compared_spikes,
        parity.mismatches,
        parity.compared_accumulators,
        parity.accumulator_mismatches,
        parity.first_mismatch,
        run.report.returns[0],
        line["returns"][0],
        round(result.seconds, 1),
        when_and_what(),
    )


def is_current(row: PlayedRow | None, claim: Claim, network: Path, config: LavaRowsConfig) -> bool:
    """Whether a row's line is about this result, this network file and this engine."""
    line = claim.line
    assert line is not None
    if row is None or row.backend.split("-")[0] != config.backend:
        return False
    claimed = (row.key, row.target_return, row.claimed) == (line["key"], line["target_return"], line["returns"][0])
    return claimed and row.network_sha256 == file_digest(network)


def read_rows(path: Path) -> list[PlayedRow]:
    """The lines so far; none where there is no file.

    Raises:
        UserError: a line is none of ours.
    """
    try:
        text = read_text(path, "rows")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}, line {number}"
        rows.append(read_record(PlayedRow, parse_json(line, where), where, "remove it"))
    return rows


def prove(spec: SweepSpec, cells: list[Resolved], config: LavaRowsConfig, console: Console) -> None:
    """Play what has not been played, and write lines and section, whatever comes out.

    Raises:
        UserError: the sweep has no results, or no such row.
        CommandFailed: a row differs, or cannot be played.
    """
    store = config.results or config.out / RESULTS_NAME
    if not store.exists():
        raise UserError(f"there are no results at {store}: dsf-bench sweep {config.sweep} makes them")
    claims = claims_of(cells, read_lines(store, tabulated=True))
    if not claims:
        raise UserError(f"sweep {spec.name} has no model with export: none of its rows claims a score of integers")
    rows = {row.place: row for row in read_rows(config.lines)}
    mine, wrong = [], []
    for claim in claims:
        if claim.line is None:
            console.print(f"not run: {claim.label}")
            continue
        cell = claim.cell.cell
        place = json.dumps([spec.name, cell.dataset, cell.model, dict(cell.axes)])
        try:
            network = network_of(claim.line, config.out)
            if not is_current(rows.get(place), claim, network, config):
                rows[place] = play(claim, network, spec, config)
                write_text(config.lines, "".join(json.dumps(asdict(row)) + "\n" for row in rows.values()))
        except (UserError, CommandFailed) as error:
            wrong.append(f"{claim.label}: {error}")
            console.print(f"failed: {wrong[-1]}")
            continue
        row = rows[place]
        mine.append(row)
        console.print(f"{'equal' if row.equal else 'DIFFERS'}: {row.label} seed {row.seed}: {told(row)}")
        wrong += [] if row.equal else [f"{row.label} differs: {told(row)}"]
    finish(config, mine, list(rows.values()), console)
    if wrong:
        more = f", and {len(wrong) - 1} more rows" if len(wrong) > 1 else ""
        raise CommandFailed(f"{wrong[0]}{more}")


def told(row: PlayedRow) -> str:
    """What an episode showed, in words."""
    return (
        f"{row.decisions:,} decisions, {row.compared_spikes:,} spike slots, {row.mismatches:,} mismatches, "
        f"return {row.returned} ({row.claimed} in the sweep), {row.seconds:g} s"
    )


def section(rows: list[PlayedRow]) -> str:
    """Markdown of all rows."""
    if not rows:
        return "No row has been played yet.\n"
    equal = sum(row.equal for row in rows)
    slots, wrong = sum(row.compared_spikes for row in rows), sum(row.mismatches for row in rows)
    text = [
        "Rows that claim a score of exported integers were scored on the fast engine. One episode of each was played "
        f"again in Lava and compared with the reference: {equal} of {len(rows)} rows are equal, spike by spike, and in "
        f"the return that the score holds; {slots:,} spike slots compared, {wrong:,} mismatches "
        "([lava_rows.jsonl](lava_rows.jsonl), `python experiments/lava_rows.py SWEEP --out DIRECTORY`). Dense rivals "
        "at 8 bits have no spikes.",
        "",
        "| sweep | dataset | row | training seed | network (SHA-256) | engine, mode | decisions | spike slots "
        "| mismatches | return in Lava | in the sweep | equal |",
        "|" + "---|" * 12,
    ]
    for row in rows:
        name = markdown_text(" ".join([row.model, *(f"{axis} {value}" for axis, value in row.axes.items())]))
        text.append(
            f"| {markdown_text(row.sweep)} | {markdown_text(row.dataset)} | {name} | {row.seed} "
            f"| {row.network_sha256[:DIGITS]} | {row.backend}, {row.mode} | {row.decisions:,} "
            f"| {row.compared_spikes:,} | {row.mismatches:,} "
            f"| {row.returned:.4f} | {row.claimed:.4f} | {'yes' if row.equal else '**no**'} |"
        )
    return "\n".join([*text, ""])


def finish(config: LavaRowsConfig, mine: list[PlayedRow], rows: list[PlayedRow], console: Console) -> None:
    """Write the section of all rows, and this sweep's lines where they are asked for."""
    if config.json is not None:
        write_json(config.json, [{**asdict(row), "equal": row.equal} for row in mine])
    replace_section(config.markdown, SECTION, section(rows))
    console.print(f"{len(mine)} rows: {config.lines}")


def quick_sweep(directory: Path) -> LavaRowsConfig:
    """A tiny sweep over the one dataset at hand, and where it is."""
    settings = {**TINY_CELL, "steps": 5}
    values = {"name": "quick", "datasets": [CARTPOLE], "seeds": [0], "settings": settings}
    values |= {"models": {"pssa-int8": {"export": {"bits": 8}}}, "evaluation": {"episodes": 2}}
    spec, out = directory / "quick.yaml", directory / "out"
    spec.write_text(yaml.safe_dump(values))
    sweep(SweepConfig(str(spec), out=out))
    return LavaRowsConfig(str(spec), out=out, lines=directory / "rows.jsonl", markdown=directory / "rows.md")


def run(config: LavaRowsConfig) -> None:
    """Prove every row of the sweep that the configuration names."""
    console = Console(soft_wrap=True, markup=False, highlight=False)
    if config.json is not None:
        require_writable_parent(config.json)
    if config.quick:
        console.print("quick: a few steps of training, so the network has learnt NOTHING; its score means nothing")
        with tempfile.TemporaryDirectory() as directory, only_dataset(Path(directory), "cartpole-expert", 300):
            tiny = quick_sweep(Path(directory))
            run(replace(tiny, backend=config.backend, fast_channels=config.fast_channels, json=config.json))
        return
    require_section(config.markdown, SECTION)
    if config.render:
        rows = read_rows(config.lines)
        finish(config, rows, rows, console)
        return
    if config.backend == "lava":
        require_lava()
    assert config.sweep is not None
    path = sweep_path(config.sweep)
    spec = read_sweep(path)
    prove(spec, resolve_read(spec, path), config, console)


def main() -> NoReturn:
    """The command line."""
    run_command(run, LavaRowsConfig, "lava_rows", "Prove a sweep's integer rows in Lava.")


if __name__ == "__main__":
    main()

"""An export on a terminal: progress, tables, and what the file is."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from dsf.export.exported import CONSTANT_INPUTS, REMOVED_CHANNELS, ExportedNetwork, ExportObserver, PlacementSummary
from dsf.export.inspect import count_totals, neuron_words
from dsf.export.placement.chips import get_chip, verdict
from dsf.export.proof.rungs import Rung
from dsf.export.proof.tables import print_ladder, unproven_lines
from dsf.shell.console import first_few, table_console

if TYPE_CHECKING:
    from dsf.export.conversion.layer_report import LayerFigures


SHOWN_INPUTS = 6
"""Inputs that are named in a line; the file's provenance holds all."""


class TerminalExport(ExportObserver):
    """Prints how an export goes on."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def noted(self, notes: Sequence[str]) -> None:
        """A line each."""
        for note in notes:
            self.console.print(f"note: {note}", markup=False, soft_wrap=True)

    def placed(self, summary: PlacementSummary) -> None:
        """Every violation where a chip was asked for, and one line on the cores."""
        if summary.asked:
            for broken in summary.violations:
                line = f"{broken.node}: {broken.rule}: {broken.found}, limit {broken.limit} ({broken.grade})"
                self.console.print(line, soft_wrap=True)
            if summary.binding:
                return
        placement = summary.placement
        limit, share = placement.busiest.fullest
        found = verdict(summary.violations, get_chip(placement.chip))
        self.console.print(
            f"{placement.chip}: {len(placement.cores)} cores, the fullest uses {share:.0%} of its "
            f"{limit.replace('_', ' ')}, {found} (dsf-export inspect lists all)",
            soft_wrap=True,
        )

    @contextlib.contextmanager
    def verifying(self, steps: int | None) -> Iterator[Callable[[int], None]]:
        """A bar."""
        with Progress(console=self.console, transient=True) as progress:
            bar = progress.add_task("verifying", total=steps)
            yield lambda running: progress.advance(bar, running)

    def undecided(self, rung: Rung, more: int) -> None:
        """One line for each look that decides nothing."""
        self.console.print(f"{rung.name}: {rung.summary} so far: {more} more episodes", soft_wrap=True)

    def measured(self, layers: Sequence[LayerFigures]) -> None:
        """The table of layers."""
        from dsf.export.conversion.layer_report import print_layers

        print_layers(layers, table_console())

    def climbed(self, rungs: Sequence[Rung]) -> None:
        """The table of rungs."""
        print_ladder([dataclasses.asdict(rung) for rung in rungs], self.console)


def describe(exported: ExportedNetwork, console: Console) -> None:
    """A few lines about the written file."""
    network, written = exported.network, exported.written
    neurons = neuron_words(count_totals(network))
    mode = "equals" if network.stream_is_exact else "differs from"
    said = escape(f"{written.path}: {written.sentence}")  # a path may hold what looks like markup
    console.print(
        f"{said}\n{written.size / 1e6:.2f} MB, network of {neurons}, stream mode {mode} "
        f"window mode (receptive field {network.receptive_field}, K {network.context})",
        soft_wrap=True,
    )
    if constant := network.provenance.get(CONSTANT_INPUTS):
        shown = first_few(constant, SHOWN_INPUTS)
        console.print(f"note: inputs that never changed in the training data: {shown}", soft_wrap=True)
    if removed := network.provenance.get(REMOVED_CHANNELS):
        console.print(f"silent channels removed ({removed['how']}): {removed_words(removed)}", soft_wrap=True)
    if written.sha256 is not None:
        console.print(f"sha256 {written.sha256}", soft_wrap=True)
    for line in unproven_lines(network.verification):
        console.print(line, soft_wrap=True, markup=False)


def removed_words(removed: Mapping[str, Any]) -> str:
    """How many channels of which population are gone, as a network's provenance has it."""
    counts = {name: count for name, count in removed["channels"].items() if count}
    return ", ".join(f"{name} {count} of {removed['of'][name]}" for name, count in counts.items()) or "none found"

"""``dsf-bench table``: a sweep's table and plot, from its results alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dsf.runtime.sweeps.command import DEFAULT_OUT, RESULTS_NAME
from dsf.runtime.sweeps.file import read_sweep, sweep_path
from dsf.runtime.sweeps.jobs import failures_in, resolve_read
from dsf.runtime.sweeps.over_sets import has_several_sets, over_sets, over_sets_markdown
from dsf.runtime.sweeps.plot import write_aggregate_plot, write_plot
from dsf.runtime.sweeps.store import read_lines
from dsf.runtime.sweeps.table import build_table, markdown
from dsf.shell.errors import UserError
from dsf.shell.files import require_writable_parent, write_each
from dsf.shell.generated_section import replace_section, require_section
from dsf.shell.installed import require_installed


@dataclass(frozen=True)
class TableConfig:
    """Render a sweep's results as Markdown and a plot. Needs neither datasets nor torch; cells without a result are
    shown as not run.
    """

    name: Annotated[str, tyro.conf.Positional]
    """Name of the sweep: a shipped one, or that in --spec."""
    spec: Path | None = None
    """YAML file of the sweep, where it is not a shipped one."""
    out: Path = DEFAULT_OUT
    """Directory of the trainings: where failed cells have left their reasons, and the results are by default."""
    results: Path | None = None
    """Results store. Default: results.jsonl in --out."""
    markdown: Path | None = None
    """Also write the table here, between the lines <!-- sweep:NAME:begin --> and <!-- sweep:NAME:end -->; a file that
    does not exist is created with them."""
    plot: Path | None = None
    """Also write a PNG here, one panel per column; needs the report extra."""
    aggregate_plot: Path | None = None
    """Also write a PNG of the rows over all datasets together, each over the same ones: those that all rows have run.
    The picture's figures then stand below the table, too, as they do where that is a part of the sets; needs the report
    extra."""


def table(config: TableConfig) -> None:
    """``dsf-bench table``."""
    path = config.spec or sweep_path(config.name)
    spec = read_sweep(path)
    if config.spec is not None and spec.name != config.name:
        raise UserError(f"{path} is the sweep {spec.name}, not {config.name}: use that name")
    store = config.results or config.out / RESULTS_NAME
    for output in (config.markdown, config.plot, config.aggregate_plot):
        if output is not None:
            require_writable_parent(output, path, store)
    if config.plot is not None and config.plot == config.aggregate_plot:
        raise UserError(f"--plot and --aggregate-plot are both {config.plot}: name two files")
    section = f"sweep:{spec.name}"
    if config.markdown is not None:
        require_section(config.markdown, section)
    if config.plot is not None or config.aggregate_plot is not None:
        require_installed("report", "matplotlib")
    cells = resolve_read(spec, path)
    if config.results is not None and not store.exists():
        raise UserError(f"there are no results at {store}: dsf-bench sweep {config.name} --results {store} makes them")
    found = build_table(spec, cells, read_lines(store, tabulated=True), failures_in(config.out, cells))
    together = over_sets(found) if config.aggregate_plot is not None or has_several_sets(found) else None
    told = together is not None and (config.aggregate_plot is not None or 0 < len(together.sets) < together.of)
    text = markdown(found, over_sets_markdown(together) if together is not None and told else "")
    writing: list[Callable[[], None]] = [functools.partial(print, text, end="")]
    if config.markdown is not None:
        writing.append(functools.partial(replace_section, config.markdown, section, text))
    if config.plot is not None:
        writing.append(functools.partial(write_plot, found, config.plot))
    if together is not None and config.aggregate_plot is not None:
        writing.append(functools.partial(write_aggregate_plot, together, config.aggregate_plot))
    write_each(*writing)
